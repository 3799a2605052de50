/* SockOp: what loop.sock_recv(...) and its kin return.
 *
 * A coroutine to whoever takes it: nothing happens before the first step, which tries at once. If
 * the socket is not ready it yields itself, for while it waits it is a future, too: one that the
 * loop completes when the operation has been carried out, and whose task it then wakes without
 * another turn. A wait that is cancelled has therefore done nothing to the socket. Only send_all
 * may have sent a part, as asyncio's.
 */
#include "loop/sock.h"

#include <structmember.h>

GioSockOp *
gio_sockop_new(GioLoop *loop, const GioSockKind *kind, PyObject *sock)
{
    GioSockOp *op = PyObject_GC_New(GioSockOp, loop->state->sock_op_type);
    if (op == NULL) {
        return NULL;
    }
    memset((char *)op + sizeof(PyObject), 0, sizeof *op - sizeof(PyObject));
    op->loop = (GioLoop *)Py_NewRef((PyObject *)loop);
    op->kind = kind;
    op->sock = Py_NewRef(sock);
    PyObject_GC_Track(op);
    return op;
}

/* It is over: let go of what it worked on. */
static void
finish(GioSockOp *op)
{
    gio_sock_leave(op);
    op->status = GIO_OP_DONE;
    if (op->view.obj != NULL) {
        PyBuffer_Release(&op->view);
    }
    Py_CLEAR(op->arg);
    Py_CLEAR(op->address);
}

int
gio_sockop_attempt(GioSockOp *op, PyObject **result)
{
    op->attempting = true;
    int r = op->kind->attempt(op, result);
    op->attempting = false;
    return r;
}

/* Like a coroutine that is running, it can neither be stepped nor ended. */
static int
check_not_attempting(GioSockOp *op)
{
    if (op->attempting) {
        PyErr_Format(PyExc_ValueError, "%s is already executing", op->kind->name);
        return -1;
    }
    return 0;
}

int
gio_sockop_wake(GioSockOp *op, bool direct)
{
    PyObject *callback = op->callback, *context = op->context, *self = (PyObject *)op;
    int r = 0;
    if (callback == NULL) {
        return 0;
    }
    op->callback = op->context = NULL;
    if (op->status != GIO_OP_CANCELLED) {
        self = gio_done_argument(op->loop->state, callback, self);
    }
    if (direct) {
        r = gio_call_in_context(callback, context, self);
    }
    else {
        GioLoop *loop = op->loop;
        GioHandle *h = gio_handle_new(loop, loop->state->handle_type, callback, &self, 1, context);
        if (h == NULL || gio_ready_push(loop, gio_handle_run, (PyObject *)h) < 0) {
            PyErr_WriteUnraisable(self);
        }
        Py_XDECREF(h);
        gio_loop_wake(loop);
    }
    Py_DECREF(callback);
    Py_DECREF(context);
    return r;
}

/* ---- the coroutine protocol ---------------------------------------------------------------- */

/* As asyncio's: in debug mode only. */
static int
check_nonblocking(GioSockOp *op)
{
    int r = gio_socket_nonblocking(op->loop->state, op->sock);
    if (r == 0) {
        PyErr_SetString(PyExc_ValueError, "the socket must be non-blocking");
    }
    return r > 0 ? 0 : -1;
}

static PySendResult
begin(GioSockOp *op, PyObject **result)
{
    op->status = GIO_OP_DONE; /* until it waits */
    if (op->loop->debug && check_nonblocking(op) < 0) {
        return PYGEN_ERROR;
    }
    int r = gio_sock_must_queue(op) ? 0 : gio_sockop_attempt(op, result);
    if (r == 0 && gio_sock_wait(op) < 0) {
        r = -1;
    }
    if (r == 0) {
        op->blocking = true;
        *result = Py_NewRef((PyObject *)op);
        return PYGEN_NEXT;
    }
    finish(op);
    return r < 0 ? PYGEN_ERROR : PYGEN_RETURN;
}

static PyObject *
cancelled(GioSockOp *op)
{
    PyObject *exc = gio_cancelled(op->loop->state, op->value);
    if (exc != NULL) {
        gio_err_give(exc);
    }
    return NULL;
}

static PySendResult
op_am_send(GioSockOp *op, PyObject *value, PyObject **result)
{
    *result = NULL;
    if (check_not_attempting(op) < 0) {
        return PYGEN_ERROR;
    }
    switch (op->status) {
    case GIO_OP_NEW:
        if (value != NULL && value != Py_None) {
            PyErr_Format(PyExc_TypeError, "can't send non-None value to a just-started %s",
                         op->kind->name);
            return PYGEN_ERROR;
        }
        return begin(op, result);
    case GIO_OP_WAITING:
        if (op->blocking) {
            PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
            finish(op);
            return PYGEN_ERROR;
        }
        op->blocking = true; /* somebody has woken the task too early */
        *result = Py_NewRef((PyObject *)op);
        return PYGEN_NEXT;
    case GIO_OP_READY:
        *result = op->value;
        op->value = NULL;
        finish(op);
        return PYGEN_RETURN;
    case GIO_OP_FAILED: {
        PyObject *exc = op->value;
        op->value = NULL;
        finish(op);
        gio_err_give(exc);
        return PYGEN_ERROR;
    }
    case GIO_OP_CANCELLED:
        cancelled(op);
        finish(op);
        return PYGEN_ERROR;
    case GIO_OP_DONE:
        break;
    }
    PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    return PYGEN_ERROR;
}

static PyObject *
op_send(GioSockOp *op, PyObject *value)
{
    PyObject *result;
    PySendResult r = op_am_send(op, value, &result);
    return gio_method_result(r, result);
}

static PyObject *
op_iternext(GioSockOp *op)
{
    return op_send(op, Py_None);
}

static PyObject *
op_throw(GioSockOp *op, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *exc = gio_exception_from_throw(args, nargs);
    if (exc == NULL) {
        return NULL;
    }
    if (check_not_attempting(op) < 0) {
        Py_DECREF(exc);
        return NULL;
    }
    if (op->status == GIO_OP_DONE) {
        Py_DECREF(exc);
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return NULL;
    }
    finish(op);
    gio_err_give(exc);
    return NULL;
}

static PyObject *
op_close(GioSockOp *op, PyObject *Py_UNUSED(ignored))
{
    if (check_not_attempting(op) < 0) {
        return NULL;
    }
    finish(op);
    Py_RETURN_NONE;
}

/* ---- the future protocol, for the one that drives it --------------------------------------------
 */

static PyObject *
op_add_done_callback(GioSockOp *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *context = gio_callback_context(args, nargs, kwnames);
    if (context == NULL) {
        return NULL;
    }
    if (op->callback != NULL) {
        PyErr_Format(PyExc_RuntimeError, "%s is waited for already", op->kind->name);
        Py_DECREF(context);
        return NULL;
    }
    op->context = context;
    op->callback = Py_NewRef(args[0]);
    if (op->status != GIO_OP_WAITING) {
        gio_sockop_wake(op, false);
    }
    Py_RETURN_NONE;
}

static PyObject *
op_remove_done_callback(GioSockOp *op, PyObject *fn)
{
    PyObject *callback = Py_XNewRef(op->callback);
    int same = callback == NULL ? 0 : PyObject_RichCompareBool(callback, fn, Py_EQ);
    Py_XDECREF(callback);
    if (same < 0) {
        return NULL;
    }
    if (same) {
        Py_CLEAR(op->callback);
        Py_CLEAR(op->context);
    }
    return PyLong_FromLong(same);
}

static PyObject *
op_cancel(GioSockOp *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *msg = gio_cancel_message(args, nargs, kwnames);
    if (msg == NULL) {
        return NULL;
    }
    if (op->status != GIO_OP_WAITING) {
        Py_RETURN_FALSE;
    }
    gio_sock_leave(op);
    op->status = GIO_OP_CANCELLED;
    op->value = Py_NewRef(msg);
    gio_sockop_wake(op, false);
    Py_RETURN_TRUE;
}

/* The task looks whether it was cancelled; anything else it learns from its next step. */
static PyObject *
op_result(GioSockOp *op, PyObject *Py_UNUSED(ignored))
{
    if (op->status == GIO_OP_CANCELLED) {
        return cancelled(op);
    }
    Py_RETURN_NONE;
}

static PyObject *
op_done(GioSockOp *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(op->status != GIO_OP_NEW && op->status != GIO_OP_WAITING);
}

static PyObject *
op_cancelled(GioSockOp *op, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(op->status == GIO_OP_CANCELLED);
}

static PyObject *
op_get_loop(GioSockOp *op, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef((PyObject *)op->loop);
}

/* None before it waits: asyncio.isfuture() then says no, and ensure_future() makes a task. */
static PyObject *
op_get_blocking(GioSockOp *op, void *Py_UNUSED(closure))
{
    return op->status == GIO_OP_NEW ? Py_NewRef(Py_None) : PyBool_FromLong(op->blocking);
}

static int
op_set_blocking(GioSockOp *op, PyObject *value, void *Py_UNUSED(closure))
{
    int on = value == NULL ? 0 : PyObject_IsTrue(value);
    if (on < 0) {
        return -1;
    }
    op->blocking = on;
    return 0;
}

/* ---- what debuggers ask a coroutine -------------------------------------------------------------
 */

static PyObject *
op_get_name(GioSockOp *op, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(op->kind->name);
}

static PyObject *
op_get_qualname(GioSockOp *op, void *Py_UNUSED(closure))
{
    return PyUnicode_FromFormat("EventLoop.%s", op->kind->name);
}

static PyObject *
op_get_running(GioSockOp *op, void *Py_UNUSED(closure))
{
    Py_RETURN_FALSE;
}

static PyObject *
op_get_suspended(GioSockOp *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(op->status != GIO_OP_NEW && op->status != GIO_OP_DONE);
}

static PyObject *
op_get_none(GioSockOp *op, void *Py_UNUSED(closure))
{
    Py_RETURN_NONE;
}

static PyObject *
op_repr(GioSockOp *op)
{
    static const char *const status[] = {
        "not awaited", "waiting", "ready", "failed", "cancelled", "done",
    };
    return PyUnicode_FromFormat("<%s %s on %R>", op->kind->name, status[op->status], op->sock);
}

/* ---- lifetime
 * ------------------------------------------------------------------------------------ */

static int
op_traverse(GioSockOp *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(op->loop);
    Py_VISIT(op->sock);
    Py_VISIT(op->arg);
    Py_VISIT(op->address);
    Py_VISIT(op->value);
    Py_VISIT(op->callback);
    Py_VISIT(op->context);
    Py_VISIT(op->view.obj);
    return 0;
}

/* The socket and the loop stay: whoever can still reach us may ask for them, and no cycle goes
 * through them alone. */
static int
op_clear(GioSockOp *op)
{
    finish(op);
    Py_CLEAR(op->value);
    Py_CLEAR(op->callback);
    Py_CLEAR(op->context);
    return 0;
}

static void
op_dealloc(GioSockOp *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    op_clear(op);
    Py_DECREF(op->sock);
    Py_DECREF(op->loop);
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

#define METHOD(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef op_methods[] = {
    /* those of gio_awaited_getattro() first */
    {"add_done_callback", METHOD(op_add_done_callback), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"get_loop", (PyCFunction)op_get_loop, METH_NOARGS, NULL},
    {"send", (PyCFunction)op_send, METH_O,
     "send($self, value, /)\n--\n\nTry, or return what is to be waited for; StopIteration has the result."},
    {"throw", METHOD(op_throw), METH_FASTCALL,
     "throw($self, typ, val=None, tb=None, /)\n--\n\nEnd it by an exception."},
    {"close", (PyCFunction)op_close, METH_NOARGS, "close($self, /)\n--\n\nGive it up."},
    {"remove_done_callback", (PyCFunction)op_remove_done_callback, METH_O, NULL},
    {"cancel", METHOD(op_cancel), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"cancelled", (PyCFunction)op_cancelled, METH_NOARGS, NULL},
    {"done", (PyCFunction)op_done, METH_NOARGS, NULL},
    {"result", (PyCFunction)op_result, METH_NOARGS, NULL},
    {NULL},
};

static PyObject *
op_getattro(GioSockOp *op, PyObject *name)
{
    GioState *st = op->loop->state;
    if (name == st->str_blocking) {
        return op_get_blocking(op, NULL);
    }
    return gio_awaited_getattro(st, (PyObject *)op, name, op_methods);
}

static int
op_setattro(GioSockOp *op, PyObject *name, PyObject *value)
{
    if (name == op->loop->state->str_blocking) {
        return op_set_blocking(op, value, NULL);
    }
    return PyObject_GenericSetAttr((PyObject *)op, name, value);
}

static PyGetSetDef op_getset[] = {
    {"_asyncio_future_blocking", (getter)op_get_blocking, (setter)op_set_blocking, NULL, NULL},
    {"__name__", (getter)op_get_name, NULL, NULL, NULL},
    {"__qualname__", (getter)op_get_qualname, NULL, NULL, NULL},
    {"cr_running", (getter)op_get_running, NULL, NULL, NULL},
    {"cr_suspended", (getter)op_get_suspended, NULL, NULL, NULL},
    {"cr_frame", (getter)op_get_none, NULL, NULL, NULL},
    {"cr_await", (getter)op_get_none, NULL, NULL, NULL},
    {NULL},
};

static PyType_Slot op_slots[] = {
    {Py_tp_doc, "The awaitable of one sock_recv() or its kin."},
    {Py_tp_methods, op_methods},
    {Py_tp_getset, op_getset},
    {Py_tp_getattro, op_getattro},
    {Py_tp_setattro, op_setattro},
    {Py_tp_repr, op_repr},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, op_iternext},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, op_am_send},
    {Py_tp_traverse, op_traverse},
    {Py_tp_clear, op_clear},
    {Py_tp_dealloc, op_dealloc},
    {0, NULL},
};

static PyType_Spec op_spec = {
    .name = "greenletio._core._SockOp",
    .basicsize = sizeof(GioSockOp),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = op_slots,
};

int
gio_sockop_setup_types(PyObject *module, GioState *st)
{
    st->sock_op_type = gio_add_type(module, &op_spec, NULL, false);
    return st->sock_op_type == NULL ? -1 : 0;
}
