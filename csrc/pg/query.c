/* What an operation sends, and what it makes of the answers.
 *
 * A query goes through at most three round trips: PREPARE and DESCRIBE in one (libpq's pipeline
 * mode), the look-up of types that are not known yet, the execution. With a cached statement only
 * the last is left. Called with the operation at the head of the queue; runs Python where a
 * user's codec does.
 */
#include "pg/pg.h"

/* What is asked about types, and all that they are made of. */
static const char catalogue[] =
    "WITH RECURSIVE wanted(oid) AS ("
    " SELECT unnest($1::oid[])"
    " UNION SELECT part.oid FROM wanted JOIN pg_catalog.pg_type t ON t.oid = wanted.oid,"
    " LATERAL (SELECT t.typelem WHERE t.typelem <> 0 AND t.typsubscript ="
    " 'pg_catalog.array_subscript_handler'::pg_catalog.regproc"
    " UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'"
    " UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid"
    " UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid"
    " UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE t.typtype = 'c'"
    " AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS part(oid))"
    " SELECT t.oid, n.nspname, t.typname, t.typtype,"
    " CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc"
    " THEN t.typelem ELSE 0 END, t.typbasetype,"
    " (SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid),"
    " (SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid),"
    " (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(a.attname, a.atttypid::int8)"
    " ORDER BY a.attnum) FROM pg_catalog.pg_attribute a WHERE t.typtype = 'c'"
    " AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped),"
    " p.proname"
    " FROM wanted JOIN pg_catalog.pg_type t ON t.oid = wanted.oid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
    " LEFT JOIN pg_catalog.pg_proc p ON p.oid = t.typsend::oid";

/* libpq took it, or the operation is over; and so is the connection where some of it may be on its
 * way: answers would be taken for the next one's. */
static bool
sent(GioPgOp *op, int ok)
{
    GioPgConn *c = op->conn;
    if (ok)
        return true;
    c->lost = c->lost || PQpipelineStatus(c->pg) != PQ_PIPELINE_OFF;
    gio_pg_op_finish(op, NULL, gio_pg_error_lost(c));
    return false;
}

/* ---- PREPARE and DESCRIBE ------------------------------------------------------------- */

/* Inside a transaction that failed, nothing but its end is heard: leave the cache as it is. In a
 * pipeline, an error of it would be everybody's. */
static int
send_deallocate(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    GioPgStatement *s = op->stmt, *oldest = NULL;
    char sql[96];
    if (s->replaces[0] != '\0') {
        PyOS_snprintf(sql, sizeof sql, "DEALLOCATE \"%s\"", s->replaces);
        s->replaces[0] = '\0';
    }
    else {
        if (s->cached && c->mode != GIO_PG_PIPELINE &&
            PQtransactionStatus(c->pg) != PQTRANS_INERROR)
            oldest = gio_pg_statement_oldest(c, s);
        if (oldest == NULL)
            return 1;
        PyOS_snprintf(sql, sizeof sql, "DEALLOCATE \"%s\"", oldest->name);
        gio_pg_statement_forget(c, oldest);
    }
    op->pending += 2;
    return PQsendQueryParams(c->pg, sql, 0, NULL, NULL, NULL, NULL, 0) && gio_pg_pipeline_sync(c);
}

#define MAX_PARAMETERS 65535 /* the protocol's */

/* How many ends there are to the answers of PREPARE and DESCRIBE. */
static int
parsing_ends(GioPgConn *c)
{
    return c->mode == GIO_PG_PIPELINE ? 2 : 3;
}

static bool
send_prepare(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    GioPgStatement *s = op->stmt;
    const char *sql = gio_pg_statement_text(op->sql);
    int noids = op->oids == NULL ? 0 : (int)(PyBytes_GET_SIZE(op->oids) / (Py_ssize_t)sizeof(Oid));
    const Oid *oids = op->oids == NULL ? NULL : (const Oid *)PyBytes_AS_STRING(op->oids);
    if (sql != NULL && noids > MAX_PARAMETERS) {
        gio_pg_error_set("ProgrammingError", "a query has at most %d parameters, not %d",
                         MAX_PARAMETERS, noids);
        sql = NULL;
    }
    if (sql == NULL) {
        gio_pg_op_finish(op, NULL, NULL);
        return false;
    }
    op->stage = GIO_PG_PARSING;
    op->pending = parsing_ends(c);
    s->preparing = true;
    bool ok = sent(op, (c->mode != GIO_PG_SERIAL || PQenterPipelineMode(c->pg)) &&
                           send_deallocate(op) && PQsendPrepare(c->pg, s->name, sql, noids, oids) &&
                           PQsendDescribePrepared(c->pg, s->name) && gio_pg_pipeline_sync(c));
    if (ok && c->mode == GIO_PG_SHARED && s->cached && /* for those who want it meanwhile */
        PyDict_SetItem(c->cache, s->key, (PyObject *)s) < 0)
        PyErr_Clear(); /* they prepare their own */
    return ok;
}

/* What is sent without a name takes the place of a statement that has none. */
static void
lose_unnamed(GioPgOp *op)
{
    GioPgStatement *s = op->stmt;
    if (s->name[0] == '\0' && gio_pg_statement_by_name(s, op->conn))
        s->prepared = false;
}

static bool
send_catalogue(GioPgOp *op, PyObject *unknown)
{
    GioPgConn *c = op->conn;
    PyObject *text = PyObject_Str(unknown); /* [1, 2] */
    char *array = NULL;
    bool ok = false;
    if (text != NULL && (array = PyMem_Malloc((size_t)PyUnicode_GET_LENGTH(text) + 1)) != NULL) {
        memcpy(array, PyUnicode_AsUTF8(text), (size_t)PyUnicode_GET_LENGTH(text) + 1);
        array[0] = '{';
        array[PyUnicode_GET_LENGTH(text) - 1] = '}';
        const char *const values[] = {array};
        lose_unnamed(op);
        op->stage = GIO_PG_LEARNING;
        op->pending = c->mode == GIO_PG_SHARED ? 2 : 1;
        ok = sent(op, PQsendQueryParams(c->pg, catalogue, 1, NULL, values, NULL, NULL, 0) &&
                          (c->mode == GIO_PG_SERIAL || gio_pg_pipeline_sync(c)));
    }
    else {
        gio_pg_op_finish(op, NULL, NULL);
    }
    PyMem_Free(array);
    Py_XDECREF(text);
    return ok;
}

/* libpq reads 16 KiB at a time, into a buffer that grows only for a value that does not fit, and
 * then for good. A connection whose answers keep coming in many parts is given such a value, once:
 * each read then brings what there is. Outside of a transaction, which an error would end. */
#define WIDE "SELECT pg_catalog.repeat('x', 100000) /* greenletio: room for larger reads */"

static bool
send_wide(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    c->wide = true;
    lose_unnamed(op);
    op->stage = GIO_PG_WIDENING;
    op->pending = 1;
    return sent(op, PQsendQueryParams(c->pg, WIDE, 0, NULL, NULL, NULL, NULL, 1));
}

/* The next round trip; false when the operation has ended. */
static bool
go_on(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    GioPgStatement *s = op->stmt;
    if (!op->queued) /* Python has closed the connection */
        return false;
    if (op->given_up || op->error != NULL) {
        gio_pg_op_finish(op, NULL, NULL);
        return false;
    }
    if (c->part_reads == GIO_PG_MANY_PARTS && !c->wide && c->mode == GIO_PG_SERIAL && !op->in_tx)
        return send_wide(op);
    if (c->mode == GIO_PG_PIPELINE)
        c->learner = op; /* unless this is the last of it */
    if (op->before != NULL && !gio_pg_begin_joins(op))
        return gio_pg_begin_alone(op);
    if (!s->described || !s->prepared)
        return send_prepare(op);
    PyObject *unknown = NULL;
    int known = 1;
    if (!s->resolved || s->outdated) {
        unknown = PyList_New(0);
        known = unknown == NULL ? -1 : gio_pg_statement_resolve(s, c, unknown);
    }
    if (known == 0) {
        bool ok = send_catalogue(op, unknown);
        Py_DECREF(unknown);
        return ok;
    }
    Py_XDECREF(unknown);
    if (known < 0) {
        gio_pg_op_finish(op, NULL, NULL);
        return false;
    }
    if (op->kind == GIO_PG_PREPARE) {
        gio_pg_op_finish(op, Py_NewRef((PyObject *)s), NULL);
        return false;
    }
    if (op->kind == GIO_PG_MANY)
        return gio_pg_many_begin(op);
    op->stage = GIO_PG_EXECUTING;
    op->pending = op->before != NULL ? GIO_PG_WITH_BEGIN : c->mode == GIO_PG_SHARED ? 2 : 1;
    op->in_tx = op->in_tx || op->before != NULL;
    c->learner = NULL;
    if (gio_pg_statement_send(s, c, op->args, op->before, op->oids != NULL,
                              s->text && op->want != GIO_PG_COLUMNS) < 0) {
        gio_pg_op_finish(op, NULL, NULL);
        return false;
    }
    c->unanswered = true;
    if (op->kind == GIO_PG_STREAM)
        return gio_pg_stream_begin(op);
    return op->pending == 1 || sent(op, gio_pg_pipeline_sync(c));
}

bool
gio_pg_query_begin(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    op->in_tx = c->mode == GIO_PG_SERIAL ? PQtransactionStatus(c->pg) != PQTRANS_IDLE
                                         : c->mode == GIO_PG_PIPELINE;
    op->pending = 1;
    if (op->kind == GIO_PG_FINISH) {
        gio_pg_op_finish(op, Py_NewRef(Py_None), NULL);
        gio_pg_conn_drop(c, NULL);
        return false;
    }
    if (op->kind >= GIO_PG_PIPELINE_BEGIN && op->kind <= GIO_PG_PIPELINE_END)
        return gio_pg_pipeline_command(op);
    if (c->mode != GIO_PG_SERIAL && gio_pg_pipeline_admit(op) < 0) {
        gio_pg_op_finish(op, NULL, NULL);
        return false;
    }
    if (op->kind == GIO_PG_SCRIPT || op->kind == GIO_PG_COPY || op->kind == GIO_PG_REPLICATION) {
        const char *sql = gio_pg_statement_text(op->sql);
        if (sql == NULL) {
            gio_pg_op_finish(op, NULL, NULL);
            return false;
        }
        op->stage = GIO_PG_EXECUTING;
        return sent(op, PQsendQuery(c->pg, sql));
    }
    if (op->stmt == NULL && (op->stmt = gio_pg_statement_get(op)) == NULL) {
        gio_pg_op_finish(op, NULL, NULL);
        return false;
    }
    if (op->stmt->conn != c) {
        gio_pg_op_finish(
            op, NULL,
            gio_pg_error_set("InterfaceError", "the statement belongs to another connection"));
        return false;
    }
    return go_on(op);
}

/* ---- answers ------------------------------------------------------------------------------ */

/* The exception that is set is the operation's, unless it has one. */
static void
fail(GioPgOp *op)
{
    PyObject *error = gio_err_take();
    if (op->error == NULL)
        op->error = error;
    else
        Py_XDECREF(error);
}

static void
fail_with(GioPgOp *op, const PGresult *res)
{
    PyObject *error = op->error != NULL || op->given_up ? NULL : gio_pg_error_of(res);
    if (error != NULL && PyObject_SetAttrString(error, "query", op->sql) < 0)
        Py_CLEAR(error);
    if (error != NULL)
        op->error = error;
    else if (PyErr_Occurred())
        fail(op);
}

/* There are several statements where one may be prepared. */
static bool
is_of_script(const PGresult *res)
{
    const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
    const char *function = PQresultErrorField(res, PG_DIAG_SOURCE_FUNCTION);
    return state != NULL && strcmp(state, "42601") == 0 && function != NULL &&
           strcmp(function, "exec_parse_message") == 0;
}

static void
feed_parsing(GioPgOp *op, PGresult *res)
{
    GioPgConn *c = op->conn;
    GioPgStatement *s = op->stmt;
    int ends = parsing_ends(c);
    if (op->pending > ends) /* DEALLOCATE */
        return;
    if (c->mode != GIO_PG_SERIAL && op->args == NULL && is_of_script(res)) {
        gio_pg_pipeline_refuse(c, "a script of several statements");
        fail(op);
    }
    else if (PQresultStatus(res) != PGRES_COMMAND_OK)
        fail_with(op, res);
    else if (op->pending == ends)
        s->prepared = true;
    else if (gio_pg_statement_described(s, res) < 0)
        fail(op);
}

/* There is more to send, now or when those before it have been. */
static void
next_leg(GioPgOp *op)
{
    if (op->conn->mode == GIO_PG_SERIAL)
        go_on(op);
    else
        gio_pg_pipeline_again(op);
}

static void
end_parsing(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    GioPgStatement *s = op->stmt;
    s->preparing = false;
    if (c->mode == GIO_PG_SERIAL && !PQexitPipelineMode(c->pg)) {
        c->lost = true;
        return;
    }
    if (!s->described || !s->prepared)
        gio_pg_statement_forget(c, s);
    else if (s->cached && PyDict_SetItem(c->cache, s->key, (PyObject *)s) < 0)
        fail(op);
    next_leg(op);
}

/* What the catalogue says of types: the codecs are made in Python. */
static void
learn(GioPgOp *op, const PGresult *res)
{
    GioPgConn *c = op->conn;
    PyObject *answer = gio_pg_result_tuples(c, NULL, res), *codecs = NULL;
    PyObject *unknown = PyList_New(0);
    PyObject *introspect = Py_XNewRef(c->introspect); /* a pool may put in another one meanwhile */
    if (answer != NULL && unknown != NULL && introspect != NULL && introspect != Py_None &&
        gio_pg_statement_resolve(op->stmt, c, unknown) >= 0)
        codecs =
            PyObject_CallFunctionObjArgs(introspect, PyTuple_GET_ITEM(answer, 0), unknown, NULL);
    else if (!PyErr_Occurred())
        gio_pg_error_set("InterfaceError", "types cannot be looked up on this connection");
    if (codecs == NULL || PyDict_Update(c->codecs, codecs) < 0)
        fail(op);
    Py_XDECREF(introspect);
    Py_XDECREF(answer);
    Py_XDECREF(unknown);
    Py_XDECREF(codecs);
}

bool
gio_pg_query_is_stale(GioPgOp *op, const PGresult *res)
{
    const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
    const char *function = PQresultErrorField(res, PG_DIAG_SOURCE_FUNCTION);
    if (state == NULL || op->stmt == NULL)
        return false;
    bool stale = strcmp(state, "26000") == 0 || (strcmp(state, "0A000") == 0 && function != NULL &&
                                                 strcmp(function, "RevalidateCachedQuery") == 0);
    if (!stale)
        return false;
    gio_pg_statement_forget(op->conn, op->stmt);
    if (state[0] == '0') /* the plan's fault, which others have, too */
        gio_pg_conn_tell(op->conn, "stale", Py_None);
    return !op->in_tx && !op->retried && !op->given_up;
}

int
gio_pg_query_check(GioPgOp *op, const PGresult *res)
{
    GioPgStatement *s = op->stmt;
    bool same = PQnfields(res) == s->ncols;
    for (int i = 0; same && i < s->ncols; i++)
        same = PQftype(res, i) == s->col_oids[i];
    if (same)
        return 0;
    gio_pg_statement_forget(op->conn, s);
    gio_pg_error_set("InterfaceError", "the columns of a prepared statement have changed");
    return -1;
}

/* Whether what was done may leave prepared statements with plans that are of no use. */
static void
note_change(GioPgConn *c, const PGresult *res)
{
    const char *tag = PQcmdStatus((PGresult *)res);
    if (tag[0] > 'R') /* SELECT, UPDATE: most are none of those below */
        return;
    if (strncmp(tag, "ALTER", 5) == 0 || strncmp(tag, "DROP", 4) == 0 ||
        strcmp(tag, "CREATE VIEW") == 0) {
        c->changes++;
        c->changed_in_tx = true;
    }
    else if (c->changed_in_tx && strcmp(tag, "ROLLBACK") == 0) /* perhaps to a savepoint */
        c->changes++;
    else if (strcmp(tag, "COMMIT") == 0 || strcmp(tag, "BEGIN") == 0)
        c->changed_in_tx = false;
    else if (strcmp(tag, "DEALLOCATE ALL") == 0 || strcmp(tag, "DISCARD ALL") == 0)
        gio_pg_statements_gone(c);
}

static void
feed_executing(GioPgOp *op, const PGresult *res)
{
    GioPgConn *c = op->conn;
    switch (PQresultStatus(res)) {
    case PGRES_TUPLES_OK:
    case PGRES_COMMAND_OK:
    case PGRES_EMPTY_QUERY:
        break;
    case PGRES_COPY_IN:
    case PGRES_COPY_OUT:
        /* of a function, or what not: libpq has no way on */
        if (c->mode != GIO_PG_SERIAL || op->before != NULL) {
            gio_pg_error_set("NotSupportedError", "a COPY cannot be part of a pipeline");
            fail(op);
            c->lost = true;
            return;
        }
        if (op->kind == GIO_PG_COPY) {
            op->copy_in = PQresultStatus(res) == PGRES_COPY_IN;
            op->stage = GIO_PG_COPYING;
            if (!op->answered) {
                /* In a script others may have come before it. */
                Py_XSETREF(op->result, PyBool_FromLong(op->copy_in));
                gio_pg_op_answer(op);
            }
            return;
        }
        if (op->kind == GIO_PG_REPLICATION && op->answered) {
            gio_pg_copy_stop(c, true, NULL); /* the server has ended its half: so do we */
            return;
        }
        if (PQresultStatus(res) == PGRES_COPY_OUT) { /* of the other kind the server says it */
            gio_pg_error_set("NotSupportedError", GIO_PG_COPY_NEEDS);
            fail(op);
        }
        gio_pg_copy_stop(c, PQresultStatus(res) == PGRES_COPY_IN, GIO_PG_COPY_NEEDS);
        return;
    case PGRES_COPY_BOTH:
        if (op->kind == GIO_PG_REPLICATION) {
            op->stage = GIO_PG_COPYING;
            if (!op->answered) {
                Py_XSETREF(op->result, Py_NewRef(Py_None)); /* as of a script, above */
                gio_pg_op_answer(op);
            }
            return;
        }
        gio_pg_error_set("NotSupportedError",
                         "START_REPLICATION needs greenletio.pg's connect_replication()");
        fail(op);
        c->lost = true;
        return;
    default:
        if (gio_pg_query_is_stale(op, res))
            op->retry = true;
        else
            fail_with(op, res);
        return;
    }
    note_change(c, res);
    if (op->stmt != NULL)
        op->stmt->changes = c->changes;
    if (op->given_up || op->error != NULL)
        return;
    if (op->kind == GIO_PG_SCRIPT && op->want == GIO_PG_TUPLES) {
        PyObject *one = gio_pg_result_tuples(c, NULL, res);
        if (one == NULL || (op->result == NULL && (op->result = PyList_New(0)) == NULL) ||
            PyList_Append(op->result, one) < 0)
            fail(op);
        Py_XDECREF(one);
        return;
    }
    if (op->stmt != NULL && PQresultStatus(res) == PGRES_TUPLES_OK &&
        gio_pg_query_check(op, res) < 0) {
        fail(op);
        return;
    }
    PyObject *value = gio_pg_result_value(op, res); /* runs Python, which may close and so end it */
    Py_XSETREF(op->result, value);
    if (op->result == NULL)
        fail(op);
}

/* The answers to what was sent last are all there. */
static void
feed_end(GioPgOp *op)
{
    if (op->stage == GIO_PG_PARSING) {
        end_parsing(op);
        return;
    }
    if (op->stage < GIO_PG_EXECUTING) {
        next_leg(op);
        return;
    }
    if (!gio_pg_begin_ended(op))
        return;
    if (op->retry) {
        op->retry = false;
        op->retried = true;
        if (op->conn->mode != GIO_PG_SERIAL) /* answers may come for others that use it */
            Py_CLEAR(op->stmt);
        next_leg(op);
        return;
    }
    if (op->kind == GIO_PG_PIPELINE_END)
        gio_pg_pipeline_ended(op->conn);
    if (gio_pg_result_check(op) < 0)
        fail(op);
    gio_pg_copy_ended(op, NULL);
    PyObject *result = op->result;
    op->result = NULL;
    if (op->error != NULL)
        Py_CLEAR(result);
    else if (result == NULL) /* of a sync, say */
        result = Py_NewRef(Py_None);
    gio_pg_op_finish(op, result, NULL);
}

/* An operation before it in its pipeline has failed. */
static void
feed_aborted(GioPgOp *op)
{
    if (op->error != NULL || op->given_up || op->conn->mode != GIO_PG_PIPELINE)
        return;
    gio_pg_error_set("PipelineAborted",
                     "an operation before this one in its pipeline has failed: nothing is done "
                     "until the next sync()");
    fail(op);
}

/* The server has ended the session: some loops tell no more of a socket that was reset. */
static bool
is_last_word(const PGresult *res)
{
    const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
    return severity != NULL && (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0);
}

void
gio_pg_query_feed(GioPgOp *op, PGresult *res)
{
    ExecStatusType status = res == NULL ? PGRES_COMMAND_OK : PQresultStatus(res);
    Py_INCREF(op);
    if (op->kind == GIO_PG_MANY && op->stage == GIO_PG_EXECUTING) {
        gio_pg_many_feed(op, res);
    }
    else if (res == NULL || status == PGRES_PIPELINE_SYNC) {
        if (--op->pending <= 0)
            feed_end(op);
    }
    else if (status == PGRES_PIPELINE_ABORTED) {
        feed_aborted(op);
    }
    else if (gio_pg_begin_is_next(op)) {
        if (gio_pg_begin_answered(op, res) < 0)
            fail(op);
    }
    else if (op->stage == GIO_PG_EXECUTING) {
        feed_executing(op, res);
    }
    else if (status == PGRES_COPY_OUT || status == PGRES_COPY_IN || status == PGRES_COPY_BOTH) {
        /* Nothing that was sent could begin one: no server of PostgreSQL's, and libpq would say the
         * same for ever. */
        gio_pg_error_set("InternalError", "the server began a COPY that nobody asked for");
        fail(op);
        op->conn->lost = true;
    }
    else if (op->stage == GIO_PG_PARSING) {
        feed_parsing(op, res);
    }
    else if (op->stage == GIO_PG_LEARNING) {
        if (status == PGRES_TUPLES_OK)
            learn(op, res);
        else
            fail_with(op, res);
    }
    if (status == PGRES_FATAL_ERROR && is_last_word(res)) {
        if (op->stage == GIO_PG_WIDENING)
            fail_with(op, res);
        op->conn->lost = true;
    }
    PQclear(res);
    Py_DECREF(op);
}

/* Rows of a COPY that nobody asked for. True when there are no more, for now or at all. */
static bool
discard_copy(GioPgConn *c)
{
    char *row;
    int n;
    while ((n = PQgetCopyData(c->pg, &row, 1)) > 0)
        PQfreemem(row);
    return n == 0;
}

static bool
is_sending(GioPgOp *op)
{
    return op->kind == GIO_PG_MANY && op->stage == GIO_PG_EXECUTING && !op->all_sent;
}

/* It goes on when the socket takes more. libpq may have got rid of everything since it was told
 * that there is no room: only the socket says so again. */
static bool
wants_to_write(GioPgOp *op)
{
    GioPgOp *sub = op->stage == GIO_PG_COPYING ? op->sub : NULL;
    return is_sending(op) ||
           (sub != NULL && sub->kind == GIO_PG_COPY_WRITE && sub->stage == GIO_PG_EXECUTING);
}

void
gio_pg_advance(GioPgConn *c)
{
    if (c->advancing || c->dropping)
        return;
    c->advancing = true;
    if (c->phase == GIO_PG_READY && c->unflushed)
        c->unflushed = PQflush(c->pg) > 0;
    c->mover = PyThread_get_thread_ident();
    while (c->phase == GIO_PG_READY && !c->lost && c->first != NULL) {
        GioPgOp *op = c->first;
        if (c->mode != GIO_PG_SERIAL) {
            gio_pg_pipeline_advance(c);
            if (c->mode != GIO_PG_SERIAL)
                break;
            continue;
        }
        if (op->stage == GIO_PG_QUEUED) {
            Py_INCREF(op); /* taking a request's fd out of a loop runs Python, too */
            bool may_begin = !c->cancelling || gio_pg_cancel_step(c, true);
            if (may_begin && op->queued)
                gio_pg_query_begin(op);
            Py_DECREF(op);
            if (!may_begin)
                break; /* the request could hit this one */
        }
        else if (op->stage == GIO_PG_COPYING) {
            Py_INCREF(op);
            bool more = gio_pg_copy_advance(op);
            Py_DECREF(op);
            if (!more)
                break;
        }
        else if (c->discard_copy) {
            if (discard_copy(c) && PQstatus(c->pg) != CONNECTION_BAD)
                break;
            c->discard_copy = false;
        }
        else {
            /* Of a connection that is lost, what had come before is there still. */
            bool lost = PQstatus(c->pg) == CONNECTION_BAD;
            if (!lost && is_sending(op) && !c->unflushed) {
                Py_INCREF(op);
                gio_pg_many_send(op);
                Py_DECREF(op);
                continue;
            }
            if (!lost && ((is_sending(op) && op->pending == 0) || PQisBusy(c->pg)))
                break;
            PGresult *res = PQgetResult(c->pg);
            bool last = res == NULL;
            gio_pg_query_feed(op, res);
            c->lost = c->lost || (lost && last);
        }
        if (c->phase == GIO_PG_READY && PQstatus(c->pg) == CONNECTION_BAD &&
            (c->first == NULL || c->first->stage == GIO_PG_QUEUED))
            c->lost = true;
    }
    if (c->phase == GIO_PG_READY && c->cancelling && c->first == NULL)
        gio_pg_cancel_step(c, true);
    if (c->phase == GIO_PG_READY && !c->lost) {
        int more = PQflush(c->pg);
        c->unflushed =
            more > 0 || (c->first != NULL && c->mode == GIO_PG_SERIAL && wants_to_write(c->first));
        c->lost = more < 0;
    }
    c->advancing = false;
    if (c->lost)
        gio_pg_conn_drop(c, NULL);
}
