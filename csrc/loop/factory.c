/* create_task and create_future: called for every task and many a wait, so without a Python frame.
 *
 * They make asyncio's own types. What is out of the ordinary (a task factory, debug mode,
 * keywords of a newer Python) is left to asyncio's own method.
 */
#include "loop/loop.h"

static PyObject *
create_task(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    GioState *st = loop->state;
    if (loop->debug || loop->task_factory != NULL || nargs != 1) {
        return gio_loop_by_asyncio(loop, "create_task", args, nargs, kwnames);
    }
    if (gio_loop_check_open(loop) < 0) {
        return NULL;
    }
    PyObject *name = NULL, *context = NULL;
    for (Py_ssize_t i = 0; kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *keyword = PyTuple_GET_ITEM(kwnames, i);
        if (PyUnicode_CompareWithASCIIString(keyword, "name") == 0) {
            name = args[nargs + i] == Py_None ? NULL : args[nargs + i];
        }
        else if (PyUnicode_CompareWithASCIIString(keyword, "context") == 0 &&
                 PY_VERSION_HEX >= 0x030B0000) {
            context = args[nargs + i] == Py_None ? NULL : args[nargs + i];
        }
        else {
            return gio_loop_by_asyncio(loop, "create_task", args, nargs, kwnames);
        }
    }
    PyObject *all[4] = {args[0], (PyObject *)loop};
    int n = 2;
    if (name != NULL) {
        all[n++] = name;
    }
    if (context != NULL) {
        all[n++] = context;
    }
    PyObject *keywords = st->kw_task[(name != NULL) + 2 * (context != NULL)];
    return PyObject_Vectorcall(st->task_type, all, 1, keywords);
}

#define FEW 8

/* The coroutine is to be stepped by a portal. */
static PyObject *
create_portal_task(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *few[FEW], **all = few, *task = NULL;
    Py_ssize_t n = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject *by = gio_portal_of(loop->state, args[0]);
    if (n > FEW) {
        all = PyMem_Malloc((size_t)n * sizeof *all);
    }
    if (all == NULL) {
        PyErr_NoMemory();
    }
    else if (by != NULL) {
        memcpy(all, args, (size_t)n * sizeof *all);
        all[0] = by;
        task = create_task(loop, all, nargs, kwnames);
    }
    if (all != few) {
        PyMem_Free(all);
    }
    Py_XDECREF(by);
    return task;
}

static PyObject *
loop_create_task(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return loop->portals > 0 && nargs == 1 ? create_portal_task(loop, args, nargs, kwnames)
                                           : create_task(loop, args, nargs, kwnames);
}

static PyObject *
loop_create_future(GioLoop *loop, PyObject *Py_UNUSED(ignored))
{
    PyObject *all[] = {(PyObject *)loop};
    return PyObject_Vectorcall(loop->state->future_type, all, 0, loop->state->kw_task[0]);
}

PyMethodDef gio_factory_methods[] = {
    {"create_task", (PyCFunction)(void (*)(void))loop_create_task, METH_FASTCALL | METH_KEYWORDS,
     "create_task($self, coro, /, *, name=None, context=None, **kwargs)\n--\n\n"
     "Have a coroutine run as an asyncio.Task."},
    {"create_future", (PyCFunction)loop_create_future, METH_NOARGS,
     "create_future($self, /)\n--\n\nA new asyncio.Future of this loop."},
    {NULL},
};

int
gio_factory_setup(GioState *st)
{
    static const char *const names[4][3] = {
        {"loop"}, {"loop", "name"}, {"loop", "context"}, {"loop", "name", "context"}};
    for (int i = 0; i < 4; i++) {
        Py_ssize_t n = 0;
        while (n < 3 && names[i][n] != NULL) {
            n++;
        }
        st->kw_task[i] = PyTuple_New(n);
        for (Py_ssize_t k = 0; st->kw_task[i] != NULL && k < n; k++) {
            PyObject *name = PyUnicode_InternFromString(names[i][k]);
            if (name == NULL) {
                return -1;
            }
            PyTuple_SET_ITEM(st->kw_task[i], k, name);
        }
        if (st->kw_task[i] == NULL) {
            return -1;
        }
    }
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    if (asyncio != NULL) {
        st->task_type = PyObject_GetAttrString(asyncio, "Task");
        st->future_type = PyObject_GetAttrString(asyncio, "Future");
        Py_DECREF(asyncio);
    }
    return st->task_type == NULL || st->future_type == NULL ? -1 : 0;
}
