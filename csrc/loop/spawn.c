/* spawn, and Green as Python sees it: the C half of greenletio.Green. green.c has its steps.
 *
 * Here is also decided which greenlets do without a task: those spawned on a loop of ours that runs
 * here, and from whose making nobody (debug mode, a task factory) wants to hear. The others are
 * a task from the beginning, made by greenletio._green.
 */
#include "loop/green.h"

#include <stddef.h>
#include <structmember.h>

/* ---- spawn ----------------------------------------------------------------------------- */

/* On first use: the public class, what makes a task at once, and what has all_tasks() ask us. */
static int
find_public_side(GioState *st)
{
    PyObject *public = PyImport_ImportModule("greenletio._green"), *r = NULL;
    PyObject *spawn_task = public ? PyObject_GetAttrString(public, "spawn_task") : NULL;
    PyObject *type = spawn_task ? PyObject_GetAttrString(public, "Green") : NULL;
    if (type != NULL &&
        (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, st->green_type)))
        PyErr_Format(PyExc_TypeError, "greenletio._green.Green is not a Green: %R", type);
    else if (type != NULL)
        r = GIO_TASKLESS ? PyObject_CallMethod(public, "tell_all_tasks", NULL) : Py_NewRef(Py_None);
    if (r != NULL) {
        Py_XSETREF(st->spawn_task, Py_NewRef(spawn_task));
        Py_XSETREF(st->public_green, (PyTypeObject *)Py_NewRef(type));
    }
    Py_XDECREF(r);
    Py_XDECREF(type);
    Py_XDECREF(spawn_task);
    Py_XDECREF(public);
    return r == NULL ? -1 : 0;
}

#if GIO_TASKLESS
static void
list_add(GioGreen *g)
{
    g->next = g->loop->greens;
    if (g->next != NULL) {
        g->next->prev = g;
    }
    g->loop->greens = g;
}

static PyObject *
start(GioState *st, GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    /* What may run Python comes before the Green, which gc.get_objects() would find half made. */
    PyObject *context = NULL, *name = NULL;
    GioGreen *g = NULL;
    GioCall *call =
        (GioCall *)gio_call_new(st->call_type, args[0], args + 1, (size_t)(nargs - 1), kwnames);
    if (call == NULL || (context = PyContext_CopyCurrent()) == NULL) {
        goto error;
    }
    /* The call forgets its function at its end; the name stays. */
    name = PyFunction_Check(args[0]) ? Py_NewRef(((PyFunctionObject *)args[0])->func_qualname)
                                     : PyObject_GetAttr((PyObject *)call, st->str_qualname);
    if (name == NULL || (g = (GioGreen *)st->public_green->tp_alloc(st->public_green, 0)) == NULL) {
        goto error;
    }
    Py_XSETREF(call->name, name);
    g->module = st;
    g->state = GIO_GREEN_READY;
    g->call = call;
    g->context = context;
    g->loop = (GioLoop *)Py_NewRef((PyObject *)loop);
    if (gio_ready_push(loop, gio_green_run, (PyObject *)g) < 0) {
        Py_DECREF(g);
        return NULL;
    }
    list_add(g);
    return (PyObject *)g;
error:
    Py_XDECREF(name);
    Py_XDECREF(context);
    Py_XDECREF(call);
    return NULL;
}
#endif

static PyObject *
spawn(GioState *st, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "spawn() needs a function to call");
        return NULL;
    }
    if (st->public_green == NULL && find_public_side(st) < 0) {
        return NULL;
    }
#if GIO_TASKLESS
    PyObject *running = gio_running_loop(st);
    if (running == NULL) {
        return NULL;
    }
    PyObject *made = NULL;
    /* A class made from ours may have a create_task of its own. */
    bool ours = Py_TYPE(running)->tp_base == st->loop_type && PyCallable_Check(args[0]);
    if (ours) {
        GioLoop *loop = (GioLoop *)running;
        ours = !loop->debug && loop->task_factory == NULL && gio_green_in_thread(loop);
        made = ours ? start(st, loop, args, nargs, kwnames) : NULL;
    }
    Py_DECREF(running);
    if (ours) {
        return made;
    }
#endif
    return PyObject_Vectorcall(st->spawn_task, args, (size_t)nargs, kwnames);
}

PyObject *
gio_spawn(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    GioState *st = PyModule_GetState(module);
    PyObject *green = spawn(st, args, nargs, kwnames);
    if (green != NULL && st->on_spawn != NULL) {
        PyObject *told = Py_NewRef(st->on_spawn);
        PyObject *r = PyObject_CallOneArg(told, green);
        if (r == NULL) {
            PyErr_WriteUnraisable(told);
        }
        Py_XDECREF(r);
        Py_DECREF(told);
    }
    return green;
}

PyObject *
gio_spawn_tell(PyObject *module, PyObject *function)
{
    GioState *st = PyModule_GetState(module);
    Py_XSETREF(st->on_spawn, function == Py_None ? NULL : Py_NewRef(function));
    Py_RETURN_NONE;
}

/* ---- the Python face ------------------------------------------------------------------------ */

static PyObject *
green_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"task", NULL};
    PyTypeObject *base = type;
    PyObject *task;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Green", keywords, &task)) {
        return NULL;
    }
    while (base->tp_new != green_new || base->tp_base->tp_new == green_new) {
        base = base->tp_base;
    }
    GioGreen *g = (GioGreen *)type->tp_alloc(type, 0);
    if (g != NULL) {
        g->module = PyType_GetModuleState(base);
        g->state = GIO_GREEN_TASK;
        g->task = Py_NewRef(task);
    }
    return (PyObject *)g;
}

static PyObject *
green_get_task(GioGreen *g, void *Py_UNUSED(closure))
{
    return gio_green_make_task(g) < 0 ? NULL : Py_NewRef(g->task);
}

static PyObject *
green_get_taskless(GioGreen *g, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(g->task == NULL && g->state != GIO_GREEN_FAILED);
}

static PyObject *
green_get_call(GioGreen *g, void *Py_UNUSED(closure))
{
    return g->call != NULL ? Py_NewRef((PyObject *)g->call)
                           : PyObject_CallMethod(g->task, "get_coro", NULL);
}

static PyObject *
green_get_ready(GioGreen *g, void *Py_UNUSED(closure))
{
    if (g->task != NULL) {
        return PyObject_CallMethod(g->task, "done", NULL);
    }
    return PyBool_FromLong(g->state == GIO_GREEN_RETURNED || g->state == GIO_GREEN_FAILED);
}

static PyObject *
green_result(GioGreen *g, PyObject *Py_UNUSED(ignored))
{
    if (g->state == GIO_GREEN_RETURNED) {
        return Py_NewRef(g->result);
    }
    if (g->state == GIO_GREEN_FAILED) {
        gio_err_give(Py_NewRef(g->result));
        return NULL;
    }
    return gio_green_make_task(g) < 0 ? NULL : PyObject_CallMethod(g->task, "result", NULL);
}

/* Whether it is the one that calls. */
static int
is_caller(GioGreen *g)
{
    if (g->task == NULL) {
        return g->loop->green == g && gio_green_in_thread(g->loop);
    }
    PyObject *current = PyObject_CallMethod(g->module->loops, "current_task", NULL);
    Py_XDECREF(current); /* g has it, if it is the one */
    return current == NULL ? -1 : current == g->task;
}

/* `item` is called for, or set, when it has ended. */
static int
add_callback(GioGreen *g, PyObject *item)
{
    if (g->task != NULL) {
        return gio_green_hand_over(g, g->task, item);
    }
    if (g->state >= GIO_GREEN_RETURNED) { /* since the caller looked */
        if (!PyTuple_CheckExact(item)) {
            gio_waiter_set((GioWaiter *)item, GIO_SET, Py_NewRef(Py_None));
            return 0;
        }
        return gio_loop_call_soon(g->loop, PyTuple_GET_ITEM(item, 0), (PyObject *)g,
                                  PyTuple_GET_ITEM(item, 1));
    }
    if (g->callbacks != NULL) {
        return PyList_Append(g->callbacks, item);
    }
    PyObject *list = PyList_New(0); /* before Python 3.12 this may run Python */
    if (list == NULL || PyList_Append(list, item) < 0) {
        Py_XDECREF(list);
        return -1;
    }
    if (g->task == NULL && g->state < GIO_GREEN_RETURNED && g->callbacks == NULL) {
        g->callbacks = list;
        return 0;
    }
    Py_DECREF(list);
    return add_callback(g, item);
}

/* The first one that is `item`, or calls what equals it. */
static int
remove_callback(GioGreen *g, PyObject *item)
{
    if (g->task != NULL) {
        bool set = Py_IS_TYPE(item, g->module->waiter_type);
        PyObject *fn = set ? PyObject_GetAttrString(item, "_wake") : Py_NewRef(item);
        PyObject *r =
            fn == NULL
                ? NULL
                : PyObject_CallMethodOneArg(g->task, g->module->str_remove_done_callback, fn);
        Py_XDECREF(fn);
        Py_XDECREF(r);
        return r == NULL ? -1 : 0;
    }
    for (Py_ssize_t i = 0; g->callbacks != NULL && i < PyList_GET_SIZE(g->callbacks); i++) {
        PyObject *found = Py_NewRef(PyList_GET_ITEM(g->callbacks, i));
        int same = found == item;
        if (!same && PyTuple_CheckExact(found)) { /* runs Python */
            same = PyObject_RichCompareBool(PyTuple_GET_ITEM(found, 0), item, Py_EQ);
        }
        bool there = g->callbacks != NULL && i < PyList_GET_SIZE(g->callbacks) &&
                     PyList_GET_ITEM(g->callbacks, i) == found;
        Py_DECREF(found);
        if (same < 0) {
            return -1;
        }
        if (g->task != NULL) { /* now it has the callbacks */
            return remove_callback(g, item);
        }
        if (same) {
            return there ? PyList_SetSlice(g->callbacks, i, i + 1, NULL) : 0;
        }
    }
    return 0;
}

static PyObject *
green_on_end(GioGreen *g, PyObject *fn)
{
    PyObject *context = PyContext_CopyCurrent();
    PyObject *item = context == NULL ? NULL : PyTuple_Pack(2, fn, context);
    int r = item == NULL ? -1 : add_callback(g, item);
    Py_XDECREF(item);
    Py_XDECREF(context);
    if (r < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
green_forget(GioGreen *g, PyObject *fn)
{
    if (remove_callback(g, fn) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
green_join(GioGreen *g, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"timeout", NULL};
    PyObject *seconds = Py_None;
    int64_t deadline;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:join", keywords, &seconds)) {
        return NULL;
    }
    PyObject *ended = green_get_ready(g, NULL);
    if (ended == NULL || ended == Py_True) {
        return ended;
    }
    Py_DECREF(ended);
    int r = is_caller(g);
    if (r == 1) {
        PyErr_Format(PyExc_RuntimeError, "%R can't wait for itself", g);
    }
    if (r != 0 || gio_deadline(seconds, &deadline) < 0) {
        return NULL;
    }
    GioWaiter *w = gio_waiter_new(g->module, NULL);
    r = w == NULL || add_callback(g, (PyObject *)w) < 0 ? -1
                                                        : gio_wait_waiter(g->module, w, deadline);
    if (r != 1 && w != NULL) { /* it goes on without us */
        PyObject *exc = r < 0 ? gio_err_take() : NULL;
        if (remove_callback(g, (PyObject *)w) < 0) {
            PyErr_WriteUnraisable((PyObject *)g);
        }
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
    Py_XDECREF(w);
    return r < 0 ? NULL : r == 1 ? Py_NewRef(Py_True) : green_get_ready(g, NULL);
}

static PyObject *
green_cancel(GioGreen *g, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"msg", NULL};
    PyObject *msg = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:cancel", keywords, &msg)) {
        return NULL;
    }
    if (g->task == NULL && g->state >= GIO_GREEN_RETURNED) {
        Py_RETURN_FALSE;
    }
    return gio_green_make_task(g) < 0
               ? NULL
               : PyObject_CallMethodOneArg(g->task, g->module->str_cancel, msg);
}

/* ---- lifetime ----------------------------------------------------------------------------------
 */

static int
green_traverse(GioGreen *g, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(g));
    Py_VISIT(g->loop);
    Py_VISIT(g->call);
    Py_VISIT(g->context);
    Py_VISIT(g->waiter);
    Py_VISIT(g->result);
    Py_VISIT(g->task);
    Py_VISIT(g->callbacks);
    return g->first == NULL ? 0 : gio_handle_traverse(g->first, visit, arg);
}

/* Its call stays whole (call.c); so does what it needs to be stepped. */
static int
green_clear(GioGreen *g)
{
    Py_CLEAR(g->callbacks);
    if (g->state == GIO_GREEN_RETURNED) {
        Py_SETREF(g->result, Py_NewRef(Py_None));
    }
    return 0;
}

static void
green_dealloc(GioGreen *g)
{
    PyTypeObject *type = Py_TYPE(g);
    PyObject_GC_UnTrack(g);
    Py_TRASHCAN_BEGIN(g, green_dealloc); /* its result may be another one, and so on */
    gio_green_unlink(g);                 /* before anything can run Python */
    if (g->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)g);
    }
    Py_CLEAR(g->callbacks);
    Py_CLEAR(g->first);
    Py_CLEAR(g->task);
    Py_CLEAR(g->result);
    Py_CLEAR(g->waiter);
    Py_CLEAR(g->call);
    Py_CLEAR(g->context);
    Py_CLEAR(g->loop);
    type->tp_free(g);
    Py_DECREF(type);
    Py_TRASHCAN_END;
}

#define WITH_KEYWORDS(fn) ((PyCFunction)(void (*)(void))(fn)), METH_VARARGS | METH_KEYWORDS

static PyMethodDef green_methods[] = {
    {"join", WITH_KEYWORDS(green_join),
     "join($self, /, timeout=None)\n--\n\n"
     "Wait until it has ended; False if `timeout` seconds pass first.\n\n"
     "For sync code, in a greenlet or where no loop runs. Being cancelled here, or\n"
     "running out of time, does not cancel what is waited for."},
    {"cancel", WITH_KEYWORDS(green_cancel),
     "cancel($self, /, msg=None)\n--\n\n"
     "Raise CancelledError at its wait (or before it starts). False if it had ended.\n\n"
     "Does not wait for it to end: join() does."},
    {"_result", (PyCFunction)green_result, METH_NOARGS,
     "What it returned, or raise what it raised."},
    {"_on_end", (PyCFunction)green_on_end, METH_O,
     "Have the loop call fn(x) when it has ended; what x is has no meaning."},
    {"_forget", (PyCFunction)green_forget, METH_O, "Undo _on_end(fn)."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "Green[type of the result]"},
    {NULL},
};

static PyMemberDef green_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioGreen, weakrefs), READONLY, NULL},
    {NULL},
};

static PyGetSetDef green_getset[] = {
    {"task", (getter)green_get_task, NULL,
     "The asyncio task that drives the greenlet, made when it is asked for.", NULL},
    {"ready", (getter)green_get_ready, NULL,
     "Whether it has ended: returned, failed, or been cancelled.", NULL},
    {"_taskless", (getter)green_get_taskless, NULL, "Whether it has no task.", NULL},
    {"_call", (getter)green_get_call, NULL, "The call that it runs.", NULL},
    {NULL},
};

static PyType_Slot green_slots[] = {
    {Py_tp_doc, "The C half of greenletio.Green."},
    {Py_tp_new, green_new},
    {Py_tp_methods, green_methods},
    {Py_tp_members, green_members},
    {Py_tp_getset, green_getset},
    {Py_tp_traverse, green_traverse},
    {Py_tp_clear, green_clear},
    {Py_tp_dealloc, green_dealloc},
    {0, NULL},
};

static PyType_Spec green_spec = {
    .name = "greenletio._core.Green",
    .basicsize = sizeof(GioGreen),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = green_slots,
};

int
gio_green_setup_types(PyObject *module, GioState *st)
{
    PyObject *tasks = PyImport_ImportModule("asyncio.tasks");
    if (tasks != NULL) {
        st->enter_task = PyObject_GetAttrString(tasks, "_enter_task");
        st->leave_task = PyObject_GetAttrString(tasks, "_leave_task");
        Py_DECREF(tasks);
    }
    if (st->enter_task == NULL || st->leave_task == NULL) {
        return -1;
    }
    st->green_type = gio_add_type(module, &green_spec, NULL, true);
    return st->green_type == NULL ? -1 : 0;
}
