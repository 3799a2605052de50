/* File descriptors: libevent, and what add_reader and its kin keep.
 *
 * A libevent callback runs without the GIL and only notes what has fired; after the poll the
 * notes go to the ready queue in their order. libevent's changelist is not used: what it tells
 * the kernel only at the next poll may be too late. An fd that was stopped and closed by then, but
 * lives on in another process, could never be taken out of the epoll; and whether an fd can be
 * watched at all has to be known at once.
 */
#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/timerfd.h>
#endif
#include <unistd.h>

GioFdSlot *
gio_polls_slot(GioLoop *loop, int fd)
{
    if (fd < 0 || fd >= loop->nfds) {
        if (fcntl(fd, F_GETFD) < 0) { /* before there is room made for every number below it */
            PyErr_SetFromErrno(PyExc_OSError);
            return NULL;
        }
        int n = loop->nfds ? loop->nfds : 64;
        while (n <= fd) {
            n = n > INT_MAX / 2 ? INT_MAX : n * 2;
        }
        GioFdSlot *fds = PyMem_Realloc(loop->fds, (size_t)n * sizeof *fds);
        if (fds == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        memset(fds + loop->nfds, 0, (size_t)(n - loop->nfds) * sizeof *fds);
        loop->fds = fds;
        loop->nfds = n;
    }
    return &loop->fds[fd];
}

/* ---- one registration ---------------------------------------------------------------- */

/* Without the GIL. */
static void
on_event(evutil_socket_t fd, short events, void *arg)
{
    (void)fd, (void)events;
    GioPoll *p = arg;
    GioLoop *loop = p->loop;
    if (loop->nfired == loop->fired_size) {
        size_t size = loop->fired_size ? loop->fired_size * 2 : 64;
        GioPoll **fired = realloc(loop->fired, size * sizeof *fired);
        if (fired == NULL) {
            return; /* level-triggered: the next poll reports it again */
        }
        loop->fired = fired;
        loop->fired_size = size;
    }
    loop->fired[loop->nfired++] = p;
}

void
gio_poll_init(GioPoll *p, GioLoop *loop, int fd, short events, GioRun run, PyObject *self)
{
    event_assign(&p->event, loop->base, fd, events | EV_PERSIST, on_event, p);
    p->loop = loop;
    p->run = run;
    p->self = self;
    p->collect = NULL;
    p->prev = p->next = NULL;
    p->started = false;
}

/* `self` is about to watch an fd, on which sock_recv and its kin may have to make way. May run
 * Python, and so comes first: whatever was looked at before may be gone. */
static int
make_way(GioLoop *loop, int fd, PyObject *self)
{
    if (gio_loop_check_open(loop) < 0 || gio_loop_check_idle(loop) < 0) {
        return -1;
    }
    GioFdSlot *slot = gio_polls_slot(loop, fd);
    if (slot == NULL) {
        return -1;
    }
    return slot->sock == NULL || (PyObject *)slot->sock == self ? 0
                                                                : gio_socks_make_way(slot->sock);
}

/* As gio_poll_start, of one that is not started, but runs no Python. */
static int
start(GioPoll *p)
{
    GioLoop *loop = p->loop;
    if (gio_loop_check_open(loop) < 0 || gio_loop_check_idle(loop) < 0) {
        return -1;
    }
    GioFdSlot *slot = gio_polls_slot(loop, (int)event_get_fd(&p->event));
    if (slot == NULL) {
        return -1;
    }
    if (event_add(&p->event, NULL) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    slot->level += (PyObject *)slot->sock != p->self;
    p->started = true;
    p->prev = NULL;
    p->next = loop->polls;
    if (p->next != NULL) {
        p->next->prev = p;
    }
    loop->polls = p;
    Py_INCREF(p->self);
    return 0;
}

int
gio_poll_start(GioPoll *p)
{
    if (p->started) {
        return 0;
    }
    if (make_way(p->loop, (int)event_get_fd(&p->event), p->self) < 0) {
        return -1;
    }
    return p->started ? 0 : start(p);
}

int
gio_poll_stop(GioPoll *p)
{
    if (!p->started) {
        return 0;
    }
    GioLoop *loop = p->loop;
    if (gio_loop_check_idle(loop) < 0) {
        return -1;
    }
    event_del(&p->event);
    GioFdSlot *slot = &loop->fds[event_get_fd(&p->event)];
    slot->level -= (PyObject *)slot->sock != p->self;
    p->started = false;
    if (p->prev != NULL) {
        p->prev->next = p->next;
    }
    else {
        loop->polls = p->next;
    }
    if (p->next != NULL) {
        p->next->prev = p->prev;
    }
    p->prev = p->next = NULL;
    Py_DECREF(p->self);
    return 0;
}

/* ---- the poll -------------------------------------------------------------------------- */

static void
on_time(evutil_socket_t fd, short events, void *arg)
{
    (void)fd, (void)events;
    ((GioLoop *)arg)->alarm = 0; /* it has ended the poll */
}

#ifdef __linux__
/* Without its most precise timers, libevent's clock goes by the kernel's ticks, of up to 10 ms;
 * with them, each poll is a system call more. Ours is told of a time only if that is before the one
 * that it has: it may end a poll too early, once. */
static int
open_timer(GioLoop *loop)
{
    loop->alarm = 0;
    loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (loop->timer_fd < 0 || event_assign(&loop->timer, loop->base, loop->timer_fd,
                                           EV_READ | EV_PERSIST | EV_ET, on_time, loop) < 0) {
        return -1;
    }
    return event_add(&loop->timer, NULL);
}

/* In a forked child: the timer is the parent's. One of our own takes its number, and event_reinit()
 * watches that; until then the epoll is the parent's, too. */
static void
renew_timer(GioLoop *loop)
{
    int fresh = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    loop->alarm = 0;
    if (fresh < 0 || (fresh != loop->timer_fd && dup3(fresh, loop->timer_fd, O_CLOEXEC) < 0)) {
        PySys_WriteStderr("greenletio: a timer could not be made anew after fork\n");
    }
    if (fresh >= 0 && fresh != loop->timer_fd) {
        close(fresh);
    }
}

static void
close_timer(GioLoop *loop)
{
    if (loop->timer_fd >= 0) {
        event_del(&loop->timer);
        close(loop->timer_fd);
        loop->timer_fd = -1;
    }
}

static int
set_timer(GioLoop *loop, double until)
{
    if (loop->alarm > 0 && loop->alarm <= until) {
        return 0;
    }
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)until}};
    at.it_value.tv_nsec = (long)((until - (double)at.it_value.tv_sec) * 1e9) + 1;
    if (at.it_value.tv_nsec >= 1000000000) {
        at.it_value.tv_sec++;
        at.it_value.tv_nsec = 0;
    }
    int r = timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
    loop->alarm = r == 0 ? until : 0;
    return r;
}
#else
static void
renew_timer(GioLoop *loop)
{
    (void)loop; /* event_reinit() does all there is to do */
}

static int
open_timer(GioLoop *loop)
{
    return evtimer_assign(&loop->timer, loop->base, on_time, loop);
}

static void
close_timer(GioLoop *loop)
{
    event_del(&loop->timer);
}

static int
set_timer(GioLoop *loop, double until)
{
    double timeout = until - gio_loop_time();
    struct timeval tv = {.tv_sec = timeout > 0 ? (time_t)timeout : 0};
    tv.tv_usec = timeout > 0 ? (suseconds_t)((timeout - (double)tv.tv_sec) * 1e6) + 1 : 0;
    return evtimer_add(&loop->timer, &tv);
}
#endif

/* libevent's complaints (an fd that was closed while it was watched, say) are no news. */
static void
on_log(int severity, const char *message)
{
    if (severity >= EVENT_LOG_ERR) {
        fprintf(stderr, "libevent: %s\n", message);
    }
}

int
gio_polls_open(GioLoop *loop)
{
    struct event_config *config = event_config_new();
    if (config != NULL) {
        event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_IGNORE_ENV |
                                          EVENT_BASE_FLAG_NO_CACHE_TIME);
#ifndef __linux__
        event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
#endif
        event_set_log_callback(on_log);
        loop->base = event_base_new_with_config(config);
        event_config_free(config);
    }
    if (loop->base == NULL || open_timer(loop) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

void
gio_polls_close(GioLoop *loop)
{
    gio_socks_close(loop);
    for (int fd = 0; fd < loop->nfds; fd++) {
        GioFdHandlers *f = loop->fds[fd].handlers;
        loop->fds[fd].handlers = NULL;
        for (int i = 0; f != NULL && i < 2; i++) {
            GioHandle *h = f->handle[i];
            gio_poll_stop(&f->poll[i]);
            f->handle[i] = NULL;
            if (h != NULL) {
                gio_handle_cancel(h);
                Py_DECREF(h);
            }
        }
        PyMem_Free(f);
    }
    while (loop->polls != NULL) {
        gio_poll_stop(loop->polls);
    }
    PyMem_Free(loop->fds);
    free(loop->fired);
    loop->fds = NULL;
    loop->fired = NULL;
    loop->nfds = 0;
    loop->nfired = loop->fired_size = 0;
    struct event_base *base = loop->base;
    loop->base = NULL;
    if (base != NULL) {
        close_timer(loop);
        event_base_free(base);
    }
}

int
gio_polls_run(GioLoop *loop, double until)
{
    int flags = EVLOOP_ONCE;
    if (until == 0) {
        flags |= EVLOOP_NONBLOCK;
    }
    else if (until > 0 && set_timer(loop, until) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    loop->nfired = 0;
    loop->woken = false;
    loop->polling = true;
    int r, error;
    Py_BEGIN_ALLOW_THREADS
    errno = 0;
    r = event_base_loop(loop->base, flags);
    error = errno;
    Py_END_ALLOW_THREADS
    loop->polling = false;
    if (loop->hub != NULL && loop->hub->stale) {
        gio_poller_drop_stale(loop->hub);
    }
    for (size_t i = 0; i < loop->nfired; i++) {
        GioPoll *p = loop->fired[i];
        if (p->collect != NULL) {
            p->collect(p);
        }
        else if (gio_ready_push(loop, p->run, p->self) < 0) {
            return -1;
        }
    }
    if (r < 0) { /* somebody has closed the epoll's fd: it will never be better */
        errno = error != 0 ? error : EINVAL;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return PyErr_CheckSignals();
}

PyObject *
gio_loops_after_fork(GioState *st)
{
    PyObject *open = PyList_New(0);
    for (GioLoop *loop = st->event_loops; loop != NULL; loop = loop->next) {
        loop->polling = false; /* the thread that did is not in the child */
        if (loop->base == NULL) {
            continue;
        }
        renew_timer(loop);
        if (event_reinit(loop->base) < 0) {
            PySys_WriteStderr("greenletio: an event loop could not be made anew after fork\n");
        }
        /* One without references was being freed by a thread that is not in the child. */
        if (open != NULL && Py_REFCNT(loop) > 0 && PyList_Append(open, (PyObject *)loop) < 0) {
            Py_CLEAR(open);
        }
    }
    return open;
}

/* ---- add_reader and its kin ---------------------------------------------------------- */

/* Forget the handle of an fd; -1 with an exception. May run Python. */
static int
drop_handler(GioLoop *loop, int fd, int which)
{
    GioFdHandlers *f = loop->fds[fd].handlers;
    if (gio_poll_stop(&f->poll[which]) < 0) {
        return -1;
    }
    GioHandle *h = f->handle[which];
    f->handle[which] = NULL;
    if (f->handle[0] == NULL && f->handle[1] == NULL) {
        loop->fds[fd].handlers = NULL;
        PyMem_Free(f);
    }
    h->kept = false;
    gio_handle_cancel(h);
    Py_DECREF(h);
    return 0;
}

/* Somebody has called cancel() of a handle of _add_reader: it would be ready for ever. */
GIO_COLD static int
drop_cancelled(GioLoop *loop, GioHandle *h)
{
    for (GioPoll *p = loop->polls; p != NULL; p = p->next) {
        if (p->self == (PyObject *)h) {
            int fd = (int)event_get_fd(&p->event);
            return drop_handler(loop, fd, p == &loop->fds[fd].handlers->poll[1]);
        }
    }
    return 0;
}

static int
run_reader(GioLoop *loop, PyObject *self)
{
    GioHandle *h = (GioHandle *)self;
    return h->cancelled && h->kept ? drop_cancelled(loop, h) : gio_handle_run(loop, self);
}

/* The number behind an fd argument, or -1 with ValueError. */
static int
fd_number(PyObject *obj)
{
    int fd = PyObject_AsFileDescriptor(obj);
    if (fd < 0 && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Format(PyExc_ValueError, "Invalid file object: %R", obj);
    }
    return fd;
}

/* What is kept for an open fd, made anew if need be; NULL with an exception. Runs no Python. */
static GioFdHandlers *
handlers_of(GioLoop *loop, int fd)
{
    GioFdSlot *slot = gio_polls_slot(loop, fd);
    if (slot != NULL && slot->handlers == NULL) {
        slot->handlers = PyMem_Calloc(1, sizeof *slot->handlers);
        if (slot->handlers == NULL) {
            PyErr_NoMemory();
        }
    }
    return slot == NULL ? NULL : slot->handlers;
}

static GioHandle *
set_handler(GioLoop *loop, int which, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 2) {
        PyErr_Format(PyExc_TypeError, "a file descriptor and a callback are needed (%zd given)",
                     nargs);
        return NULL;
    }
    int fd = fd_number(args[0]);
    if (fd < 0 || gio_loop_check_open(loop) < 0) {
        return NULL;
    }
    GioHandle *h =
        gio_handle_new(loop, loop->state->handle_type, args[1], args + 2, nargs - 2, NULL);
    if (h == NULL) {
        return NULL;
    }
    h->kept = true;
    /* Both may run Python, which may add and remove handlers of the same fd: from here on nothing
     * does, until the new one is in its place. */
    GioFdHandlers *f = make_way(loop, fd, (PyObject *)h) < 0 ? NULL : handlers_of(loop, fd);
    if (f == NULL) {
        goto error;
    }
    GioPoll *p = &f->poll[which];
    GioHandle *old = f->handle[which];
    if (old != NULL && gio_poll_stop(p) < 0) { /* releases the poll's reference to the old one */
        goto error;
    }
    gio_poll_init(p, loop, fd, which == 0 ? EV_READ : EV_WRITE, run_reader, (PyObject *)h);
    PyObject *exc = NULL;
    if (start(p) < 0) {
        exc = gio_err_take();
        f->handle[which] = NULL;
        Py_CLEAR(h);
    }
    else {
        f->handle[which] = (GioHandle *)Py_NewRef((PyObject *)h);
    }
    if (old != NULL) {
        old->kept = false;
        gio_handle_cancel(old);
        Py_DECREF(old);
    }
    if (exc != NULL) {
        gio_err_give(exc);
    }
    return h;
error:
    Py_DECREF(h);
    return NULL;
}

static PyObject *
unset_handler(GioLoop *loop, int which, PyObject *arg)
{
    int fd = fd_number(arg);
    if (fd < 0) {
        return NULL;
    }
    GioFdHandlers *f = fd < loop->nfds ? loop->fds[fd].handlers : NULL;
    if (f == NULL || f->handle[which] == NULL) {
        Py_RETURN_FALSE;
    }
    if (drop_handler(loop, fd, which) < 0) {
        return NULL;
    }
    Py_RETURN_TRUE;
}

int
gio_polls_claim_fd(GioLoop *loop, int fd, PyObject *transport)
{
    GioFdSlot *slot = gio_polls_slot(loop, fd);
    if (slot == NULL) {
        return -1;
    }
    slot->transport = transport;
    return 0;
}

void
gio_polls_release_fd(GioLoop *loop, int fd, PyObject *transport)
{
    if (fd < loop->nfds && loop->fds[fd].transport == transport) {
        loop->fds[fd].transport = NULL;
    }
}

/* Refuse an fd that a transport uses: ours, or one of asyncio's own in `_transports`. */
static int
check_no_transport(GioLoop *loop, PyObject *arg)
{
    PyObject *r = PyObject_CallMethod((PyObject *)loop, "_ensure_fd_no_transport", "O", arg);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

static PyObject *
loop_transport_of(GioLoop *loop, PyObject *arg)
{
    int fd = fd_number(arg);
    if (fd < 0) {
        return NULL;
    }
    PyObject *transport = fd < loop->nfds ? loop->fds[fd].transport : NULL;
    return Py_NewRef(transport != NULL ? transport : Py_None);
}

static PyObject *
loop__add_reader(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs)
{
    return (PyObject *)set_handler(loop, 0, args, nargs);
}

static PyObject *
loop__add_writer(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs)
{
    return (PyObject *)set_handler(loop, 1, args, nargs);
}

static PyObject *
loop__remove_reader(GioLoop *loop, PyObject *arg)
{
    return unset_handler(loop, 0, arg);
}

static PyObject *
loop__remove_writer(GioLoop *loop, PyObject *arg)
{
    return unset_handler(loop, 1, arg);
}

static PyObject *
add_checked(GioLoop *loop, int which, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (kwnames != NULL && PyTuple_GET_SIZE(kwnames) > 0) {
        return gio_loop_by_asyncio(loop, which == 0 ? "add_reader" : "add_writer", args, nargs,
                                   kwnames);
    }
    if (nargs > 0 && check_no_transport(loop, args[0]) < 0) {
        return NULL;
    }
    GioHandle *h = set_handler(loop, which, args, nargs);
    if (h == NULL) {
        return NULL;
    }
    Py_DECREF(h);
    Py_RETURN_NONE;
}

static PyObject *
loop_add_reader(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return add_checked(loop, 0, args, nargs, kwnames);
}

static PyObject *
loop_add_writer(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return add_checked(loop, 1, args, nargs, kwnames);
}

static PyObject *
loop_remove_reader(GioLoop *loop, PyObject *arg)
{
    return check_no_transport(loop, arg) < 0 ? NULL : unset_handler(loop, 0, arg);
}

static PyObject *
loop_remove_writer(GioLoop *loop, PyObject *arg)
{
    return check_no_transport(loop, arg) < 0 ? NULL : unset_handler(loop, 1, arg);
}

#define FAST(fn) ((PyCFunction)(void (*)(void))(fn))

PyMethodDef gio_poll_methods[] = {
    {"add_reader", FAST(loop_add_reader), METH_FASTCALL | METH_KEYWORDS,
     "add_reader($self, fd, callback, *args)\n--\n\n"
     "Call callback(*args) whenever fd is readable. Only from the loop's own thread."},
    {"add_writer", FAST(loop_add_writer), METH_FASTCALL | METH_KEYWORDS,
     "add_writer($self, fd, callback, *args)\n--\n\n"
     "Call callback(*args) whenever fd is writable. Only from the loop's own thread."},
    {"remove_reader", (PyCFunction)loop_remove_reader, METH_O,
     "remove_reader($self, fd, /)\n--\n\nUndo add_reader; whether there was one."},
    {"remove_writer", (PyCFunction)loop_remove_writer, METH_O,
     "remove_writer($self, fd, /)\n--\n\nUndo add_writer; whether there was one."},
    {"_add_reader", FAST(loop__add_reader), METH_FASTCALL, NULL},
    {"_add_writer", FAST(loop__add_writer), METH_FASTCALL, NULL},
    {"_remove_reader", (PyCFunction)loop__remove_reader, METH_O, NULL},
    {"_remove_writer", (PyCFunction)loop__remove_writer, METH_O, NULL},
    {"_transport_of", (PyCFunction)loop_transport_of, METH_O,
     "The transport of ours that owns an fd, or None."},
    {NULL},
};
