/* COPY: a session that stands at the head of the queue, and what is asked of it, one at a time.
 *
 * The session is the operation that sent the COPY. It has its answer once the server is ready for
 * data; then reads, writes and the end are operations of their own that refer to it and do not
 * stand in the queue. When one of these is given up, so is the session: it is ended in the
 * background. Not so a replication's reads, which take nothing away before they are answered: a
 * stream that is waited for in vain goes on. What it tells the server is put beside them.
 */
#include "pg/pg.h"

#define AT_ONCE 65536 /* bytes of rows that one read gives, at least, if they are there */

static void
sub_finish(GioPgOp *sub, PyObject *result, PyObject *error)
{
    if (result == NULL && error == NULL)
        error = gio_err_take();
    if (sub->session->sub != sub) { /* ended already: a buffer has closed the connection */
        Py_XDECREF(result);
        Py_XDECREF(error);
        return;
    }
    sub->session->sub = NULL;
    sub->stage = GIO_PG_DONE;
    if (sub->answered) {
        Py_XDECREF(result);
        Py_XDECREF(error);
    }
    else {
        Py_XSETREF(sub->result, result);
        Py_XSETREF(sub->error, error);
        gio_pg_op_answer(sub);
    }
    Py_DECREF(sub);
}

void
gio_pg_copy_answer(GioPgOp *sub, PyObject *result)
{
    sub_finish(sub, result, NULL);
}

static const char *
what_it_is(const GioPgOp *session)
{
    return session->kind == GIO_PG_COPY ? "COPY" : "stream";
}

int
gio_pg_copy_start(GioPgOp *sub)
{
    GioPgOp *session = sub->session;
    const char *what = what_it_is(session);
    if (session->stage != GIO_PG_COPYING || session->conn != sub->conn || session->given_up) {
        gio_pg_error_set("InterfaceError", "this %s is over", what);
        return -1;
    }
    if (session->sub != NULL) {
        gio_pg_error_set("InterfaceError", "another task uses this %s just now", what);
        return -1;
    }
    if ((session->kind == GIO_PG_STREAM && sub->kind != GIO_PG_COPY_READ) ||
        (session->kind == GIO_PG_REPLICATION && sub->kind == GIO_PG_COPY_WRITE)) {
        gio_pg_error_set("InterfaceError", "a stream is only read");
        return -1;
    }
    session->sub = (GioPgOp *)Py_NewRef((PyObject *)sub);
    sub->stage = GIO_PG_QUEUED;
    return 0;
}

bool
gio_pg_copy_is_idle(GioPgConn *c)
{
    GioPgOp *first = c->first;
    return first != NULL && first->stage == GIO_PG_COPYING && !first->copy_in &&
           first->sub == NULL && !first->given_up;
}

void
gio_pg_copy_abandon(GioPgOp *sub)
{
    GioPgOp *session = sub->session;
    if (session->sub != sub)
        return;
    session->sub = NULL;
    sub->stage = GIO_PG_DONE;
    if (session->kind != GIO_PG_REPLICATION || sub->kind != GIO_PG_COPY_READ)
        gio_pg_op_give_up(session);
    Py_DECREF(sub);
}

void
gio_pg_copy_ended(GioPgOp *session, PyObject *error)
{
    GioPgOp *sub = session->sub;
    if (sub == NULL)
        return;
    if (error == NULL)
        error = session->error;
    if (error == NULL && session->given_up) /* by somebody else than who reads or writes */
        sub_finish(sub, NULL,
                   gio_pg_error_set("InterfaceError", "this %s was closed meanwhile",
                                    what_it_is(session)));
    else if (error != NULL)
        sub_finish(sub, NULL, Py_NewRef(error));
    else
        sub_finish(sub, Py_NewRef(session->result != NULL ? session->result : Py_None), NULL);
}

/* The next row goes to the end of `*rows`, which has `*len` bytes and room for `*size`: 1, 0 if
 * none is there yet, -1 if there are no more, -2 with MemoryError. */
static int
append_row(PGconn *pg, PyObject **rows, Py_ssize_t *len, Py_ssize_t *size)
{
    Py_ssize_t before = *len;
    for (;;) {
        int room = *size - *len > INT_MAX ? INT_MAX : (int)(*size - *len);
        int n = PQgetlineAsync(pg, PyBytes_AS_STRING(*rows) + *len, room);
        if (n > 0)
            *len += n;
        if (n < room && *len > before)
            return 1;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        if (_PyBytes_Resize(rows, *size *= 2) < 0) /* there may be more of this row */
            return -2;
    }
    char *row = NULL; /* a message with nothing in it looks as none: this passes it over */
    int n = PQgetCopyData(pg, &row, 1);
    if (n <= 0)
        return n < 0 ? -1 : 0;
    int rc = n > *size - *len ? _PyBytes_Resize(rows, *size += n) : 0;
    if (rc == 0) {
        memcpy(PyBytes_AS_STRING(*rows) + *len, row, (size_t)n);
        *len += n;
    }
    PQfreemem(row);
    return rc == 0 ? 1 : -2;
}

/* Rows as they came, many in one: true when the read is over. */
static bool
read_rows(GioPgOp *session, GioPgOp *sub)
{
    GioPgConn *c = session->conn;
    Py_ssize_t len = 0, size = AT_ONCE + AT_ONCE / 8; /* libpq writes there: nothing is copied */
    PyObject *rows = PyBytes_FromStringAndSize(NULL, size);
    int n = rows == NULL ? -2 : 0;
    for (bool consumed = false; rows != NULL; consumed = true) {
        Py_ssize_t before = len;
        while (len < AT_ONCE && (n = append_row(c->pg, &rows, &len, &size)) > 0)
            ;
        /* libpq takes some 16 KiB from the socket at a time: there may be more. What it has taken
         * is looked at before anybody waits: nothing else may come. */
        if (n != 0 || len >= AT_ONCE || (consumed && len == before) || !PQconsumeInput(c->pg))
            break;
        gio_pg_part_read(c);
    }
    if (rows != NULL && len > 0)
        _PyBytes_Resize(&rows, len);
    else if (rows != NULL)
        Py_CLEAR(rows);
    bool answered = rows != NULL || n == -2 || len > 0;
    bool over = n < 0 || PQstatus(c->pg) == CONNECTION_BAD;
    if (answered)
        sub_finish(sub, rows, NULL);
    else if (over)
        session->stage = GIO_PG_EXECUTING; /* the result that is left says how it went */
    return answered || over;
}

/* The messages that have come, as a list: true when the read is over. */
static bool
read_messages(GioPgOp *session, GioPgOp *sub)
{
    GioPgConn *c = session->conn;
    PyObject *messages = PyList_New(0);
    Py_ssize_t size = 0;
    int n = messages == NULL ? -2 : 0;
    for (bool consumed = false; messages != NULL; consumed = true) {
        Py_ssize_t before = size;
        char *data = NULL;
        while (size < AT_ONCE && (n = PQgetCopyData(c->pg, &data, 1)) > 0) {
            PyObject *message = PyBytes_FromStringAndSize(data, n);
            PQfreemem(data);
            if (message == NULL || PyList_Append(messages, message) < 0)
                Py_CLEAR(messages); /* one is lost: so is the stream */
            Py_XDECREF(message);
            if (messages == NULL)
                break;
            size += n;
        }
        if (n != 0 || size >= AT_ONCE || (consumed && size == before) || !PQconsumeInput(c->pg))
            break;
    }
    if (messages == NULL) {
        sub_finish(sub, NULL, NULL);
        gio_pg_op_give_up(session);
        return true;
    }
    bool answered = size > 0, over = n < 0 || PQstatus(c->pg) == CONNECTION_BAD;
    if (answered)
        sub_finish(sub, Py_NewRef(messages), NULL);
    else if (over)
        session->stage = GIO_PG_EXECUTING; /* the result that is left says how it went */
    Py_DECREF(messages);
    return answered || over;
}

PyObject *
gio_pg_copy_put(GioPgOp *session, PyObject *data)
{
    GioPgConn *c = session->conn;
    if (!PyBytes_Check(data) || PyBytes_GET_SIZE(data) > INT_MAX) {
        PyErr_SetString(PyExc_TypeError, "a message is bytes");
        return NULL;
    }
    if (session->kind != GIO_PG_REPLICATION || session->stage != GIO_PG_COPYING ||
        session->given_up || c->phase != GIO_PG_READY)
        return gio_pg_error_set("InterfaceError", "this is no stream, or one that is over");
    /* Of a connection that is lost, whoever reads is told. */
    if (PQputCopyData(c->pg, PyBytes_AS_STRING(data), (int)PyBytes_GET_SIZE(data)) > 0)
        c->unflushed = PQflush(c->pg) > 0;
    gio_pg_rearm(c);
    Py_RETURN_NONE;
}

/* Of a connection that is lost, what the server said is to be read first. */
static bool
write_failed(GioPgOp *sub)
{
    if (PQstatus(sub->conn->pg) != CONNECTION_BAD)
        sub_finish(sub, NULL, gio_pg_error_lost(sub->conn));
    return true;
}

/* True when there is something else to do. */
static bool
write_rows(GioPgOp *session, GioPgOp *sub)
{
    GioPgConn *c = session->conn;
    if (sub->stage == GIO_PG_QUEUED) {
        Py_buffer view;
        if (PyObject_GetBuffer(sub->args, &view, PyBUF_CONTIG_RO) < 0) {
            sub_finish(sub, NULL, NULL);
            return true;
        }
        const char *data = view.buf;
        int rc = 1;
        for (Py_ssize_t left = view.len; left > 0 && rc > 0;) {
            int piece = left > 1 << 24 ? 1 << 24 : (int)left;
            rc = PQputCopyData(c->pg, data, piece);
            data += piece;
            left -= piece;
        }
        PyBuffer_Release(&view);
        if (session->sub != sub)
            return true;
        if (rc <= 0)
            return write_failed(sub);
        sub->stage = GIO_PG_EXECUTING;
    }
    int more = PQflush(c->pg);
    c->unflushed = more > 0;
    if (more > 0)
        return false;
    if (more < 0)
        return write_failed(sub);
    sub_finish(sub, Py_NewRef(Py_None), NULL);
    return true;
}

void
gio_pg_copy_stop(GioPgConn *c, bool copy_in, const char *why)
{
    if (!copy_in)
        c->discard_copy = true;
    else if (PQputCopyEnd(c->pg, why) <= 0)
        c->lost = true; /* libpq would say for ever that the COPY goes on */
}

static void
end(GioPgOp *session, const char *why)
{
    if (session->kind == GIO_PG_REPLICATION) { /* both halves */
        gio_pg_copy_stop(session->conn, true, NULL);
        gio_pg_copy_stop(session->conn, false, NULL);
    }
    else {
        gio_pg_copy_stop(session->conn, session->copy_in, why);
    }
    session->stage = GIO_PG_EXECUTING;
}

static bool
advance(GioPgOp *session, GioPgOp *sub)
{
    if (session->kind == GIO_PG_STREAM)
        return gio_pg_stream_advance(session);
    if (session->given_up || (session->copy_in && PQstatus(session->conn->pg) == CONNECTION_BAD)) {
        end(session, "the COPY was given up"); /* libpq reads the server's last words after that */
        return true;
    }
    if (sub == NULL)
        return false;
    switch (sub->kind) {
    case GIO_PG_COPY_READ:
        if (session->copy_in) {
            gio_pg_error_set("InterfaceError", "this COPY takes data and gives none");
            sub_finish(sub, NULL, NULL);
            return true;
        }
        return session->kind == GIO_PG_REPLICATION ? read_messages(session, sub)
                                                   : read_rows(session, sub);
    case GIO_PG_COPY_WRITE:
        if (!session->copy_in) {
            gio_pg_error_set("InterfaceError", "this COPY gives data and takes none");
            sub_finish(sub, NULL, NULL);
            return true;
        }
        return write_rows(session, sub);
    default: {
        const char *why = sub->args == NULL ? NULL : PyUnicode_AsUTF8(sub->args);
        if (why == NULL)
            PyErr_Clear();
        end(session, why);
        return true;
    }
    }
}

bool
gio_pg_copy_advance(GioPgOp *session)
{
    /* It may be given up meanwhile: its buffer may be Python's, and the collector runs Python. */
    GioPgOp *sub = (GioPgOp *)Py_XNewRef((PyObject *)session->sub);
    bool more = advance(session, sub);
    Py_XDECREF(sub);
    return more;
}
