/* The hub's timers: a binary heap of waiters by deadline, and one timerfd.
 *
 * Cancelling a timer is O(log n) and touches no kernel object; the timerfd is set
 * again only when an earlier deadline arrives, and may fire once too often after a
 * cancel. On a loop of our make they are timers of the loop itself. Pure C: runs no Python.
 */
#include "core.h"

#include "loop/loop.h"

#include <errno.h>
#ifdef __linux__
#include <sys/timerfd.h>
#endif

static void
place(GioHub *hub, Py_ssize_t i, GioWaiter *w)
{
    hub->timers[i] = w;
    w->heap = i;
}

static void
sift_up(GioHub *hub, Py_ssize_t i, GioWaiter *w)
{
    while (i > 0) {
        Py_ssize_t parent = (i - 1) / 2;
        if (hub->timers[parent]->deadline <= w->deadline) {
            break;
        }
        place(hub, i, hub->timers[parent]);
        i = parent;
    }
    place(hub, i, w);
}

static void
sift_down(GioHub *hub, Py_ssize_t i, GioWaiter *w)
{
    for (;;) {
        Py_ssize_t child = 2 * i + 1;
        if (child >= hub->ntimers) {
            break;
        }
        if (child + 1 < hub->ntimers &&
            hub->timers[child + 1]->deadline < hub->timers[child]->deadline) {
            child++;
        }
        if (w->deadline <= hub->timers[child]->deadline) {
            break;
        }
        place(hub, i, hub->timers[child]);
        i = child;
    }
    place(hub, i, w);
}

/* Have the kernel tell us at the earliest deadline. 0, or -1 with errno. */
static int
arm(GioHub *hub)
{
    int64_t first = hub->ntimers > 0 ? hub->timers[0]->deadline : GIO_NEVER;
    if (first >= hub->armed) {
        return 0;
    }
    struct itimerspec when = {
        .it_value = {.tv_sec = first / 1000000000, .tv_nsec = first % 1000000000}};
    if (first <= 0) { /* zero would disarm it */
        when.it_value = (struct timespec){.tv_nsec = 1};
    }
    if (timerfd_settime(hub->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0) {
        return -1;
    }
    hub->armed = first;
    return 0;
}

int
gio_timers_add(GioHub *hub, GioWaiter *w, int64_t deadline)
{
    if (hub->native != NULL) {
        w->deadline = deadline;
        if (gio_schedule_add(hub->native, (PyObject *)w, (double)deadline * 1e-9) < 0) {
            return -1;
        }
        gio_loop_wake(hub->native);
        return 0;
    }
    if (hub->ntimers == hub->timers_size) {
        Py_ssize_t size = hub->timers_size ? hub->timers_size * 2 : 16;
        GioWaiter **timers = PyMem_Realloc(hub->timers, (size_t)size * sizeof *timers);
        if (timers == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        hub->timers = timers;
        hub->timers_size = size;
    }
    w->deadline = deadline;
    sift_up(hub, hub->ntimers++, w);
    gio_hub_hold(hub, w);
    if (arm(hub) < 0) {
        gio_timers_remove(hub, w);
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

int
gio_timers_reopen(GioHub *hub)
{
    hub->armed = GIO_NEVER;
    if (arm(hub) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

void
gio_timers_remove(GioHub *hub, GioWaiter *w)
{
    if (hub->native != NULL) {
        gio_schedule_cancel(hub->native, (PyObject *)w);
        return;
    }
    Py_ssize_t i = w->heap;
    w->heap = -1;
    GioWaiter *last = hub->timers[--hub->ntimers];
    if (last == w) {
        return;
    }
    if (i > 0 && last->deadline < hub->timers[(i - 1) / 2]->deadline) {
        sift_up(hub, i, last);
    }
    else {
        sift_down(hub, i, last);
    }
}

void
gio_timers_collect(GioHub *hub)
{
    int64_t now = gio_now();
    if (now < hub->armed) {
        return;
    }
    hub->armed = GIO_NEVER; /* it has fired */
    while (hub->ntimers > 0 && hub->timers[0]->deadline <= now) {
        GioWaiter *w = (GioWaiter *)Py_NewRef((PyObject *)hub->timers[0]);
        if (gio_waiter_finish(w, GIO_TIMED_OUT, NULL)) {
            gio_hub_push_ready(hub, w);
        }
        Py_DECREF(w);
    }
    if (arm(hub) < 0) {
        hub->armed = GIO_NEVER; /* the next add tries again */
    }
}
