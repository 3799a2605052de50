/* The one operation that everything blocking is reduced to: wait for fds, a moment,
 * or a Waiter, from wherever the caller stands.
 *
 * In a greenlet that is being driven, the greenlet is suspended on a Waiter and its
 * loop goes on. Where no loop runs in this thread, the thread blocks in poll(2),
 * or runs its own loop if it spawned something there. Directly in a running loop it is
 * refused. All need the GIL; poll(2) is called without it.
 */
#include "core.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

int64_t
gio_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int
gio_deadline(PyObject *seconds, int64_t *deadline)
{
    if (seconds == Py_None) {
        *deadline = GIO_NEVER;
        return 0;
    }
    double s = PyFloat_AsDouble(seconds);
    if (s == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    if (isnan(s)) {
        PyErr_SetString(PyExc_ValueError, "a timeout must be a number of seconds, not NaN");
        return -1;
    }
    int64_t now = gio_now();
    /* Longer than a century is for ever. */
    *deadline = s <= 0 ? now : s > 3.2e9 ? GIO_NEVER : now + (int64_t)(s * 1e9);
    return 0;
}

/* ---- the job's deadlines ------------------------------------------------------- */

int64_t
gio_job_deadline(GioJob *job, GioTimeout **scope)
{
    int64_t first = GIO_NEVER;
    *scope = NULL;
    if (job->shield == 0) {
        for (GioTimeout *s = job->scopes; s != NULL; s = s->outer) {
            /* An inner scope that ends together with an outer one ends first. */
            if (!s->expired && s->deadline < first) {
                first = s->deadline;
                *scope = s;
            }
        }
    }
    return first;
}

/* ---- in a greenlet ------------------------------------------------------------- */

/* Under trio there is no hub: trio's own primitives wait. */
static int
suspend_in_trio(GioState *st, GioWaiter *w, int64_t deadline, bool shielded)
{
    PyObject *r;
    double seconds = deadline == GIO_NEVER ? -1 : (double)(deadline - gio_now()) / 1e9;
    if (deadline != GIO_NEVER && seconds < 0) {
        seconds = 0;
    }
    if (w->nfds > 0) {
        PyObject *fds = PyList_New(w->nfds);
        for (int i = 0; fds != NULL && i < w->nfds; i++) {
            PyObject *pair = Py_BuildValue("(ii)", w->fds[i].fd, w->fds[i].events);
            if (pair == NULL) {
                Py_CLEAR(fds);
                break;
            }
            PyList_SET_ITEM(fds, i, pair);
        }
        r = fds == NULL
                ? NULL
                : PyObject_CallMethod(st->loops, "trio_wait_fds", "Ndi", fds, seconds, shielded);
        if (r == Py_True) {
            gio_waiter_finish(w, GIO_SET, NULL);
        }
    }
    else {
        r = PyObject_CallMethod(st->loops, "trio_wait", "Odi", w, seconds, shielded);
    }
    if (r == NULL) {
        gio_waiter_finish(w, GIO_CANCELLED, NULL);
        return -1;
    }
    Py_DECREF(r);
    return w->status == GIO_PENDING ? 0 : 1;
}

/* Note what the job waits on, and set the timer of the wait. */
static int
job_arm(GioJob *job, GioWaiter *w, int64_t deadline)
{
    GioTimeout *scope;
    int64_t limit = gio_job_deadline(job, &scope);
    job->waiting = w;
    job->deadline = deadline;
    if (deadline < limit) {
        limit = deadline;
    }
    return limit == GIO_NEVER || w->status != GIO_PENDING ? 0 : gio_timers_add(w->hub, w, limit);
}

/* The same as a wait begins. In a loop of ours what is ready goes before the timers: with an fd
 * that always is, a scope would never end. So it ends here, before another wait. */
static int
job_begin(GioJob *job, GioWaiter *w, int64_t deadline)
{
    GioTimeout *scope;
    int64_t limit = gio_job_deadline(job, &scope);
    if (w->hub->native != NULL && scope != NULL && limit <= deadline && limit <= gio_now()) {
        job->waiting = w;
        job->deadline = deadline;
        gio_waiter_finish(w, GIO_TIMED_OUT, NULL);
        return 0;
    }
    return job_arm(job, w, deadline);
}

int
gio_job_rearm(GioJob *job)
{
    GioWaiter *w = job->waiting;
    if (w == NULL || w->hub == NULL || w->status != GIO_PENDING) {
        return 0;
    }
    if (w->heap >= 0) {
        gio_timers_remove(w->hub, w);
    }
    w->heap = -1; /* if it was due, it is so no more */
    return job_arm(job, w, job->deadline);
}

/* The outcome of a wait that is over: 1 set, 0 its own deadline, -1 with the exception. */
static int
job_outcome(GioState *st, GioJob *job, GioWaiter *w)
{
    GioTimeout *scope;
    switch (w->status) {
    case GIO_FAILED:
        gio_err_give(Py_NewRef(w->value));
        return -1;
    case GIO_CANCELLED:
        PyErr_SetNone(st->cancelled_error);
        return -1;
    case GIO_TIMED_OUT:
        if (gio_job_deadline(job, &scope) <= job->deadline && scope != NULL) {
            gio_timeout_expire(st, scope);
            return -1;
        }
        return 0;
    case GIO_PENDING:
    case GIO_SET:
        break;
    }
    return 1;
}

bool
gio_job_keep(GioState *st, GioJob *job)
{
    if (job->shield == 0 || !PyErr_ExceptionMatches(st->cancelled_error)) {
        return false;
    }
    PyObject *exc = gio_err_take();
    if (job->kept == NULL) {
        job->kept = exc;
    }
    else {
        Py_DECREF(exc);
    }
    return true;
}

/* The exception that is raised ends the wait. If it was thrown in by somebody else than
 * its task, the task is parked on w still: it is told, and comes for the outcome. */
static void
give_up(GioWaiter *w)
{
    if (gio_waiter_finish(w, GIO_CANCELLED, NULL) && (w->callback != NULL || w->green != NULL)) {
        PyObject *exc = gio_err_take();
        if (gio_waiter_wake(w, false) < 0) {
            PyErr_WriteUnraisable((PyObject *)w);
        }
        gio_err_give(exc);
    }
}

int
gio_suspend(GioState *st, GioHere *here, GioWaiter *w, int64_t deadline, bool ours)
{
    GioJob *job = here->job;
    GioWorker *worker = here->worker;
    int r = 1;
    if (gio_here_lost(here)) {
        gio_waiter_finish(w, GIO_CANCELLED, NULL);
        return -1;
    }
    if (w->hub == NULL) {
        GioTimeout *scope;
        int64_t limit = gio_job_deadline(job, &scope);
        job->deadline = deadline;
        job->waiting = w;
        bool shielded = job->shield++ > 0; /* the limits are looked at here, not once more below */
        r = suspend_in_trio(st, w, limit < deadline ? limit : deadline, shielded);
        if (worker->call != NULL) {
            job->shield--;
            job->waiting = NULL;
        }
        if (r != 0 || worker->call == NULL) {
            return r;
        }
        gio_waiter_finish(w, GIO_TIMED_OUT, NULL);
        return job_outcome(st, job, w);
    }
    if (job_begin(job, w, deadline) < 0) {
        gio_waiter_finish(w, GIO_CANCELLED, NULL);
        r = -1;
    }
    while (w->status == GIO_PENDING) {
        w->blocking = true;
        w->shielded = job->shield > 0 ? job : NULL;
        PyObject *sent = gio_worker_yield(worker, here->current, Py_NewRef((PyObject *)w), ours);
        w->shielded = NULL;
        if (sent != NULL) {
            Py_DECREF(sent);
            continue; /* pending still: driven by hand, or by a stray wake-up */
        }
        if (worker->call == NULL) { /* given up: the job has gone */
            gio_waiter_finish(w, GIO_CANCELLED, NULL);
            return -1;
        }
        if (!gio_job_keep(st, job)) {
            if (worker->call->closing) {
                gio_waiter_finish(w, GIO_CANCELLED, NULL);
            }
            else {
                give_up(w);
            }
            r = -1;
            break;
        }
    }
    job->waiting = NULL;
    return r < 0 ? -1 : job_outcome(st, job, w);
}

/* ---- in plain code ---------------------------------------------------------------- */

/* The thread's own loop, if something spawned on it still runs. */
static int
own_loop_busy(GioState *st, GioThread *t)
{
    if (t->own_loop == NULL) {
        return 0;
    }
    PyObject *r = PyObject_CallMethod(st->loops, "busy", "O", t->own_loop);
    int busy = r == NULL ? -1 : PyObject_IsTrue(r);
    Py_XDECREF(r);
    return busy;
}

/* poll(2) within the scopes: n ready, 0 at the deadline, -1 with an exception. Or until a
 * signal handler has ended w, if there is one: 0. */
static int
plain_poll(GioState *st, GioHere *here, struct pollfd *fds, nfds_t n, GioWaiter *w,
           int64_t deadline)
{
    for (;;) {
        if (gio_here_lost(here)) {
            return -1;
        }
        GioTimeout *scope;
        int64_t limit = gio_job_deadline(here->job, &scope);
        if (deadline <= limit) {
            limit = deadline;
            scope = NULL;
        }
        int64_t left = limit == GIO_NEVER ? -1 : limit - gio_now();
        if (limit != GIO_NEVER && left < 0) {
            left = 0;
        }
        int r;
        Py_BEGIN_ALLOW_THREADS
#ifdef __linux__
        struct timespec ts = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
        r = ppoll(fds, n, left < 0 ? NULL : &ts, NULL);
#else
        int64_t ms = (left + 999999) / 1000000;
        r = poll(fds, n, left < 0 ? -1 : ms > INT32_MAX ? INT32_MAX : (int)ms);
#endif
        Py_END_ALLOW_THREADS
        if (r > 0) {
            return r;
        }
        if (r < 0 && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (r < 0 && PyErr_CheckSignals() < 0) {
            return -1;
        }
        if (w != NULL && w->status != GIO_PENDING) { /* a wait in the handler took its wake-up */
            return 0;
        }
        if (r < 0) { /* the handler may have changed the scopes */
            continue;
        }
        if (limit != GIO_NEVER && gio_now() >= limit) {
            if (scope != NULL) {
                gio_timeout_expire(st, scope);
                return -1;
            }
            return 0;
        }
    }
}

int
gio_run_until(GioState *st, GioHere *here, PyObject *loop, GioWaiter *w, int64_t deadline)
{
    PyObject *r = NULL;
    GioJob *job = here->job;
    if (gio_here_lost(here)) {
        gio_waiter_finish(w, GIO_CANCELLED, NULL);
        return -1;
    }
    GioWaiter *outer = job->waiting; /* a signal handler's wait inside another */
    int64_t outer_deadline = job->deadline;
    job->in_vain = 0;
    if (job_begin(job, w, deadline) == 0) {
        r = PyObject_CallMethod(st->loops, "run_until", "OO", loop, w);
    }
    int ret = -1;
    if (here->worker != NULL && here->worker->call == NULL) { /* given up: the job has gone */
        gio_waiter_finish(w, GIO_CANCELLED, NULL);
        if (r != NULL) {
            gio_here_lost(here);
        }
        Py_XDECREF(r);
        return -1;
    }
    if (r == NULL) {
        gio_waiter_finish(w, GIO_CANCELLED, NULL);
    }
    else {
        ret = job_outcome(st, job, w);
    }
    job->waiting = outer;
    job->deadline = outer_deadline;
    Py_XDECREF(r);
    return ret;
}

/* ---- fds --------------------------------------------------------------------------- */

/* What poll(2) has found: how many are ready for what was asked of them. */
static int
read_pollfds(const struct pollfd *fds, const int *events, int *ready, int n)
{
    int count = 0;
    for (int i = 0; i < n; i++) {
        short got = fds[i].revents;
        ready[i] = 0;
        if (got & (POLLIN | POLLPRI | POLLHUP | POLLERR | POLLNVAL)) {
            ready[i] |= GIO_READ;
        }
        if (got & (POLLOUT | POLLHUP | POLLERR | POLLNVAL)) {
            ready[i] |= GIO_WRITE;
        }
        ready[i] &= events[i];
        count += ready[i] != 0;
    }
    return count;
}

static int
count_ready(const int *ready, int n)
{
    int count = 0;
    for (int i = 0; i < n; i++) {
        count += ready[i] != 0;
    }
    return count;
}

static void
fill_pollfds(struct pollfd *fds, const int *nums, const int *events, int n)
{
    for (int i = 0; i < n; i++) {
        fds[i] = (struct pollfd){
            .fd = nums[i],
            .events = (short)((events[i] & GIO_READ ? POLLIN | POLLPRI : 0) |
                              (events[i] & GIO_WRITE ? POLLOUT : 0)),
        };
    }
}

static int
suspend_on_fds(GioState *st, GioHere *here, GioHub *hub, const int *fds, const int *events, int n,
               int64_t deadline, int *ready)
{
    GioWaiter *w = gio_waiter_new(st, hub);
    if (w == NULL) {
        return -1;
    }
    int r = -1;
    if (n > 1) {
        w->fds = PyMem_Calloc((size_t)n, sizeof *w->fds);
        if (w->fds == NULL) {
            w->fds = &w->one;
            PyErr_NoMemory();
            goto done;
        }
    }
    w->nfds = n;
    for (int i = 0; i < n; i++) {
        w->fds[i].waiter = w;
        w->fds[i].fd = fds[i];
        w->fds[i].events = events[i];
    }
    if (hub != NULL) {
        r = gio_poller_add(hub, w);
        if (r != 0) {
            gio_waiter_finish(w, GIO_CANCELLED, NULL);
            goto done;
        }
    }
    r = here->place == GIO_PLACE_GREEN
            ? gio_suspend(st, here, w, deadline, true)
            : gio_run_until(st, here, here->thread->own_loop, w, deadline);
done:
    for (int i = 0; i < w->nfds; i++) {
        ready[i] = w->fds[i].ready;
    }
    Py_DECREF(w);
    return r;
}

int
gio_wait_fds(GioState *st, const int *fds, const int *events, int *ready, int n, int64_t deadline)
{
    GioHere here;
    if (gio_here_to_wait(st, &here) < 0) {
        return -1;
    }
    int r = -1;
    struct pollfd *pfds = NULL, one;
    for (int i = 0; i < n; i++) {
        if (fds[i] < 0) { /* poll(2) would pass over it */
            errno = EBADF;
            PyErr_SetFromErrno(PyExc_OSError);
            goto done;
        }
    }
    if (here.place == GIO_PLACE_FORBIDDEN) {
        gio_would_block(st,
                        n == 1 ? "waiting for a file descriptor" : "waiting for file descriptors");
        goto done;
    }
    GioHub *hub = here.hub;
    if (here.place == GIO_PLACE_PLAIN) {
        int busy = own_loop_busy(st, here.thread);
        if (busy < 0 ||
            (busy && (hub = gio_hub_of_loop(st, here.thread, here.thread->own_loop)) == NULL)) {
            goto done;
        }
    }
    bool blocking = here.place == GIO_PLACE_PLAIN && hub == NULL;
    if (blocking || n != 1) {
        pfds = n == 1 ? &one : PyMem_Malloc((size_t)(n ? n : 1) * sizeof *pfds);
        if (pfds == NULL) {
            PyErr_NoMemory();
            goto done;
        }
        fill_pollfds(pfds, fds, events, n);
    }
    if (blocking) {
        r = plain_poll(st, &here, pfds, (nfds_t)n, NULL, deadline);
        if (r > 0) {
            r = read_pollfds(pfds, events, ready, n);
            for (int i = 0; i < n; i++) {
                if (pfds[i].revents & POLLNVAL) {
                    errno = EBADF;
                    PyErr_SetFromErrno(PyExc_OSError);
                    r = -1;
                    break;
                }
            }
        }
        goto done;
    }
    r = suspend_on_fds(st, &here, hub, fds, events, n, deadline, ready);
    if (n == 1) {
        if (r == 1 && ready[0] == 0) { /* trio does not say for what */
            ready[0] = events[0] & (GIO_READ | GIO_WRITE);
        }
    }
    else if (r >= 0) {
        /* All that are ready now; if another took it meanwhile, those that woke us. */
        int count = poll(pfds, (nfds_t)n, 0) > 0 ? 1 : 0;
        r = count == 0 && r == 1 ? count_ready(ready, n) : read_pollfds(pfds, events, ready, n);
    }
done:
    if (pfds != &one) {
        PyMem_Free(pfds);
    }
    gio_here_clear(&here);
    return r;
}

int
gio_wait_fd(GioState *st, int fd, int events, int64_t deadline)
{
    int ready;
    int r = gio_wait_fds(st, &fd, &events, &ready, 1, deadline);
    return r > 0 ? ready : r;
}

/* ---- time, and waiters ---------------------------------------------------------------- */

int
gio_sleep_until(GioState *st, int64_t deadline)
{
    GioHere here;
    if (gio_here_to_wait(st, &here) < 0) {
        return -1;
    }
    int r = -1;
    GioHub *hub = here.hub;
    if (here.place == GIO_PLACE_FORBIDDEN) {
        gio_would_block(st, "sleep");
        goto done;
    }
    if (here.place == GIO_PLACE_PLAIN) {
        int busy = own_loop_busy(st, here.thread);
        if (busy < 0) {
            goto done;
        }
        if (!busy) {
            r = plain_poll(st, &here, NULL, 0, NULL, deadline);
            goto done;
        }
        hub = gio_hub_of_loop(st, here.thread, here.thread->own_loop);
        if (hub == NULL) {
            goto done;
        }
    }
    else if (deadline <= gio_now() && here.hub != NULL && here.job->scopes == NULL &&
             here.job->shield == 0) {
        /* Let the others run once, as asyncio.sleep(0) does. */
        PyObject *sent = gio_worker_yield(here.worker, here.current, Py_NewRef(Py_None), false);
        r = sent == NULL ? -1 : 0;
        Py_XDECREF(sent);
        goto done;
    }
    GioWaiter *w = gio_waiter_new(st, hub);
    if (w == NULL) {
        goto done;
    }
    int64_t soon = gio_now() + 1; /* one pass of the loop at the least */
    if (deadline < soon) {
        deadline = soon;
    }
    r = here.place == GIO_PLACE_GREEN
            ? gio_suspend(st, &here, w, deadline, true)
            : gio_run_until(st, &here, here.thread->own_loop, w, deadline);
    Py_DECREF(w);
done:
    gio_here_clear(&here);
    return r < 0 ? -1 : 0;
}

/* Nothing else can run in this thread: block it on a fd that set() writes to. */
static int
plain_wait(GioState *st, GioHere *here, GioWaiter *w, int64_t deadline)
{
    GioThread *t = here->thread;
    int fd = gio_thread_own_wake_fd(t);
    if (fd < 0) {
        return -1;
    }
    while (w->status == GIO_PENDING) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        GioWaiter *outer = here->job->waiting; /* a signal handler's wait inside another */
        w->plain = t;
        here->job->waiting = w;
        int r = plain_poll(st, here, &p, 1, w, deadline);
        w->plain = NULL;
        if (here->worker == NULL || here->worker->call != NULL) { /* the job is there still */
            here->job->waiting = outer;
        }
        if (r > 0) {
            uint64_t count;
            if (read(fd, &count, sizeof count) < 0) {
                continue; /* left over from an earlier wait */
            }
        }
        else if (r < 0) {
            gio_waiter_finish(w, GIO_CANCELLED, NULL);
            return -1;
        }
        else if (gio_waiter_finish(w, GIO_TIMED_OUT, NULL)) {
            return 0;
        }
    }
    return 1;
}

int
gio_wait_for(GioState *st, GioWaiter *w, int64_t deadline, const char *what)
{
    GioHere here;
    int r = -1;
    if (w->status == GIO_PENDING) {
        if (gio_here_to_wait(st, &here) < 0) {
            return -1;
        }
        bool mine = !w->waited;
        w->waited = true;
        if (here.place == GIO_PLACE_FORBIDDEN) {
            gio_would_block(st, what);
        }
        else if (!mine) {
            PyErr_SetString(PyExc_RuntimeError,
                            "another greenlet or thread waits on this Waiter already");
        }
        else if (here.place == GIO_PLACE_GREEN) {
            if (w->hub == NULL) {
                w->hub = (GioHub *)Py_XNewRef(here.hub);
            }
            if (w->hub == here.hub) {
                r = gio_suspend(st, &here, w, deadline, false);
            }
            else {
                PyErr_SetString(PyExc_RuntimeError, "this Waiter is waited on by another loop");
            }
        }
        else {
            int busy = w->hub != NULL ? 0 : own_loop_busy(st, here.thread);
            if (busy == 0) {
                r = plain_wait(st, &here, w, deadline);
            }
            else if (busy > 0) {
                GioHub *hub = gio_hub_of_loop(st, here.thread, here.thread->own_loop);
                if (hub != NULL) {
                    w->hub = (GioHub *)Py_NewRef(hub);
                    r = gio_run_until(st, &here, here.thread->own_loop, w, deadline);
                }
            }
        }
        if (mine) {
            w->waited = false;
        }
        gio_here_clear(&here);
        if (r <= 0) {
            return r;
        }
    }
    if (w->status == GIO_FAILED) {
        gio_err_give(Py_NewRef(w->value));
        return -1;
    }
    if (w->status == GIO_CANCELLED) {
        PyErr_SetNone(st->cancelled_error);
        return -1;
    }
    return w->status == GIO_SET;
}

int
gio_wait_waiter(GioState *st, GioWaiter *w, int64_t deadline)
{
    return gio_wait_for(st, w, deadline, "waiting");
}
