/* executemany: one statement many times, in libpq's pipeline mode, all or nothing.
 *
 * There is one sync, at the end, so that all executions are one implicit transaction. Sending and
 * reading go on side by side: the server stops reading when nobody takes its answers. What makes
 * the arguments may be any Python code; when it fails, or the operation is given up, a statement
 * that cannot be right undoes what went before.
 */
#include "pg/pg.h"

#define FLUSH_BYTES 65536
#define UNDO "the rest of executemany() is missing"
#define ROWS_AT_ONCE 500 /* then others have their turn */

static void
fail(GioPgOp *op)
{
    PyObject *error = gio_err_take();
    if (op->error == NULL && error != NULL)
        op->error = error;
    else
        Py_XDECREF(error);
}

bool
gio_pg_many_begin(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    op->stage = GIO_PG_EXECUTING;
    op->pending = 0;
    op->count = 0;
    if (op->rows == NULL)
        op->rows = PyObject_GetIter(op->args);
    if (!op->queued) { /* closed by what makes the arguments */
        PyErr_Clear();
        return false;
    }
    if (op->rows == NULL || !PQenterPipelineMode(c->pg)) {
        gio_pg_op_finish(op, NULL, PyErr_Occurred() ? NULL : gio_pg_error_lost(c));
        return false;
    }
    /* A wait of what makes the arguments would be refused when the loop sends the rest of them. So
     * the loop sends the first ones, too: here others would meet a connection that is stuck. */
    bool made = PyList_CheckExact(op->args) || PyTuple_CheckExact(op->args);
    if (!made && c->st->api->place() == GIO_PLACE_GREEN)
        c->unflushed = true;
    else
        gio_pg_many_send(op);
    return true;
}

static void
end(GioPgOp *op, bool undo)
{
    GioPgConn *c = op->conn;
    op->all_sent = true;
    if (undo)
        PQsendQueryParams(c->pg, UNDO, 0, NULL, NULL, NULL, NULL, 0);
    if (!PQpipelineSync(c->pg))
        c->lost = true;
}

/* A tuple, new reference. */
static PyObject *
as_arguments(GioPgOp *op, PyObject *row)
{
    if (PyDict_Check(row) || PyAnySet_Check(row) || PyUnicode_Check(row) || PyBytes_Check(row))
        return gio_pg_error_set("DataError",
                                "invalid input in executemany() argument sequence element #%lld: "
                                "expected a sequence, got %s",
                                (long long)op->taken, Py_TYPE(row)->tp_name);
    return PySequence_Tuple(row);
}

void
gio_pg_many_send(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    Py_ssize_t queued = 0;
    for (int i = 0; i < ROWS_AT_ONCE; i++) {
        if (op->given_up || op->error != NULL) {
            end(op, true);
            return;
        }
        PyObject *row = PyIter_Next(op->rows); /* runs Python */
        if (!op->queued) {                     /* which has closed the connection */
            Py_XDECREF(row);
            PyErr_Clear();
            return;
        }
        if (row == NULL && !PyErr_Occurred()) {
            end(op, false);
            return;
        }
        PyObject *args = row == NULL ? NULL : as_arguments(op, row);
        Py_XDECREF(row);
        op->stmt->element = ++op->taken;
        if (args == NULL ||
            gio_pg_statement_send(op->stmt, c, args, NULL, op->oids != NULL, op->stmt->text) < 0)
            fail(op);
        else
            op->pending++;
        op->stmt->element = 0;
        Py_XDECREF(args);
        if (!op->queued)
            return;
        queued += c->out.len + 32;
        if (queued > FLUSH_BYTES) {
            queued = 0;
            if (PQflush(c->pg) != 0)
                break;
        }
    }
    c->unflushed = true; /* come back when the socket takes more */
}

/* The error is the one that was asked for to undo it all: of syntax, in the first word of what was
 * sent. The text of it is in the server's language. */
static bool
is_undo(GioPgOp *op, const PGresult *res)
{
    const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
    const char *position = PQresultErrorField(res, PG_DIAG_STATEMENT_POSITION);
    return op->all_sent && state != NULL && strcmp(state, "42601") == 0 && position != NULL &&
           strcmp(position, "1") == 0;
}

void
gio_pg_many_feed(GioPgOp *op, const PGresult *res)
{
    GioPgConn *c = op->conn;
    if (res == NULL) {
        op->pending--;
        return;
    }
    switch (PQresultStatus(res)) {
    case PGRES_PIPELINE_SYNC:
        if (!PQexitPipelineMode(c->pg)) {
            c->lost = true;
            return;
        }
        gio_pg_op_finish(op, op->error != NULL ? NULL : PyLong_FromLongLong(op->count), NULL);
        return;
    case PGRES_COMMAND_OK:
    case PGRES_TUPLES_OK:
        op->count += strtoll(PQcmdTuples((PGresult *)res), NULL, 10);
        return;
    case PGRES_PIPELINE_ABORTED:
        return;
    default:
        gio_pg_query_is_stale(op, res);
        /* What the server found comes before what kept us from sending the rest. */
        if ((op->error == NULL || !is_undo(op, res)) && !op->given_up) {
            PyObject *error = gio_pg_error_of(res);
            if (error != NULL)
                Py_XSETREF(op->error, error);
            else
                fail(op);
        }
    }
}
