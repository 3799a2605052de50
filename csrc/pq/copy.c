/* COPY, inside the wait callback, with the file that the guard noted.
 *
 * Runs with the GIL and psycopg2's mutex held; may run any Python (the file's
 * methods) and switch greenlets. psycopg2 itself refuses COPY under a wait
 * callback: here the query's poll() has said "done", libpq is in COPY, and when
 * the data is through, polling goes on and psycopg2 finds an ordinary result.
 * What a file's read() raises ends the COPY on the server, which reports it, as
 * psycopg2 does; what its write() raises is kept and raised after the rest.
 */
#include "core/compat.h"
#include "pq/pq.h"

#include <string.h>

/* Data that may be queued in libpq before it is pushed out; also the largest
 * piece of a chunk that is handed over at once. */
#define PIECE (64 * 1024)

/* A socket that is always ready never suspends the greenlet: do it this often. */
#define TURN_NS 2000000

#define NO_FILE_IN "can't execute COPY FROM: use the copy_from() method instead"
#define NO_FILE_OUT "can't execute COPY TO: use the copy_to() method instead"

typedef struct {
    GioPqState *st;
    GioPqConn *c;
    PyObject *call; /* the file's read or write */
    int64_t since;  /* when others last had their turn */
} Copy;

int
gio_pq_copy_kind(GioPqState *st, GioPqConn *c)
{
    PGresult *result = st->pq.PQgetResult(c->pg);
    ExecStatusType status = st->pq.PQresultStatus(result);
    st->pq.PQclear(result);
    return status == PGRES_COPY_IN || status == PGRES_COPY_OUT ? (int)status : 0;
}

static int
breathe(Copy *copy)
{
    const GioAPI *api = copy->st->api;
    int64_t now = api->now();
    if (now - copy->since < TURN_NS || copy->c->blocking)
        return GIO_PQ_DONE;
    int rc = api->sleep_until(now);
    copy->since = api->now();
    return rc < 0 ? GIO_PQ_INTERRUPTED : GIO_PQ_DONE;
}

/* What was raised by the user's file: an interruption (it may wait, too) or an error. */
static bool
is_interruption(void)
{
    return PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception);
}

/* Push out what libpq has queued. */
static int
flush(Copy *copy)
{
    GioPqState *st = copy->st;
    PGconn *pg = copy->c->pg;
    int rc;
    while ((rc = st->pq.PQflush(pg)) > 0) {
        int ready = gio_pq_wait_socket(st, copy->c, GIO_READ | GIO_WRITE, GIO_NEVER);
        if (ready < 0)
            return GIO_PQ_INTERRUPTED;
        /* The server may be unable to read before we have read it. */
        if ((ready & GIO_READ) && !st->pq.PQconsumeInput(pg))
            return gio_pq_conn_failed(st, copy->c);
    }
    return rc < 0 ? gio_pq_conn_failed(st, copy->c) : GIO_PQ_DONE;
}

/* Hand data to libpq; `data` NULL ends the COPY, with `error` or well. */
static int
put(Copy *copy, const char *data, int size, const char *error)
{
    const GioLibpq *pq = &copy->st->pq;
    for (;;) {
        int rc = data != NULL ? pq->PQputCopyData(copy->c->pg, data, size)
                              : pq->PQputCopyEnd(copy->c->pg, error);
        if (rc < 0)
            return gio_pq_conn_failed(copy->st, copy->c);
        if (rc > 0)
            return GIO_PQ_DONE;
        if ((rc = flush(copy)) != GIO_PQ_DONE) /* its buffer cannot grow: wait for room */
            return rc;
    }
}

static int
put_end(Copy *copy, const char *error)
{
    int rc = put(copy, NULL, 0, error);
    return rc == GIO_PQ_DONE ? flush(copy) : rc;
}

/* The codec of the connection's client encoding: a new reference to its name. */
static PyObject *
codec(Copy *copy)
{
    PyObject *encoding = PyObject_GetAttrString(copy->c->conn, "encoding");
    PyObject *name = encoding ? PyObject_GetItem(copy->st->encodings, encoding) : NULL;
    Py_XDECREF(encoding);
    if (name != NULL && !PyUnicode_Check(name)) /* the table is everybody's to change */
        PyErr_Format(PyExc_TypeError, "psycopg2.extensions.encodings names codecs, not %.100s",
                     Py_TYPE(name)->tp_name);
    else if (name != NULL && PyUnicode_AsUTF8(name) != NULL) /* and keeps that */
        return name;
    Py_XDECREF(name);
    return NULL;
}

/* One read() as bytes: a new reference; NULL if there is none to send, maybe with an exception. */
static PyObject *
read_chunk(Copy *copy)
{
    PyObject *chunk = PyObject_CallFunction(copy->call, "n", copy->c->copy_size);
    if (chunk != NULL && PyUnicode_Check(chunk)) {
        PyObject *text = chunk, *name = codec(copy);
        chunk = name ? PyUnicode_AsEncodedString(text, PyUnicode_AsUTF8(name), NULL) : NULL;
        Py_XDECREF(name);
        Py_DECREF(text);
    }
    if (chunk != NULL && !PyBytes_Check(chunk))
        Py_CLEAR(chunk);
    return chunk;
}

/* Tell the server that read() failed; it answers with an error that says why. */
static int
put_read_error(Copy *copy)
{
    PyObject *error = gio_err_take(), *text = NULL;
    const char *message = NULL;
    if (error != NULL) /* of which the server repeats no more than this */
        text = PyUnicode_FromFormat("error in .read() call: %.100s %.900S", Py_TYPE(error)->tp_name,
                                    error);
    if (text != NULL)
        message = PyUnicode_AsUTF8(text);
    PyErr_Clear();
    int rc = put_end(copy, message != NULL ? message : "error in .read() call");
    Py_XDECREF(text);
    Py_XDECREF(error);
    return rc;
}

static int
put_chunk(Copy *copy, PyObject *chunk, Py_ssize_t *queued)
{
    const char *data = PyBytes_AS_STRING(chunk);
    Py_ssize_t left = PyBytes_GET_SIZE(chunk);
    while (left > 0) {
        int size = left > PIECE ? PIECE : (int)left;
        int rc = put(copy, data, size, NULL);
        data += size;
        left -= size;
        *queued += size;
        if (rc == GIO_PQ_DONE && *queued >= PIECE) {
            *queued = 0;
            rc = flush(copy);
        }
        if (rc == GIO_PQ_DONE)
            rc = breathe(copy);
        if (rc != GIO_PQ_DONE)
            return rc;
    }
    return GIO_PQ_DONE;
}

static int
copy_in(Copy *copy)
{
    Py_ssize_t queued = 0;
    for (;;) {
        PyObject *chunk = read_chunk(copy);
        if (chunk == NULL)
            return is_interruption() ? GIO_PQ_INTERRUPTED : put_read_error(copy);
        if (PyBytes_GET_SIZE(chunk) == 0) {
            Py_DECREF(chunk);
            return put_end(copy, NULL);
        }
        int rc = put_chunk(copy, chunk, &queued);
        Py_DECREF(chunk);
        if (rc != GIO_PQ_DONE)
            return rc;
    }
}

static int
write_row(Copy *copy, const char *row, int size, PyObject *text_codec)
{
    PyObject *data = text_codec ? PyUnicode_Decode(row, size, PyUnicode_AsUTF8(text_codec), NULL)
                                : PyBytes_FromStringAndSize(row, size);
    PyObject *answer = data ? PyObject_CallOneArg(copy->call, data) : NULL;
    Py_XDECREF(data);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

/* Keep an error of the user's file for the guard to raise. */
static void
keep_error(GioPqConn *c)
{
    Py_XSETREF(c->pending, gio_err_take());
}

/* Read rows until there are no more; call NULL drops them. */
static int
copy_out(Copy *copy, PyObject *text_codec)
{
    GioPqState *st = copy->st;
    GioPqConn *c = copy->c;
    for (;;) {
        char *row = NULL;
        int size = st->pq.PQgetCopyData(c->pg, &row, 1);
        if (size == -1)
            return GIO_PQ_DONE;
        if (size < 0)
            return gio_pq_conn_failed(st, c);
        if (size == 0) {
            if (gio_pq_wait_socket(st, c, GIO_READ, GIO_NEVER) < 0)
                return GIO_PQ_INTERRUPTED;
            if (!st->pq.PQconsumeInput(c->pg))
                return gio_pq_conn_failed(st, c);
            continue;
        }
        int failed = copy->call != NULL && write_row(copy, row, size, text_codec) < 0;
        st->pq.PQfreemem(row);
        if (failed && is_interruption())
            return GIO_PQ_INTERRUPTED;
        if (failed) {
            keep_error(c);
            Py_CLEAR(copy->call);
        }
        int rc = breathe(copy);
        if (rc != GIO_PQ_DONE)
            return rc;
    }
}

static int
run_out(Copy *copy)
{
    PyObject *text_codec = NULL;
    int is_text = PyObject_IsInstance(copy->c->copy_file, copy->st->text_io);
    if (is_text < 0 || (is_text > 0 && (text_codec = codec(copy)) == NULL)) {
        keep_error(copy->c);
        Py_CLEAR(copy->call);
    }
    int rc = copy_out(copy, text_codec);
    Py_XDECREF(text_codec);
    return rc;
}

/* COPY by plain execute(): there is no file. */
static int
run_without_file(Copy *copy, int kind)
{
    const char *message = kind == PGRES_COPY_IN ? NO_FILE_IN : NO_FILE_OUT;
    PyErr_SetString(copy->st->programming_error, message);
    keep_error(copy->c);
    return kind == PGRES_COPY_IN ? put_end(copy, message) : copy_out(copy, NULL);
}

int
gio_pq_copy_run(GioPqState *st, GioPqConn *c, int kind)
{
    Copy copy = {.st = st, .c = c, .since = st->api->now()};
    if (c->copy_file == NULL)
        return run_without_file(&copy, kind);
    copy.call = PyObject_GetAttrString(c->copy_file, kind == PGRES_COPY_IN ? "read" : "write");
    if (copy.call == NULL) {
        keep_error(c);
        return kind == PGRES_COPY_IN ? put_end(&copy, "the file has no .read() method")
                                     : copy_out(&copy, NULL);
    }
    int rc = kind == PGRES_COPY_IN ? copy_in(&copy) : run_out(&copy);
    Py_XDECREF(copy.call);
    return rc;
}

int
gio_pq_copy_discard(GioPqState *st, GioPqConn *c, int kind)
{
    char *row = NULL;
    int size;
    if (kind == PGRES_COPY_IN) {
        int rc = st->pq.PQputCopyEnd(c->pg, "the COPY was interrupted");
        if (rc < 0)
            return gio_pq_conn_failed(st, c);
        return rc > 0 ? 0 : GIO_READ | GIO_WRITE;
    }
    while ((size = st->pq.PQgetCopyData(c->pg, &row, 1)) > 0)
        st->pq.PQfreemem(row);
    if (size == -2)
        return gio_pq_conn_failed(st, c);
    return size == 0 ? GIO_READ : 0;
}
