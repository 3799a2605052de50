/* Streaming: the rows of one query, some at a time, and no more of them here than are asked for.
 *
 * The stream is the operation that sent the query. Like a COPY that gives data it stands at the
 * head of the queue, and each read is an operation of its own that refers to it; between two reads
 * the socket is not read, so the server waits. libpq hands rows on as they come: many at a time
 * since 17, one at a time before. Given up, the query is cancelled in the background.
 */
#include "pg/pg.h"

#define AT_ONCE 256 /* rows that one read gives, at most, or what libpq has in one result */
#define READS 16    /* of the socket in one turn of the loop */

bool
gio_pg_stream_begin(GioPgOp *op)
{
    GioPgConn *c = op->conn;
#ifdef LIBPQ_HAS_CHUNK_MODE
    int rows = AT_ONCE;
    if (op->want == GIO_PG_COLUMNS && op->column > 0) {
        rows = op->column < AT_ONCE ? (int)op->column : AT_ONCE;
        while (op->column % rows != 0) /* a batch is some of them, and no part of one */
            rows--;
    }
    int ok = PQsetChunkedRowsMode(c->pg, rows);
#else
    int ok = PQsetSingleRowMode(c->pg);
#endif
    if (!ok) {
        gio_pg_op_finish(op, NULL, gio_pg_error_lost(c));
        c->lost = true;
        return false;
    }
    op->stage = GIO_PG_COPYING;
    op->all_sent = false; /* here: whether the last row has come */
    if (!op->answered) {
        Py_XSETREF(op->result, Py_NewRef((PyObject *)op->stmt));
        gio_pg_op_answer(op);
    }
    return true;
}

static PyObject *
current_task(GioPgState *st)
{
    PyObject *task = PyObject_CallNoArgs(st->current_task);
    if (task == NULL)
        PyErr_Clear(); /* no loop runs */
    return task;
}

int
gio_pg_stream_check(GioPgOp *op)
{
    if (op->kind == GIO_PG_STREAM || op->kind == GIO_PG_COPY) {
        PyObject *task = current_task(op->conn->st);
        op->owner = task == Py_None ? NULL : task; /* only compared */
        Py_XDECREF(task);
    }
    GioPgOp *first = op->conn->first;
    if (first == NULL || first->stage != GIO_PG_COPYING || first->given_up ||
        first->owner == NULL || op->session != NULL || op->kind == GIO_PG_FINISH)
        return 0;
    PyObject *owner = first->owner;
    bool copies = first->kind == GIO_PG_COPY;
    PyObject *task = current_task(op->conn->st); /* runs Python, which may end that one */
    bool same = task == owner;
    Py_XDECREF(task);
    if (!same)
        return 0;
    gio_pg_error_set("InterfaceError",
                     "the connection is %s this task, which would wait for itself: do that to the "
                     "end, or use another one",
                     copies ? "copying for" : "streaming rows to");
    return -1;
}

/* The command's tag, which in chunks stands at the last of those that have rows, and not at the
 * end. 0, or -1 with an exception. */
static int
take_tag(GioPgOp *session, const PGresult *res)
{
    const char *tag = PQcmdStatus((PGresult *)res);
    if (*tag == 0 && (!session->all_sent || PyUnicode_Check(session->result)))
        return 0;
    Py_XSETREF(session->result, gio_pg_result_tag(res));
    return session->result == NULL ? -1 : 0;
}

/* The rows of one result, at the end of a list. 0, or -1 with an exception. Runs Python. */
static int
take(GioPgOp *session, const PGresult *res, PyObject *rows)
{
    if (PyList_GET_SIZE(rows) == 0 && gio_pg_query_check(session, res) < 0) /* all are alike */
        return -1;
    PyObject *value = gio_pg_result_value(session, res), *some = value;
    if (value != NULL && session->want == GIO_PG_TUPLES)
        some = PyTuple_GET_ITEM(value, 0);
    Py_ssize_t end = PyList_GET_SIZE(rows);
    int rc = some == NULL ? -1 : PyList_SetSlice(rows, end, end, some);
    Py_XDECREF(value);
    return rc < 0 ? rc : take_tag(session, res);
}

/* The result that is no row: how it has ended. */
static void
take_end(GioPgOp *session, const PGresult *res)
{
    session->all_sent = true;
    switch (PQresultStatus(res)) {
    case PGRES_TUPLES_OK:
    case PGRES_COMMAND_OK:
    case PGRES_EMPTY_QUERY:
        if (take_tag(session, res) < 0)
            session->error = gio_err_take();
        break;
    case PGRES_COPY_OUT:
    case PGRES_COPY_IN:
    case PGRES_COPY_BOTH:
        gio_pg_error_set("NotSupportedError", GIO_PG_COPY_NEEDS);
        session->error = gio_err_take();
        if (PQresultStatus(res) == PGRES_COPY_BOTH)
            session->conn->lost = true;
        else
            gio_pg_copy_stop(session->conn, PQresultStatus(res) == PGRES_COPY_IN,
                             GIO_PG_COPY_NEEDS);
        break;
    default:
        if (gio_pg_query_is_stale(session, res)) {
            session->retry = true;
            break;
        }
        Py_XSETREF(session->error, gio_pg_error_of(res)); /* "stale" may have closed it */
        if (session->error == NULL)
            session->error = gio_err_take();
    }
}

bool
gio_pg_stream_is_part(const PGresult *res)
{
#ifdef LIBPQ_HAS_CHUNK_MODE
    if (PQresultStatus(res) == PGRES_TUPLES_CHUNK)
        return true;
#endif
    return PQresultStatus(res) == PGRES_SINGLE_TUPLE;
}

/* Into the batch, until that is full, what has come is used up, or that was all: 0, or -1 with an
 * exception. */
static int
fill(GioPgOp *session, PyObject *batch)
{
    GioPgConn *c = session->conn;
    bool expected = false; /* of one query all results are alike */
    int rc = 0;
    for (int i = 0; rc == 0; i++) {
        Py_ssize_t before = gio_pg_batch_rows(batch);
        while (rc == 0 && !session->all_sent && !gio_pg_batch_is_full(batch) && !PQisBusy(c->pg)) {
            PGresult *res = PQgetResult(c->pg);
            if (res == NULL)
                session->all_sent = true;
            else if (gio_pg_stream_is_part(res)) {
                if (!expected && (rc = gio_pg_query_check(session, res)) == 0)
                    rc = gio_pg_batch_expect(batch, session->stmt, res);
                expected = true;
                rc = rc < 0 ? rc : gio_pg_batch_take(batch, res);
                rc = rc < 0 ? rc : take_tag(session, res);
            }
            else
                take_end(session, res);
            PQclear(res);
        }
        /* libpq takes some 16 KiB from the socket at a time: there may be more. What it has taken
         * is looked at before anybody waits: nothing else may come. */
        if (session->all_sent || gio_pg_batch_is_full(batch) ||
            (i > 0 && gio_pg_batch_rows(batch) == before) || i == READS || !PQconsumeInput(c->pg))
            break;
        gio_pg_part_read(c);
    }
    return rc;
}

/* The same for columns: true when there is more to do at once. */
static bool
advance_columns(GioPgOp *session)
{
    GioPgOp *sub = session->sub;
    PyObject *batch = sub->args;
    bool more = true;
    if (batch == NULL || !Py_IS_TYPE(batch, session->conn->st->batch_type)) {
        PyErr_SetString(PyExc_TypeError, "a stream of columns is read into a batch");
        gio_pg_copy_answer(sub, NULL);
    }
    else if (fill(session, batch) < 0) {
        gio_pg_copy_answer(sub, NULL);
        gio_pg_op_give_up(session);
    }
    else if (gio_pg_batch_is_full(batch) || (session->all_sent && session->error == NULL &&
                                             !session->retry && gio_pg_batch_rows(batch) > 0)) {
        gio_pg_copy_answer(sub, Py_NewRef(batch));
    }
    else {
        more = session->all_sent;
    }
    return more;
}

bool
gio_pg_stream_advance(GioPgOp *session)
{
    GioPgConn *c = session->conn;
    GioPgOp *sub = session->sub;
    if (session->given_up || (sub != NULL && session->all_sent)) {
        session->stage = GIO_PG_EXECUTING; /* the rest comes, and is dropped */
        return true;
    }
    if (sub == NULL)
        return false;
    if (session->want == GIO_PG_COLUMNS)
        return advance_columns(session);
    PyObject *rows = PyList_New(0);
    int rc = rows == NULL ? -1 : 0;
    while (rc == 0 && !session->all_sent && PyList_GET_SIZE(rows) < AT_ONCE &&
           (PQstatus(c->pg) == CONNECTION_BAD || !PQisBusy(c->pg))) {
        PGresult *res = PQgetResult(c->pg);
        if (res == NULL)
            session->all_sent = true;
        else if (gio_pg_stream_is_part(res))
            rc = take(session, res, rows);
        else
            take_end(session, res);
        PQclear(res);
        if (session->sub != sub) /* a codec has closed the connection */
            break;
    }
    bool still = session->sub == sub, more = true;
    if (still && rc < 0) {
        gio_pg_copy_answer(sub, NULL);
        gio_pg_op_give_up(session);
    }
    else if (still && PyList_GET_SIZE(rows) > 0)
        gio_pg_copy_answer(sub, Py_NewRef(rows));
    else if (still && !session->all_sent)
        more = false;
    PyErr_Clear();
    Py_XDECREF(rows);
    return more;
}
