/* greenletio._pg: the C part of greenletio.pg, linked with libpq. */
#include "pg/pg.h"

#include <stddef.h>

static struct PyModuleDef pg_module;

GioPgState *
gio_pg_state_of(PyObject *object)
{
    for (PyTypeObject *type = Py_TYPE(object); type != NULL; type = type->tp_base) {
        if (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE))
            break;
        PyObject *module = ((PyHeapTypeObject *)type)->ht_module;
        if (module != NULL && PyModule_Check(module) && PyModule_GetDef(module) == &pg_module)
            return PyModule_GetState(module);
    }
    PyErr_SetString(PyExc_SystemError, "not a type of greenletio._pg");
    return NULL;
}

/* make_record(type, names, values): what pickles of records call. */
static PyObject *
make_record(PyObject *module, PyObject *args)
{
    GioPgState *st = PyModule_GetState(module);
    PyTypeObject *type;
    PyObject *names, *values;
    if (!PyArg_ParseTuple(args, "O!O!O!:make_record", &PyType_Type, &type, &PyTuple_Type, &names,
                          &PyTuple_Type, &values))
        return NULL;
    if (!PyType_IsSubtype(type, st->record_type) ||
        PyTuple_GET_SIZE(names) != PyTuple_GET_SIZE(values)) {
        PyErr_SetString(PyExc_TypeError, "these are not the parts of a Record");
        return NULL;
    }
    if (type == st->record_type)
        type = st->gc_record_type;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        if (!PyUnicode_Check(PyTuple_GET_ITEM(names, i))) {
            PyErr_SetString(PyExc_TypeError, "the names of a Record are str");
            return NULL;
        }
    }
    PyObject *desc = gio_pg_desc_new(st, names);
    GioPgRecord *record =
        desc == NULL ? NULL : gio_pg_record_new(st, type, desc, PyTuple_GET_SIZE(values));
    for (Py_ssize_t i = 0; record != NULL && i < PyTuple_GET_SIZE(values); i++)
        record->items[i] = Py_NewRef(PyTuple_GET_ITEM(values, i));
    Py_XDECREF(desc);
    return (PyObject *)record;
}

/* {option: value} of those that are set; they are freed. */
static PyObject *
take_options(PQconninfoOption *options)
{
    PyObject *dict = PyDict_New();
    for (PQconninfoOption *o = options; dict != NULL && o->keyword != NULL; o++) {
        if (o->val == NULL)
            continue;
        PyObject *value = PyUnicode_FromString(o->val);
        if (value == NULL || PyDict_SetItemString(dict, o->keyword, value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    PQconninfoFree(options);
    return dict;
}

/* parse_conninfo(text): {option: value} of a connection string or URL, and nothing else. */
static PyObject *
parse_conninfo(PyObject *module, PyObject *text)
{
    const char *utf8 = PyUnicode_AsUTF8(text);
    char *message = NULL;
    if (utf8 == NULL)
        return NULL;
    PQconninfoOption *options = PQconninfoParse(utf8, &message);
    if (options == NULL) {
        gio_pg_error_set("ProgrammingError", "%s", message == NULL ? "out of memory" : message);
        PQfreemem(message);
        return NULL;
    }
    return take_options(options);
}

/* complete_conninfo(text): what libpq makes of it with its environment and service files. */
static PyObject *
complete_conninfo(PyObject *module, PyObject *text)
{
    const char *utf8 = PyUnicode_AsUTF8(text);
    if (utf8 == NULL)
        return NULL;
    /* The caller has put in an sslmode that does not exist: libpq reads all options and stops. */
    PGconn *pg = PQconnectStart(utf8);
    PQconninfoOption *options = pg == NULL ? NULL : PQconninfo(pg);
    PyObject *dict = options == NULL ? PyErr_NoMemory() : take_options(options);
    const char *found = dict == NULL ? NULL : PQpass(pg); /* in a .pgpass, for the first host */
    if (found != NULL && *found != '\0') {
        PyObject *password = PyUnicode_FromString(found);
        if (password == NULL || PyDict_SetItemString(dict, "password", password) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(password);
    }
    PQfinish(pg);
    return dict;
}

static PyObject *
get_libpq_version(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(PQlibVersion());
}

static PyMethodDef methods[] = {
    {"make_record", make_record, METH_VARARGS,
     "make_record(type, names, values, /)\n--\n\nA Record of names and values, both tuples."},
    {"parse_conninfo", parse_conninfo, METH_O,
     "parse_conninfo(text, /)\n--\n\nThe options that a connection string names."},
    {"complete_conninfo", complete_conninfo, METH_O,
     "complete_conninfo(text, /)\n--\n\nWhat libpq makes of it with its environment and service files."},
    {"arrow_stream", gio_pg_batch_stream, METH_O,
     "arrow_stream(batches, /)\n--\n\nA tuple of batches as Arrow's capsule of a stream."},
    {"set_observer", gio_pg_set_observer, METH_O,
     "set_observer(observer, /)\n--\n\n"
     "Have observer(kind, sql, connection) called as an operation begins; what it returns, unless\n"
     "that is None, is called with the seconds and the exception when it has ended. None: nobody."},
    {"libpq_version", get_libpq_version, METH_NOARGS,
     "libpq_version()\n--\n\nThe version of the libpq in use, 150004 for 15.4."},
    {NULL},
};

static PyObject *
attribute(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *value = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    return value;
}

static int
import_others(GioPgState *st)
{
    PyObject *safe = NULL;
    if ((st->current_task = attribute("asyncio", "current_task")) == NULL ||
        (st->timeout_error = attribute("asyncio", "TimeoutError")) == NULL ||
        (st->decimal = attribute("decimal", "Decimal")) == NULL ||
        (st->uuid = attribute("uuid", "UUID")) == NULL ||
        (safe = attribute("uuid", "SafeUUID")) == NULL)
        return -1;
    st->uuid_safe = PyObject_GetAttrString(safe, "unknown");
    Py_DECREF(safe);
    st->decimal_nan = PyObject_CallFunction(st->decimal, "s", "NaN");
    st->decimal_inf = PyObject_CallFunction(st->decimal, "s", "Infinity");
    st->decimal_ninf = PyObject_CallFunction(st->decimal, "s", "-Infinity");
    st->empty_tuple = PyTuple_New(0);
    for (int i = 0; i < GIO_PG_SMALL; i++)
        if ((st->small[i] = PyLong_FromLong(i)) == NULL)
            return -1;
    return st->uuid_safe == NULL || st->decimal_nan == NULL || st->decimal_inf == NULL ||
                   st->decimal_ninf == NULL || st->empty_tuple == NULL
               ? -1
               : 0;
}

static int
intern_names(GioPgState *st)
{
    const struct {
        PyObject **field;
        const char *text;
    } names[] = {
        {&st->str_add_reader, "add_reader"},
        {&st->str_add_writer, "add_writer"},
        {&st->str_remove_reader, "remove_reader"},
        {&st->str_remove_writer, "remove_writer"},
        {&st->str_call_soon_threadsafe, "call_soon_threadsafe"},
        {&st->str_call_soon, "call_soon"},
        {&st->str_cancel, "cancel"},
        {&st->str_is_closed, "is_closed"},
        {&st->str_is_running, "is_running"},
        {&st->str_int, "int"},
        {&st->str_is_safe, "is_safe"},
        {&st->str_bytes, "bytes"},
        {&st->str_call_later, "call_later"},
        {&st->str_expire, "_expire"},
        {&st->str_look, "_look"},
        {&st->str_adjusted, "adjusted"},
        {&st->str_utcoffset, "utcoffset"},
        {&st->str_astimezone, "astimezone"},
        {&st->str_sqlstate, "sqlstate"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].field = PyUnicode_InternFromString(names[i].text)) == NULL)
            return -1;
    return 0;
}

static int
module_exec(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->api = gio_api_import();
    st->core = st->api == NULL ? NULL : PyImport_ImportModule("greenletio._core");
    if (st->core == NULL || import_others(st) < 0 || intern_names(st) < 0 ||
        gio_pg_record_setup_types(module) < 0 || gio_pg_codec_setup_types(module) < 0 ||
        gio_pg_statement_setup_types(module) < 0 || gio_pg_watch_setup_types(module) < 0 ||
        gio_pg_batch_setup_types(module) < 0 || gio_pg_source_setup_types(module) < 0 ||
        gio_pg_row_reader_setup_types(module) < 0 || gio_pg_op_setup_types(module) < 0 ||
        gio_pg_conn_setup_types(module) < 0)
        return -1;
#ifdef LIBPQ_HAS_CHUNK_MODE
    bool chunks = true;
#else
    bool chunks = false;
#endif
    if (PyModule_AddObjectRef(module, "HAS_CHUNKS", chunks ? Py_True : Py_False) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "BUILTIN", st->builtin);
}

#define VISIT_ALL(X)                                                                               \
    X(core)                                                                                        \
    X(conn_type)                                                                                   \
    X(op_type)                                                                                     \
    X(statement_type)                                                                              \
    X(codec_type)                                                                                  \
    X(desc_type)                                                                                   \
    X(record_type)                                                                                 \
    X(gc_record_type)                                                                              \
    X(watch_type)                                                                                  \
    X(batch_type)                                                                                  \
    X(buffer_type)                                                                                 \
    X(observer)                                                                                    \
    X(builtin)                                                                                     \
    X(current_task)                                                                                \
    X(timeout_error)                                                                               \
    X(decimal)                                                                                     \
    X(decimal_nan)                                                                                 \
    X(decimal_inf)                                                                                 \
    X(decimal_ninf)                                                                                \
    X(uuid)                                                                                        \
    X(uuid_safe)                                                                                   \
    X(empty_tuple)                                                                                 \
    X(str_add_reader)                                                                              \
    X(str_add_writer)                                                                              \
    X(str_remove_reader)                                                                           \
    X(str_remove_writer)                                                                           \
    X(str_call_soon_threadsafe)                                                                    \
    X(str_call_soon)                                                                               \
    X(str_cancel)                                                                                  \
    X(str_is_closed)                                                                               \
    X(str_is_running)                                                                              \
    X(str_int)                                                                                     \
    X(str_is_safe)                                                                                 \
    X(str_bytes)                                                                                   \
    X(str_call_later)                                                                              \
    X(str_expire)                                                                                  \
    X(str_look)                                                                                    \
    X(str_adjusted)                                                                                \
    X(str_utcoffset)                                                                               \
    X(str_astimezone)                                                                              \
    X(str_sqlstate)

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    GioPgState *st = PyModule_GetState(module);
#define VISIT(field) Py_VISIT(st->field);
    VISIT_ALL(VISIT)
#undef VISIT
    return 0;
}

static int
module_clear(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
#define CLEAR(field) Py_CLEAR(st->field);
    VISIT_ALL(CLEAR)
#undef CLEAR
    for (int i = 0; i < GIO_PG_SMALL; i++)
        Py_CLEAR(st->small[i]);
    gio_pg_records_free(st);
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef pg_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "greenletio._pg",
    .m_doc = "The C part of greenletio.pg.",
    .m_size = sizeof(GioPgState),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__pg(void)
{
    return PyModuleDef_Init(&pg_module);
}
