/* ArrowBatch: some rows of a result as columns, and how others get at them.
 *
 * The memory is a block's, which is counted: the batch has a reference, and so has each array that
 * was handed out, which may live longer than the interpreter and is released by whatever thread.
 * What was handed out is not added to any more.
 */
#include "pg/block.h"

#include <stddef.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    GioPgBlock *block;
    GioPgLayout layout;
    Py_ssize_t limit; /* rows */
    bool expects;     /* there is room for as many as it may have */
    bool sealed;      /* it was handed out */
    bool broken;      /* its columns are of different lengths */
} Batch;

typedef struct {
    PyObject_HEAD
    GioPgBlock *block;
    const char *data;
    Py_ssize_t len;
} Buffer;

#define SAMPLE 1024          /* rows by which it is known how large the others are */
#define MOST 64              /* times as many are expected, at most */
#define FULL_BYTES (1 << 30) /* of a column: one more value does not go beyond INT32_MAX */

/* ---- filling -------------------------------------------------------------------------------- */

static GioPgBlock *
lay_out(const GioPgLayout *layout, GioPgStatement *s)
{
    PyObject *names = s->desc == NULL ? NULL : PyObject_GetAttrString(s->desc, "names");
    if (names == NULL) {
        if (!PyErr_Occurred())
            gio_pg_error_set("InterfaceError", "the columns of the query are not known");
        return NULL;
    }
    GioPgBlock *block = gio_pg_block_new(s->ncols);
    if (block == NULL)
        PyErr_NoMemory();
    for (int i = 0; block != NULL && i < s->ncols; i++) {
        GioPgColumn *col = &block->cols[i];
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        if (s->cols[i] == NULL)
            gio_pg_error_set("InterfaceError", "the types of the columns are not known");
        if (name == NULL || s->cols[i] == NULL ||
            gio_pg_column_init(col, layout, s->cols[i], name, s->col_mods[i]) < 0) {
            gio_pg_block_unref(block);
            block = NULL;
        }
        else {
            col->oid = s->col_oids[i];
        }
    }
    Py_DECREF(names);
    return block;
}

static bool
is_of(const GioPgBlock *block, const PGresult *res)
{
    bool same = PQnfields(res) == block->ncols;
    for (int i = 0; same && i < block->ncols; i++)
        same = PQftype(res, i) == block->cols[i].oid && PQfformat(res, i) == 1;
    return same;
}

int
gio_pg_batch_expect(PyObject *self, GioPgStatement *s, const PGresult *res)
{
    Batch *batch = (Batch *)self;
    if (batch->sealed) {
        gio_pg_error_set("InterfaceError", "the batch was handed out already");
        return -1;
    }
    bool same = is_of(batch->block, res);
    if (!same && batch->block->rows > 0) {
        gio_pg_error_set("InterfaceError", "the batch is not one of this stream");
        return -1;
    }
    if (!same) { /* its plan was made anew */
        GioPgBlock *block = lay_out(&batch->layout, s);
        if (block == NULL)
            return -1;
        gio_pg_block_unref(batch->block);
        batch->block = block;
        if (!is_of(block, res)) {
            gio_pg_error_set("InterfaceError", "the batch is not one of this stream");
            return -1;
        }
    }
    return 0;
}

int
gio_pg_batch_take(PyObject *self, const PGresult *res)
{
    Batch *batch = (Batch *)self;
    GioPgBlock *block = batch->block;
    int n = PQntuples(res);
    for (int i = 0; i < block->ncols; i++) {
        if (gio_pg_column_take(&block->cols[i], res, i, n) < 0) {
            batch->sealed = batch->broken = true;
            block->rows = 0;
            return -1;
        }
    }
    block->rows += n;
    if (!batch->expects && block->rows >= SAMPLE && block->rows < batch->limit) {
        batch->expects = true;
        int64_t rows = batch->limit < MOST * SAMPLE ? batch->limit : MOST * SAMPLE;
        for (int i = 0; i < block->ncols; i++)
            gio_pg_column_expect(&block->cols[i], rows);
    }
    return 0;
}

static int
put_value(GioPgColumn *col, PyObject *value)
{
    Py_buffer view;
    if (value == Py_None)
        return gio_pg_column_put(col, NULL, -1);
    if (!PyBytes_CheckExact(value) && !PyMemoryView_Check(value)) { /* others may run Python */
        PyErr_SetString(PyExc_TypeError, "a value is bytes, a memoryview or None");
        return -1;
    }
    if (PyObject_GetBuffer(value, &view, PyBUF_SIMPLE) < 0)
        return -1;
    int rc = -1;
    if (view.len > INT_MAX)
        PyErr_SetString(PyExc_ValueError, "a value has 2 GB at most");
    else
        rc = gio_pg_column_put(col, view.buf, (int)view.len);
    PyBuffer_Release(&view);
    return rc;
}

static PyObject *
batch_append(Batch *batch, PyObject *values)
{
    GioPgBlock *block = batch->block;
    if (batch->sealed)
        return gio_pg_error_set("InterfaceError", "the batch was handed out already");
    if (!PyTuple_Check(values) || PyTuple_GET_SIZE(values) != block->ncols)
        return PyErr_Format(PyExc_TypeError, "a tuple of %d values is expected", block->ncols);
    for (int i = 0; i < block->ncols; i++) {
        if (put_value(&block->cols[i], PyTuple_GET_ITEM(values, i)) < 0) {
            batch->sealed = batch->broken = true;
            block->rows = 0;
            return NULL;
        }
    }
    block->rows++;
    Py_RETURN_NONE;
}

Py_ssize_t
gio_pg_batch_rows(PyObject *self)
{
    return (Py_ssize_t)((Batch *)self)->block->rows;
}

static bool
is_long(const GioPgColumn *cols, int n)
{
    for (int i = 0; i < n; i++)
        if (cols[i].data.len >= FULL_BYTES ||
            (cols[i].nchildren > 0 && is_long(cols[i].children, cols[i].nchildren)))
            return true;
    return false;
}

bool
gio_pg_batch_is_full(PyObject *self)
{
    Batch *batch = (Batch *)self;
    return batch->block->rows >= batch->limit || is_long(batch->block->cols, batch->block->ncols);
}

static bool
refuse_broken(const Batch *batch)
{
    if (batch->broken)
        gio_pg_error_set("InterfaceError", "the batch has no rows: reading them failed");
    return batch->broken;
}

/* ---- capsules
 * ------------------------------------------------------------------------------------ */

#define CAPSULE(type, capsule_name)                                                                \
    static void free_##type(PyObject *capsule)                                                     \
    {                                                                                              \
        struct type *value = PyCapsule_GetPointer(capsule, capsule_name);                          \
        if (value == NULL) { /* somebody has renamed it */                                         \
            PyErr_WriteUnraisable(capsule);                                                        \
            return;                                                                                \
        }                                                                                          \
        if (value->release != NULL)                                                                \
            value->release(value);                                                                 \
        free(value);                                                                               \
    }                                                                                              \
    static PyObject *capsule_of_##type(struct type *value)                                         \
    {                                                                                              \
        PyObject *capsule = PyCapsule_New(value, capsule_name, free_##type);                       \
        if (capsule == NULL) {                                                                     \
            value->release(value);                                                                 \
            free(value);                                                                           \
        }                                                                                          \
        return capsule;                                                                            \
    }
CAPSULE(ArrowSchema, "arrow_schema")
CAPSULE(ArrowArray, "arrow_array")
CAPSULE(ArrowArrayStream, "arrow_array_stream")

static PyObject *
batch_schema(Batch *batch, PyObject *Py_UNUSED(ignored))
{
    struct ArrowSchema *schema = malloc(sizeof *schema);
    if (schema == NULL || gio_pg_block_schema(batch->block, schema) < 0) {
        free(schema);
        return PyErr_NoMemory();
    }
    return capsule_of_ArrowSchema(schema);
}

static PyObject *
batch_array(Batch *batch, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"requested_schema", NULL};
    PyObject *requested = Py_None;
    /* A wish, says the protocol: what is given is what there is. */
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:__arrow_c_array__", keywords, &requested))
        return NULL;
    if (refuse_broken(batch))
        return NULL;
    struct ArrowArray *array = malloc(sizeof *array);
    batch->sealed = true;
    if (array == NULL || gio_pg_block_array(batch->block, array) < 0) {
        free(array);
        return PyErr_NoMemory();
    }
    PyObject *data = capsule_of_ArrowArray(array);
    PyObject *schema = data == NULL ? NULL : batch_schema(batch, NULL);
    if (schema == NULL) {
        Py_XDECREF(data);
        return NULL;
    }
    return Py_BuildValue("(NN)", schema, data);
}

/* ---- streams of batches -------------------------------------------------------------------------
 */

typedef struct {
    Py_ssize_t n, at;
    GioPgBlock *blocks[];
} Stream;

static int
stream_schema(struct ArrowArrayStream *stream, struct ArrowSchema *out)
{
    Stream *s = stream->private_data;
    return gio_pg_block_schema(s->blocks[0], out) < 0 ? ENOMEM : 0;
}

static int
stream_next(struct ArrowArrayStream *stream, struct ArrowArray *out)
{
    Stream *s = stream->private_data;
    if (s->at == s->n) {
        memset(out, 0, sizeof *out);
        return 0;
    }
    if (gio_pg_block_array(s->blocks[s->at], out) < 0)
        return ENOMEM;
    if (s->at > 0) { /* what was taken is theirs; the first one says what they are like */
        gio_pg_block_unref(s->blocks[s->at]);
        s->blocks[s->at] = NULL;
    }
    s->at++;
    return 0;
}

static const char *
stream_error(struct ArrowArrayStream *Py_UNUSED(stream))
{
    return NULL;
}

static void
stream_release(struct ArrowArrayStream *stream)
{
    Stream *s = stream->private_data;
    for (Py_ssize_t i = 0; i < s->n; i++)
        gio_pg_block_unref(s->blocks[i]);
    free(s);
    stream->release = NULL;
}

static bool
are_alike(const GioPgColumn *a, const GioPgColumn *b, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(a[i].format, b[i].format) != 0 || a[i].nchildren != b[i].nchildren ||
            !are_alike(a[i].children, b[i].children, a[i].nchildren))
            return false;
    return true;
}

PyObject *
gio_pg_batch_stream(PyObject *module, PyObject *batches)
{
    GioPgState *st = PyModule_GetState(module);
    if (!PyTuple_Check(batches) || PyTuple_GET_SIZE(batches) == 0)
        return PyErr_Format(PyExc_TypeError, "a tuple of batches, at least one, is expected");
    Py_ssize_t n = PyTuple_GET_SIZE(batches);
    Batch *first = NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        Batch *batch = (Batch *)PyTuple_GET_ITEM(batches, i);
        if (!Py_IS_TYPE(batch, st->batch_type))
            return PyErr_Format(PyExc_TypeError, "a tuple of batches, at least one, is expected");
        if (refuse_broken(batch))
            return NULL;
        first = first == NULL ? batch : first;
        if (batch->block->ncols != first->block->ncols ||
            !are_alike(batch->block->cols, first->block->cols, first->block->ncols))
            return PyErr_Format(PyExc_ValueError, "the batches have different columns");
    }
    Stream *s = calloc(1, sizeof *s + (size_t)n * sizeof *s->blocks);
    struct ArrowArrayStream *stream = malloc(sizeof *stream);
    if (s == NULL || stream == NULL) {
        free(s);
        free(stream);
        return PyErr_NoMemory();
    }
    s->n = n;
    for (Py_ssize_t i = 0; i < n; i++) {
        Batch *batch = (Batch *)PyTuple_GET_ITEM(batches, i);
        batch->sealed = true;
        s->blocks[i] = gio_pg_block_ref(batch->block);
    }
    *stream =
        (struct ArrowArrayStream){stream_schema, stream_next, stream_error, stream_release, s};
    return capsule_of_ArrowArrayStream(stream);
}

/* ---- memory, for NumPy
 * ---------------------------------------------------------------------------- */

static int
buffer_get(Buffer *buffer, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)buffer, (void *)buffer->data, buffer->len, 1, flags);
}

static void
buffer_dealloc(Buffer *buffer)
{
    PyTypeObject *type = Py_TYPE(buffer);
    gio_pg_block_unref(buffer->block);
    type->tp_free(buffer);
    Py_DECREF(type);
}

static PyObject *
buffer_of(GioPgState *st, GioPgBlock *block, const GioPgBytes *bytes)
{
    if (bytes->len == 0)
        return PyBytes_FromStringAndSize(NULL, 0);
    Buffer *buffer = (Buffer *)st->buffer_type->tp_alloc(st->buffer_type, 0);
    if (buffer != NULL) {
        buffer->block = gio_pg_block_ref(block);
        buffer->data = bytes->data;
        buffer->len = (Py_ssize_t)bytes->len;
    }
    return (PyObject *)buffer;
}

/* (format, type, rows, nulls, validity, ends, data, children) */
static PyObject *
parts_of(GioPgState *st, GioPgBlock *block, const GioPgColumn *col)
{
    PyObject *children = PyTuple_New(col->nchildren);
    for (int i = 0; children != NULL && i < col->nchildren; i++) {
        PyObject *child = parts_of(st, block, &col->children[i]);
        if (child == NULL)
            Py_CLEAR(children);
        else
            PyTuple_SET_ITEM(children, i, child);
    }
    if (children == NULL)
        return NULL;
    return Py_BuildValue("(sssLLNNNN)", col->name, col->format, col->type, (long long)col->rows,
                         (long long)col->nulls, buffer_of(st, block, &col->valid),
                         buffer_of(st, block, &col->ends), buffer_of(st, block, &col->data),
                         children);
}

static PyObject *
batch_parts(Batch *batch, PyObject *Py_UNUSED(ignored))
{
    GioPgState *st = gio_pg_state(Py_TYPE(batch));
    GioPgBlock *block = batch->block;
    if (refuse_broken(batch))
        return NULL;
    PyObject *list = PyTuple_New(block->ncols);
    batch->sealed = true;
    for (int i = 0; list != NULL && i < block->ncols; i++) {
        PyObject *parts = parts_of(st, block, &block->cols[i]);
        if (parts == NULL)
            Py_CLEAR(list);
        else
            PyTuple_SET_ITEM(list, i, parts);
    }
    return list;
}

/* ---- the types
 * -------------------------------------------------------------------------------------- */

static int
read_numeric(const char *word, GioPgNumeric *numeric)
{
    static const char *const words[] = {"decimal", "text", "float64"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(word, words[i]) == 0) {
            *numeric = (GioPgNumeric)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "numeric is \"decimal\", \"text\" or \"float64\", not \"%s\"",
                 word);
    return -1;
}

/* Whether all text that comes is UTF-8 for certain. */
static bool
sends_utf8(const PGconn *pg)
{
    const char *server = pg == NULL ? NULL : PQparameterStatus(pg, "server_encoding");
    const char *client = pg == NULL ? NULL : PQparameterStatus(pg, "client_encoding");
    return server != NULL && strcmp(server, "SQL_ASCII") != 0 && client != NULL &&
           strcmp(client, "UTF8") == 0;
}

static PyObject *
batch_make(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"connection", "statement", "rows", "numeric", NULL};
    GioPgState *st = gio_pg_state(type);
    GioPgConn *c;
    GioPgStatement *s;
    const char *word = "decimal";
    Py_ssize_t limit = 65536;
    GioPgLayout layout = {st, GIO_PG_AS_DECIMAL, false};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!|ns:ArrowBatch", keywords, st->conn_type,
                                     &c, st->statement_type, &s, &limit, &word) ||
        read_numeric(word, &layout.numeric) < 0)
        return NULL;
    if (limit < 1)
        return PyErr_Format(PyExc_ValueError, "a batch has at least one row");
    layout.checked = !sends_utf8(c->pg);
    GioPgBlock *block = lay_out(&layout, s);
    Batch *batch = block == NULL ? NULL : (Batch *)type->tp_alloc(type, 0);
    if (batch == NULL) {
        gio_pg_block_unref(block);
        return NULL;
    }
    batch->block = block;
    batch->limit = limit;
    batch->layout = layout;
    return (PyObject *)batch;
}

static void
batch_dealloc(Batch *batch)
{
    PyTypeObject *type = Py_TYPE(batch);
    gio_pg_block_unref(batch->block);
    type->tp_free(batch);
    Py_DECREF(type);
}

static Py_ssize_t
batch_len(Batch *batch)
{
    return (Py_ssize_t)batch->block->rows;
}

static PyObject *
batch_num_rows(Batch *batch, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong(batch->block->rows);
}

static size_t
bytes_of(const GioPgColumn *cols, int n)
{
    size_t bytes = 0;
    for (int i = 0; i < n; i++)
        bytes += cols[i].valid.len + cols[i].ends.len + cols[i].data.len +
                 bytes_of(cols[i].children, cols[i].nchildren);
    return bytes;
}

static PyObject *
batch_nbytes(Batch *batch, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(bytes_of(batch->block->cols, batch->block->ncols));
}

static PyObject *
batch_names(Batch *batch, void *Py_UNUSED(closure))
{
    GioPgBlock *block = batch->block;
    PyObject *names = PyTuple_New(block->ncols);
    for (int i = 0; names != NULL && i < block->ncols; i++) {
        PyObject *name = PyUnicode_FromString(block->cols[i].name);
        if (name == NULL)
            Py_CLEAR(names);
        else
            PyTuple_SET_ITEM(names, i, name);
    }
    return names;
}

static PyObject *
batch_repr(Batch *batch)
{
    return PyUnicode_FromFormat("<ArrowBatch of %lld rows, %d columns>",
                                (long long)batch->block->rows, batch->block->ncols);
}

#define METHOD(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef batch_methods[] = {
    {"__arrow_c_schema__", METHOD(batch_schema), METH_NOARGS,
     "__arrow_c_schema__($self, /)\n--\n\nArrow's PyCapsule protocol: what columns there are."},
    {"__arrow_c_array__", METHOD(batch_array), METH_VARARGS | METH_KEYWORDS,
     "__arrow_c_array__($self, requested_schema=None)\n--\n\n"
     "Arrow's PyCapsule protocol: the rows, without a copy."},
    {"_append", METHOD(batch_append), METH_O,
     "_append($self, values, /)\n--\n\n"
     "A row, its values in binary as the server sends them (bytes or memoryview), None for NULL:\n"
     "to test what is made of any bytes."},
    {"_parts", METHOD(batch_parts), METH_NOARGS,
     "_parts($self, /)\n--\n\n"
     "Per column (name, format, type, rows, nulls, validity, ends, data, children)."},
    {NULL},
};

static PyGetSetDef batch_getset[] = {
    {"num_rows", (getter)batch_num_rows, NULL, "How many rows there are.", NULL},
    {"nbytes", (getter)batch_nbytes, NULL, "The bytes that they take.", NULL},
    {"column_names", (getter)batch_names, NULL, "The columns' names.", NULL},
    {NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_doc,
     "ArrowBatch(connection, statement, rows=65536, numeric='decimal')\n--\n\n"
     "Rows of a result as Arrow columns: for whatever knows Arrow's PyCapsule protocol."},
    {Py_tp_new, batch_make},
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_repr, batch_repr},
    {Py_tp_methods, batch_methods},
    {Py_tp_getset, batch_getset},
    {Py_sq_length, batch_len},
    {0, NULL},
};

static PyType_Spec batch_spec = {
    .name = "greenletio._pg.ArrowBatch",
    .basicsize = sizeof(Batch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = batch_slots,
};

static PyType_Slot buffer_slots[] = {
    {Py_tp_doc, "Memory of an ArrowBatch."},
    {Py_tp_dealloc, buffer_dealloc},
    {Py_bf_getbuffer, buffer_get},
    {0, NULL},
};

static PyType_Spec buffer_spec = {
    .name = "greenletio._pg.ArrowBuffer",
    .basicsize = sizeof(Buffer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = buffer_slots,
};

int
gio_pg_batch_setup_types(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->batch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &batch_spec, NULL);
    st->buffer_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &buffer_spec, NULL);
    return st->batch_type == NULL || st->buffer_type == NULL ||
                   PyModule_AddType(module, st->batch_type) < 0
               ? -1
               : 0;
}
