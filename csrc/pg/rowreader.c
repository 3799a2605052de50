/* RowReader: rows of one table as pgoutput sends them, made to Records.
 *
 * Each column has a byte for its kind: NULL, not sent since it has not changed, in binary, as text.
 * What a codec in Python, or the reader of text, does while a row is read concerns nobody else: the
 * reader itself never changes, and the bytes are the caller's.
 */
#include "pg/pg.h"

typedef struct {
    PyObject_HEAD
    PyObject *desc;
    PyObject *codecs;    /* tuple of Codec */
    PyObject *text;      /* callable(codec, bytes) */
    PyObject *unchanged; /* what stands for a value that was not sent */
    bool atomic;         /* rows cannot be part of a cycle */
} Reader;

static PyObject *
malformed(void)
{
    return gio_pg_error_set("InternalError", "the output plugin sent a malformed row");
}

/* The value that is at `*at`, which moves on: a new reference. */
static PyObject *
read_value(Reader *r, GioPgState *st, GioPgCodec *codec, const char **at, const char *end)
{
    if (*at == end)
        return malformed();
    char kind = *(*at)++;
    if (kind == 'n')
        return Py_NewRef(Py_None);
    if (kind == 'u')
        return Py_NewRef(r->unchanged);
    if ((kind != 'b' && kind != 't') || end - *at < 4)
        return malformed();
    uint32_t len = gio_get32(*at);
    const char *data = *at + 4;
    if ((size_t)(end - data) < len)
        return malformed();
    *at = data + len;
    if (kind == 'b')
        return codec->decode(st, codec, data, (Py_ssize_t)len);
    PyObject *bytes = PyBytes_FromStringAndSize(data, (Py_ssize_t)len), *value = NULL;
    if (bytes != NULL)
        value = PyObject_CallFunctionObjArgs(r->text, (PyObject *)codec, bytes, NULL);
    Py_XDECREF(bytes);
    return value;
}

static PyObject *
reader_read(Reader *r, PyObject *args)
{
    GioPgState *st = gio_pg_state(Py_TYPE(r));
    PyObject *data;
    Py_ssize_t offset, n = PyTuple_GET_SIZE(r->codecs);
    if (!PyArg_ParseTuple(args, "Sn:read", &data, &offset))
        return NULL;
    const char *start = PyBytes_AS_STRING(data), *end = start + PyBytes_GET_SIZE(data);
    if (offset < 0 || offset > end - start || end - start - offset < 2)
        return malformed();
    const char *at = start + offset + 2;
    if (gio_get16(at - 2) != n)
        return malformed();
    PyTypeObject *type = r->atomic ? st->record_type : st->gc_record_type;
    GioPgRecord *record = gio_pg_record_new(st, type, r->desc, n);
    for (Py_ssize_t i = 0; record != NULL && i < n; i++) {
        GioPgCodec *codec = (GioPgCodec *)PyTuple_GET_ITEM(r->codecs, i);
        record->items[i] = read_value(r, st, codec, &at, end);
        if (record->items[i] == NULL)
            Py_CLEAR(record);
    }
    return record == NULL ? NULL : Py_BuildValue("(Nn)", record, (Py_ssize_t)(at - start));
}

static PyObject *
reader_make(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"names", "codecs", "text", "unchanged", NULL};
    GioPgState *st = gio_pg_state(type);
    PyObject *names, *codecs, *text, *unchanged;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OO:RowReader", keywords, &PyTuple_Type,
                                     &names, &PyTuple_Type, &codecs, &text, &unchanged))
        return NULL;
    bool fits = PyTuple_GET_SIZE(names) == PyTuple_GET_SIZE(codecs) && PyCallable_Check(text);
    bool atomic = true;
    for (Py_ssize_t i = 0; fits && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *codec = PyTuple_GET_ITEM(codecs, i);
        fits = PyUnicode_Check(PyTuple_GET_ITEM(names, i)) && Py_IS_TYPE(codec, st->codec_type);
        atomic = atomic && fits && ((GioPgCodec *)codec)->atomic;
    }
    if (!fits) {
        PyErr_SetString(PyExc_TypeError, "a RowReader takes names, and a codec for each");
        return NULL;
    }
    Reader *r = (Reader *)type->tp_alloc(type, 0);
    if (r == NULL)
        return NULL;
    r->codecs = Py_NewRef(codecs);
    r->text = Py_NewRef(text);
    r->unchanged = Py_NewRef(unchanged);
    r->atomic = atomic;
    r->desc = gio_pg_desc_new(st, names);
    if (r->desc == NULL)
        Py_CLEAR(r);
    return (PyObject *)r;
}

static int
reader_traverse(Reader *r, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(r));
    Py_VISIT(r->codecs);
    Py_VISIT(r->text);
    Py_VISIT(r->unchanged);
    return 0;
}

static void
reader_dealloc(Reader *r)
{
    PyTypeObject *type = Py_TYPE(r);
    PyObject_GC_UnTrack(r);
    Py_CLEAR(r->desc);
    Py_CLEAR(r->codecs);
    Py_CLEAR(r->text);
    Py_CLEAR(r->unchanged);
    type->tp_free(r);
    Py_DECREF(type);
}

static PyMethodDef reader_methods[] = {
    {"read", (PyCFunction)reader_read, METH_VARARGS,
     "read($self, data, offset, /)\n--\n\n"
     "The row that begins there, a Record, and where what follows it is."},
    {NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "RowReader(names, codecs, text, unchanged)\n--\n\n"
                "Reads the rows of a table as pgoutput sends them."},
    {Py_tp_new, reader_make},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_traverse, reader_traverse},
    {Py_tp_methods, reader_methods},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "greenletio._pg.RowReader",
    .basicsize = sizeof(Reader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

int
gio_pg_row_reader_setup_types(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    int rc = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return rc;
}
