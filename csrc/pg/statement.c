/* Statement: a prepared statement with the codecs of its parameters and columns; and the cache.
 *
 * A statement belongs to one connection. The cache is a dict by SQL text (and parameter types,
 * where the caller names them; a query of ours has a key apart); each use stamps the statement, and
 * the one with the oldest stamp leaves.
 */
#include "pg/pg.h"

#include <stddef.h>
#include <structmember.h>

static PyObject *
key_of(GioPgOp *op)
{
    if (op->plain)
        return PyTuple_Pack(1, op->sql);
    return op->oids == NULL ? Py_NewRef(op->sql) : PyTuple_Pack(2, op->sql, op->oids);
}

/* A plan that this connection has made useless would be prepared again when the server says so. Not
 * inside a transaction, be it one that begins with it: that would have failed by then. */
static bool
is_doubtful(GioPgStatement *s, GioPgOp *op)
{
    GioPgConn *c = op->conn;
    return s->changes != c->changes && s->prepared && c->mode == GIO_PG_SERIAL &&
           (op->before != NULL || PQtransactionStatus(c->pg) == PQTRANS_INTRANS);
}

static bool
is_too_old(GioPgConn *c, GioPgStatement *s)
{
    return c->cache_lifetime > 0 && (double)(c->st->api->now() - s->born) / 1e9 > c->cache_lifetime;
}

/* Nobody finds it any more. It is the next one that leaves the cache, under a key of its own. */
static int
retire(GioPgConn *c, GioPgStatement *s)
{
    Py_INCREF(s);
    PyObject *key = PyLong_FromUnsignedLong(++c->serial);
    int rc = key == NULL || PyDict_DelItem(c->cache, s->key) < 0 ? -1 : 0;
    if (rc == 0) {
        Py_XSETREF(s->key, Py_NewRef(key));
        s->used = 0;
        rc = PyDict_SetItem(c->cache, key, (PyObject *)s);
        c->expired += rc == 0;
    }
    Py_XDECREF(key);
    Py_DECREF(s);
    return rc;
}

GioPgStatement *
gio_pg_statement_get(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    PyObject *key = key_of(op);
    if (key == NULL)
        return NULL;
    GioPgStatement *s = NULL;
    if (c->cache_size > 0)
        s = (GioPgStatement *)PyDict_GetItemWithError(c->cache, key);
    if (s != NULL && !Py_IS_TYPE(s, c->st->statement_type)) {
        PyErr_SetString(PyExc_TypeError, "a connection's cache has Statement objects");
        s = NULL;
    }
    if (s != NULL && is_too_old(c, s)) {
        if (retire(c, s) < 0) {
            Py_DECREF(key);
            return NULL;
        }
        s = NULL;
    }
    char replaces[sizeof s->name] = "";
    if (s != NULL && is_doubtful(s, op)) {
        if (Py_REFCNT(s) == 1) /* nobody else's */
            memcpy(replaces, s->name, sizeof replaces);
        gio_pg_statement_forget(c, s);
        s = NULL;
    }
    if (s != NULL || PyErr_Occurred()) {
        Py_DECREF(key);
        if (s != NULL)
            s->used = ++c->clock;
        return (GioPgStatement *)Py_XNewRef((PyObject *)s);
    }
    s = (GioPgStatement *)c->st->statement_type->tp_alloc(c->st->statement_type, 0);
    if (s == NULL) {
        Py_DECREF(key);
        return NULL;
    }
    s->key = key;
    s->sql = Py_NewRef(op->sql);
    s->conn = c;
    s->changes = c->changes;
    s->plain = op->plain;
    memcpy(s->replaces, replaces, sizeof replaces);
    s->command = gio_pg_command_of(op->sql);
    s->used = ++c->clock;
    s->born = c->st->api->now();
    /* In a pipeline none leaves the cache, and so none comes when it is full. */
    bool room = c->mode != GIO_PG_PIPELINE || PyDict_GET_SIZE(c->cache) < c->cache_size;
    s->cached = room && c->cache_size > 0 && s->command != GIO_PG_OF_CURSOR &&
                (c->cacheable_size == 0 || PyUnicode_GET_LENGTH(s->sql) <= c->cacheable_size);
    if ((s->cached || op->kind == GIO_PG_PREPARE) && !c->pooler)
        PyOS_snprintf(s->name, sizeof s->name, "_gio_%lx", ++c->serial);
    return s;
}

void
gio_pg_statement_forget(GioPgConn *c, GioPgStatement *s)
{
    s->prepared = s->described = false;
    if (s->name[0] != '\0') /* the server may have one of that name still */
        PyOS_snprintf(s->name, sizeof s->name, "_gio_%lx", ++c->serial);
    if (PyDict_GetItemWithError(c->cache, s->key) == (PyObject *)s &&
        PyDict_DelItem(c->cache, s->key) < 0)
        PyErr_Clear();
}

void
gio_pg_statements_gone(GioPgConn *c)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(c->cache, &at, &key, &value))
        if (Py_IS_TYPE(value, c->st->statement_type))
            ((GioPgStatement *)value)->prepared = false;
}

/* How many of the cache may be FETCHes: each cursor has a name of its own, and so texts that will
 * be of no use after it. */
#define FETCHES 8

GioPgStatement *
gio_pg_statement_oldest(GioPgConn *c, GioPgStatement *fresh)
{
    GioPgStatement *oldest = NULL, *fetch = NULL;
    PyObject *key, *value;
    Py_ssize_t at = 0;
    int fetches = 0;
    bool full = PyDict_GET_SIZE(c->cache) >= c->cache_size;
    if (!full && c->expired == 0 && fresh->command != GIO_PG_OF_FETCH)
        return NULL;
    while (PyDict_Next(c->cache, &at, &key, &value)) {
        GioPgStatement *s = (GioPgStatement *)value;
        if (!Py_IS_TYPE(s, c->st->statement_type) || Py_REFCNT(s) > 1) /* somebody else's */
            continue;
        if (oldest == NULL || s->used < oldest->used)
            oldest = s;
        if (s->command == GIO_PG_OF_FETCH && (fetch == NULL || s->used < fetch->used))
            fetch = s;
        fetches += s->command == GIO_PG_OF_FETCH;
    }
    if (fresh->command == GIO_PG_OF_FETCH && fetches >= FETCHES && fetch->used != 0) {
        full = true;
        oldest = fetch;
    }
    if (!full && oldest != NULL && oldest->used != 0)
        return NULL; /* those that are too old are somebody's still */
    if (oldest != NULL && oldest->used == 0)
        c->expired--;
    /* The server does not have it: it has no name, or DEALLOCATE ALL has taken it. */
    if (oldest != NULL && (oldest->name[0] == '\0' || !oldest->prepared)) {
        gio_pg_statement_forget(c, oldest);
        return NULL;
    }
    return oldest;
}

int
gio_pg_statement_renew(GioPgConn *c)
{
    PyObject *all = PyDict_Values(c->cache);
    int rc = all == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; rc == 0 && i < PyList_GET_SIZE(all); i++) {
        GioPgStatement *s = (GioPgStatement *)PyList_GET_ITEM(all, i);
        if (!Py_IS_TYPE(s, c->st->statement_type)) {
            PyErr_SetString(PyExc_TypeError, "a connection's cache has Statement objects");
            rc = -1;
        }
        else if (s->used != 0) {
            rc = retire(c, s);
        }
    }
    Py_XDECREF(all);
    return rc;
}

void
gio_pg_statement_failed(GioPgStatement *s, GioPgConn *c)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    if (!gio_pg_error_is("OutdatedTypes"))
        return;
    s->outdated = true;
    while (PyDict_Next(c->cache, &at, &key, &value))
        if (Py_IS_TYPE(value, c->st->statement_type))
            ((GioPgStatement *)value)->outdated = true;
    gio_pg_conn_tell(c, "outdated", Py_None);
}

/* ---- what it takes and gives ----------------------------------------------------------- */

static void
forget_types(GioPgStatement *s)
{
    for (int i = 0; s->params != NULL && i < s->nparams; i++)
        Py_XDECREF(s->params[i]);
    for (int i = 0; s->cols != NULL && i < s->ncols; i++)
        Py_XDECREF(s->cols[i]);
    PyMem_Free(s->params);
    PyMem_Free(s->cols);
    PyMem_Free(s->param_oids);
    PyMem_Free(s->col_oids);
    PyMem_Free(s->col_mods);
    s->params = s->cols = NULL;
    s->param_oids = s->col_oids = NULL;
    s->col_mods = NULL;
    s->nparams = s->ncols = 0;
    s->described = s->resolved = false;
    Py_CLEAR(s->desc);
    Py_CLEAR(s->description);
}

const char *
gio_pg_statement_text(PyObject *sql)
{
    Py_ssize_t len;
    const char *text = PyUnicode_AsUTF8AndSize(sql, &len);
    if (text != NULL && strlen(text) != (size_t)len) {
        gio_pg_error_set("ProgrammingError", "the text of a query cannot have a NUL in it");
        return NULL;
    }
    return text;
}

static void
unresolve(GioPgStatement *s)
{
    for (int i = 0; i < s->nparams; i++)
        Py_CLEAR(s->params[i]);
    for (int i = 0; i < s->ncols; i++)
        Py_CLEAR(s->cols[i]);
}

int
gio_pg_statement_described(GioPgStatement *s, const PGresult *res)
{
    int nparams = PQnparams(res), ncols = PQnfields(res);
    GioPgState *st = gio_pg_state(Py_TYPE(s));
    forget_types(s);
    s->params = PyMem_Calloc((size_t)nparams + 1, sizeof *s->params);
    s->cols = PyMem_Calloc((size_t)ncols + 1, sizeof *s->cols);
    s->param_oids = PyMem_Calloc((size_t)nparams + 1, sizeof *s->param_oids);
    s->col_oids = PyMem_Calloc((size_t)ncols + 1, sizeof *s->col_oids);
    s->col_mods = PyMem_Calloc((size_t)ncols + 1, sizeof *s->col_mods);
    PyObject *names = PyTuple_New(ncols);
    if (names == NULL || !s->params || !s->cols || !s->param_oids || !s->col_oids || !s->col_mods) {
        PyErr_NoMemory();
        goto error;
    }
    s->nparams = nparams;
    s->ncols = ncols;
    for (int i = 0; i < nparams; i++)
        s->param_oids[i] = PQparamtype(res, i);
    for (int i = 0; i < ncols; i++) {
        PyObject *name =
            PyUnicode_DecodeUTF8(PQfname(res, i), (Py_ssize_t)strlen(PQfname(res, i)), "replace");
        if (name == NULL)
            goto error;
        PyUnicode_InternInPlace(&name);
        PyTuple_SET_ITEM(names, i, name);
        s->col_oids[i] = PQftype(res, i);
        s->col_mods[i] = PQfmod(res, i);
    }
    s->desc = gio_pg_desc_new(st, names);
    if (s->desc == NULL)
        goto error;
    Py_DECREF(names);
    s->described = true;
    return 0;

error:
    Py_XDECREF(names);
    return -1;
}

/* Fill codecs[] of oids[]. */
static int
resolve(GioPgConn *c, bool plain, const Oid *oids, GioPgCodec **codecs, int n, PyObject *unknown)
{
    for (int i = 0; i < n; i++) {
        if (codecs[i] != NULL)
            continue;
        GioPgCodec *codec = gio_pg_codec_find(c, oids[i], plain);
        if (codec == NULL && PyErr_Occurred())
            return -1;
        codecs[i] = (GioPgCodec *)Py_XNewRef((PyObject *)codec);
        if (codec == NULL) {
            PyObject *oid = PyLong_FromUnsignedLong(oids[i]);
            int rc = oid == NULL ? -1 : PyList_Append(unknown, oid);
            Py_XDECREF(oid);
            if (rc < 0)
                return -1;
        }
    }
    return 0;
}

int
gio_pg_statement_resolve(GioPgStatement *s, GioPgConn *c, PyObject *unknown)
{
    if (s->outdated)
        unresolve(s);
    s->outdated = s->resolved = false;
    if (resolve(c, s->plain, s->param_oids, s->params, s->nparams, unknown) < 0 ||
        resolve(c, s->plain, s->col_oids, s->cols, s->ncols, unknown) < 0)
        return -1;
    if (PyList_GET_SIZE(unknown) > 0)
        return 0;
    s->text = false;
    s->atomic = true;
    for (int i = 0; i < s->ncols; i++) {
        s->text = s->text || s->cols[i]->text;
        s->atomic = s->atomic && s->cols[i]->atomic;
    }
    if (s->text)
        s->atomic = false;
    s->resolved = true;
    return 1;
}

/* ---- sending --------------------------------------------------------------------------------- */

#define FEW 16

/* Encode one parameter; its length, -1 for NULL, -2 with an exception. */
static Py_ssize_t
encode(GioPgConn *c, GioPgCodec *codec, PyObject *value, bool as_text)
{
    Py_ssize_t start = c->out.len;
    if (value == Py_None)
        return -1;
    if (as_text && !codec->text) { /* a literal */
        if (gio_pg_text_encode(c->st, codec, value, &c->out) < 0)
            return -2;
    }
    else if (codec->encode == NULL) {
        PyErr_Format(PyExc_TypeError, "values of type %U cannot be sent", codec->name);
        return -2;
    }
    else if (codec->encode(c->st, codec, value, &c->out) < 0) {
        return -2;
    }
    Py_ssize_t len = c->out.len - start;
    /* libpq would take what is before the NUL. */
    if (as_text && len > 0 && memchr(c->out.data + start, 0, (size_t)len) != NULL) {
        PyErr_SetString(PyExc_ValueError, "text cannot have a NUL character in it");
        return -2;
    }
    if (len > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a value is longer than 2 GB");
        return -2;
    }
    /* As text it ends with a NUL byte. */
    return gio_put(&c->out, "", 1) < 0 ? -2 : len;
}

/* `element` (borrowed): " in element #1 of executemany() sequence", or nothing. */
static void
explain(GioPgCodec *codec, Py_ssize_t i, PyObject *value, PyObject *element)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return;
    PyObject *cause = gio_err_take(), *shown = PyObject_Repr(value);
    if (shown != NULL && PyUnicode_GET_LENGTH(shown) > 80)
        Py_SETREF(shown, PyUnicode_FromFormat("%.77U...", shown));
    if (shown == NULL) {
        PyErr_Clear();
        shown = PyUnicode_FromFormat("<%s object>", Py_TYPE(value)->tp_name);
    }
    PyObject *why = shown == NULL ? NULL : PyObject_Str(cause);
    gio_err_give(Py_NewRef(cause));
    if (why != NULL && gio_pg_error_is("NotSupportedError"))
        gio_pg_error_wrap("NotSupportedError", "query argument $%zd: %U", i + 1, why);
    else if (why != NULL)
        gio_pg_error_wrap("DataError",
                          "invalid input for query argument $%zd%V: %U (%U; its type is %U)", i + 1,
                          element, "", shown, why, codec->name);
    Py_XDECREF(why);
    Py_XDECREF(shown);
    Py_DECREF(cause);
}

bool
gio_pg_statement_by_name(const GioPgStatement *s, const GioPgConn *c)
{
    return s->name[0] != '\0' || (c->mode != GIO_PG_SHARED && !c->pooler);
}

int
gio_pg_statement_send(GioPgStatement *s, GioPgConn *c, PyObject *args, PyObject *before,
                      bool lenient, bool text)
{
    Py_ssize_t n = args == NULL ? 0 : PyTuple_GET_SIZE(args);
    if (n != s->nparams) {
        gio_pg_error_set("ArgumentsMismatch",
                         "the server expects %d argument%s for this query, %zd %s passed",
                         s->nparams, s->nparams == 1 ? "" : "s", n, n == 1 ? "was" : "were");
        return -1;
    }
    const char *sql = NULL, *begin = NULL, *few_values[FEW], **values = few_values;
    int few_lens[2 * FEW], *lens = few_lens;
    int rc = -1;
    if (n > FEW) {
        values = PyMem_Malloc((size_t)n * sizeof *values);
        lens = PyMem_Malloc((size_t)n * 2 * sizeof *lens);
        if (values == NULL || lens == NULL) {
            PyErr_NoMemory();
            goto done;
        }
    }
    int *formats = lens + n;
    c->out.len = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *value = PyTuple_GET_ITEM(args, i);
        bool as_text = s->params[i]->text || (lenient && PyUnicode_Check(value));
        Py_ssize_t len = encode(c, s->params[i], value, as_text);
        if (len == -2) {
            PyObject *element = NULL;
            if (s->element > 0)
                element = PyUnicode_FromFormat(" in element #%lld of executemany() sequence",
                                               (long long)s->element - 1);
            explain(s->params[i], i, value, element);
            Py_XDECREF(element);
            goto done;
        }
        lens[i] = (int)len;
        formats[i] = !as_text;
    }
    if (c->pg == NULL) {
        gio_pg_error_set("InterfaceError", "the connection was closed meanwhile");
        goto done;
    }
    const char *at = c->out.data;
    bool by_name = gio_pg_statement_by_name(s, c);
    if ((before != NULL && (begin = gio_pg_statement_text(before)) == NULL) ||
        (!by_name && (sql = gio_pg_statement_text(s->sql)) == NULL))
        goto done;
    for (Py_ssize_t i = 0; i < n; i++) {
        values[i] = lens[i] < 0 ? NULL : at;
        if (lens[i] >= 0)
            at += lens[i] + 1;
    }
    int ok = begin == NULL || (PQenterPipelineMode(c->pg) &&
                               PQsendQueryParams(c->pg, begin, 0, NULL, NULL, NULL, NULL, 0));
    if (ok && by_name)
        ok = PQsendQueryPrepared(c->pg, s->name, (int)n, values, lens, formats, !text);
    else if (ok)
        ok = PQsendQueryParams(c->pg, sql, (int)n, s->param_oids, values, lens, formats, !text);
    if (!ok) {
        PyObject *error = gio_pg_error_lost(c);
        if (error != NULL)
            gio_err_give(error);
        c->lost = c->lost || begin != NULL;
        goto done;
    }
    rc = 0;
done:
    if (c->out.size > 1 << 20)
        gio_buf_free(&c->out);
    if (values != few_values)
        PyMem_Free(values);
    if (lens != few_lens)
        PyMem_Free(lens);
    return rc;
}

/* ---- rows for COPY in binary
 * ---------------------------------------------------------------------- */

static int
encode_row(GioPgState *st, GioPgStatement *s, PyObject *row, GioBuf *out)
{
    PyObject *values = PySequence_Tuple(row);
    int rc = values == NULL ? -1 : gio_put16(out, (uint16_t)s->ncols);
    if (rc == 0 && PyTuple_GET_SIZE(values) != s->ncols) {
        gio_pg_error_set("DataError", "a record with %d values is expected, got one with %zd",
                         s->ncols, PyTuple_GET_SIZE(values));
        rc = -1;
    }
    /* What it encodes may be Python, which uses the statement or changes codecs. */
    for (int i = 0; rc == 0 && i < s->ncols && i < PyTuple_GET_SIZE(values); i++) {
        GioPgCodec *codec = (GioPgCodec *)Py_XNewRef((PyObject *)s->cols[i]);
        if (codec == NULL) {
            gio_pg_error_set("InterfaceError", "the columns changed while rows were encoded");
            rc = -1;
            break;
        }
        rc = gio_pg_part_encode(st, codec, PyTuple_GET_ITEM(values, i), out);
        if (rc < 0)
            explain(codec, i, PyTuple_GET_ITEM(values, i), NULL);
        Py_DECREF(codec);
    }
    Py_XDECREF(values);
    return rc;
}

/* encode_rows(iterator, limit): rows of the statement's columns until there are `limit` bytes. */
static PyObject *
statement_encode_rows(GioPgStatement *s, PyObject *args)
{
    PyObject *iterator, *row;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "On:encode_rows", &iterator, &limit))
        return NULL;
    for (int i = 0; i < s->ncols; i++)
        if (s->cols[i] == NULL || s->cols[i]->text || s->cols[i]->encode == NULL)
            return gio_pg_error_set("NoBinaryForm",
                                    "no binary format encoder for the type of column %d", i + 1);
    if (!PyIter_Check(iterator)) {
        PyErr_SetString(PyExc_TypeError, "encode_rows() takes an iterator");
        return NULL;
    }
    GioBuf out = {NULL, 0, 0};
    PyObject *bytes = NULL;
    int rc = 0;
    while (rc == 0 && out.len < limit && (row = PyIter_Next(iterator)) != NULL) {
        rc = encode_row(gio_pg_state(Py_TYPE(s)), s, row, &out);
        Py_DECREF(row);
    }
    if (!PyErr_Occurred())
        bytes = PyBytes_FromStringAndSize(out.data, out.len);
    gio_buf_free(&out);
    return bytes;
}

/* Statement(connection, sql, name): one that is not cached, under a name of the user's. */
static PyObject *
statement_make(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"connection", "sql", "name", NULL};
    GioPgState *st = gio_pg_state(type);
    PyObject *c, *sql;
    const char *name;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!Us:Statement", keywords, st->conn_type, &c,
                                     &sql, &name))
        return NULL;
    GioPgStatement *s = (GioPgStatement *)type->tp_alloc(type, 0);
    if (s == NULL)
        return NULL;
    /* At a pooler it has none. */
    if ((name[0] == '\0' && !((GioPgConn *)c)->pooler) || strlen(name) >= sizeof s->name) {
        gio_pg_error_set("InterfaceError", "the name of a statement has between 1 and %zu bytes",
                         sizeof s->name - 1);
        Py_DECREF(s);
        return NULL;
    }
    PyOS_snprintf(s->name, sizeof s->name, "%s", name);
    s->conn = (GioPgConn *)c;
    s->sql = PyUnicode_FromObject(sql);
    s->key = Py_XNewRef(s->sql);
    if (s->sql == NULL)
        Py_CLEAR(s);
    else
        s->command = gio_pg_command_of(s->sql);
    return (PyObject *)s;
}

static PyMethodDef statement_methods[] = {
    {"encode_rows", (PyCFunction)statement_encode_rows, METH_VARARGS,
     "encode_rows($self, iterator, limit, /)\n--\n\n"
     "Rows of its columns' types for COPY in binary, until there are `limit` bytes of them."},
    {NULL},
};

/* ---- the type ----------------------------------------------------------------------------------
 */

static PyObject *
codecs_of(GioPgCodec **codecs, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple != NULL && i < n; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(codecs[i] == NULL ? Py_None : (PyObject *)codecs[i]));
    return tuple;
}

static PyObject *
statement_parameters(GioPgStatement *s, void *Py_UNUSED(closure))
{
    return codecs_of(s->params, s->nparams);
}

static PyObject *
statement_columns(GioPgStatement *s, void *Py_UNUSED(closure))
{
    return codecs_of(s->cols, s->ncols);
}

static PyObject *
statement_names(GioPgStatement *s, void *Py_UNUSED(closure))
{
    return s->desc == NULL ? PyTuple_New(0) : PyObject_GetAttrString(s->desc, "names");
}

static PyObject *
statement_status(GioPgStatement *s, void *Py_UNUSED(closure))
{
    if (s->tag[0] == '\0')
        Py_RETURN_NONE;
    return PyUnicode_FromString(s->tag);
}

static PyObject *
statement_name(GioPgStatement *s, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(s->name);
}

static int
statement_traverse(GioPgStatement *s, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(s));
    for (int i = 0; s->params != NULL && i < s->nparams; i++)
        Py_VISIT(s->params[i]);
    for (int i = 0; s->cols != NULL && i < s->ncols; i++)
        Py_VISIT(s->cols[i]);
    return 0;
}

static void
statement_dealloc(GioPgStatement *s)
{
    PyTypeObject *type = Py_TYPE(s);
    PyObject_GC_UnTrack(s);
    forget_types(s);
    Py_CLEAR(s->key);
    Py_CLEAR(s->sql);
    type->tp_free(s);
    Py_DECREF(type);
}

static PyMemberDef statement_members[] = {
    {"sql", T_OBJECT_EX, offsetof(GioPgStatement, sql), READONLY, "Its text."},
    {"is_prepared", T_BOOL, offsetof(GioPgStatement, prepared), READONLY,
     "Whether the server has it."},
    {"is_outdated", T_BOOL, offsetof(GioPgStatement, outdated), READONLY,
     "Whether its types are looked up anew when it is used again."},
    {NULL},
};

static PyGetSetDef statement_getset[] = {
    {"name", (getter)statement_name, NULL, "Its name on the server.", NULL},
    {"status", (getter)statement_status, NULL,
     "What the server said of it when it was last executed; None: it was not.", NULL},
    {"names", (getter)statement_names, NULL, "The columns' names.", NULL},
    {"columns", (getter)statement_columns, NULL, "The codec of each column.", NULL},
    {"parameters", (getter)statement_parameters, NULL, "The codec of each parameter.", NULL},
    {NULL},
};

static PyType_Slot statement_slots[] = {
    {Py_tp_doc,
     "Statement(connection, sql, name)\n--\n\nA statement that the server has prepared."},
    {Py_tp_new, statement_make},
    {Py_tp_dealloc, statement_dealloc},
    {Py_tp_traverse, statement_traverse},
    {Py_tp_members, statement_members},
    {Py_tp_methods, statement_methods},
    {Py_tp_getset, statement_getset},
    {0, NULL},
};

static PyType_Spec statement_spec = {
    .name = "greenletio._pg.Statement",
    .basicsize = sizeof(GioPgStatement),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = statement_slots,
};

int
gio_pg_statement_setup_types(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->statement_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &statement_spec, NULL);
    return st->statement_type == NULL || PyModule_AddType(module, st->statement_type) < 0 ? -1 : 0;
}
