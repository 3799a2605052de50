/* Several operations at the server at the same time, in libpq's pipeline mode.
 *
 * In the queue, what was sent is before what was not. Answers come in the order of what was sent,
 * so they are the first one's. An operation that needs another round trip (its statement had to be
 * prepared first) goes back among those that were not sent, to their head.
 *
 * Where a connection is shared, each thing that is sent has a sync of its own: errors stay with
 * their query. How many may be on their way is found out: when all of them have come back while
 * others were waiting, that was too few for the distance. In a pipeline the user makes the syncs.
 */
#include "pg/pg.h"

#define LARGEST_WINDOW 4096

int
gio_pg_pipeline_sync(GioPgConn *c)
{
    if (c->mode == GIO_PG_PIPELINE)
        return PQsendFlushRequest(c->pg);
#ifdef LIBPQ_HAS_SEND_PIPELINE_SYNC
    return PQsendPipelineSync(c->pg); /* the caller flushes, once for all */
#else
    return PQpipelineSync(c->pg);
#endif
}

static bool
is_word(const char *text, size_t n, const char *const *words)
{
    for (; *words != NULL; words++)
        if (strlen(*words) == n && PyOS_strnicmp(text, *words, (Py_ssize_t)n) == 0)
            return true;
    return false;
}

GioPgCommand
gio_pg_command_of(PyObject *sql)
{
    static const char *const session[] = {
        "abort",     "begin", "commit", "deallocate", "discard", "end",   "execute",
        "listen",    "load",  "lock",   "prepare",    "release", "reset", "rollback",
        "savepoint", "set",   "start",  "unlisten",   NULL};
    static const char *const cursor[] = {"close", "declare", NULL};
    static const char *const fetch[] = {"fetch", "move", NULL};
    static const char *const copy[] = {"copy", NULL};
    static const char *const temporary[] = {"temp", "temporary", "local", "global", NULL};
    const char *text = PyUnicode_AsUTF8(sql), *word;
    if (text == NULL) {
        PyErr_Clear(); /* it will be raised when it is sent */
        return GIO_PG_PLAIN;
    }
    for (;;) {
        text += strspn(text, " \t\r\n\f(;");
        if (strncmp(text, "--", 2) == 0) {
            text += strcspn(text, "\n");
        }
        else if (strncmp(text, "/*", 2) == 0) {
            int depth = 0;
            do { /* they nest */
                if (strncmp(text, "/*", 2) == 0 || strncmp(text, "*/", 2) == 0) {
                    depth += *text == '/' ? 1 : -1;
                    text++;
                }
                text++;
            } while (depth > 0 && *text != '\0');
        }
        else {
            break;
        }
    }
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
    if (is_word(text, n, copy))
        return GIO_PG_OF_COPY;
    if (is_word(text, n, cursor))
        return GIO_PG_OF_CURSOR;
    if (is_word(text, n, fetch))
        return GIO_PG_OF_FETCH;
    if (n == 6 && PyOS_strnicmp(text, "create", 6) == 0) {
        word = text + n + strspn(text + n, " \t\r\n\f");
        return is_word(word, strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
                       temporary)
                   ? GIO_PG_OF_SESSION
                   : GIO_PG_PLAIN;
    }
    return is_word(text, n, session) ? GIO_PG_OF_SESSION : GIO_PG_PLAIN;
}

int
gio_pg_pipeline_admit(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    bool shared = c->mode == GIO_PG_SHARED;
    const char *what = NULL;
    switch (op->kind) {
    case GIO_PG_SCRIPT:
        what = "a script of several statements";
        break;
    case GIO_PG_MANY:
        what = "executemany()";
        break;
    case GIO_PG_COPY:
        what = "COPY";
        break;
    case GIO_PG_STREAM:
        what = "stream()";
        break;
    case GIO_PG_REPLICATION:
        what = "replication";
        break;
    default:
        if (op->stmt->command == GIO_PG_OF_COPY)
            what = "COPY";
        else if (op->before != NULL || (op->stmt->command != GIO_PG_PLAIN && shared))
            what = "what concerns the whole session (transactions, settings, LISTEN, cursors, "
                   "temporary tables)";
    }
    if (what == NULL)
        return 0;
    gio_pg_pipeline_refuse(c, what);
    return -1;
}

void
gio_pg_pipeline_refuse(GioPgConn *c, const char *what)
{
    if (c->mode == GIO_PG_SHARED)
        gio_pg_error_set("NotSupportedError",
                         "%s needs a connection of its own, not a shared one: take one from the "
                         "pool, or connect()",
                         what);
    else
        gio_pg_error_set("NotSupportedError", "%s cannot be part of a pipeline: do it outside",
                         what);
}

/* ---- a pipeline's own commands --------------------------------------------------------------- */

bool
gio_pg_pipeline_command(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    if ((c->mode == GIO_PG_PIPELINE) == (op->kind == GIO_PG_PIPELINE_BEGIN) ||
        c->mode == GIO_PG_SHARED) {
        gio_pg_error_set("InterfaceError", c->mode == GIO_PG_SHARED
                                               ? "a shared connection has no pipelines of its own"
                                           : c->mode == GIO_PG_PIPELINE
                                               ? "a pipeline is open already on this connection"
                                               : "no pipeline is open on this connection");
        gio_pg_op_finish(op, NULL, NULL);
        return false;
    }
    if (op->kind == GIO_PG_PIPELINE_BEGIN) {
        if (!PQenterPipelineMode(c->pg)) {
            gio_pg_op_finish(op, NULL, gio_pg_error_lost(c));
            return false;
        }
        c->mode = GIO_PG_PIPELINE;
        c->unsent = op->next;
        c->ending = c->awaited = c->unanswered = false;
        gio_pg_op_finish(op, Py_NewRef(Py_None), NULL);
        return false;
    }
    op->stage = GIO_PG_EXECUTING;
    op->pending = 1;
    c->ending = op->kind == GIO_PG_PIPELINE_END;
    c->unanswered = false;
    if (!PQpipelineSync(c->pg)) {
        gio_pg_op_finish(op, NULL, gio_pg_error_lost(c));
        return false;
    }
    return true;
}

void
gio_pg_pipeline_ended(GioPgConn *c)
{
    c->ending = false;
    if (!PQexitPipelineMode(c->pg)) {
        c->lost = true;
        return;
    }
    c->mode = GIO_PG_SERIAL;
    c->unsent = NULL;
}

void
gio_pg_pipeline_await(GioPgConn *c)
{
    if (c->awaited && !c->unanswered)
        return;
    c->awaited = true;
    gio_pg_advance(c);
    gio_pg_rearm(c);
}

/* ---- sending ------------------------------------------------------------------------------------
 */

void
gio_pg_pipeline_again(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    if (!op->queued) /* Python has closed the connection */
        return;
    op->stage = GIO_PG_QUEUED;
    op->sent = false;
    c->in_flight--;
    if (c->learner == op)
        c->learner = NULL;
    if (op->next != c->unsent) {
        GioPgOp *before = op->next;
        while (before->next != c->unsent)
            before = before->next;
        c->first = op->next;
        before->next = op;
        op->next = c->unsent;
        if (op->next == NULL)
            c->last = op;
    }
    c->unsent = op;
}

/* Answers that are to be read with it may be on their way: another one takes its place. */
static int
renew_statement(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    for (;;) {
        GioPgStatement *s = op->stmt;
        if (s == NULL && (s = op->stmt = gio_pg_statement_get(op)) == NULL)
            return -1;
        if (!s->outdated && (s->described || s->params == NULL))
            return 0;
        gio_pg_statement_forget(c, s);
        Py_CLEAR(op->stmt);
    }
}

static bool
may_send(GioPgConn *c, GioPgOp *op)
{
    if (c->unflushed || c->cancelling || c->ending || c->learner != NULL)
        return false;
    if (op->kind == GIO_PG_FINISH)
        return c->first == op;
    if (c->mode != GIO_PG_SHARED)
        return true;
    if (c->in_flight >= c->window) {
        c->full = true;
        return false;
    }
    return op->stmt == NULL || !op->stmt->preparing;
}

static bool
send_some(GioPgConn *c)
{
    GioPgOp *op;
    bool some = false;
    if (c->full && c->in_flight == 0 && c->window < LARGEST_WINDOW)
        c->window *= 2;
    c->full = false;
    while ((op = c->unsent) != NULL && c->phase == GIO_PG_READY && !c->lost) {
        if (op->kind == GIO_PG_SCRIPT && op->want == GIO_PG_STATUS)
            op->kind = GIO_PG_QUERY; /* execute() without arguments: one statement, or refused */
        if ((op->kind == GIO_PG_QUERY || op->kind == GIO_PG_PREPARE) && renew_statement(op) < 0) {
            gio_pg_op_finish(op, NULL, NULL);
            continue;
        }
        if (!may_send(c, op))
            break;
        c->unsent = op->next;
        c->in_flight++;
        op->sent = true;
        Py_INCREF(op);
        gio_pg_query_begin(op);
        Py_DECREF(op);
        some = true;
    }
    return some;
}

bool
gio_pg_pipeline_defer(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    GioPgWatch *w = c->watch;
    if (c->unsent == NULL)
        c->unsent = op;
    if (c->batching || c->phase != GIO_PG_READY)
        return true;
    if (c->in_flight == 0 || w == NULL || !gio_pg_watch_is_here(w))
        return false;
    if (!c->soon) {
        PyObject *event = PyLong_FromLong(0), *handle = NULL;
        if (event != NULL)
            handle = PyObject_CallMethodObjArgs(w->loop, c->st->str_call_soon, (PyObject *)w, event,
                                                NULL);
        Py_XDECREF(event);
        if (handle == NULL) {
            PyErr_Clear();
            return false;
        }
        Py_DECREF(handle);
        c->soon = true;
    }
    return true;
}

/* ---- moving on
 * ------------------------------------------------------------------------------------ */

/* True if there is something to read. */
static bool
feed_first(GioPgConn *c)
{
    GioPgOp *op = c->first;
    bool lost = PQstatus(c->pg) == CONNECTION_BAD;
    if (!lost && PQisBusy(c->pg))
        return false;
    PGresult *res = PQgetResult(c->pg);
    if (lost && res == NULL) { /* what it has been told is all there will be */
        c->lost = true;
        if (op->error == NULL)
            return false;
        op->pending = 1;
        op->retry = false;
        op->stage = GIO_PG_EXECUTING;
    }
    gio_pg_query_feed(op, res);
    return true;
}

void
gio_pg_pipeline_advance(GioPgConn *c)
{
    if (c->mode == GIO_PG_SHARED && PQpipelineStatus(c->pg) == PQ_PIPELINE_OFF &&
        !PQenterPipelineMode(c->pg))
        c->lost = true;
    while (c->phase == GIO_PG_READY && !c->lost && c->mode != GIO_PG_SERIAL) {
        GioPgOp *op = c->first;
        if (op != NULL && op->sent) {
            if (c->mode == GIO_PG_PIPELINE && op->given_up && !c->cancelling)
                gio_pg_cancel_begin(c);
            if (c->phase == GIO_PG_READY && c->first == op && feed_first(c))
                continue;
        }
        if (c->phase == GIO_PG_READY && c->in_flight == 0 && PQstatus(c->pg) == CONNECTION_BAD)
            c->lost = true;
        if (c->phase != GIO_PG_READY || c->lost)
            break;
        if (c->cancelling && gio_pg_cancel_is_over(c))
            gio_pg_cancel_step(c, true);
        if (!send_some(c))
            break;
    }
    if (c->phase != GIO_PG_READY || c->mode != GIO_PG_PIPELINE || c->lost)
        return;
    if (c->awaited && c->unanswered) {
        c->unanswered = false;
        if (!PQsendFlushRequest(c->pg))
            c->lost = true;
    }
    if (c->in_flight == 0)
        c->awaited = false;
}
