/* Connection: one session with a server, for sync and async code alike.
 *
 * What takes time is an Op, which the methods here only make. The classes of greenletio.pg are
 * built on this type: aio.Connection is a subclass of it, the DB-API's has one.
 */
#include "pg/pg.h"

#include <math.h>
#include <stddef.h>
#include <structmember.h>
#include <sys/socket.h>
#include <unistd.h>

#define CANCEL_NS INT64_C(5000000000)

void
gio_pg_conn_tell(GioPgConn *c, const char *kind, PyObject *value)
{
    if (c->on_event == NULL || c->on_event == Py_None)
        return;
    PyObject *exc = gio_err_take(), *callback = Py_NewRef(c->on_event);
    PyObject *answer = PyObject_CallFunction(callback, "sO", kind, value);
    if (answer == NULL)
        PyErr_WriteUnraisable(callback);
    Py_XDECREF(answer);
    Py_DECREF(callback);
    if (exc != NULL)
        gio_err_give(exc);
}

/* The end of an operation whose connection is dropped. */
static PyObject *
end_of(GioPgConn *c, PyObject *error)
{
    if (error != NULL)
        return Py_NewRef(error);
    PyObject *made = NULL;
    if (c->frozen)
        gio_pg_error_set("OperationalError", "the server did not end a cancelled query in time: "
                                             "the connection was closed");
    else
        made = gio_pg_error_lost(c);
    return made != NULL ? made : gio_err_take();
}

void
gio_pg_conn_drop(GioPgConn *c, PyObject *error)
{
    PGconn *pg = c->pg;
    if (c->phase == GIO_PG_CLOSED || c->phase == GIO_PG_NEW || c->dropping)
        return;
    PyObject *exc = gio_err_take();
    Py_INCREF(c);
    /* All this runs Python, which may come here again, in any thread: nothing begins meanwhile. */
    c->dropping = true;
    gio_pg_cancel_end(c);
    PyObject *grave = gio_pg_watch_forget(c, pg);
    while (c->first != NULL) {
        GioPgOp *op = (GioPgOp *)Py_NewRef((PyObject *)c->first);
        PyObject *end = op->error != NULL ? Py_NewRef(op->error) : end_of(c, error);
        gio_pg_op_finish(op, NULL, end);
        Py_DECREF(op);
    }
    c->phase = GIO_PG_CLOSED;
    c->dropping = false;
    c->lost = c->frozen = c->unflushed = c->discard_copy = false;
    c->ending = c->awaited = c->unanswered = c->full = false;
    if (c->mode == GIO_PG_PIPELINE)
        c->mode = GIO_PG_SERIAL;
    c->pg = NULL;
    PyDict_Clear(c->cache);
    int fd = PQsocket(pg);
    if (fd >= 0)
        c->st->api->fd_closing(fd);
    if (fd >= 0 && c->pumping && c->pid == (int)getpid())
        shutdown(fd, SHUT_RD); /* closing it does not wake a thread that polls it */
    if (c->pid == (int)getpid() && grave == NULL)
        PQfinish(pg);
    /* else: the session is the parent's, and PQfinish() would end it for both: pg is leaked */
    Py_XDECREF(grave);
    gio_pg_conn_tell(c, "closed", Py_None);
    gio_pg_rearm(c);
    Py_DECREF(c);
    if (exc != NULL)
        gio_err_give(exc);
}

/* ---- making operations ---------------------------------------------------------------- */

/* Seconds, or None: no limit. -2 with an exception. */
static double
as_timeout(PyObject *seconds)
{
    if (seconds == NULL || seconds == Py_None)
        return -1;
    double value = PyBool_Check(seconds) ? NAN : PyFloat_AsDouble(seconds);
    if (isnan(value) || (value == -1.0 && PyErr_ExceptionMatches(PyExc_TypeError))) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "invalid timeout value: expected seconds (got %R)", seconds);
    }
    if (isnan(value) || (value == -1.0 && PyErr_Occurred()))
        return -2;
    return value < 0 ? 0 : value;
}

/* The same; None: the connection's. */
static double
timeout_of(GioPgConn *c, PyObject *seconds)
{
    return as_timeout(seconds == NULL || seconds == Py_None ? c->timeout : seconds);
}

typedef struct {
    PyObject *timeout, *record_class, *column;
} Options;

static int
read_options(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, const char *what,
             GioPgWant want, Options *options)
{
    Py_ssize_t n = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i), *value = args[nargs + i];
        if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0)
            options->timeout = value;
        else if (want != GIO_PG_STATUS && want != GIO_PG_VALUE &&
                 PyUnicode_CompareWithASCIIString(name, "record_class") == 0)
            options->record_class = value;
        else if (want == GIO_PG_VALUE && PyUnicode_CompareWithASCIIString(name, "column") == 0)
            options->column = value;
        else {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", what,
                         name);
            return -1;
        }
    }
    return 0;
}

static int
set_record_class(GioPgOp *op, PyObject *record_class)
{
    GioPgState *st = op->conn->st;
    if (record_class == NULL || record_class == Py_None)
        record_class = op->conn->record_class;
    if (record_class == NULL || record_class == (PyObject *)st->record_type)
        return 0;
    if (!PyType_Check(record_class) ||
        !PyType_IsSubtype((PyTypeObject *)record_class, st->record_type)) {
        gio_pg_error_set("InterfaceError",
                         "record_class is expected to be a subclass of Record, got %R",
                         record_class);
        return -1;
    }
    if (((PyTypeObject *)record_class)->tp_init != st->record_type->tp_init ||
        ((PyTypeObject *)record_class)->tp_new != st->record_type->tp_new) {
        gio_pg_error_set("InterfaceError", "record_class must not redefine __new__ or __init__");
        return -1;
    }
    op->record_class = Py_NewRef(record_class);
    return 0;
}

/* execute, fetch, fetchrow, fetchval: (query, *args, **options) */
static PyObject *
make_query(GioPgConn *c, const char *what, GioPgWant want, PyObject *const *args, Py_ssize_t nargs,
           PyObject *kwnames)
{
    Options options = {NULL, NULL, NULL};
    if (nargs < 1 || !PyUnicode_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "%s() takes the text of a query", what);
        return NULL;
    }
    if (read_options(args, nargs, kwnames, what, want, &options) < 0)
        return NULL;
    double timeout = timeout_of(c, options.timeout);
    if (timeout == -2)
        return NULL;
    bool script = want == GIO_PG_STATUS && nargs == 1;
    PyObject *params = script ? NULL : PyTuple_New(nargs - 1);
    if (!script && params == NULL)
        return NULL;
    for (Py_ssize_t i = 1; i < nargs; i++)
        PyTuple_SET_ITEM(params, i - 1, Py_NewRef(args[i]));
    GioPgOp *op =
        gio_pg_op_new(c, script ? GIO_PG_SCRIPT : GIO_PG_QUERY, want, args[0], params, timeout);
    Py_XDECREF(params);
    if (op == NULL)
        return NULL;
    if (options.column != NULL && PyUnicode_Check(options.column)) {
        op->column_name = Py_NewRef(options.column);
    }
    else if (options.column != NULL) {
        op->column = PyNumber_AsSsize_t(options.column, PyExc_IndexError);
        if (op->column == -1 && PyErr_Occurred())
            goto error;
    }
    if (set_record_class(op, options.record_class) < 0)
        goto error;
    return (PyObject *)op;

error:
    Py_DECREF(op);
    return NULL;
}

static PyObject *
conn_execute(GioPgConn *c, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return make_query(c, "execute", GIO_PG_STATUS, args, nargs, kwnames);
}

static PyObject *
conn_fetch(GioPgConn *c, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return make_query(c, "fetch", GIO_PG_RECORDS, args, nargs, kwnames);
}

static PyObject *
conn_fetchrow(GioPgConn *c, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return make_query(c, "fetchrow", GIO_PG_RECORD, args, nargs, kwnames);
}

static PyObject *
conn_fetchval(GioPgConn *c, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return make_query(c, "fetchval", GIO_PG_VALUE, args, nargs, kwnames);
}

static const char *const kinds[] = {"connect",      "query",  "script",     "prepare",
                                    "many",         "copy",   "copy_read",  "copy_write",
                                    "copy_end",     "finish", "pipeline",   "sync",
                                    "pipeline_end", "stream", "replication"};
static const char *const wants[] = {"status", "records",   "record",  "value",
                                    "tuples", "statement", "nothing", "columns"};

const char *
gio_pg_kind_name(GioPgKind kind)
{
    return kinds[kind];
}

static int
find_word(const char *const *words, int n, const char *word)
{
    for (int i = 0; i < n; i++)
        if (strcmp(words[i], word) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "%s is not an operation", word);
    return -1;
}

/* op(kind, want, sql, args=None, *, oids, statement, timeout, record_class, column, session, plain,
 * before) */
static PyObject *
conn_op(GioPgConn *c, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"kind",    "want",         "sql",    "args",    "oids",  "statement",
                               "timeout", "record_class", "column", "session", "plain", "before",
                               NULL};
    const char *kind_word, *want_word;
    PyObject *sql, *params = Py_None, *oids = Py_None, *statement = Py_None, *seconds = Py_None;
    PyObject *record_class = Py_None, *session = Py_None, *before = Py_None;
    Py_ssize_t column = 0;
    int plain = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ssU|O$OOOOnOpO:op", keywords, &kind_word,
                                     &want_word, &sql, &params, &oids, &statement, &seconds,
                                     &record_class, &column, &session, &plain, &before))
        return NULL;
    int kind = find_word(kinds, 15, kind_word), want = find_word(wants, 8, want_word);
    double timeout = kind == GIO_PG_CONNECT ? as_timeout(seconds) : timeout_of(c, seconds);
    if (kind < 0 || want < 0 || timeout == -2)
        return NULL;
    if ((params != Py_None && kind < GIO_PG_MANY && !PyTuple_CheckExact(params)) ||
        (oids != Py_None && (!PyBytes_CheckExact(oids) || PyBytes_GET_SIZE(oids) % sizeof(Oid))) ||
        (statement != Py_None && !Py_IS_TYPE(statement, c->st->statement_type)) ||
        (session != Py_None) != (kind >= GIO_PG_COPY_READ && kind <= GIO_PG_COPY_END) ||
        (session != Py_None && !Py_IS_TYPE(session, c->st->op_type)) ||
        (before != Py_None && (kind != GIO_PG_QUERY || !PyUnicode_Check(before))) ||
        (kind == GIO_PG_STREAM &&
         ((want != GIO_PG_RECORDS && want != GIO_PG_TUPLES && want != GIO_PG_COLUMNS) ||
          !PyTuple_CheckExact(params))) ||
        (kind != GIO_PG_STREAM && want == GIO_PG_COLUMNS) ||
        (want != GIO_PG_STATUS && want != GIO_PG_TUPLES && kind == GIO_PG_SCRIPT) ||
        (want != GIO_PG_STATUS && (kind == GIO_PG_COPY || kind == GIO_PG_REPLICATION)) ||
        (statement != Py_None &&
         (kind == GIO_PG_SCRIPT || kind == GIO_PG_COPY || kind == GIO_PG_REPLICATION)) ||
        (params == Py_None && (kind == GIO_PG_MANY || kind == GIO_PG_COPY_WRITE))) {
        PyErr_SetString(PyExc_TypeError, "these arguments do not make an operation");
        return NULL;
    }
    GioPgOp *op = gio_pg_op_new(c, (GioPgKind)kind, (GioPgWant)want, sql,
                                params == Py_None ? NULL : params, timeout);
    if (op == NULL)
        return NULL;
    op->oids = oids == Py_None ? NULL : Py_NewRef(oids);
    op->stmt = statement == Py_None ? NULL : (GioPgStatement *)Py_NewRef(statement);
    op->session = session == Py_None ? NULL : (GioPgOp *)Py_NewRef(session);
    op->before = before == Py_None ? NULL : Py_NewRef(before);
    op->column = column;
    op->plain = plain;
    if (set_record_class(op, record_class) < 0)
        Py_CLEAR(op);
    return (PyObject *)op;
}

static PyObject *
conn_terminate(GioPgConn *c, PyObject *Py_UNUSED(ignored))
{
    gio_pg_conn_drop(c, NULL);
    gio_pg_wake(c);
    Py_RETURN_NONE;
}

/* SHARED: somebody waits for what is at the server. */
static bool
serves_many(GioPgConn *c)
{
    for (GioPgOp *op = c->first; op != NULL && op->sent; op = op->next)
        if (c->mode == GIO_PG_SHARED && !op->given_up)
            return true;
    return false;
}

/* End what the server does just now, as its user: whoever waits for it gets the server's error. Of
 * a shared connection only what nobody waits for. */
static PyObject *
conn_cancel(GioPgConn *c, PyObject *Py_UNUSED(ignored))
{
    GioPgOp *first = c->first;
    if (first != NULL && first->stage == GIO_PG_COPYING && first->sub == NULL) {
        Py_INCREF(first); /* a stream or COPY that nobody moves on just now */
        gio_pg_op_give_up(first);
        Py_DECREF(first);
    }
    else if (first != NULL && first->stage != GIO_PG_QUEUED && !serves_many(c)) {
        gio_pg_cancel_begin(c);
    }
    gio_pg_wake(c);
    Py_RETURN_NONE;
}

static PyObject *
conn_forget_codecs(GioPgConn *c, PyObject *Py_UNUSED(ignored))
{
    if (c->advancing) /* a codec is at work with them */
        return gio_pg_error_set("InterfaceError", "a codec must not change codecs");
    if (gio_pg_statement_renew(c) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- what is known of it -------------------------------------------------------------------- */

static PyObject *
conn_is_closed(GioPgConn *c, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(c->phase == GIO_PG_CLOSED || c->phase == GIO_PG_NEW);
}

static PyObject *
conn_parameter(GioPgConn *c, PyObject *name)
{
    const char *utf8 = PyUnicode_AsUTF8(name);
    if (utf8 == NULL)
        return NULL;
    const char *value = c->pg == NULL ? NULL : PQparameterStatus(c->pg, utf8);
    if (value == NULL)
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(value, (Py_ssize_t)strlen(value), "replace");
}

static PyObject *
conn_options(GioPgConn *c, PyObject *Py_UNUSED(ignored))
{
    PQconninfoOption *all = c->pg == NULL ? NULL : PQconninfo(c->pg);
    PyObject *dict = PyDict_New();
    for (PQconninfoOption *o = all; dict != NULL && o != NULL && o->keyword != NULL; o++) {
        if (o->val == NULL || strchr(o->dispchar, '*') != NULL) /* not set, or secret */
            continue;
        PyObject *value = PyUnicode_DecodeUTF8(o->val, (Py_ssize_t)strlen(o->val), "replace");
        if (value == NULL || PyDict_SetItemString(dict, o->keyword, value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    PQconninfoFree(all);
    return dict;
}

static PyObject *
conn_get_transaction_status(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(c->pg == NULL ? PQTRANS_UNKNOWN : PQtransactionStatus(c->pg));
}

static PyObject *
conn_get_pid(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(c->pg == NULL ? 0 : PQbackendPID(c->pg));
}

static PyObject *
conn_get_server_version(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(c->pg == NULL ? 0 : PQserverVersion(c->pg));
}

static PyObject *
conn_get_fd(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(c->pg == NULL ? -1 : PQsocket(c->pg));
}

static PyObject *
conn_get_busy(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(c->first != NULL || c->cancelling);
}

static PyObject *
conn_get_cancel_timeout(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyFloat_FromDouble((double)c->cancel_time / 1e9);
}

static int
conn_set_cancel_timeout(GioPgConn *c, PyObject *value, void *Py_UNUSED(closure))
{
    double seconds = value == NULL ? -1 : PyFloat_AsDouble(value);
    if (PyErr_Occurred())
        return -1;
    if (!(seconds >= 0 && seconds < 1e9)) {
        PyErr_SetString(PyExc_ValueError, "a number of seconds is required");
        return -1;
    }
    c->cancel_time = (int64_t)(seconds * 1e9);
    return 0;
}

static PyObject *
conn_get_in_flight(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(c->in_flight);
}

static PyObject *
conn_get_in_pipeline(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(c->mode == GIO_PG_PIPELINE);
}

static PyObject *
conn_get_shared(GioPgConn *c, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(c->mode == GIO_PG_SHARED);
}

static int
conn_set_shared(GioPgConn *c, PyObject *value, void *Py_UNUSED(closure))
{
    int shared = value == NULL ? 0 : PyObject_IsTrue(value);
    if (shared < 0 || shared == (c->mode == GIO_PG_SHARED))
        return shared < 0 ? -1 : 0;
    int status = c->pg == NULL ? PQTRANS_IDLE : PQtransactionStatus(c->pg);
    if (c->first != NULL || c->cancelling || c->advancing || c->mode == GIO_PG_PIPELINE ||
        status != PQTRANS_IDLE) {
        gio_pg_error_set("InterfaceError",
                         "`shared` is for a connection that nobody uses, outside a transaction");
        return -1;
    }
    if (c->pg != NULL && !(shared ? PQenterPipelineMode(c->pg) : PQexitPipelineMode(c->pg))) {
        gio_pg_error_set("InterfaceError", "libpq does not change its mode: %s",
                         PQerrorMessage(c->pg));
        return -1;
    }
    c->mode = shared ? GIO_PG_SHARED : GIO_PG_SERIAL;
    return 0;
}

/* ---- lifetime -------------------------------------------------------------------------------- */

static PyObject *
conn_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    GioPgConn *c = (GioPgConn *)type->tp_alloc(type, 0);
    if (c == NULL)
        return NULL;
    c->st = gio_pg_state_of((PyObject *)c);
    c->request_wait_fd = -1;
    c->done_tail = &c->done;
    c->cancel_time = CANCEL_NS;
    c->window = 32;
    c->cache_size = 100;
    c->cacheable_size = 15 * 1024;
    c->cache = PyDict_New();
    c->codecs = PyDict_New();
    if (c->st == NULL || c->cache == NULL || c->codecs == NULL)
        Py_CLEAR(c);
    return (PyObject *)c;
}

static int
conn_traverse(GioPgConn *c, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(c));
    for (GioPgOp *op = c->first; op != NULL; op = op->next)
        Py_VISIT(op);
    for (GioPgOp *op = c->done; op != NULL; op = op->done)
        Py_VISIT(op);
    Py_VISIT(c->cache);
    Py_VISIT(c->codecs);
    Py_VISIT(c->introspect);
    Py_VISIT(c->notices);
    Py_VISIT(c->on_event);
    Py_VISIT(c->record_class);
    Py_VISIT(c->timeout);
    Py_VISIT(c->tls_check);
    Py_VISIT(c->watch);
    for (GioPgWatch *w = c->former; w != NULL; w = w->next)
        Py_VISIT(w);
    return 0;
}

static int
conn_clear(GioPgConn *c)
{
    if (c->st != NULL) {
        gio_pg_conn_drop(c, NULL);
        gio_pg_wake(c);
    }
    Py_CLEAR(c->cache);
    Py_CLEAR(c->codecs);
    Py_CLEAR(c->introspect);
    Py_CLEAR(c->notices);
    Py_CLEAR(c->on_event);
    Py_CLEAR(c->record_class);
    Py_CLEAR(c->timeout);
    Py_CLEAR(c->tls_check);
    return 0;
}

static void
conn_finalize(GioPgConn *c)
{
    PyObject *exc = gio_err_take();
    gio_pg_conn_drop(c, NULL);
    gio_pg_wake(c);
    if (exc != NULL)
        gio_err_give(exc);
}

static void
conn_dealloc(GioPgConn *c)
{
    PyTypeObject *type = Py_TYPE(c);
    if (PyObject_CallFinalizerFromDealloc((PyObject *)c) < 0)
        return;
    PyObject_GC_UnTrack(c);
    if (c->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)c);
    Py_SET_REFCNT(c, 1); /* closing it takes references and gives them back */
    conn_clear(c);
    (void)gio_pg_watch_forget(c, NULL); /* gives NULL */
    Py_SET_REFCNT(c, 0);
    gio_buf_free(&c->out);
    type->tp_free(c);
    Py_DECREF(type);
}

#define METHOD(fn) ((PyCFunction)(void (*)(void))(fn))
#define QUERY METH_FASTCALL | METH_KEYWORDS

static PyObject *
conn_doubt_statements(GioPgConn *c, PyObject *Py_UNUSED(ignored))
{
    c->changes++;
    Py_RETURN_NONE;
}

static PyMethodDef conn_methods[] = {
    {"execute", METHOD(conn_execute), QUERY,
     "execute($self, query, /, *args, timeout=None)\n--\n\n"
     "Execute an SQL command, or without arguments a script of several; the last one's status."},
    {"fetch", METHOD(conn_fetch), QUERY,
     "fetch($self, query, /, *args, timeout=None, record_class=None)\n--\n\n"
     "Run a query; gives its rows as a list of Record."},
    {"fetchrow", METHOD(conn_fetchrow), QUERY,
     "fetchrow($self, query, /, *args, timeout=None, record_class=None)\n--\n\n"
     "Run a query; gives its first row, or None."},
    {"fetchval", METHOD(conn_fetchval), QUERY,
     "fetchval($self, query, /, *args, column=0, timeout=None)\n--\n\n"
     "Run a query; gives a column of its first row, or None."},
    {"_op", METHOD(conn_op), METH_VARARGS | METH_KEYWORDS, NULL},
    {"terminate", METHOD(conn_terminate), METH_NOARGS,
     "terminate($self, /)\n--\n\nClose it at once; what is under way fails."},
    {"_cancel", METHOD(conn_cancel), METH_NOARGS, NULL},
    {"_doubt_statements", METHOD(conn_doubt_statements), METH_NOARGS, NULL},
    {"_forget_codecs", METHOD(conn_forget_codecs), METH_NOARGS, NULL},
    {"is_closed", METHOD(conn_is_closed), METH_NOARGS,
     "is_closed($self, /)\n--\n\nWhether it is not connected (any more)."},
    {"_parameter", METHOD(conn_parameter), METH_O, NULL},
    {"_options", METHOD(conn_options), METH_NOARGS, NULL},
    {"_tls_facts", METHOD(gio_pg_tls_facts), METH_NOARGS, NULL},
    {NULL},
};

static PyGetSetDef conn_getset[] = {
    {"_transaction_status", (getter)conn_get_transaction_status, NULL, NULL, NULL},
    {"_pid", (getter)conn_get_pid, NULL, NULL, NULL},
    {"_server_version", (getter)conn_get_server_version, NULL, NULL, NULL},
    {"_fd", (getter)conn_get_fd, NULL, NULL, NULL},
    {"_busy", (getter)conn_get_busy, NULL, NULL, NULL},
    {"shared", (getter)conn_get_shared, (setter)conn_set_shared,
     "Whether queries of many tasks are on their way at the same time, each one by itself.\n\n"
     "Queries then go out without waiting for the answers to others. Each has its own errors, and is\n"
     "a transaction by itself. One that is given up is dropped: before it is sent it leaves the\n"
     "queue, later its answer is thrown away; the server goes on with it, since a cancel request\n"
     "could hit a neighbour's. What concerns those who use the connection afterwards is refused with\n"
     "NotSupportedError, by its first word: transactions, SET, LISTEN, cursors, temporary tables,\n"
     "COPY; so are scripts and executemany(). (What a function does to the session is not seen.)\n"
     "May be set while nothing is under way, outside a transaction, or before connecting; else\n"
     "InterfaceError.",
     NULL},
    {"_in_flight", (getter)conn_get_in_flight, NULL, NULL, NULL},
    {"_in_pipeline", (getter)conn_get_in_pipeline, NULL, NULL, NULL},
    {"cancel_timeout", (getter)conn_get_cancel_timeout, (setter)conn_set_cancel_timeout,
     "Seconds that the server has to end a query that was given up, before the connection is closed.",
     NULL},
    {NULL},
};

static PyMemberDef conn_members[] = {
    {"_window", T_INT, offsetof(GioPgConn, window), 0, NULL},
    {"_codecs", T_OBJECT_EX, offsetof(GioPgConn, codecs), READONLY, NULL},
    {"_cache", T_OBJECT_EX, offsetof(GioPgConn, cache), READONLY, NULL},
    {"_cache_size", T_PYSSIZET, offsetof(GioPgConn, cache_size), 0, NULL},
    {"_cache_lifetime", T_DOUBLE, offsetof(GioPgConn, cache_lifetime), 0, NULL},
    {"_cacheable_size", T_PYSSIZET, offsetof(GioPgConn, cacheable_size), 0, NULL},
    {"_refused_write", T_BOOL, offsetof(GioPgConn, refused_write), READONLY, NULL},
    {"_pooler", T_BOOL, offsetof(GioPgConn, pooler), 0, NULL},
    {"_introspect", T_OBJECT, offsetof(GioPgConn, introspect), 0, NULL},
    {"_on_event", T_OBJECT, offsetof(GioPgConn, on_event), 0, NULL},
    {"_record_class", T_OBJECT, offsetof(GioPgConn, record_class), 0, NULL},
    {"_timeout", T_OBJECT, offsetof(GioPgConn, timeout), 0, NULL},
    {"_tls_check", T_OBJECT, offsetof(GioPgConn, tls_check), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioPgConn, weakrefs), READONLY, NULL},
    {NULL},
};

static PyType_Slot conn_slots[] = {
    {Py_tp_doc,
     "Connection()\n--\n\nA session with a server: what the classes of greenletio.pg are built on."},
    {Py_tp_new, conn_new},
    {Py_tp_dealloc, conn_dealloc},
    {Py_tp_finalize, conn_finalize},
    {Py_tp_traverse, conn_traverse},
    {Py_tp_clear, conn_clear},
    {Py_tp_methods, conn_methods},
    {Py_tp_getset, conn_getset},
    {Py_tp_members, conn_members},
    {0, NULL},
};

static PyType_Spec conn_spec = {
    .name = "greenletio._pg.Connection",
    .basicsize = sizeof(GioPgConn),
    .flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = conn_slots,
};

int
gio_pg_conn_setup_types(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->conn_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &conn_spec, NULL);
    return st->conn_type == NULL || PyModule_AddType(module, st->conn_type) < 0 ? -1 : 0;
}
