/* AsyncCall: the awaitable that one call of an async_ function makes.
 *
 * Each step (send, throw, am_send) switches into the function's greenlet; what
 * comes back is what the function hands up to wait for, its result, or its
 * exception. The call owns its worker from the first step to the last; the worker
 * refers back without owning, so a dropped call is finalized like a coroutine: GreenletExit
 * is thrown into it, in its own thread.
 */
#include "core.h"

#include <stddef.h>
#include <structmember.h>

static PyMemberDef call_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioCall, weakrefs), READONLY, NULL},
    {NULL},
};

/* Let go of what it was called with, and of its locals. Runs Python. */
void
gio_call_drop_job(GioCall *c)
{
    gio_locals_end(&c->locals);
    if (c->portal) { /* its coroutine tells what became of it */
        return;
    }
    Py_CLEAR(c->fn);
    for (Py_ssize_t i = 1; i <= Py_SIZE(c); i++) {
        Py_CLEAR(c->argv[i]);
    }
    Py_CLEAR(c->kwnames);
}

PyObject *
gio_call_new(PyTypeObject *type, PyObject *fn, PyObject *const *args, size_t nargsf,
             PyObject *kwnames)
{
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    Py_ssize_t total = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    GioCall *c = PyObject_GC_NewVar(GioCall, type, total);
    if (c == NULL) {
        return NULL;
    }
    memset((char *)c + sizeof(PyVarObject), 0, offsetof(GioCall, argv) - sizeof(PyVarObject));
    c->fn = Py_NewRef(fn);
    c->kwnames = Py_XNewRef(kwnames);
    c->nargs = nargs;
    c->argv[0] = NULL;
    for (Py_ssize_t i = 0; i < total; i++) {
        c->argv[i + 1] = Py_NewRef(args[i]);
    }
    PyObject_GC_Track(c);
    return (PyObject *)c;
}

/* ---- the coroutine protocol ----------------------------------------------- */

PySendResult
gio_call_am_send(GioCall *c, PyObject *value, PyObject **result)
{
    return gio_call_step(c, GIO_IN_SEND, Py_NewRef(value == NULL ? Py_None : value), result);
}

PyObject *
gio_method_result(PySendResult r, PyObject *result)
{
    if (r != PYGEN_RETURN) {
        return result;
    }
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static PyObject *
call_send(GioCall *c, PyObject *value)
{
    PyObject *result;
    PySendResult r = gio_call_step(c, GIO_IN_SEND, Py_NewRef(value), &result);
    return gio_method_result(r, result);
}

PyObject *
gio_call_iternext(GioCall *c)
{
    return call_send(c, Py_None);
}

PyObject *
gio_exception_from_throw(PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError, "throw() takes 1 to 3 arguments (%zd given)", nargs);
        return NULL;
    }
    PyObject *type = args[0];
    PyObject *value = nargs > 1 ? args[1] : Py_None;
    PyObject *tb = nargs > 2 ? args[2] : Py_None;
    PyObject *exc;
    if (PyExceptionInstance_Check(type) && value == Py_None) {
        exc = Py_NewRef(type);
    }
    else if (!PyExceptionClass_Check(type)) {
        PyErr_Format(PyExc_TypeError,
                     "exceptions must be classes or instances of BaseException, not %.200s",
                     Py_TYPE(type)->tp_name);
        return NULL;
    }
    else if (PyObject_TypeCheck(value, (PyTypeObject *)type)) {
        exc = Py_NewRef(value);
    }
    else if (value == Py_None) {
        exc = PyObject_CallNoArgs(type);
    }
    else if (PyTuple_Check(value)) {
        exc = PyObject_Call(type, value, NULL);
    }
    else {
        exc = PyObject_CallOneArg(type, value);
    }
    if (exc == NULL) {
        return NULL;
    }
    if (!PyExceptionInstance_Check(exc)) {
        PyErr_SetString(PyExc_TypeError, "throw() needs an exception");
        Py_DECREF(exc);
        return NULL;
    }
    if (tb != Py_None && PyException_SetTraceback(exc, tb) < 0) {
        Py_DECREF(exc);
        return NULL;
    }
    return exc;
}

/* ---- the future protocol, of what tasks wait for ------------------------------ */

static bool
is_keyword(PyObject *kwnames, const char *name)
{
    return PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), name) == 0;
}

PyObject *
gio_callback_context(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (nargs != 1 || nkw > 1 || (nkw == 1 && !is_keyword(kwnames, "context"))) {
        PyErr_SetString(PyExc_TypeError, "add_done_callback() takes a function and context=");
        return NULL;
    }
    return nkw == 1 && args[1] != Py_None ? Py_NewRef(args[1]) : PyContext_CopyCurrent();
}

PyObject *
gio_cancel_message(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (nargs + nkw > 1 || (nkw == 1 && !is_keyword(kwnames, "msg"))) {
        PyErr_SetString(PyExc_TypeError, "cancel() takes one argument, msg");
        return NULL;
    }
    return nargs + nkw == 1 ? args[0] : Py_None;
}

PyObject *
gio_cancelled(GioState *st, PyObject *msg)
{
    return msg == NULL || msg == Py_None ? PyObject_CallNoArgs(st->cancelled_error)
                                         : PyObject_CallOneArg(st->cancelled_error, msg);
}

/* ---- a call's methods ---------------------------------------------------------- */

static PyObject *
call_throw(GioCall *c, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *exc = gio_exception_from_throw(args, nargs), *result;
    if (exc == NULL) {
        return NULL;
    }
    PySendResult r = gio_call_step(c, GIO_IN_THROW, exc, &result);
    return gio_method_result(r, result);
}

static PyObject *
call_close(GioCall *c, PyObject *Py_UNUSED(ignored))
{
    if (gio_call_close(c) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- introspection --------------------------------------------------------- */

static PyObject *
call_lookup_name(GioCall *c, PyObject *attr)
{
    if (c->name != NULL) {
        return Py_NewRef(c->name);
    }
    if (c->fn != NULL) {
        PyObject *name = PyObject_GetAttr(c->fn, attr);
        if (name != NULL && PyUnicode_Check(name)) {
            return name;
        }
        Py_XDECREF(name);
        PyErr_Clear();
    }
    return PyUnicode_FromString(c->fn != NULL ? Py_TYPE(c->fn)->tp_name : "async_ call");
}

static PyObject *
call_get_name(GioCall *c, void *Py_UNUSED(closure))
{
    return call_lookup_name(c, GIO_STATE(c)->str_name);
}

static PyObject *
call_get_qualname(GioCall *c, void *Py_UNUSED(closure))
{
    return call_lookup_name(c, GIO_STATE(c)->str_qualname);
}

static int
call_set_name(GioCall *c, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL || !PyUnicode_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "the name of an async_ call must be a string");
        return -1;
    }
    Py_XSETREF(c->name, Py_NewRef(value));
    return 0;
}

static PyObject *
call_get_running(GioCall *c, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(c->status == GIO_CALL_RUNNING);
}

static PyObject *
call_get_suspended(GioCall *c, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(c->status == GIO_CALL_SUSPENDED);
}

PyObject *
gio_call_get_greenlet(GioCall *c, void *Py_UNUSED(closure))
{
    GioWorker *w = c->worker;
    if (w == NULL || (c->portal && c->status == GIO_CALL_NEW)) {
        Py_RETURN_NONE;
    }
    return Py_NewRef(w->inner != NULL ? w->inner : (PyObject *)w);
}

PyObject *
gio_call_get_driver(GioCall *c, void *Py_UNUSED(closure))
{
    PyObject *driver = c->worker == NULL ? NULL : c->worker->driver;
    return Py_NewRef(driver == NULL ? Py_None : driver);
}

static PyObject *
call_get_frame(GioCall *c, void *closure)
{
    if (c->status != GIO_CALL_SUSPENDED) {
        Py_RETURN_NONE;
    }
    PyObject *g = gio_call_get_greenlet(c, closure);
    PyObject *frame = PyObject_GetAttrString(g, "gr_frame");
    Py_DECREF(g);
    return frame;
}

PyObject *
gio_call_get_await(GioCall *c, void *Py_UNUSED(closure))
{
    if (c->status != GIO_CALL_SUSPENDED || c->worker->awaiting == NULL) {
        Py_RETURN_NONE;
    }
    return Py_NewRef(c->worker->driven != NULL ? c->worker->driven : c->worker->awaiting);
}

static PyObject *
call_repr(GioCall *c)
{
    static const char *const status[] = {"not started", "running", "suspended", "finished"};
    PyObject *name = call_get_qualname(c, NULL);
    if (name == NULL) {
        return NULL;
    }
    PyObject *repr =
        PyUnicode_FromFormat("<async_ call of %U, %s at %p>", name, status[c->status], c);
    Py_DECREF(name);
    return repr;
}

/* ---- lifetime --------------------------------------------------------------- */

int
gio_call_traverse(GioCall *c, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(c));
    Py_VISIT(c->fn);
    Py_VISIT(c->kwnames);
    Py_VISIT(c->name);
    Py_VISIT(c->job.kept);
    Py_VISIT(c->hub);
    Py_VISIT(c->ahead);
    for (Py_ssize_t i = 1; i <= Py_SIZE(c); i++) {
        Py_VISIT(c->argv[i]);
    }
    /* A suspended stack is opaque, but for what it waits on: a task that waits on what only the
     * task's own stack has is garbage, as it would be with a coroutine. */
    if (c->worker != NULL && c->status == GIO_CALL_SUSPENDED) {
        Py_VISIT(c->worker->awaiting);
    }
    return 0;
}

/* No tp_clear: what it refers to never changes, so a cycle through it has a member that can be
 * cleared, and a call that can still be reached meanwhile stays whole. */

/* As a coroutine's: unwind what is suspended. In another thread than its own it is
 * handed over; the owner unwinds it at its next call, or when it ends. */
void
gio_call_finalize(GioCall *c)
{
    if ((c->status != GIO_CALL_SUSPENDED && c->status != GIO_CALL_NEW) || gio_is_finalizing()) {
        return;
    }
    PyObject *exc = gio_err_take();
    if (c->portal && c->status == GIO_CALL_NEW) {
        gio_call_part(c);
        if (exc != NULL) {
            gio_err_give(exc);
        }
        return;
    }
    if (c->status == GIO_CALL_NEW) {
        PyObject *name = call_get_qualname(c, NULL);
        if (name == NULL || PyErr_WarnFormat(PyExc_RuntimeWarning, 1,
                                             "async_ call of '%U' was never awaited", name) < 0) {
            PyErr_WriteUnraisable((PyObject *)c);
        }
        Py_XDECREF(name);
        if (exc != NULL) {
            gio_err_give(exc);
        }
        return;
    }
    GioThread *t = c->thread;
    if (t == NULL) { /* its thread has gone, and the stack with it */
        gio_call_abandon(c);
    }
    else if (t->ident == PyThread_get_thread_ident()) {
        if (gio_call_close(c) < 0) {
            PyErr_WriteUnraisable((PyObject *)c);
        }
    }
    else {
        if (t->orphans == NULL) {
            t->orphans = PyList_New(0);
        }
        if (t->orphans == NULL || PyList_Append(t->orphans, (PyObject *)c) < 0) {
            PyErr_WriteUnraisable((PyObject *)c);
        }
    }
    if (exc != NULL) {
        gio_err_give(exc);
    }
}

void
gio_call_dealloc(GioCall *c)
{
    if (c->status != GIO_CALL_DONE && PyObject_CallFinalizerFromDealloc((PyObject *)c) < 0) {
        return; /* alive again: in its thread's list of orphans, or shown to a warning filter */
    }
    PyTypeObject *type = Py_TYPE(c);
    PyObject_GC_UnTrack(c);
    if (c->worker != NULL) { /* finalized before, or too late for it: leave the stack alone */
        gio_call_abandon(c);
    }
    Py_TRASHCAN_BEGIN(c,
                      gio_call_dealloc); /* calls may be each other's arguments, a million deep */
    if (c->weakrefs != NULL) { /* runs Python, which must not find it in the thread's list */
        PyObject_ClearWeakRefs((PyObject *)c);
    }
    c->portal = false; /* so that the coroutine is dropped, too */
    gio_call_drop_job(c);
    Py_CLEAR(c->hub);
    Py_CLEAR(c->name);
    Py_CLEAR(c->ahead);
    Py_CLEAR(c->job.kept);
    PyObject_GC_Del(c);
    Py_DECREF(type);
    Py_TRASHCAN_END;
}

PyMethodDef gio_call_methods[] = {
    {"send", (PyCFunction)call_send, METH_O,
     "send($self, value, /)\n--\n\nResume the function; return what it waits for, or raise StopIteration."},
    {"throw", (PyCFunction)(void (*)(void))call_throw, METH_FASTCALL,
     "throw($self, typ, val=None, tb=None, /)\n--\n\nRaise an exception at the function's wait."},
    {"close", (PyCFunction)call_close, METH_NOARGS,
     "close($self, /)\n--\n\nRaise GreenletExit at the function's wait and let it finish."},
    {NULL},
};

static PyGetSetDef call_getset[] = {
    {"__name__", (getter)call_get_name, (setter)call_set_name, "The function's name.", NULL},
    {"__qualname__", (getter)call_get_qualname, (setter)call_set_name,
     "The function's qualified name.", NULL},
    {"cr_running", (getter)call_get_running, NULL, "Whether it is being executed now.", NULL},
    {"cr_suspended", (getter)call_get_suspended, NULL, "Whether it has started and waits.", NULL},
    {"cr_frame", (getter)call_get_frame, NULL, "The frame that waits, while suspended.", NULL},
    {"cr_await", (getter)gio_call_get_await, NULL, "What it waits for, while suspended.", NULL},
    {"driver", (getter)gio_call_get_driver, NULL, "The greenlet that drives it, while running.",
     NULL},
    {"greenlet", (getter)gio_call_get_greenlet, NULL, "The greenlet it runs in, once started.",
     NULL},
    {NULL},
};

static PyType_Slot call_slots[] = {
    {Py_tp_doc,
     "The awaitable of one call of an async_ function; its greenlet runs as it is awaited.\n\n"
     "It follows the coroutine protocol (send, throw, close) and may be awaited once, or\n"
     "given to create_task, gather, wait_for or anything else that takes a coroutine. It\n"
     "must be driven by the thread that started it."},
    {Py_tp_members, call_members},
    {Py_tp_methods, gio_call_methods},
    {Py_tp_getset, call_getset},
    {Py_tp_repr, call_repr},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, gio_call_iternext},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, gio_call_am_send},
    {Py_tp_traverse, gio_call_traverse},
    {Py_tp_finalize, gio_call_finalize},
    {Py_tp_dealloc, gio_call_dealloc},
    {0, NULL},
};

static PyType_Spec call_spec = {
    .name = "greenletio._core.AsyncCall",
    .basicsize = sizeof(GioCall),
    .itemsize = sizeof(PyObject *),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = call_slots,
};

int
gio_call_setup_types(PyObject *module, GioState *st)
{
    st->call_type = gio_add_type(module, &call_spec, NULL, true);
    return st->call_type == NULL ? -1 : 0;
}
