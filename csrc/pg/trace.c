/* The observer: a function of Python's that is told of each operation that somebody asks for.
 *
 * There is one for the process, set from Python, and usually none: then all this is one comparison.
 * It is called as an operation is started, before anything is done about it, where its caller is;
 * what it returns is called when the caller gets what came of it, or gives it up. Both may use any
 * connection, for nothing of ours is being moved meanwhile. What they raise is reported.
 */
#include "pg/pg.h"

static bool
is_observed(const GioPgOp *op)
{
    switch (op->kind) {
    case GIO_PG_QUERY:
    case GIO_PG_SCRIPT:
    case GIO_PG_PREPARE:
    case GIO_PG_MANY:
    case GIO_PG_COPY:
    case GIO_PG_STREAM:
        return true;
    default:
        return false;
    }
}

void
gio_pg_trace_begin(GioPgOp *op)
{
    GioPgState *st = op->conn->st;
    if (st->observer == NULL || op->trace != NULL || !is_observed(op))
        return;
    PyObject *observer = Py_NewRef(st->observer);
    PyObject *trace = PyObject_CallFunction(observer, "sOO", gio_pg_kind_name(op->kind), op->sql,
                                            (PyObject *)op->conn);
    if (trace == NULL)
        PyErr_WriteUnraisable(observer);
    else if (trace != Py_None)
        Py_XSETREF(op->trace, Py_NewRef(trace));
    Py_XDECREF(trace);
    Py_DECREF(observer);
    op->trace_began = st->api->now();
    op->trace_ended = 0;
}

void
gio_pg_trace_end(GioPgOp *op)
{
    PyObject *trace = op->trace;
    if (trace == NULL)
        return;
    op->trace = NULL; /* once */
    PyObject *pending = gio_err_take();
    int64_t ended = op->trace_ended != 0 ? op->trace_ended : op->conn->st->api->now();
    PyObject *done = PyObject_CallFunction(trace, "dO", (double)(ended - op->trace_began) / 1e9,
                                           pending != NULL ? pending : Py_None);
    if (done == NULL)
        PyErr_WriteUnraisable(trace);
    Py_XDECREF(done);
    Py_DECREF(trace);
    if (pending != NULL)
        gio_err_give(pending);
}

void
gio_pg_trace_end_late(GioPgOp *op)
{
    if (op->trace == NULL)
        return;
    PyObject *pending = gio_err_take();
    if (op->error != NULL)
        gio_err_give(Py_NewRef(op->error));
    gio_pg_trace_end(op);
    PyErr_Clear();
    if (pending != NULL)
        gio_err_give(pending);
}

PyObject *
gio_pg_set_observer(PyObject *module, PyObject *observer)
{
    GioPgState *st = PyModule_GetState(module);
    if (observer != Py_None && !PyCallable_Check(observer)) {
        PyErr_Format(PyExc_TypeError, "an observer is called: %.100s cannot be",
                     Py_TYPE(observer)->tp_name);
        return NULL;
    }
    Py_XSETREF(st->observer, observer == Py_None ? NULL : Py_NewRef(observer));
    Py_RETURN_NONE;
}
