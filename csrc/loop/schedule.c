/* The loop's timers: a heap by time, and by order of arrival where times are equal.
 *
 * The times lie in the heap itself and each node has four children: with 100,000 of them it is the
 * cache misses that count, so sifting touches no handle. Cancelling one only marks it; what is
 * marked leaves when it comes to the top, or all at once when it is half of the heap. asyncio's
 * own, of debug mode, cannot be marked: they are searched for and taken out.
 */
#include "loop/loop.h"

#define CHILDREN 4
#define PARENT(i) (((i) - 1) / CHILDREN)
#define DEAD_MIN 64 /* fewer are not worth a sweep */

static bool
before(const GioTimer *a, const GioTimer *b)
{
    return a->when < b->when || (a->when == b->when && a->serial < b->serial);
}

static void
sift_up(GioSchedule *s, Py_ssize_t i, GioTimer timer)
{
    while (i > 0 && before(&timer, &s->timers[PARENT(i)])) {
        s->timers[i] = s->timers[PARENT(i)];
        i = PARENT(i);
    }
    s->timers[i] = timer;
}

static void
sift_down(GioSchedule *s, Py_ssize_t i, GioTimer timer)
{
    for (;;) {
        Py_ssize_t first = CHILDREN * i + 1, child = first;
        if (first >= s->count) {
            break;
        }
        Py_ssize_t end = first + CHILDREN < s->count ? first + CHILDREN : s->count;
        for (Py_ssize_t c = first + 1; c < end; c++) {
            if (before(&s->timers[c], &s->timers[child])) {
                child = c;
            }
        }
        if (!before(&s->timers[child], &timer)) {
            break;
        }
        s->timers[i] = s->timers[child];
        i = child;
    }
    s->timers[i] = timer;
}

/* Where a handle of ours or a waiter keeps the serial of its timer; NULL for one of asyncio's. */
static Py_ssize_t *
serial_of(GioLoop *loop, PyObject *handle)
{
    if (Py_IS_TYPE(handle, loop->state->timer_handle_type)) {
        return &((GioHandle *)handle)->timer;
    }
    if (Py_IS_TYPE(handle, loop->state->waiter_type)) {
        return &((GioWaiter *)handle)->heap;
    }
    return NULL;
}

/* One of asyncio's looks itself whether it was cancelled, when it is run. */
static bool
is_live(GioLoop *loop, const GioTimer *timer)
{
    Py_ssize_t *serial = serial_of(loop, timer->handle);
    return serial == NULL || *serial == timer->serial;
}

/* Take out the first one, whose reference is the caller's; whether it is to be run. */
static bool
pop(GioLoop *loop, PyObject **handle)
{
    GioSchedule *s = &loop->schedule;
    GioTimer first = s->timers[0], last = s->timers[--s->count];
    bool live = is_live(loop, &first);
    Py_ssize_t *serial = serial_of(loop, first.handle);
    if (s->count > 0) {
        sift_down(s, 0, last);
    }
    if (!live) {
        s->dead--;
    }
    else if (serial != NULL) {
        *serial = -1;
    }
    *handle = first.handle;
    return live;
}

/* Let go of all that are dead. Dropping the last may run Python: the heap is in order by then. */
static void
sweep(GioLoop *loop)
{
    GioSchedule *s = &loop->schedule;
    Py_ssize_t live = 0, dead = 0;
    PyObject **dropped = PyMem_Malloc((size_t)s->count * sizeof *dropped);
    if (dropped == NULL) {
        return; /* they leave one by one, then */
    }
    for (Py_ssize_t i = 0; i < s->count; i++) {
        if (is_live(loop, &s->timers[i])) {
            s->timers[live++] = s->timers[i];
        }
        else {
            dropped[dead++] = s->timers[i].handle;
        }
    }
    s->count = live;
    s->dead = 0;
    for (Py_ssize_t i = live > 1 ? PARENT(live - 1) : -1; i >= 0; i--) {
        sift_down(s, i, s->timers[i]);
    }
    for (Py_ssize_t i = 0; i < dead; i++) {
        Py_DECREF(dropped[i]);
    }
    PyMem_Free(dropped);
}

int
gio_schedule_add(GioLoop *loop, PyObject *handle, double when)
{
    GioSchedule *s = &loop->schedule;
    if (s->count == s->size) {
        Py_ssize_t size = s->size ? s->size * 2 : 64;
        GioTimer *timers = PyMem_Realloc(s->timers, (size_t)size * sizeof *timers);
        if (timers == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        s->timers = timers;
        s->size = size;
    }
    Py_ssize_t *serial = serial_of(loop, handle);
    if (serial != NULL) {
        *serial = s->serial;
    }
    sift_up(s, s->count++, (GioTimer){when, s->serial++, Py_NewRef(handle)});
    return 0;
}

void
gio_schedule_cancel(GioLoop *loop, PyObject *handle)
{
    GioSchedule *s = &loop->schedule;
    *serial_of(loop, handle) = -1;
    s->dead++;
}

void
gio_schedule_remove(GioLoop *loop, PyObject *handle)
{
    GioSchedule *s = &loop->schedule;
    Py_ssize_t i =
        serial_of(loop, handle) == NULL ? 0 : s->count; /* ours are cancelled otherwise */
    while (i < s->count && s->timers[i].handle != handle) {
        i++;
    }
    if (i == s->count) {
        return;
    }
    GioTimer last = s->timers[--s->count];
    if (i < s->count && i > 0 && before(&last, &s->timers[PARENT(i)])) {
        sift_up(s, i, last);
    }
    else if (i < s->count) {
        sift_down(s, i, last);
    }
    Py_DECREF(handle);
}

bool
gio_schedule_next(GioLoop *loop, double *when)
{
    GioSchedule *s = &loop->schedule;
    if (s->dead > DEAD_MIN && s->dead > s->count / 2) {
        sweep(loop);
    }
    while (s->count > 0 && !is_live(loop, &s->timers[0])) {
        PyObject *handle;
        pop(loop, &handle);
        Py_DECREF(handle);
    }
    if (s->count > 0) {
        *when = s->timers[0].when;
    }
    return s->count > 0;
}

/* Only in its turn, for what became ready before goes first; unless it has a new deadline. */
static int
waiter_expire(GioLoop *Py_UNUSED(loop), PyObject *self)
{
    GioWaiter *w = (GioWaiter *)self;
    return w->heap == GIO_DUE && gio_waiter_finish(w, GIO_TIMED_OUT, NULL)
               ? gio_waiter_wake(w, true)
               : 0;
}

int
gio_schedule_fire(GioLoop *loop, double end)
{
    GioSchedule *s = &loop->schedule;
    int r = 0;
    while (r == 0 && s->count > 0 && s->timers[0].when < end) {
        PyObject *handle;
        if (pop(loop, &handle)) {
            GioRun run = gio_handle_run_foreign;
            if (Py_IS_TYPE(handle, loop->state->timer_handle_type)) {
                run = gio_handle_run;
            }
            else if (Py_IS_TYPE(handle, loop->state->waiter_type)) {
                ((GioWaiter *)handle)->heap = GIO_DUE;
                run = waiter_expire;
            }
            r = gio_ready_push(loop, run, handle);
        }
        Py_DECREF(handle);
    }
    return r;
}

void
gio_schedule_clear(GioLoop *loop)
{
    GioSchedule *s = &loop->schedule;
    while (s->count > 0) {
        PyObject *handle;
        if (pop(loop, &handle) && Py_IS_TYPE(handle, loop->state->timer_handle_type)) {
            gio_handle_cancel((GioHandle *)handle);
        }
        Py_DECREF(handle);
    }
    GioTimer *timers = s->timers;
    *s = (GioSchedule){.serial = s->serial};
    PyMem_Free(timers);
}
