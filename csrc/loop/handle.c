/* Handle and TimerHandle: one call that a loop will make.
 *
 * They have no GC header: most live for one turn of the loop, and tracking them would cost more
 * than all the rest, and start collections besides. What a pending handle refers to is
 * visited through the loop, which owns every pending handle; one that has run or was cancelled
 * refers to nothing, so no cycle can stay in it. The copy of the context that most of them have is
 * taken out of the collector's lists for as long as nobody else can see it, for the same reason.
 * Freed handles are kept in a list for reuse.
 */
#include "loop/loop.h"

#include <stddef.h>
#include <structmember.h>

#define FREE_MAX 512

GioHandle *
gio_handle_new(GioLoop *loop, PyTypeObject *type, PyObject *callback, PyObject *const *args,
               Py_ssize_t nargs, PyObject *context)
{
    GioState *st = loop->state;
    PyObject *tuple = NULL;
    GioHandle *h = NULL;
    bool own = context == NULL || context == Py_None;
    context = own ? PyContext_CopyCurrent() : Py_NewRef(context);
    if (context == NULL) {
        return NULL;
    }
    if (!PyContext_CheckExact(context)) {
        PyErr_Format(PyExc_TypeError, "context must be a contextvars.Context, not %.200s",
                     Py_TYPE(context)->tp_name);
        goto error;
    }
    if (nargs > GIO_HANDLE_INLINE) {
        tuple = PyTuple_New(nargs);
        if (tuple == NULL) {
            goto error;
        }
        for (Py_ssize_t i = 0; i < nargs; i++) {
            PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
        }
    }
    h = st->free_handles;
    if (h != NULL) {
        st->free_handles = (GioHandle *)h->callback;
        st->nfree_handles--;
        PyObject_Init((PyObject *)h, type);
    }
    else {
        h = PyObject_New(GioHandle, type);
        if (h == NULL) {
            goto error;
        }
    }
    h->weakrefs = NULL;
    h->loop = loop;
    h->callback = Py_NewRef(callback);
    h->context = context;
    h->own_context = own;
    if (own) {
        PyObject_GC_UnTrack(context);
    }
    h->timer = -1;
    h->cancelled = h->kept = false;
    h->spread = tuple != NULL;
    if (tuple != NULL) {
        h->nargs = 1;
        h->argv[1] = tuple;
    }
    else {
        h->nargs = (int)nargs;
        for (Py_ssize_t i = 0; i < nargs; i++) {
            h->argv[i + 1] = Py_NewRef(args[i]);
        }
    }
    return h;
error:
    Py_XDECREF(tuple);
    Py_DECREF(context);
    return NULL;
}

/* Before anybody else may see the context, or drop it. */
static void
track_context(GioHandle *h)
{
    if (h->own_context) {
        h->own_context = false;
        PyObject_GC_Track(h->context);
    }
}

/* Let go of everything; what is dropped may run Python, which finds the handle empty. */
static void
handle_drop(GioHandle *h)
{
    track_context(h);
    PyObject *callback = h->callback, *context = h->context, *args[GIO_HANDLE_INLINE];
    int n = h->nargs;
    memcpy(args, h->argv + 1, (size_t)n * sizeof *args);
    h->callback = h->context = NULL;
    h->loop = NULL;
    h->nargs = 0;
    h->spread = false;
    Py_XDECREF(callback);
    Py_XDECREF(context);
    for (int i = 0; i < n; i++) {
        Py_DECREF(args[i]);
    }
}

void
gio_handle_cancel(GioHandle *h)
{
    if (h->loop != NULL && !h->cancelled) {
        h->cancelled = true;
        handle_drop(h);
    }
}

int
gio_handle_traverse(GioHandle *h, visitproc visit, void *arg)
{
    Py_VISIT(h->callback);
    if (h->own_context && h->context != NULL) { /* the collector does not know it: look into it */
        int r = Py_TYPE(h->context)->tp_traverse(h->context, visit, arg);
        if (r != 0) {
            return r;
        }
    }
    else {
        Py_VISIT(h->context);
    }
    for (int i = 0; i < h->nargs; i++) {
        Py_VISIT(h->argv[i + 1]);
    }
    return 0;
}

/* ---- running -------------------------------------------------------------------- */

int
gio_loop_report(GioLoop *loop, const char *message, const char *key, PyObject *value)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
        PyErr_ExceptionMatches(PyExc_SystemExit)) {
        return -1;
    }
    PyObject *exc = gio_err_take();
    PyObject *about = Py_BuildValue("{s:s,s:O,s:O}", "message", message, "exception", exc, key,
                                    value == NULL ? Py_None : value);
    Py_DECREF(exc);
    PyObject *r = about == NULL
                      ? NULL
                      : PyObject_CallMethod((PyObject *)loop, "call_exception_handler", "O", about);
    Py_XDECREF(about);
    if (r == NULL) {
        if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
            PyErr_ExceptionMatches(PyExc_SystemExit)) {
            return -1;
        }
        PyErr_WriteUnraisable((PyObject *)loop);
    }
    Py_XDECREF(r);
    return 0;
}

/* The callback has raised: 0 when that was reported, -1 when it ends the run. */
GIO_COLD static int
handle_failed(GioLoop *loop, GioHandle *h, PyObject *callback, PyObject *const *args, int n)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
        PyErr_ExceptionMatches(PyExc_SystemExit)) {
        return -1;
    }
    PyObject *exc = gio_err_take();
    PyObject *given = PyTuple_New(n), *r = NULL;
    for (int i = 0; given != NULL && i < n; i++) {
        PyTuple_SET_ITEM(given, i, Py_NewRef(args[i]));
    }
    if (given != NULL) {
        r = PyObject_CallMethod((PyObject *)loop, "_callback_failed", "OOOO", h, callback, given,
                                exc);
    }
    Py_XDECREF(given);
    Py_DECREF(exc);
    if (r == NULL) {
        if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
            PyErr_ExceptionMatches(PyExc_SystemExit)) {
            return -1;
        }
        PyErr_WriteUnraisable(callback);
    }
    Py_XDECREF(r);
    return 0;
}

int
gio_handle_run(GioLoop *loop, PyObject *self)
{
    GioHandle *h = (GioHandle *)self;
    if (h->loop == NULL) { /* cancelled, or a second time */
        return 0;
    }
    track_context(h);
    PyObject *argv[1 + GIO_HANDLE_INLINE];
    PyObject *callback = h->callback, *context = h->context, *r = NULL;
    int n = h->nargs, ret = 0;
    bool spread = h->spread;
    memcpy(argv + 1, h->argv + 1, (size_t)n * sizeof *argv);
    if (h->kept) {
        Py_INCREF(callback);
        Py_INCREF(context);
        for (int i = 1; i <= n; i++) {
            Py_INCREF(argv[i]);
        }
    }
    else {
        h->callback = h->context = NULL;
        h->loop = NULL;
        h->nargs = 0;
        h->spread = false;
    }
    if (PyContext_Enter(context) == 0) {
        r = spread ? PyObject_Call(callback, argv[1], NULL)
                   : PyObject_Vectorcall(callback, argv + 1,
                                         (size_t)n | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        PyObject *exc = r == NULL ? gio_err_take() : NULL;
        if (PyContext_Exit(context) < 0) {
            PyErr_WriteUnraisable(callback);
        }
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
    if (r == NULL) {
        ret = spread ? handle_failed(loop, h, callback, &PyTuple_GET_ITEM(argv[1], 0),
                                     (int)PyTuple_GET_SIZE(argv[1]))
                     : handle_failed(loop, h, callback, argv + 1, n);
    }
    else {
        Py_DECREF(r);
    }
    Py_DECREF(callback);
    Py_DECREF(context);
    for (int i = 1; i <= n; i++) {
        Py_DECREF(argv[i]);
    }
    return ret;
}

int
gio_handle_run_foreign(GioLoop *loop, PyObject *self)
{
    PyObject *r = PyObject_CallMethod((PyObject *)loop, "_run_handle", "O", self);
    if (r == NULL) {
        if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
            PyErr_ExceptionMatches(PyExc_SystemExit)) {
            return -1;
        }
        return gio_loop_report(loop, "Exception in a handle", "handle", self);
    }
    Py_DECREF(r);
    return 0;
}

/* ---- the Python face --------------------------------------------------------------- */

static PyObject *
handle_cancel(GioHandle *h, PyObject *Py_UNUSED(ignored))
{
    if (h->timer >= 0) {
        gio_schedule_cancel(h->loop, (PyObject *)h);
    }
    if (!h->cancelled) {
        h->cancelled = true; /* even after it has run, as asyncio's */
        handle_drop(h);
    }
    Py_RETURN_NONE;
}

static PyObject *
handle_cancelled(GioHandle *h, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(h->cancelled);
}

static PyObject *
handle_get_context(GioHandle *h, PyObject *Py_UNUSED(ignored))
{
    track_context(h);
    return Py_NewRef(h->context != NULL ? h->context : Py_None);
}

static PyObject *
handle_when(GioHandle *h, PyObject *Py_UNUSED(ignored))
{
    return PyFloat_FromDouble(h->when);
}

static PyObject *
handle_run(GioHandle *h, PyObject *Py_UNUSED(ignored))
{
    if (h->loop != NULL) {
        GioLoop *loop = (GioLoop *)Py_NewRef((PyObject *)h->loop);
        if (h->timer >= 0) {
            gio_schedule_cancel(loop, (PyObject *)h);
        }
        int r = gio_handle_run(loop, (PyObject *)h);
        Py_DECREF(loop);
        if (r < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
handle_get_callback(GioHandle *h, void *Py_UNUSED(closure))
{
    return Py_NewRef(h->callback != NULL ? h->callback : Py_None);
}

static PyObject *
handle_get_args(GioHandle *h, void *Py_UNUSED(closure))
{
    if (h->callback == NULL) {
        Py_RETURN_NONE;
    }
    if (h->spread) {
        return Py_NewRef(h->argv[1]);
    }
    PyObject *args = PyTuple_New(h->nargs);
    for (int i = 0; args != NULL && i < h->nargs; i++) {
        PyTuple_SET_ITEM(args, i, Py_NewRef(h->argv[i + 1]));
    }
    return args;
}

static PyObject *
handle_repr(GioHandle *h)
{
    PyObject *cold = PyImport_ImportModule("greenletio._event_loop");
    PyObject *text = cold == NULL ? NULL : PyObject_CallMethod(cold, "describe_handle", "O", h);
    Py_XDECREF(cold);
    return text;
}

static PyObject *
timer_richcompare(PyObject *a, PyObject *b, int op)
{
    if (!Py_IS_TYPE(b, Py_TYPE(a))) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    if (op == Py_EQ || op == Py_NE) { /* two calls are two, whatever they call */
        return PyBool_FromLong((a == b) == (op == Py_EQ));
    }
    Py_RETURN_RICHCOMPARE(((GioHandle *)a)->when, ((GioHandle *)b)->when, op);
}

static Py_hash_t
timer_hash(PyObject *self)
{
    return PyBaseObject_Type.tp_hash(self);
}

static void
handle_dealloc(GioHandle *h)
{
    PyTypeObject *type = Py_TYPE(h);
    if (h->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)h);
    }
    handle_drop(h);
    GioState *st = PyType_GetModuleState(type);
    if (st->nfree_handles < FREE_MAX) {
        h->callback = (PyObject *)st->free_handles;
        st->free_handles = h;
        st->nfree_handles++;
    }
    else {
        PyObject_Free(h);
    }
    Py_DECREF(type);
}

static PyMethodDef handle_methods[] = {
    {"cancel", (PyCFunction)handle_cancel, METH_NOARGS,
     "cancel($self, /)\n--\n\nDo not make the call; without effect once it has been made."},
    {"cancelled", (PyCFunction)handle_cancelled, METH_NOARGS,
     "cancelled($self, /)\n--\n\nWhether it was cancelled."},
    {"get_context", (PyCFunction)handle_get_context, METH_NOARGS,
     "get_context($self, /)\n--\n\nThe context that the call will run in; None when it is over."},
    {"_run", (PyCFunction)handle_run, METH_NOARGS, "_run($self, /)\n--\n\nMake the call now."},
    {NULL},
};

static PyMethodDef timer_methods[] = {
    {"when", (PyCFunction)handle_when, METH_NOARGS,
     "when($self, /)\n--\n\nThe moment of the call, by the loop's time()."},
    {NULL},
};

static PyMemberDef handle_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioHandle, weakrefs), READONLY, NULL},
    {"_cancelled", T_BOOL, offsetof(GioHandle, cancelled), READONLY, NULL},
    {NULL},
};

static PyMemberDef timer_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioHandle, weakrefs), READONLY, NULL},
    {"_when", T_DOUBLE, offsetof(GioHandle, when), READONLY, NULL},
    {NULL},
};

static PyGetSetDef handle_getset[] = {
    {"_callback", (getter)handle_get_callback, NULL, NULL, NULL},
    {"_args", (getter)handle_get_args, NULL, NULL, NULL},
    {NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "A call that the loop will make at its next turn."},
    {Py_tp_methods, handle_methods},
    {Py_tp_members, handle_members},
    {Py_tp_getset, handle_getset},
    {Py_tp_repr, handle_repr},
    {Py_tp_dealloc, handle_dealloc},
    {0, NULL},
};

static PyType_Spec handle_spec = {
    .name = "greenletio._core.Handle",
    .basicsize = sizeof(GioHandle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = handle_slots,
};

static PyType_Slot timer_slots[] = {
    {Py_tp_doc, "A call that the loop will make when its time has come."},
    {Py_tp_methods, timer_methods},
    {Py_tp_members, timer_members},
    {Py_tp_richcompare, timer_richcompare},
    {Py_tp_hash, timer_hash},
    {Py_tp_dealloc, handle_dealloc},
    {0, NULL},
};

static PyType_Spec timer_spec = {
    .name = "greenletio._core.TimerHandle",
    .basicsize = sizeof(GioHandle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = timer_slots,
};

int
gio_handle_setup_types(PyObject *module, GioState *st)
{
    st->handle_type = gio_add_type(module, &handle_spec, NULL, true);
    if (st->handle_type == NULL) {
        return -1;
    }
    st->timer_handle_type = gio_add_type(module, &timer_spec, (PyObject *)st->handle_type, true);
    return st->timer_handle_type == NULL ? -1 : 0;
}
