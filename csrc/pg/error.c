/* Exceptions: what the server reports, as the class of its SQLSTATE, and our own.
 *
 * The classes are greenletio/pg/errors.py's. It is imported when the first one is needed, since
 * greenletio.pg itself imports this module.
 */
#include "pg/pg.h"

static PyObject *
errors_module(void)
{
    return PyImport_ImportModule("greenletio.pg.errors");
}

/* Of the module, by a name that the module has itself: Python's cache of attributes would keep each
 * new str that is asked for. */
static PyObject *
class_of(PyObject *module, const char *name)
{
    PyObject *text = PyUnicode_InternFromString(name);
    PyObject *type = text == NULL ? NULL : PyObject_GetAttr(module, text);
    Py_XDECREF(text);
    return type;
}

static const struct {
    int code;
    const char *name;
} fields[] = {
    {PG_DIAG_SEVERITY_NONLOCALIZED, "severity"},
    {PG_DIAG_SQLSTATE, "sqlstate"},
    {PG_DIAG_MESSAGE_PRIMARY, "message_primary"},
    {PG_DIAG_MESSAGE_DETAIL, "message_detail"},
    {PG_DIAG_MESSAGE_HINT, "message_hint"},
    {PG_DIAG_STATEMENT_POSITION, "statement_position"},
    {PG_DIAG_INTERNAL_POSITION, "internal_position"},
    {PG_DIAG_INTERNAL_QUERY, "internal_query"},
    {PG_DIAG_CONTEXT, "context"},
    {PG_DIAG_SCHEMA_NAME, "schema_name"},
    {PG_DIAG_TABLE_NAME, "table_name"},
    {PG_DIAG_COLUMN_NAME, "column_name"},
    {PG_DIAG_DATATYPE_NAME, "datatype_name"},
    {PG_DIAG_CONSTRAINT_NAME, "constraint_name"},
    {PG_DIAG_SOURCE_FILE, "source_file"},
    {PG_DIAG_SOURCE_LINE, "source_line"},
    {PG_DIAG_SOURCE_FUNCTION, "source_function"},
};

PyObject *
gio_pg_error_fields(const PGresult *res)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && i < sizeof fields / sizeof *fields; i++) {
        const char *text = PQresultErrorField(res, fields[i].code);
        if (text == NULL)
            continue;
        PyObject *value = PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
        if (value == NULL || PyDict_SetItemString(dict, fields[i].name, value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

PyObject *
gio_pg_error_of(const PGresult *res)
{
    const char *text = PQresultErrorMessage(res);
    PyObject *module = errors_module(), *error = NULL;
    PyObject *dict = module == NULL ? NULL : gio_pg_error_fields(res);
    PyObject *message =
        dict == NULL ? NULL : PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
    if (message != NULL)
        error = PyObject_CallMethod(module, "_from_fields", "OO", dict, message);
    Py_XDECREF(message);
    Py_XDECREF(dict);
    Py_XDECREF(module);
    return error;
}

/* An exception by its class's name: new reference, NULL with another one. Steals the message. */
static PyObject *
make(const char *name, PyObject *message)
{
    PyObject *module = message == NULL ? NULL : errors_module();
    PyObject *type = module == NULL ? NULL : class_of(module, name);
    PyObject *error = type == NULL ? NULL : PyObject_CallOneArg(type, message);
    Py_XDECREF(type);
    Py_XDECREF(module);
    Py_XDECREF(message);
    return error;
}

bool
gio_pg_error_is(const char *name)
{
    PyObject *exc = gio_err_take(), *module = errors_module();
    PyObject *type = module == NULL ? NULL : class_of(module, name);
    bool is = type != NULL && exc != NULL && PyErr_GivenExceptionMatches(exc, type);
    if (type == NULL)
        PyErr_Clear();
    Py_XDECREF(type);
    Py_XDECREF(module);
    if (exc != NULL)
        gio_err_give(exc);
    return is;
}

PyObject *
gio_pg_error_lost(GioPgConn *c)
{
    const char *text = c->pg == NULL ? "" : PQerrorMessage(c->pg);
    Py_ssize_t len = (Py_ssize_t)strlen(text);
    while (len > 0 && text[len - 1] == '\n')
        len--;
    if (len == 0)
        return make(
            "ConnectionDoesNotExist",
            PyUnicode_FromString("the connection was closed in the middle of an operation"));
    return make(c->phase == GIO_PG_READY ? "ConnectionDoesNotExist" : "_cannot_connect",
                PyUnicode_DecodeUTF8(text, len, "replace"));
}

PyObject *
gio_pg_error_set(const char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    PyObject *error = make(name, PyUnicode_FromFormatV(format, args));
    va_end(args);
    if (error != NULL)
        gio_err_give(error);
    return NULL;
}

PyObject *
gio_pg_error_wrap(const char *name, const char *format, ...)
{
    PyObject *cause = gio_err_take();
    va_list args;
    va_start(args, format);
    PyObject *error = make(name, PyUnicode_FromFormatV(format, args));
    va_end(args);
    if (error == NULL) {
        Py_XDECREF(cause);
        return NULL;
    }
    PyException_SetCause(error, cause);
    gio_err_give(error);
    return NULL;
}
