/* The loop's timers: a binary heap by time, and by order of arrival where times are equal.
 *
 * Our handles know their place, so cancelling one costs O(log n) and leaves nothing behind.
 * The times lie in the heap itself: sifting touches no handle but those it moves.
 */
#include "loop/loop.h"

static bool
before(const GioTimer *a, const GioTimer *b)
{
    return a->when < b->when || (a->when == b->when && a->serial < b->serial);
}

static void
note_place(GioLoop *loop, PyObject *handle, Py_ssize_t i)
{
    if (Py_IS_TYPE(handle, loop->state->timer_handle_type)) {
        ((GioHandle *)handle)->place = i;
    }
    else if (Py_IS_TYPE(handle, loop->state->waiter_type)) {
        ((GioWaiter *)handle)->heap = i;
    }
}

static void
put(GioLoop *loop, Py_ssize_t i, GioTimer timer)
{
    loop->schedule.timers[i] = timer;
    note_place(loop, timer.handle, i);
}

static void
sift_up(GioLoop *loop, Py_ssize_t i, GioTimer timer)
{
    GioTimer *timers = loop->schedule.timers;
    while (i > 0 && before(&timer, &timers[(i - 1) / 2])) {
        put(loop, i, timers[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    put(loop, i, timer);
}

static void
sift_down(GioLoop *loop, Py_ssize_t i, GioTimer timer)
{
    GioSchedule *s = &loop->schedule;
    for (;;) {
        Py_ssize_t child = 2 * i + 1;
        if (child >= s->count) {
            break;
        }
        if (child + 1 < s->count && before(&s->timers[child + 1], &s->timers[child])) {
            child++;
        }
        if (!before(&s->timers[child], &timer)) {
            break;
        }
        put(loop, i, s->timers[child]);
        i = child;
    }
    put(loop, i, timer);
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
    sift_up(loop, s->count++, (GioTimer){when, s->serial++, Py_NewRef(handle)});
    return 0;
}

PyObject *
gio_schedule_take(GioLoop *loop, Py_ssize_t place)
{
    GioSchedule *s = &loop->schedule;
    PyObject *handle = s->timers[place].handle;
    note_place(loop, handle, -1);
    GioTimer last = s->timers[--s->count];
    if (place < s->count) {
        if (place > 0 && before(&last, &s->timers[(place - 1) / 2])) {
            sift_up(loop, place, last);
        }
        else {
            sift_down(loop, place, last);
        }
    }
    return handle;
}

Py_ssize_t
gio_schedule_find(GioLoop *loop, PyObject *handle)
{
    for (Py_ssize_t i = 0; i < loop->schedule.count; i++) {
        if (loop->schedule.timers[i].handle == handle) {
            return i;
        }
    }
    return -1;
}

/* Only in its turn, for what became ready before goes first; unless it has a new deadline. */
static int
waiter_expire(GioLoop *Py_UNUSED(loop), PyObject *self)
{
    GioWaiter *w = (GioWaiter *)self;
    return w->heap < 0 && gio_waiter_finish(w, GIO_TIMED_OUT, NULL) ? gio_waiter_wake(w, true) : 0;
}

int
gio_schedule_fire(GioLoop *loop, double end)
{
    GioSchedule *s = &loop->schedule;
    while (s->count > 0 && s->timers[0].when < end) {
        PyObject *handle = s->timers[0].handle;
        GioRun run = Py_IS_TYPE(handle, loop->state->timer_handle_type) ? gio_handle_run
                     : Py_IS_TYPE(handle, loop->state->waiter_type)     ? waiter_expire
                                                                        : gio_handle_run_foreign;
        if (gio_ready_push(loop, run, handle) < 0) {
            return -1;
        }
        Py_DECREF(gio_schedule_take(loop, 0));
    }
    return 0;
}

void
gio_schedule_clear(GioLoop *loop)
{
    GioSchedule *s = &loop->schedule;
    while (s->count > 0) {
        PyObject *handle = gio_schedule_take(loop, s->count - 1);
        if (Py_IS_TYPE(handle, loop->state->timer_handle_type)) {
            gio_handle_cancel((GioHandle *)handle);
        }
        Py_DECREF(handle);
    }
    PyMem_Free(s->timers);
    s->timers = NULL;
    s->size = 0;
}
