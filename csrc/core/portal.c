/* Portal: the coroutine of a task, stepped in a worker, so that sync code below it may wait.
 *
 * A task that is made with a portal around its coroutine steps the portal, which steps the
 * coroutine in a worker of the pool. Where the coroutine itself hands something up, the worker is
 * free again; where sync code under it waits, the worker stays, suspended in the middle of
 * the step, and the task sees a coroutine that awaits something. A worker that somebody else knows
 * (who started a greenlet in it, for instance) stays with its portal from step to step.
 *
 * It is a GioCall (call.c) whose fn is the coroutine, and shares its steps and its
 * lifetime; how far the coroutine is, is asked of the coroutine.
 */
#include "core.h"

#include <stddef.h>
#include <structmember.h>

void
gio_portal_run(GioWorker *w, GioIn kind, PyObject *in)
{
    GioCall *c = w->call;
    GioState *st = w->thread->state;
    GioHere here = {
        /* of borrowed references: the worker is the stack that this runs on */
        .place = GIO_PLACE_GREEN, .thread = w->thread, .hub = c->hub, .worker = w,
        .current = (PyObject *)w, .job = &c->job,
    };
    PyObject *coro = Py_NewRef(c->fn); /* a stack that is never resumed keeps it */
    PyObject *out = NULL;
    if (kind == GIO_IN_THROW) {
        if (PyErr_GivenExceptionMatches(in, st->cancelled_error)) {
            c->job.cancels++;
        }
        gio_err_give(in);
        in = NULL;
    }
    switch (gio_await_step(st, &here, coro, in, &out)) {
    case PYGEN_NEXT:
        w->out_kind = GIO_OUT_REST;
        break;
    case PYGEN_RETURN:
        w->out_kind = GIO_OUT_RETURN;
        break;
    case PYGEN_ERROR:
        out = gio_err_take();
        w->out_kind = GIO_OUT_ERROR;
        break;
    }
    w->out = out;
    Py_DECREF(coro);
}

/* ---- where even a portal does not let wait -------------------------------------- */

static void
refuse(GioState *st, const char *why)
{
    PyObject *exc = st->loops == NULL ? NULL : PyObject_CallMethod(st->loops, "refused", "s", why);
    if (exc != NULL) {
        gio_err_give(exc);
    }
}

int
gio_portal_may_wait(GioState *st, GioCall *c)
{
    if (st->collecting == PyThread_get_thread_ident()) {
        /* Its lists are on the C stack, and it does not run again before it has ended. */
        refuse(st, "the garbage collector called this finalizer, which can't wait");
        return -1;
    }
    if (!c->portal) {
        return 0;
    }
    PyObject *task = PyObject_CallNoArgs(st->current_task);
    PyErr_Clear(); /* no loop, no task */
    Py_XDECREF(task);
    if (task == NULL || task == Py_None) {
        refuse(st, "no task is running here that could be suspended");
        return -1;
    }
    return 0;
}

PyObject *
gio_gc_phase(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    GioState *st = PyModule_GetState(module);
    bool start = nargs > 0 && PyUnicode_Check(args[0]) &&
                 PyUnicode_CompareWithASCIIString(args[0], "start") == 0;
    st->collecting = start ? PyThread_get_thread_ident() : 0;
    Py_RETURN_NONE;
}

/* ---- making one -------------------------------------------------------------------- */

PyObject *
gio_portal_of(GioState *st, PyObject *coro)
{
    if (Py_IS_TYPE(coro, st->call_type) || Py_IS_TYPE(coro, st->portal_type)) {
        return Py_NewRef(coro);
    }
    PyObject *made = gio_call_new(st->portal_type, coro, NULL, 0, NULL);
    if (made != NULL) {
        ((GioCall *)made)->portal = true;
    }
    return made;
}

PyObject *
gio_portal(PyObject *module, PyObject *coro)
{
    return gio_portal_of(PyModule_GetState(module), coro);
}

/* asyncio offers no way to replace a task's coroutine, so the field is found: the one among those
 * of asyncio's own type that refers to it. */
PyObject *
gio_portal_adopt(PyObject *module, PyObject *args)
{
    GioState *st = PyModule_GetState(module);
    PyTypeObject *type;
    PyObject *task;
    GioCall *by;
    if (!PyArg_ParseTuple(args, "O!OO!:_portal_adopt", &PyType_Type, &type, &task, st->portal_type,
                          &by)) {
        return NULL;
    }
    if (!PyObject_TypeCheck(task, type)) {
        PyErr_Format(PyExc_TypeError, "%R is not a %s", task, type->tp_name);
        return NULL;
    }
    PyObject **found = NULL, **end = (PyObject **)((char *)task + type->tp_basicsize);
    for (PyObject **field = (PyObject **)(task + 1); field < end; field++) {
        if (*field != by->fn) {
            continue;
        }
        if (found != NULL) {
            Py_RETURN_FALSE;
        }
        found = field;
    }
    if (found == NULL) {
        Py_RETURN_FALSE;
    }
    *found = Py_NewRef((PyObject *)by);
    Py_DECREF(by->fn); /* the task's reference; the portal has its own */
    Py_RETURN_TRUE;
}

/* ---- the look of a coroutine ---------------------------------------------------------- */

static PyMemberDef portal_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioCall, weakrefs), READONLY, NULL},
    {NULL},
};

static PyObject *
portal_get_running(GioCall *c, void *Py_UNUSED(closure))
{
    return c->status == GIO_CALL_NEW ? PyObject_GetAttrString(c->fn, "cr_running")
                                     : PyBool_FromLong(c->status == GIO_CALL_RUNNING);
}

static PyObject *
portal_get_suspended(GioCall *c, void *Py_UNUSED(closure))
{
    return c->status == GIO_CALL_NEW ? PyObject_GetAttrString(c->fn, "cr_suspended")
                                     : PyBool_FromLong(c->status == GIO_CALL_SUSPENDED);
}

static PyObject *
portal_get_await(GioCall *c, void *closure)
{
    return c->status == GIO_CALL_NEW ? PyObject_GetAttrString(c->fn, "cr_await")
                                     : gio_call_get_await(c, closure);
}

/* What it has not of its own is the coroutine's: its name, frame and code. */
static PyObject *
portal_getattro(GioCall *c, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr((PyObject *)c, name);
    if (value != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return value;
    }
    PyErr_Clear();
    return PyObject_GetAttr(c->fn, name);
}

static PyObject *
portal_repr(GioCall *c)
{
    static const char *const parked[] = {"", "", ", waiting in sync code", ""};
    return PyUnicode_FromFormat("<portal of %R%s>", c->fn, parked[c->status]);
}

static PyGetSetDef portal_getset[] = {
    {"cr_running", (getter)portal_get_running, NULL, "Whether it is being executed now.", NULL},
    {"cr_suspended", (getter)portal_get_suspended, NULL, "Whether it has started and waits.", NULL},
    {"cr_await", (getter)portal_get_await, NULL, "What it waits for, while suspended.", NULL},
    {"driver", (getter)gio_call_get_driver, NULL, "The greenlet that drives it, while running.",
     NULL},
    {"greenlet", (getter)gio_call_get_greenlet, NULL,
     "The greenlet of the step that it is in, None between two.", NULL},
    {NULL},
};

static PyType_Slot portal_slots[] = {
    {Py_tp_doc,
     "The coroutine of a task under portal(): sync code below it may wait.\n\n"
     "It follows the coroutine protocol; what else a coroutine has, is the coroutine's."},
    {Py_tp_members, portal_members},
    {Py_tp_methods, gio_call_methods},
    {Py_tp_getset, portal_getset},
    {Py_tp_getattro, portal_getattro},
    {Py_tp_repr, portal_repr},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, gio_call_iternext},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, gio_call_am_send},
    {Py_tp_traverse, gio_call_traverse},
    {Py_tp_finalize, gio_call_finalize},
    {Py_tp_dealloc, gio_call_dealloc},
    {0, NULL},
};

static PyType_Spec portal_spec = {
    .name = "greenletio._core.PortalCoroutine",
    .basicsize = sizeof(GioCall),
    .itemsize = sizeof(PyObject *),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = portal_slots,
};

int
gio_portal_setup_types(PyObject *module, GioState *st)
{
    st->portal_type = gio_add_type(module, &portal_spec, NULL, true);
    return st->portal_type == NULL ? -1 : 0;
}
