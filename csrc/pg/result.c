/* Rows of a result as Python objects, straight from libpq's memory.
 *
 * Decoders are C and run no Python code, but for a user's codecs; so the result is owned by the
 * caller throughout, and nothing of the connection is looked at between two values.
 */
#include "pg/pg.h"

/* A value that came as text, because a column of its result has a type that we know no binary
 * form of. */
static PyObject *
decode_text(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (codec->text || codec->decode == gio_pg_text_decode)
        return codec->text ? codec->decode(st, codec, data, len)
                           : gio_pg_text_decode(st, codec, data, len);
    PyObject *module = PyImport_ImportModule("greenletio.pg._text"), *value = NULL;
    if (module != NULL)
        value = PyObject_CallMethod(module, "decode", "Oy#", (PyObject *)codec, data, len);
    Py_XDECREF(module);
    return value;
}

static inline PyObject *
value_at(GioPgState *st, GioPgStatement *s, const PGresult *res, int row, int col)
{
    const char *data = PQgetvalue(res, row, col);
    int len = PQgetlength(res, row, col);
    if (len == 0 && PQgetisnull(res, row, col))
        Py_RETURN_NONE;
    GioPgCodec *codec = s->cols[col];
    return s->text ? decode_text(st, codec, data, len) : codec->decode(st, codec, data, len);
}

static PyObject *
record_at(GioPgState *st, GioPgStatement *s, PyTypeObject *type, const PGresult *res, int row)
{
    GioPgRecord *record = gio_pg_record_new(st, type, s->desc, s->ncols);
    for (int i = 0; record != NULL && i < s->ncols; i++) {
        record->items[i] = value_at(st, s, res, row, i);
        if (record->items[i] == NULL)
            Py_CLEAR(record);
    }
    return (PyObject *)record;
}

static PyObject *
tuple_at(GioPgState *st, GioPgStatement *s, const PGresult *res, int row)
{
    PyObject *tuple = gio_pg_hidden(PyTuple_New(s->ncols));
    for (int i = 0; tuple != NULL && i < s->ncols; i++) {
        PyObject *value = value_at(st, s, res, row, i);
        if (value == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, value);
    }
    /* Of plain values: as the collector would find out by itself. */
    return s->atomic ? tuple : gio_pg_shown(tuple);
}

static PyTypeObject *
record_type(GioPgOp *op)
{
    GioPgState *st = op->conn->st;
    if (op->record_class != NULL)
        return (PyTypeObject *)op->record_class;
    return op->stmt->atomic ? st->record_type : st->gc_record_type;
}

static PyObject *
records(GioPgOp *op, const PGresult *res)
{
    GioPgState *st = op->conn->st;
    GioPgStatement *s = op->stmt;
    PyTypeObject *type = record_type(op);
    int n = PQntuples(res);
    PyObject *list = gio_pg_hidden(PyList_New(n));
    for (int i = 0; list != NULL && i < n; i++) {
        PyObject *record = record_at(st, s, type, res, i);
        if (record == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, record);
    }
    return gio_pg_shown(list);
}

static bool
is_rows(const PGresult *res)
{
    return PQresultStatus(res) == PGRES_TUPLES_OK || gio_pg_stream_is_part(res);
}

PyObject *
gio_pg_result_tag(const PGresult *res)
{
    const char *tag = PQcmdStatus((PGresult *)res);
    return PyUnicode_DecodeUTF8(tag, (Py_ssize_t)strlen(tag), "replace");
}

/* Rows of the simple protocol: all text. */
static PyObject *
text_rows(const PGresult *res)
{
    int n = PQntuples(res), ncols = PQnfields(res);
    PyObject *list = gio_pg_hidden(PyList_New(n));
    for (int i = 0; list != NULL && i < n; i++) {
        PyObject *tuple = gio_pg_hidden(PyTuple_New(ncols)); /* of str: nobody has to collect it */
        for (int j = 0; tuple != NULL && j < ncols; j++) {
            PyObject *value =
                PQgetisnull(res, i, j)
                    ? Py_NewRef(Py_None)
                    : PyUnicode_DecodeUTF8(PQgetvalue(res, i, j), PQgetlength(res, i, j), NULL);
            if (value == NULL)
                Py_CLEAR(tuple);
            else
                PyTuple_SET_ITEM(tuple, j, value);
        }
        if (tuple == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, tuple);
    }
    return gio_pg_shown(list);
}

/* (name, oid, size, modifier) of each column: new reference */
static PyObject *
make_description(const PGresult *res)
{
    int n = PQnfields(res);
    PyObject *list = gio_pg_hidden(PyTuple_New(n));
    for (int i = 0; list != NULL && i < n; i++) {
        const char *text = PQfname(res, i); /* of a server that checks none it may be anything */
        PyObject *name = PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
        PyObject *entry =
            Py_BuildValue("(NIii)", name, PQftype(res, i), PQfsize(res, i), PQfmod(res, i));
        if (entry == NULL)
            Py_CLEAR(list);
        else
            PyTuple_SET_ITEM(list, i, entry);
    }
    return gio_pg_shown(list);
}

/* The same, made once for a statement that the server has: it refuses to go on with a plan whose
 * columns have other names, types or modifiers than before. */
static PyObject *
description_of(GioPgStatement *s, const PGresult *res)
{
    if (s == NULL || s->name[0] == '\0')
        return make_description(res);
    if (s->description != NULL)
        return Py_NewRef(s->description);
    PyObject *made = make_description(res);
    if (made != NULL)
        Py_XSETREF(s->description, Py_NewRef(made));
    return made;
}

PyObject *
gio_pg_result_tuples(GioPgConn *c, GioPgStatement *s, const PGresult *res)
{
    if (!is_rows(res))
        return Py_BuildValue("(OON)", Py_None, Py_None, gio_pg_result_tag(res));
    PyObject *rows = NULL;
    if (s == NULL) {
        rows = text_rows(res);
    }
    else {
        int n = PQntuples(res);
        rows = gio_pg_hidden(PyList_New(n));
        for (int i = 0; rows != NULL && i < n; i++) {
            PyObject *tuple = tuple_at(c->st, s, res, i);
            if (tuple == NULL)
                Py_CLEAR(rows);
            else
                PyList_SET_ITEM(rows, i, tuple);
        }
        rows = gio_pg_shown(rows);
    }
    PyObject *description = rows == NULL ? NULL : description_of(s, res);
    if (description == NULL) {
        Py_XDECREF(rows);
        return NULL;
    }
    return Py_BuildValue("(NNN)", rows, description, gio_pg_result_tag(res));
}

static PyObject *
named_value(GioPgOp *op, const PGresult *res)
{
    Py_ssize_t at = gio_pg_desc_find(op->stmt->desc, op->column_name);
    if (at < 0)
        return NULL;
    return value_at(op->conn->st, op->stmt, res, 0, (int)at);
}

static PyObject *
make_value(GioPgOp *op, const PGresult *res)
{
    GioPgState *st = op->conn->st;
    bool rows = is_rows(res);
    switch (op->want) {
    case GIO_PG_STATUS:
        return gio_pg_result_tag(res);
    case GIO_PG_RECORDS:
        return rows ? records(op, res) : PyList_New(0);
    case GIO_PG_RECORD:
        if (!rows || PQntuples(res) == 0)
            Py_RETURN_NONE;
        return record_at(st, op->stmt, record_type(op), res, 0);
    case GIO_PG_VALUE:
        if (!rows || PQntuples(res) == 0)
            Py_RETURN_NONE;
        if (op->column_name != NULL)
            return named_value(op, res);
        if (op->column < 0 || op->column >= op->stmt->ncols) {
            PyErr_SetString(PyExc_IndexError, "the row has no such column");
            return NULL;
        }
        return value_at(st, op->stmt, res, 0, (int)op->column);
    case GIO_PG_TUPLES:
        return gio_pg_result_tuples(op->conn, op->stmt, res);
    case GIO_PG_STATEMENT:
    case GIO_PG_NOTHING:
    case GIO_PG_COLUMNS:
        break;
    }
    Py_RETURN_NONE;
}

PyObject *
gio_pg_result_value(GioPgOp *op, const PGresult *res)
{
    GioPgStatement *s = op->stmt;
    PyObject *value = make_value(op, res);
    if (s != NULL) {
        const char *tag = PQcmdStatus((PGresult *)res);
        if ((op->want == GIO_PG_RECORD || op->want == GIO_PG_VALUE) && PQntuples(res) > 0)
            s->tag[0] = '\0'; /* of one row nobody wants to know how many there are */
        else if (memccpy(s->tag, tag, '\0', sizeof s->tag) == NULL)
            s->tag[sizeof s->tag - 1] = '\0';
        if (value == NULL)
            gio_pg_statement_failed(s, op->conn);
    }
    return value;
}

int
gio_pg_result_check(const GioPgOp *op)
{
    PyObject *result = op->result;
    bool session = op->kind == GIO_PG_COPY || op->kind == GIO_PG_STREAM; /* has one as it begins */
    bool query = op->kind == GIO_PG_QUERY || op->kind == GIO_PG_SCRIPT;
    if (op->error != NULL || op->given_up || !(session || query) ||
        (result != NULL && (query || PyUnicode_Check(result))))
        return 0;
    PyObject *lost = NULL;
    if (PQstatus(op->conn->pg) != CONNECTION_BAD)
        gio_pg_error_set("InternalError", "the server has ended its answer without a result");
    else if ((lost = gio_pg_error_lost(op->conn)) != NULL)
        gio_err_give(lost);
    return -1;
}
