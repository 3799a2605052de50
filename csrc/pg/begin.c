/* BEGIN, as what comes before the first query of a transaction.
 *
 * It goes to the server together with the query, by libpq's pipeline mode and with one sync, where
 * nothing of the query but its execution is left to be done: a round trip less. Otherwise it goes
 * by itself, first: what fails when the query is prepared fails in the transaction, too, as what
 * fails when it is executed.
 */
#include "pg/pg.h"

bool
gio_pg_begin_joins(const GioPgOp *op)
{
    const GioPgStatement *s = op->stmt;
    return s->described && s->prepared && s->resolved && !s->outdated &&
           s->command == GIO_PG_PLAIN && /* in a pipeline libpq has no way out of a COPY */
           s->name[0] != '\0' &&         /* BEGIN takes the place of one without */
           !op->conn->pooler;
}

bool
gio_pg_begin_alone(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    const char *begin = gio_pg_statement_text(op->before);
    op->stage = GIO_PG_BEGINNING;
    op->pending = 1;
    op->in_tx = true;
    bool ok = begin != NULL && PQsendQuery(c->pg, begin);
    Py_CLEAR(op->before);
    if (!ok)
        gio_pg_op_finish(op, NULL, begin == NULL ? NULL : gio_pg_error_lost(c));
    return ok;
}

bool
gio_pg_begin_is_next(const GioPgOp *op)
{
    return op->stage == GIO_PG_BEGINNING || (op->before != NULL && op->stage == GIO_PG_EXECUTING &&
                                             op->pending == GIO_PG_WITH_BEGIN);
}

int
gio_pg_begin_answered(GioPgOp *op, const PGresult *res)
{
    GioPgConn *c = op->conn;
    PyObject *error = NULL;
    switch (PQresultStatus(res)) {
    case PGRES_COMMAND_OK:
        c->changed_in_tx = false;
        return 0;
    case PGRES_FATAL_ERROR:
        error = gio_pg_error_of(res);
        break;
    default: /* no server of PostgreSQL's does so; libpq may have no way on */
        c->lost = true;
        error = gio_pg_error_set("InternalError", "the server's answer to BEGIN is none");
    }
    if (error != NULL)
        gio_err_give(error);
    return -1;
}

bool
gio_pg_begin_ended(GioPgOp *op)
{
    if (op->before == NULL)
        return true;
    Py_CLEAR(op->before);
    if (!PQexitPipelineMode(op->conn->pg))
        op->conn->lost = true;
    return !op->conn->lost;
}
