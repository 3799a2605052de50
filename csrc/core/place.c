/* Where a caller stands: in a greenlet that is being driven, in plain code with no loop in
 * this thread, or directly in a running loop; and what a wait made there may do.
 *
 * Needs the GIL, any thread. Owns nothing: GioHere holds the running greenlet until it is
 * cleared. Asking the running loop may make its hub; nothing here waits.
 */
#include "core.h"

bool
gio_here_green(GioState *st, GioHere *here)
{
    memset(here, 0, sizeof *here);
    here->current = gio_greenlet_current();
    if (here->current == NULL) {
        PyErr_Clear();
        return false;
    }
    here->worker = gio_worker_of(st, here->current);
    if (here->worker == NULL) {
        return false;
    }
    here->place = GIO_PLACE_GREEN;
    here->job = &here->worker->call->job;
    return true;
}

/* Whether trio runs in this thread; never fails. */
static bool
in_trio(GioState *st)
{
    PyObject *name = PyUnicode_FromString("trio");
    PyObject *trio = name == NULL ? NULL : PyImport_GetModule(name);
    Py_XDECREF(name);
    bool yes = false;
    if (trio != NULL) {
        PyObject *r = PyObject_CallMethod(st->loops, "in_trio", NULL);
        yes = r == Py_True;
        Py_XDECREF(r);
        Py_DECREF(trio);
    }
    PyErr_Clear();
    return yes;
}

int
gio_here(GioState *st, GioHere *here)
{
    bool green = gio_here_green(st, here);
    GioThread *t = here->thread = green ? here->worker->thread : gio_thread_get(st);
    if (t == NULL) {
        goto error;
    }
    if (green && here->worker->call->hub != NULL) { /* the loop that drives it stays the same */
        here->hub = here->worker->call->hub;
        return 0;
    }
    here->hub = gio_hub_running(st, t);
    if (here->hub == NULL && PyErr_Occurred()) {
        goto error;
    }
    bool plain = here->hub == NULL && !in_trio(st);
    if (green && gio_here_lost(here)) {
        goto error;
    }
    if (green) {
        here->worker->call->hub = (GioHub *)Py_XNewRef((PyObject *)here->hub);
    }
    if (plain) {
        here->place = GIO_PLACE_PLAIN;
    }
    else if (!green) {
        here->place = GIO_PLACE_FORBIDDEN;
    }
    if (!green) {
        here->job = &t->job;
    }
    return 0;
error:
    gio_here_clear(here);
    return -1;
}

/* gio_here for those that wait: a call that is being closed waits no more, whoever drives it. */
int
gio_here_to_wait(GioState *st, GioHere *here)
{
    if (gio_here(st, here) < 0) {
        return -1;
    }
    if (here->worker != NULL && here->place == GIO_PLACE_PLAIN && here->worker->call->closing) {
        PyErr_SetString(st->greenlet_exit, "this call is being closed: it can't wait any more");
        gio_here_clear(here);
        return -1;
    }
    return 0;
}

bool
gio_here_lost(const GioHere *here)
{
    if (here->worker == NULL || here->worker->call != NULL) {
        return false;
    }
    PyErr_SetString(PyExc_RuntimeError, "the awaitable of this greenlet has gone: it can't wait");
    return true;
}

void
gio_would_block(GioState *st, const char *what)
{
    if (st->loops == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "greenletio: the interpreter is shutting down");
        return;
    }
    PyObject *exc = PyObject_CallMethod(st->loops, "would_block", "s", what);
    if (exc != NULL) {
        gio_err_give(exc);
    }
}
