/* timeout: a scope that limits how long the waits inside it may take together.
 *
 * A scope is only a deadline on its job's stack of scopes; each wait looks at it and
 * takes the earliest. There is no timer that fires into running code. The wait that
 * meets the deadline raises CancelledError, as asyncio.timeout's does, so that code which
 * catches Exception or OSError can't swallow it; the scope turns it into TimeoutError,
 * unless the task was cancelled as well.
 */
#include "core.h"

#include <stddef.h>

static long
task_cancelling(GioState *st)
{
    if (gio_greens_taskless(st)) { /* and so it was never cancelled */
        return 0;
    }
    PyObject *r = PyObject_CallMethod(st->loops, "cancelling", NULL);
    long n = r == NULL ? -1 : PyLong_AsLong(r);
    Py_XDECREF(r);
    if (n < 0) {
        PyErr_Clear();
        return 0;
    }
    return n;
}

/* Whether CancelledError is being handled: we are in the clean-up after one. */
static bool
handling_cancellation(GioState *st)
{
    PyObject *exc = gio_handled_get();
    bool yes = exc != NULL && PyErr_GivenExceptionMatches(exc, st->cancelled_error);
    Py_XDECREF(exc);
    return yes;
}

void
gio_timeout_expire(GioState *st, GioTimeout *scope)
{
    Py_INCREF(scope);
    scope->cancelling = task_cancelling(st); /* runs Python, which may leave the scope */
    scope->expired = true;
    if (scope->job != NULL) {
        scope->job->expired = scope;
        /* In the clean-up after a cancellation that came inside the block: that ends it. */
        if (scope->cancels == scope->job->cancels || !handling_cancellation(st)) {
            scope->cancels = scope->job->cancels;
        }
    }
    Py_DECREF(scope);
    PyErr_SetString(st->cancelled_error, "deadline exceeded");
}

static PyObject *
timeout_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"", NULL};
    PyObject *seconds;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:timeout", keywords, &seconds)) {
        return NULL;
    }
    int64_t deadline;
    if (gio_deadline(seconds, &deadline) < 0) {
        return NULL;
    }
    GioTimeout *t = PyObject_GC_New(GioTimeout, type);
    if (t == NULL) {
        return NULL;
    }
    memset((char *)t + sizeof(PyObject), 0, sizeof(*t) - sizeof(PyObject));
    /* Kept as a length until the block is entered. */
    t->deadline = deadline == GIO_NEVER ? GIO_NEVER : deadline - gio_now();
    PyObject_GC_Track(t);
    return (PyObject *)t;
}

static PyObject *
timeout_enter(GioTimeout *t, PyObject *Py_UNUSED(ignored))
{
    GioState *st = GIO_STATE(t);
    if (t->entered) {
        PyErr_SetString(PyExc_RuntimeError, "a timeout can be entered once");
        return NULL;
    }
    GioHere here;
    if (gio_here(st, &here) < 0) {
        return NULL;
    }
    if (here.place == GIO_PLACE_FORBIDDEN) {
        gio_would_block(st, "greenletio.timeout");
        gio_here_clear(&here);
        return NULL;
    }
    if (t->deadline != GIO_NEVER) {
        t->deadline += gio_now();
    }
    t->cancels = here.job->cancels;
    t->entered = true;
    t->job = here.job;
    t->outer = here.job->scopes;
    here.job->scopes = t;
    gio_here_clear(&here);
    return Py_NewRef((PyObject *)t);
}

/* Off the job's stack, wherever in it the scope stands, and whoever does it. */
static void
unlink_scope(GioTimeout *t)
{
    GioJob *job = t->job;
    GioTimeout **at = &job->scopes;
    while (*at != NULL && *at != t) {
        at = &(*at)->outer;
    }
    if (*at == t) {
        *at = t->outer;
    }
    t->outer = NULL;
    t->job = NULL;
    if (job->expired == t) {
        job->expired = NULL;
    }
    if (job->waiting != NULL && gio_job_rearm(job) < 0) {
        PyErr_WriteUnraisable((PyObject *)t);
    }
}

static PyObject *
timeout_exit(GioTimeout *t, PyObject *const *args, Py_ssize_t nargs)
{
    GioState *st = GIO_STATE(t);
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "__exit__() takes three arguments");
        return NULL;
    }
    if (!t->entered || t->left) {
        PyErr_SetString(PyExc_RuntimeError, "this timeout is not active");
        return NULL;
    }
    t->left = true;
    if (t->job == NULL) { /* its greenlet was given up */
        Py_RETURN_NONE;
    }
    uint64_t cancels = t->job->cancels;
    unlink_scope(t);
    if (t->counted) {
        PyObject *r = PyObject_CallMethod(st->loops, "uncancel", NULL);
        if (r == NULL) {
            PyErr_WriteUnraisable((PyObject *)t);
        }
        Py_XDECREF(r);
    }
    PyObject *exc = args[1];
    if (!t->expired || !PyErr_GivenExceptionMatches(exc, st->cancelled_error) ||
        cancels != t->cancels || task_cancelling(st) > t->cancelling) {
        Py_RETURN_NONE;
    }
    PyErr_SetNone(PyExc_TimeoutError);
    PyObject *timed_out = gio_err_take();
    PyException_SetCause(timed_out, Py_NewRef(exc));
    PyException_SetContext(timed_out, Py_NewRef(exc));
    gio_err_give(timed_out);
    return NULL;
}

static PyObject *
timeout_reschedule(GioTimeout *t, PyObject *seconds)
{
    int64_t deadline;
    if (gio_deadline(seconds, &deadline) < 0) {
        return NULL;
    }
    if (t->left) {
        PyErr_SetString(PyExc_RuntimeError, "the timeout's block has ended");
        return NULL;
    }
    GioWaiter *w = t->job == NULL ? NULL : t->job->waiting;
    if (t->expired || (w != NULL && w->status == GIO_TIMED_OUT && t->deadline <= w->deadline)) {
        PyErr_SetString(PyExc_RuntimeError, "the timeout has expired");
        return NULL;
    }
    if (t->job == NULL) {
        t->deadline = deadline == GIO_NEVER ? GIO_NEVER : deadline - gio_now();
    }
    else {
        t->deadline = deadline;
        if (gio_job_rearm(t->job) < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
timeout_get_expired(GioTimeout *t, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(t->expired);
}

static PyObject *
timeout_get_remaining(GioTimeout *t, void *Py_UNUSED(closure))
{
    if (t->deadline == GIO_NEVER) {
        Py_RETURN_NONE;
    }
    int64_t left = t->job != NULL ? t->deadline - gio_now() : t->deadline;
    return PyFloat_FromDouble(left > 0 ? (double)left / 1e9 : 0.0);
}

static int
timeout_traverse(GioTimeout *t, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(t));
    return 0;
}

static void
timeout_dealloc(GioTimeout *t)
{
    PyTypeObject *type = Py_TYPE(t);
    PyObject_GC_UnTrack(t);
    if (t->job != NULL) { /* entered by hand and never left */
        unlink_scope(t);
    }
    PyObject_GC_Del(t);
    Py_DECREF(type);
}

static PyMethodDef timeout_methods[] = {
    {"__enter__", (PyCFunction)timeout_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))timeout_exit, METH_FASTCALL, NULL},
    {"reschedule", (PyCFunction)timeout_reschedule, METH_O,
     "reschedule($self, seconds, /)\n--\n\nLet it end `seconds` from now; None: never."},
    {NULL},
};

static PyGetSetDef timeout_getset[] = {
    {"expired", (getter)timeout_get_expired, NULL, "Whether a wait met the deadline.", NULL},
    {"remaining", (getter)timeout_get_remaining, NULL, "Seconds that are left; None: no limit.",
     NULL},
    {NULL},
};

static PyType_Slot timeout_slots[] = {
    {Py_tp_doc,
     "timeout(seconds, /)\n--\n\n"
     "Limit the time that the waits of a `with` block may take together, in sync code.\n\n"
     "The wait that meets the deadline raises asyncio.CancelledError, so that finally blocks run\n"
     "and handlers of ordinary errors don't catch it; at the end of the block it becomes\n"
     "TimeoutError. Scopes nest. None is no limit. In a greenlet and in plain code alike; code\n"
     "between two waits is not interrupted. In async code use asyncio.timeout."},
    {Py_tp_new, timeout_new},
    {Py_tp_methods, timeout_methods},
    {Py_tp_getset, timeout_getset},
    {Py_tp_traverse, timeout_traverse},
    {Py_tp_dealloc, timeout_dealloc},
    {0, NULL},
};

static PyType_Spec timeout_spec = {
    .name = "greenletio._core.timeout",
    .basicsize = sizeof(GioTimeout),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = timeout_slots,
};

int
gio_timeout_setup_types(PyObject *module, GioState *st)
{
    st->timeout_type = gio_add_type(module, &timeout_spec, NULL, true);
    return st->timeout_type == NULL ? -1 : 0;
}
