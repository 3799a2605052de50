/* ArrowSource: rows of Arrow columns, whoever has made them, for COPY in binary.
 *
 * The stream is moved out of its capsule; its arrays are released as soon as they are encoded.
 */
#include "pg/encoder.h"

typedef struct {
    PyObject_HEAD
    struct ArrowArrayStream stream;
    struct ArrowSchema schema;
    struct ArrowArray array; /* being encoded, or released */
    int64_t at;              /* its next row */
    int64_t rows;            /* that were encoded */
    GioPgStatement *stmt;    /* that the encoders are for */
    GioPgEncoder *encoders;
    bool busy;
} Source;

static void
drop_encoders(Source *s)
{
    int n = s->stmt == NULL ? 0 : (int)s->schema.n_children;
    for (int i = 0; s->encoders != NULL && i < n; i++)
        gio_pg_encoder_free(&s->encoders[i]);
    PyMem_Free(s->encoders);
    s->encoders = NULL;
    Py_CLEAR(s->stmt);
}

static int
make_encoders(Source *s, GioPgStatement *stmt)
{
    drop_encoders(s);
    if (stmt->ncols != s->schema.n_children) {
        gio_pg_error_set("DataError", "there are %lld columns of Arrow for %d of the table",
                         (long long)s->schema.n_children, stmt->ncols);
        return -1;
    }
    s->encoders = PyMem_Calloc((size_t)stmt->ncols + 1, sizeof *s->encoders);
    if (s->encoders == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    s->stmt = (GioPgStatement *)Py_NewRef((PyObject *)stmt);
    for (int i = 0; i < stmt->ncols; i++) {
        if (stmt->cols[i] == NULL) {
            gio_pg_error_set("InterfaceError", "the types of the columns are not known");
            return -1;
        }
        if (gio_pg_encoder_init(&s->encoders[i], gio_pg_state(Py_TYPE(s)), s->schema.children[i],
                                stmt->cols[i]) < 0)
            return -1;
    }
    return 0;
}

static int
stream_failed(Source *s, int code)
{
    const char *why = s->stream.get_last_error(&s->stream);
    gio_pg_error_set("DataError", "the source of Arrow columns failed: %s",
                     why == NULL ? strerror(code) : why);
    return -1;
}

/* The next array with rows in it: 1, 0 at the end, -1 with an exception. */
static int
next_array(Source *s)
{
    while (s->array.release == NULL || s->at == s->array.length) {
        int code;
        if (s->array.release != NULL)
            s->array.release(&s->array);
        s->array.release = NULL;
        s->at = 0;
        /* It may be made just now, by other threads, or in Python. */
        Py_BEGIN_ALLOW_THREADS
        code = s->stream.get_next(&s->stream, &s->array);
        Py_END_ALLOW_THREADS
        if (code != 0) {
            s->array.release = NULL;
            return stream_failed(s, code);
        }
        if (s->array.release == NULL)
            return 0;
        if (s->array.n_children != s->schema.n_children) {
            s->array.release(&s->array);
            s->array.release = NULL;
            gio_pg_error_set("DataError", "the source gives other columns than it said it would");
            return -1;
        }
    }
    return 1;
}

static const char *
column_name(const Source *s, int64_t i)
{
    const char *name = s->schema.children[i]->name;
    return name == NULL ? "" : name;
}

static int
put_row(Source *s, GioBuf *out)
{
    int n = (int)s->schema.n_children;
    int rc = gio_put16(out, (uint16_t)n);
    int64_t at = s->array.offset + s->at;
    const void *valid = s->array.n_buffers > 0 ? s->array.buffers[0] : NULL;
    bool whole_null = s->array.null_count != 0 && valid != NULL && !gio_pg_bit_at(valid, at);
    for (int i = 0; rc == 0 && i < n; i++) {
        if (whole_null)
            rc = gio_put32(out, UINT32_MAX);
        else
            rc = gio_pg_encoder_put(&s->encoders[i], s->array.children[i], at, out);
        if (rc < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
            PyObject *cause = gio_err_take(), *why = PyObject_Str(cause);
            gio_err_give(cause);
            if (why != NULL)
                gio_pg_error_wrap("DataError", "column %s, row %lld: %U", column_name(s, i),
                                  (long long)s->rows, why);
            Py_XDECREF(why);
        }
    }
    return rc;
}

static int
encode_some(Source *s, GioPgStatement *stmt, Py_ssize_t limit, GioBuf *out)
{
    int more = 1;
    if (stmt != s->stmt && make_encoders(s, stmt) < 0) {
        drop_encoders(s);
        return -1;
    }
    while (more > 0 && out->len < limit && (more = next_array(s)) > 0) {
        for (; s->at < s->array.length && out->len < limit; s->at++, s->rows++)
            if (put_row(s, out) < 0)
                return -1;
    }
    return more;
}

static PyObject *
source_encode(Source *s, PyObject *args)
{
    GioPgState *st = gio_pg_state(Py_TYPE(s));
    GioPgStatement *stmt;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "O!n:encode", st->statement_type, &stmt, &limit))
        return NULL;
    if (s->busy) /* by a codec in Python, or another thread */
        return gio_pg_error_set("InterfaceError", "this source is being read already");
    GioBuf out = {NULL, 0, 0};
    PyObject *bytes = NULL;
    s->busy = true;
    if (encode_some(s, stmt, limit, &out) >= 0)
        bytes = PyBytes_FromStringAndSize(out.data, out.len);
    s->busy = false;
    gio_buf_free(&out);
    return bytes;
}

static PyObject *
source_names(Source *s, void *Py_UNUSED(closure))
{
    PyObject *names = PyTuple_New((Py_ssize_t)s->schema.n_children);
    for (int64_t i = 0; names != NULL && i < s->schema.n_children; i++) {
        PyObject *name = PyUnicode_FromString(column_name(s, i));
        if (name == NULL)
            Py_CLEAR(names);
        else
            PyTuple_SET_ITEM(names, i, name);
    }
    return names;
}

static PyObject *
source_rows(Source *s, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(s->rows);
}

/* A stream of one array. */
static int
single_next(struct ArrowArrayStream *stream, struct ArrowArray *out)
{
    struct ArrowArray *array = stream->private_data;
    *out = *array;
    array->release = NULL;
    return 0;
}

static const char *
single_error(struct ArrowArrayStream *Py_UNUSED(stream))
{
    return NULL;
}

static void
single_release(struct ArrowArrayStream *stream)
{
    struct ArrowArray *array = stream->private_data;
    if (array->release != NULL)
        array->release(array);
    free(array);
    stream->release = NULL;
}

static int
take_array(Source *s, PyObject *pair)
{
    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
        PyErr_SetString(PyExc_TypeError, "__arrow_c_array__() gives two capsules");
        return -1;
    }
    struct ArrowSchema *schema = PyCapsule_GetPointer(PyTuple_GET_ITEM(pair, 0), "arrow_schema");
    struct ArrowArray *array =
        schema == NULL ? NULL : PyCapsule_GetPointer(PyTuple_GET_ITEM(pair, 1), "arrow_array");
    if (array != NULL && (schema->release == NULL || array->release == NULL)) {
        PyErr_SetString(PyExc_ValueError, "the array was taken already");
        return -1;
    }
    struct ArrowArray *ours = array == NULL ? NULL : malloc(sizeof *ours);
    if (ours == NULL)
        return PyErr_Occurred() ? -1 : (PyErr_NoMemory(), -1);
    s->stream = (struct ArrowArrayStream){NULL, single_next, single_error, single_release, ours};
    *ours = *array;
    s->schema = *schema;
    array->release = NULL;
    schema->release = NULL;
    return 0;
}

static int
take_stream(Source *s, PyObject *capsule)
{
    struct ArrowArrayStream *stream = PyCapsule_GetPointer(capsule, "arrow_array_stream");
    if (stream == NULL)
        return -1;
    s->stream = *stream;
    stream->release = NULL;
    if (s->stream.release == NULL) {
        PyErr_SetString(PyExc_ValueError, "the stream was taken already");
        return -1;
    }
    int code = s->stream.get_schema(&s->stream, &s->schema);
    if (code != 0)
        s->schema.release = NULL;
    return code != 0 ? stream_failed(s, code) : 0;
}

static PyObject *
source_make(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"capsules", NULL};
    PyObject *capsules;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:ArrowSource", keywords, &capsules))
        return NULL;
    Source *s = (Source *)type->tp_alloc(type, 0);
    if (s == NULL)
        return NULL;
    int rc = PyTuple_Check(capsules) ? take_array(s, capsules) : take_stream(s, capsules);
    if (rc == 0 && (s->schema.release == NULL || s->schema.format == NULL ||
                    strcmp(s->schema.format, "+s") != 0)) {
        PyErr_SetString(PyExc_TypeError, "the source has no columns: a table or record batches "
                                         "are expected, not a single array");
        rc = -1;
    }
    if (rc < 0)
        Py_CLEAR(s);
    return (PyObject *)s;
}

static void
source_dealloc(Source *s)
{
    PyTypeObject *type = Py_TYPE(s);
    PyObject *pending = gio_err_take(); /* what is released may be made in Python */
    drop_encoders(s);
    if (s->array.release != NULL)
        s->array.release(&s->array);
    if (s->schema.release != NULL)
        s->schema.release(&s->schema);
    if (s->stream.release != NULL)
        s->stream.release(&s->stream);
    if (pending != NULL)
        gio_err_give(pending);
    type->tp_free(s);
    Py_DECREF(type);
}

static PyMethodDef source_methods[] = {
    {"encode", (PyCFunction)source_encode, METH_VARARGS,
     "encode($self, statement, limit, /)\n--\n\n"
     "Rows for COPY in binary, of the types of the statement's columns, until there are `limit`\n"
     "bytes of them; b'' at the end."},
    {NULL},
};

static PyGetSetDef source_getset[] = {
    {"names", (getter)source_names, NULL, "The columns' names.", NULL},
    {"rows", (getter)source_rows, NULL, "How many rows were encoded.", NULL},
    {NULL},
};

static PyType_Slot source_slots[] = {
    {Py_tp_doc, "ArrowSource(capsules)\n--\n\n"
                "The columns of what __arrow_c_stream__() or __arrow_c_array__() gave."},
    {Py_tp_new, source_make},
    {Py_tp_dealloc, source_dealloc},
    {Py_tp_methods, source_methods},
    {Py_tp_getset, source_getset},
    {0, NULL},
};

static PyType_Spec source_spec = {
    .name = "greenletio._pg.ArrowSource",
    .basicsize = sizeof(Source),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = source_slots,
};

int
gio_pg_source_setup_types(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &source_spec, NULL);
    int rc = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return rc;
}
