/* The capsule: what _core offers to the other extension modules (api.h).
 *
 * The functions of the capsule have no module argument, so the one pointer to the
 * module's state is kept here: greenlet does not live in more than one interpreter of
 * a process, and neither do we (module.c refuses a second one).
 */
#include "core.h"

static GioState *the_state;

static GioPlace
api_place(void)
{
    GioHere here;
    PyObject *exc = gio_err_take();
    GioPlace place = GIO_PLACE_PLAIN;
    bool green =
        gio_here_green(the_state, &here); /* driven by hand, its waits may block: no more */
    gio_here_clear(&here);
    if (green) {
        place = GIO_PLACE_GREEN;
    }
    else if (gio_here(the_state, &here) < 0) {
        PyErr_Clear();
    }
    else {
        place = here.place;
        gio_here_clear(&here);
    }
    if (exc != NULL) {
        gio_err_give(exc);
    }
    return place;
}

static PyObject *
api_running_loop(void)
{
    return gio_running_loop(the_state);
}

static void
api_set_would_block(const char *what)
{
    gio_would_block(the_state, what);
}

static int
api_wait_fd(int fd, int events, int64_t deadline)
{
    return gio_wait_fd(the_state, fd, events, deadline);
}

static int
api_wait_fds(const int *fds, const int *events, int *ready, int n, int64_t deadline)
{
    return gio_wait_fds(the_state, fds, events, ready, n, deadline);
}

static int
api_sleep_until(int64_t deadline)
{
    return gio_sleep_until(the_state, deadline);
}

static void
api_fd_closing(int fd)
{
    PyObject *exc = gio_err_take();
    GioHub *hub = (GioHub *)Py_XNewRef((PyObject *)the_state->hubs);
    while (hub != NULL) {
        gio_poller_fd_closing(hub, fd); /* runs Python */
        GioHub *next = (GioHub *)Py_XNewRef((PyObject *)hub->next);
        Py_DECREF(hub);
        hub = next;
    }
    if (exc != NULL) {
        gio_err_give(exc);
    }
}

static PyObject *
api_waiter_new(void)
{
    return (PyObject *)gio_waiter_new(the_state, NULL);
}

static PyObject *
api_waiter_new_in(PyObject *loop)
{
    GioThread *t = gio_thread_get(the_state);
    GioHub *hub = t == NULL ? NULL : gio_hub_of_loop(the_state, t, loop);
    return hub == NULL ? NULL : (PyObject *)gio_waiter_new(the_state, hub);
}

static int
api_waiter_wait(PyObject *waiter, int64_t deadline)
{
    return gio_wait_waiter(the_state, (GioWaiter *)waiter, deadline);
}

static void
api_waiter_set(PyObject *waiter)
{
    PyObject *exc = gio_err_take();
    gio_waiter_set((GioWaiter *)waiter, GIO_SET, NULL);
    if (exc != NULL) {
        gio_err_give(exc);
    }
}

static int
api_waiter_wake(PyObject *waiter)
{
    GioWaiter *w = (GioWaiter *)waiter;
    return gio_waiter_finish(w, GIO_SET, NULL) ? gio_waiter_wake(w, true) : 0;
}

static PyObject *
api_shield(int on)
{
    GioHere here;
    PyObject *exc = gio_err_take(), *kept = NULL;
    if (gio_here(the_state, &here) < 0) {
        PyErr_Clear();
    }
    else {
        if (on) {
            here.job->shield++;
        }
        else if (here.job->shield > 0 && --here.job->shield == 0) {
            kept = here.job->kept;
            here.job->kept = NULL;
        }
        gio_here_clear(&here);
    }
    if (exc != NULL) {
        gio_err_give(exc);
    }
    return kept;
}

static const GioAPI api = {
    .version = GIO_API_VERSION,
    .now = gio_now,
    .place = api_place,
    .running_loop = api_running_loop,
    .set_would_block = api_set_would_block,
    .wait_fd = api_wait_fd,
    .wait_fds = api_wait_fds,
    .sleep_until = api_sleep_until,
    .fd_closing = api_fd_closing,
    .waiter_new = api_waiter_new,
    .waiter_new_in = api_waiter_new_in,
    .waiter_wait = api_waiter_wait,
    .waiter_set = api_waiter_set,
    .waiter_wake = api_waiter_wake,
    .shield = api_shield,
};

GioState *
gio_api_state(void)
{
    return the_state;
}

const GioAPI *
gio_api(void)
{
    return &api;
}

int
gio_api_export(PyObject *module, GioState *st)
{
    if (the_state != NULL) {
        PyErr_SetString(PyExc_ImportError,
                        "greenletio._core can be loaded once in a process: greenlets don't work "
                        "in subinterpreters");
        return -1;
    }
    PyObject *capsule = PyCapsule_New((void *)&api, GIO_API_CAPSULE, NULL);
    if (capsule == NULL || PyModule_AddObject(module, "_C_API", capsule) < 0) {
        Py_XDECREF(capsule);
        return -1;
    }
    the_state = st;
    return 0;
}
