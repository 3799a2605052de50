/* Waiter: a one-shot event that speaks the asyncio future protocol.
 *
 * One greenlet, task or plain thread waits on it; whoever ends it (an fd, a
 * timer, set(), cancel()) first takes it off every list, so there is exactly one
 * wake-up. With the GIL any thread may end it. Its nodes and its place in the timers
 * belong to the hub that it is bound to.
 */
#include "core.h"

#include "loop/loop.h"

#include <stddef.h>
#include <structmember.h>
#include <unistd.h>

GioWaiter *
gio_waiter_new(GioState *st, GioHub *hub)
{
    GioWaiter *w = PyObject_GC_New(GioWaiter, st->waiter_type);
    if (w == NULL) {
        return NULL;
    }
    memset((char *)w + sizeof(PyObject), 0, sizeof(*w) - sizeof(PyObject));
    w->hub = (GioHub *)Py_XNewRef(hub);
    w->heap = -1;
    w->fds = &w->one;
    w->one.waiter = w;
    PyObject_GC_Track(w);
    return w;
}

void
gio_waiter_detach(GioWaiter *w)
{
    for (int i = 0; i < w->nfds; i++) {
        if (w->fds[i].linked) {
            gio_poller_remove(&w->fds[i]);
        }
    }
    if (w->heap >= 0) {
        gio_timers_remove(w->hub, w);
    }
    if (w->line != NULL) {
        gio_line_leave(w);
    }
    if (w->held) {
        gio_hub_release(w->hub, w);
    }
}

bool
gio_waiter_finish(GioWaiter *w, GioWaiterStatus status, PyObject *value)
{
    if (w->status != GIO_PENDING) {
        Py_XDECREF(value);
        return false;
    }
    gio_waiter_detach(w);
    w->status = status;
    w->value = value;
    return true;
}

/* ---- waking --------------------------------------------------------------- */

int
gio_call_in_context(PyObject *fn, PyObject *context, PyObject *arg)
{
    if (context != NULL && PyContext_Enter(context) < 0) {
        return -1;
    }
    PyObject *r = PyObject_CallOneArg(fn, arg);
    PyObject *exc = r == NULL ? gio_err_take() : NULL;
    Py_XDECREF(r);
    if (context != NULL && PyContext_Exit(context) < 0) {
        PyErr_WriteUnraisable(fn);
    }
    if (exc == NULL) {
        return 0;
    }
    gio_err_give(exc);
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
        PyErr_ExceptionMatches(PyExc_SystemExit)) {
        return -1;
    }
    PyErr_WriteUnraisable(fn);
    return 0;
}

/* Have the loop call it in its turn; from another thread by its thread-safe door. */
static int
call_later(GioWaiter *w, PyObject *fn, PyObject *context)
{
    GioHub *hub = w->hub;
    if (hub == NULL) { /* no loop: trio's reschedule, or plain code */
        return gio_call_in_context(fn, context, (PyObject *)w);
    }
    GioState *st = hub->state;
    PyObject *arg = gio_wake_argument(w, fn);
    if (hub->native != NULL && !hub->native->debug) {
        if (gio_loop_call_soon(hub->native, fn, arg, context) == 0) {
            return 0;
        }
        if (!hub->native->closed) {
            return -1;
        }
        PyErr_Clear(); /* closed */
        return 0;
    }
    PyObject *loop = gio_hub_loop(hub);
    if (loop == NULL) {
        PyErr_Clear(); /* the loop has gone, and with it whoever waited */
        return 0;
    }
    bool same_thread = hub->ident == PyThread_get_thread_ident();
    PyObject *args[] = {loop, fn, arg, context};
    PyObject *r = PyObject_VectorcallMethod(
        same_thread ? st->str_call_soon : st->str_call_soon_threadsafe, args,
        3 | PY_VECTORCALL_ARGUMENTS_OFFSET, context == NULL ? NULL : st->kw_context);
    Py_DECREF(loop);
    if (r == NULL) {
        if (PyErr_ExceptionMatches(PyExc_RuntimeError)) { /* closed */
            PyErr_Clear();
            return 0;
        }
        return -1;
    }
    Py_DECREF(r);
    return 0;
}

int
gio_waiter_wake(GioWaiter *w, bool direct)
{
    if (w->plain != NULL) {
        uint64_t one = 1;
        if (write(w->plain->wake_fd, &one, sizeof one) < 0) {
            /* Full means that it is awake already. */
        }
        w->plain = NULL;
    }
    PyObject *fn = w->callback, *context = w->context, *more = w->more;
    if (fn == NULL && more == NULL) {
        return w->green == NULL ? 0 : gio_green_wake(w, direct);
    }
    w->callback = w->context = w->more = NULL;
    Py_INCREF(w);
    int ret = 0;
    if (w->green != NULL && gio_green_wake(w, false) < 0) {
        PyErr_WriteUnraisable((PyObject *)w);
    }
    Py_ssize_t i = 0, n = more == NULL ? 0 : PyList_GET_SIZE(more);
    while (fn != NULL) {
        int r = direct ? gio_call_in_context(fn, context, gio_wake_argument(w, fn))
                       : call_later(w, fn, context);
        if (r < 0) {
            if (ret == 0 && direct) {
                ret = -1;
                direct = false; /* the others still get their turn, by the loop */
                PyObject *exc = gio_err_take();
                while (i < n) {
                    PyObject *pair = PyList_GET_ITEM(more, i++);
                    if (call_later(w, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1)) < 0) {
                        PyErr_WriteUnraisable((PyObject *)w);
                    }
                }
                gio_err_give(exc);
            }
            else {
                PyErr_WriteUnraisable(fn);
            }
        }
        Py_CLEAR(fn);
        Py_CLEAR(context);
        if (i < n) {
            PyObject *pair = PyList_GET_ITEM(more, i++);
            fn = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
            context = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
        }
    }
    Py_XDECREF(more);
    Py_DECREF(w);
    return ret;
}

bool
gio_waiter_set(GioWaiter *w, GioWaiterStatus status, PyObject *value)
{
    Py_INCREF(w);
    bool first = gio_waiter_finish(w, status, value);
    if (first && gio_waiter_wake(w, false) < 0) {
        PyErr_WriteUnraisable((PyObject *)w);
    }
    Py_DECREF(w);
    return first;
}

int
gio_waiter_bind(GioState *st, GioWaiter *w)
{
    if (w->hub != NULL) {
        return 0;
    }
    GioThread *t = gio_thread_get(st);
    GioHub *hub = t == NULL ? NULL : gio_hub_running(st, t);
    if (hub == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    w->hub = (GioHub *)Py_NewRef(hub);
    return 0;
}

/* ---- the future protocol ----------------------------------------------------- */

static PyObject *
waiter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Waiter", keywords)) {
        return NULL;
    }
    return (PyObject *)gio_waiter_new(PyType_GetModuleState(type), NULL);
}

static PyObject *
waiter_set(GioWaiter *w, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs > 1) {
        PyErr_Format(PyExc_TypeError, "set() takes at most one argument (%zd given)", nargs);
        return NULL;
    }
    return PyBool_FromLong(gio_waiter_set(w, GIO_SET, Py_NewRef(nargs == 1 ? args[0] : Py_None)));
}

static PyObject *
waiter_set_exception(GioWaiter *w, PyObject *exc)
{
    if (!PyExceptionInstance_Check(exc) || PyErr_GivenExceptionMatches(exc, PyExc_StopIteration)) {
        PyErr_Format(PyExc_TypeError,
                     "set_exception() takes an exception other than StopIteration, "
                     "not %R",
                     exc);
        return NULL;
    }
    return PyBool_FromLong(gio_waiter_set(w, GIO_FAILED, Py_NewRef(exc)));
}

/* The done callback of a foreign future: called by a loop, so it may wake directly whoever waits in
 * that loop's thread. */
static PyObject *
waiter_foreign_wake(GioWaiter *w, PyObject *Py_UNUSED(future))
{
    bool direct = w->hub == NULL || w->hub->ident == PyThread_get_thread_ident();
    if (gio_waiter_finish(w, GIO_SET, Py_NewRef(Py_None)) && gio_waiter_wake(w, direct) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
waiter_wait(GioWaiter *w, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *seconds = Py_None;
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (nargs + nkw > 1 || (nkw == 1 && PyUnicode_CompareWithASCIIString(
                                            PyTuple_GET_ITEM(kwnames, 0), "timeout") != 0)) {
        PyErr_SetString(PyExc_TypeError, "wait() takes one argument, timeout");
        return NULL;
    }
    if (nargs + nkw == 1) {
        seconds = args[0];
    }
    int64_t deadline;
    if (gio_deadline(seconds, &deadline) < 0) {
        return NULL;
    }
    int r = gio_wait_waiter(GIO_STATE(w), w, deadline);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
waiter_done(GioWaiter *w, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(w->status != GIO_PENDING);
}

static PyObject *
waiter_cancelled(GioWaiter *w, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(w->status == GIO_CANCELLED);
}

static PyObject *
waiter_cancel(GioWaiter *w, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *msg = gio_cancel_message(args, nargs, kwnames);
    if (msg == NULL) {
        return NULL;
    }
    if (w->status == GIO_PENDING && w->shielded != NULL) {
        w->shielded->cancels++; /* a timeout that ended meanwhile must not claim it */
        if (w->shielded->kept == NULL) {
            w->shielded->kept = gio_cancelled(GIO_STATE(w), msg);
            if (w->shielded->kept == NULL) {
                return NULL;
            }
        }
        Py_RETURN_TRUE; /* it will be raised when the shield ends */
    }
    return PyBool_FromLong(gio_waiter_set(w, GIO_CANCELLED, Py_NewRef(msg)));
}

/* 0 when it has a result; else -1 with the exception that result() raises. */
static int
waiter_check(GioWaiter *w)
{
    GioState *st = GIO_STATE(w);
    switch (w->status) {
    case GIO_PENDING: {
        PyObject *asyncio = PyImport_ImportModule("asyncio");
        PyObject *type =
            asyncio == NULL ? NULL : PyObject_GetAttrString(asyncio, "InvalidStateError");
        if (type != NULL) {
            PyErr_SetString(type, "Result is not set.");
        }
        Py_XDECREF(type);
        Py_XDECREF(asyncio);
        return -1;
    }
    case GIO_CANCELLED: {
        PyObject *exc = gio_cancelled(st, w->value);
        if (exc != NULL) {
            gio_err_give(exc);
        }
        return -1;
    }
    case GIO_FAILED:
        gio_err_give(Py_NewRef(w->value));
        return -1;
    case GIO_SET:
    case GIO_TIMED_OUT:
        break;
    }
    return 0;
}

static PyObject *
waiter_result(GioWaiter *w, PyObject *Py_UNUSED(ignored))
{
    if (waiter_check(w) < 0) {
        return NULL;
    }
    return Py_NewRef(w->value != NULL ? w->value : Py_None);
}

static PyObject *
waiter_exception(GioWaiter *w, PyObject *Py_UNUSED(ignored))
{
    if (w->status == GIO_FAILED) {
        return Py_NewRef(w->value);
    }
    if (waiter_check(w) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static int
add_callback(GioWaiter *w, PyObject *fn, PyObject *context)
{
    if (w->status != GIO_PENDING) {
        return call_later(w, fn, context);
    }
    if (w->callback == NULL) { /* then there are no more either */
        w->callback = Py_NewRef(fn);
        w->context = Py_NewRef(context);
        return 0;
    }
    /* Before Python 3.12 these two may run Python, which may end it. */
    PyObject *pair = PyTuple_Pack(2, fn, context), *list = pair == NULL ? NULL : PyList_New(0);
    int r = -1;
    if (list != NULL && (w->status != GIO_PENDING || w->callback == NULL)) {
        r = add_callback(w, fn, context);
    }
    else if (list != NULL) {
        if (w->more == NULL) {
            w->more = Py_NewRef(list);
        }
        r = PyList_Append(w->more, pair);
    }
    Py_XDECREF(list);
    Py_XDECREF(pair);
    return r;
}

static PyObject *
waiter_add_done_callback(GioWaiter *w, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *context = gio_callback_context(args, nargs, kwnames);
    int r = context == NULL ? -1 : gio_waiter_bind(GIO_STATE(w), w);
    r = r < 0 ? -1 : add_callback(w, args[0], context);
    Py_XDECREF(context);
    if (r < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Drop the first callback; the next one moves up. */
static void
forget_first(GioWaiter *w)
{
    PyObject *callback = w->callback, *context = w->context;
    w->callback = w->context = NULL;
    if (w->more != NULL && PyList_GET_SIZE(w->more) > 0) {
        PyObject *pair = PyList_GET_ITEM(w->more, 0);
        w->callback = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
        w->context = Py_NewRef(PyTuple_GET_ITEM(pair, 1));
        if (PyList_SetSlice(w->more, 0, 1, NULL) < 0) {
            PyErr_WriteUnraisable((PyObject *)w);
        }
    }
    Py_DECREF(callback);
    Py_XDECREF(context);
}

static PyObject *
waiter_remove_done_callback(GioWaiter *w, PyObject *fn)
{
    Py_ssize_t removed = 0;
    while (w->callback != NULL) {
        PyObject *mine = Py_NewRef(w->callback);
        int same = PyObject_RichCompareBool(mine, fn, Py_EQ); /* runs Python */
        bool still = w->callback == mine;
        Py_DECREF(mine);
        if (same < 0) {
            return NULL;
        }
        if (!same || !still) {
            break;
        }
        forget_first(w);
        removed++;
    }
    for (Py_ssize_t i = 0; w->more != NULL && i < PyList_GET_SIZE(w->more);) {
        PyObject *pair = Py_NewRef(PyList_GET_ITEM(w->more, i));
        int same = PyObject_RichCompareBool(PyTuple_GET_ITEM(pair, 0), fn, Py_EQ); /* likewise */
        bool still =
            w->more != NULL && i < PyList_GET_SIZE(w->more) && PyList_GET_ITEM(w->more, i) == pair;
        Py_DECREF(pair);
        if (same < 0) {
            return NULL;
        }
        if (!same || !still) {
            i++;
            continue;
        }
        if (PyList_SetSlice(w->more, i, i + 1, NULL) < 0) {
            return NULL;
        }
        removed++;
    }
    return PyLong_FromSsize_t(removed);
}

static PyObject *
waiter_get_loop(GioWaiter *w, PyObject *Py_UNUSED(ignored))
{
    if (gio_waiter_bind(GIO_STATE(w), w) < 0) {
        return NULL;
    }
    if (w->hub == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this Waiter is not waited on by any loop");
        return NULL;
    }
    return gio_hub_loop(w->hub);
}

/* `await waiter`: its own iterator. It yields itself once, then has its result. */
static PySendResult
waiter_am_send(GioWaiter *w, PyObject *Py_UNUSED(value), PyObject **result)
{
    *result = NULL;
    if (w->status == GIO_PENDING) {
        if (w->blocking) {
            PyErr_SetString(PyExc_RuntimeError, "await wasn't used with a Waiter");
            return PYGEN_ERROR;
        }
        if (gio_waiter_bind(GIO_STATE(w), w) < 0) {
            return PYGEN_ERROR;
        }
        w->blocking = true;
        *result = Py_NewRef((PyObject *)w);
        return PYGEN_NEXT;
    }
    *result = waiter_result(w, NULL);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

static PyObject *
waiter_iternext(GioWaiter *w)
{
    PyObject *result;
    PySendResult r = waiter_am_send(w, Py_None, &result);
    return gio_method_result(r, result);
}

static PyObject *
waiter_get_blocking(GioWaiter *w, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(w->blocking);
}

static int
waiter_set_blocking(GioWaiter *w, PyObject *value, void *Py_UNUSED(closure))
{
    int on = value == NULL ? 0 : PyObject_IsTrue(value);
    if (on < 0) {
        return -1;
    }
    w->blocking = on;
    return 0;
}

static PyObject *
waiter_repr(GioWaiter *w)
{
    static const char *const status[] = {"pending", "set", "failed", "cancelled", "timed out"};
    if (w->nfds == 1) {
        return PyUnicode_FromFormat("<Waiter %s fd %d for %s at %p>", status[w->status], w->one.fd,
                                    w->one.events == GIO_READ    ? "reading"
                                    : w->one.events == GIO_WRITE ? "writing"
                                                                 : "reading or writing",
                                    w);
    }
    return PyUnicode_FromFormat("<Waiter %s at %p>", status[w->status], w);
}

/* ---- lifetime ------------------------------------------------------------------ */

static int
waiter_traverse(GioWaiter *w, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(w));
    Py_VISIT(w->hub);
    Py_VISIT(w->value);
    Py_VISIT(w->callback);
    Py_VISIT(w->green);
    Py_VISIT(w->context);
    Py_VISIT(w->more);
    return 0;
}

static int
waiter_clear(GioWaiter *w)
{
    gio_waiter_detach(w);
    Py_CLEAR(w->value);
    Py_CLEAR(w->callback);
    if (w->green != NULL) { /* all_tasks() must not find it from here on */
        gio_green_stranded(w->green);
    }
    Py_CLEAR(w->green);
    Py_CLEAR(w->context);
    Py_CLEAR(w->more);
    return 0;
}

static void
waiter_dealloc(GioWaiter *w)
{
    PyTypeObject *type = Py_TYPE(w);
    PyObject_GC_UnTrack(w);
    Py_TRASHCAN_BEGIN(w, waiter_dealloc); /* its result may be another Waiter, and so on */
    if (w->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)w);
    }
    waiter_clear(w);
    if (w->fds != &w->one) {
        PyMem_Free(w->fds);
    }
    Py_CLEAR(w->hub);
    PyObject_GC_Del(w);
    Py_DECREF(type);
    Py_TRASHCAN_END;
}

static PyMemberDef waiter_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioWaiter, weakrefs), READONLY, NULL},
    {NULL},
};

#define METHOD(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef waiter_methods[] = {
    /* those of gio_awaited_getattro() first */
    {"add_done_callback", METHOD(waiter_add_done_callback), METH_FASTCALL | METH_KEYWORDS,
     "add_done_callback($self, fn, /, *, context=None)\n--\n\nHave the loop call fn(self) when it ends."},
    {"get_loop", METHOD(waiter_get_loop), METH_NOARGS,
     "get_loop($self, /)\n--\n\nThe loop it belongs to."},
    {"set", METHOD(waiter_set), METH_FASTCALL,
     "set($self, result=None, /)\n--\n\nEnd the wait with a result, from any thread. False if it had ended."},
    {"set_exception", METHOD(waiter_set_exception), METH_O,
     "set_exception($self, exc, /)\n--\n\nEnd the wait with an exception, from any thread. False if it had "
     "ended."},
    {"_wake", METHOD(waiter_foreign_wake), METH_O, NULL},
    {"wait", METHOD(waiter_wait), METH_FASTCALL | METH_KEYWORDS,
     "wait($self, /, timeout=None)\n--\n\nWait in sync code until it is set; False after `timeout` seconds.\n\n"
     "It can be cancelled. A waiter that was set although CancelledError is raised says so by done()\n"
     "and not cancelled()."},
    {"done", METHOD(waiter_done), METH_NOARGS,
     "done($self, /)\n--\n\nWhether it has ended in any way."},
    {"cancelled", METHOD(waiter_cancelled), METH_NOARGS,
     "cancelled($self, /)\n--\n\nWhether whoever waited was cancelled."},
    {"cancel", METHOD(waiter_cancel), METH_FASTCALL | METH_KEYWORDS,
     "cancel($self, /, msg=None)\n--\n\nEnd the wait with CancelledError. False if it had ended."},
    {"result", METHOD(waiter_result), METH_NOARGS,
     "result($self, /)\n--\n\nThe result, or the exception raised."},
    {"exception", METHOD(waiter_exception), METH_NOARGS,
     "exception($self, /)\n--\n\nThe exception that ended it, or None."},
    {"remove_done_callback", METHOD(waiter_remove_done_callback), METH_O,
     "remove_done_callback($self, fn, /)\n--\n\nForget a callback; returns how many were removed."},
    {NULL},
};

static PyObject *
waiter_getattro(GioWaiter *w, PyObject *name)
{
    GioState *st = GIO_STATE(w);
    if (name == st->str_blocking) {
        return PyBool_FromLong(w->blocking);
    }
    return gio_awaited_getattro(st, (PyObject *)w, name, waiter_methods);
}

static int
waiter_setattro(GioWaiter *w, PyObject *name, PyObject *value)
{
    if (name == GIO_STATE(w)->str_blocking) {
        return waiter_set_blocking(w, value, NULL);
    }
    return PyObject_GenericSetAttr((PyObject *)w, name, value);
}

static PyGetSetDef waiter_getset[] = {
    {"_asyncio_future_blocking", (getter)waiter_get_blocking, (setter)waiter_set_blocking,
     "Whether it was just yielded to a task.", NULL},
    {NULL},
};

static PyType_Slot waiter_slots[] = {
    {Py_tp_doc, "Waiter()\n--\n\nA one-shot event: one greenlet, task or thread waits for it, any "
                "thread may set it."},
    {Py_tp_new, waiter_new},
    {Py_tp_members, waiter_members},
    {Py_tp_methods, waiter_methods},
    {Py_tp_getset, waiter_getset},
    {Py_tp_getattro, waiter_getattro},
    {Py_tp_setattro, waiter_setattro},
    {Py_tp_repr, waiter_repr},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, waiter_iternext},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, waiter_am_send},
    {Py_tp_traverse, waiter_traverse},
    {Py_tp_clear, waiter_clear},
    {Py_tp_dealloc, waiter_dealloc},
    {0, NULL},
};

static PyType_Spec waiter_spec = {
    .name = "greenletio._core.Waiter",
    .basicsize = sizeof(GioWaiter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = waiter_slots,
};

int
gio_waiter_setup_types(PyObject *module, GioState *st)
{
    st->waiter_type = gio_add_type(module, &waiter_spec, NULL, true);
    return st->waiter_type == NULL ? -1 : 0;
}
