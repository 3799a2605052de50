/* executemany: one statement many times, in libpq's pipeline mode, all or nothing.
 *
 * There is one sync, at the end, so that all executions are one implicit transaction. Sending and
 * reading go on side by side: the server stops reading when nobody takes its answers. What makes
 * the arguments may be any Python code; when it fails, or the operation is given up, a statement
 * that cannot be right undoes what went before.
 */
#include "pg/pg.h"

#define FLUSH_BYTES 65536
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
    gio_pg_many_send(op);
    return true;
}

static void
end(GioPgOp *op, bool undo)
{
    GioPgConn *c = op->conn;
    op->all_sent = true;
    if (undo)
        PQsendQueryParams(c->pg, "the rest of executemany() is missing", 0, NULL, NULL, NULL, NULL,
                          0);
    if (!PQpipelineSync(c->pg))
        c->lost = true;
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
        PyObject *args = row == NULL ? NULL : PySequence_Tuple(row);
        Py_XDECREF(row);
        if (args == NULL || gio_pg_statement_send(op->stmt, c, args, op->oids != NULL) < 0)
            fail(op);
        else
            op->pending++;
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
        if (op->error == NULL && !op->given_up) {
            PyObject *error = gio_pg_error_of(res);
            if (error != NULL)
                op->error = error;
            else
                fail(op);
        }
    }
}
