/* Codec: how the values of one type are read and written; and which one a type has.
 *
 * Codecs never change once they are made, and are shared by connections. The module has one for
 * each type that comes with the server and that we know; a connection has a dict of its own for
 * what was looked up in its database, and for what its user has set. Codecs that are made of others
 * (arrays, composites, ranges, domains) are put together by greenletio/pg/_types.py.
 */
#include "pg/pg.h"

#include <stddef.h>
#include <structmember.h>

PyObject *
gio_pg_malformed(GioPgCodec *codec)
{
    return gio_pg_error_set("InternalError", "the server sent a malformed value of type %U",
                            codec->name);
}

GioPgCodec *
gio_pg_codec_new(GioPgState *st, Oid oid, const char *name, GioPgDecode decode, GioPgEncode encode,
                 bool atomic)
{
    GioPgCodec *codec = (GioPgCodec *)st->codec_type->tp_alloc(st->codec_type, 0);
    if (codec == NULL)
        return NULL;
    codec->oid = oid;
    codec->decode = decode;
    codec->encode = encode;
    codec->atomic = atomic;
    codec->tuples = oid == 27;                 /* tid */
    codec->delimiter = oid == 603 ? ';' : ','; /* box */
    codec->name = PyUnicode_FromString(name);
    codec->schema = PyUnicode_InternFromString("pg_catalog");
    if (codec->name == NULL || codec->schema == NULL)
        Py_CLEAR(codec);
    return codec;
}

static int
add(PyObject *dict, GioPgCodec *codec)
{
    PyObject *key = PyLong_FromUnsignedLong(codec->oid);
    int rc = key == NULL ? -1 : PyDict_SetItem(dict, key, (PyObject *)codec);
    Py_XDECREF(key);
    return rc;
}

int
gio_pg_codec_add(GioPgState *st, Oid oid, Oid array, const char *name, GioPgDecode decode,
                 GioPgEncode encode, bool atomic)
{
    GioPgCodec *codec = gio_pg_codec_new(st, oid, name, decode, encode, atomic), *many = NULL;
    int rc = codec == NULL ? -1 : add(st->builtin, codec);
    if (rc == 0 && array != 0) {
        many = gio_pg_codec_new(st, array, name, gio_pg_array_decode, gio_pg_array_encode, false);
        rc = -1;
        if (many != NULL) {
            Py_SETREF(many->name, PyUnicode_FromFormat("%s[]", name));
            many->element = (GioPgCodec *)Py_NewRef(codec);
            rc = many->name == NULL ? -1 : add(st->builtin, many);
        }
    }
    Py_XDECREF(codec);
    Py_XDECREF(many);
    return rc;
}

GioPgCodec *
gio_pg_codec_find(GioPgConn *c, Oid oid, bool plain)
{
    PyObject *key = PyLong_FromUnsignedLong(oid), *found = NULL;
    PyObject *first = plain ? c->st->builtin : c->codecs;
    PyObject *then = plain ? c->codecs : c->st->builtin;
    if (key == NULL)
        return NULL;
    if (PyDict_GET_SIZE(first) > 0)
        found = PyDict_GetItemWithError(first, key);
    if (found == NULL && !PyErr_Occurred())
        found = PyDict_GetItemWithError(then, key);
    Py_DECREF(key);
    if (found != NULL && !Py_IS_TYPE(found, c->st->codec_type)) {
        PyErr_SetString(PyExc_TypeError, "a connection's codecs must be Codec objects");
        return NULL;
    }
    return (GioPgCodec *)found;
}

GioPgCodec *
gio_pg_codec_plain(GioPgState *st, GioPgCodec *codec)
{
    while (codec != NULL) {
        PyObject *oid = PyLong_FromUnsignedLong(codec->oid);
        PyObject *known = oid == NULL ? NULL : PyDict_GetItemWithError(st->builtin, oid);
        Py_XDECREF(oid);
        if (known != NULL || PyErr_Occurred())
            return (GioPgCodec *)known;
        if (codec->form == NULL || strcmp(codec->form, "wrapped") != 0)
            break;
        codec = codec->element;
    }
    return codec;
}

/* ---- codecs made of others -------------------------------------------------------------- */

static PyObject *
wrapped_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (Py_EnterRecursiveCall(" in a value of the server"))
        return NULL;
    PyObject *value = codec->element->decode(st, codec->element, data, len);
    Py_LeaveRecursiveCall();
    if (value == NULL || codec->decoder == NULL)
        return value;
    PyObject *result = PyObject_CallOneArg(codec->decoder, value);
    Py_DECREF(value);
    return result;
}

static int
wrapped_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    PyObject *plain = Py_NewRef(value);
    int rc = -1;
    if (codec->element->encode == NULL)
        PyErr_Format(PyExc_TypeError, "values of type %U cannot be sent", codec->name);
    else if (Py_EnterRecursiveCall(" in a value for the server") == 0) {
        if (codec->encoder != NULL)
            Py_SETREF(plain, PyObject_CallOneArg(codec->encoder, value));
        if (plain != NULL)
            rc = codec->element->encode(st, codec->element, plain, out);
        Py_LeaveRecursiveCall();
    }
    Py_XDECREF(plain);
    return rc;
}

static int
keep_callable(PyObject **field, PyObject *value)
{
    if (value == NULL || value == Py_None)
        return 0;
    if (!PyCallable_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "a codec's encoder and decoder are callables, or None");
        return -1;
    }
    *field = Py_NewRef(value);
    return 0;
}

typedef enum { ARRAY, COMPOSITE, RANGE, MULTIRANGE, WRAPPED, TEXT, FOREIGN } Form;

static const char *const forms[] = {"array",   "composite", "range",  "multirange",
                                    "wrapped", "text",      "foreign"};

static int
make_composite(GioPgState *st, GioPgCodec *codec, PyObject *names, PyObject *parts)
{
    if (names == NULL || !PyTuple_Check(names) || parts == NULL || !PyTuple_Check(parts) ||
        PyTuple_GET_SIZE(names) != PyTuple_GET_SIZE(parts)) {
        PyErr_SetString(PyExc_TypeError, "a composite has as many names as parts, both in tuples");
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(parts); i++) {
        if (!Py_IS_TYPE(PyTuple_GET_ITEM(parts, i), st->codec_type) ||
            !PyUnicode_Check(PyTuple_GET_ITEM(names, i))) {
            PyErr_SetString(PyExc_TypeError,
                            "a composite has names that are str, parts that are codecs");
            return -1;
        }
    }
    codec->fields = Py_NewRef(parts);
    codec->desc = gio_pg_desc_new(st, names);
    return codec->desc == NULL ? -1 : 0;
}

static PyObject *
codec_make(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"form",    "oid",     "name",   "element", "names",
                               "decoder", "encoder", "schema", NULL};
    static const GioPgDecode decoders[] = {
        gio_pg_array_decode, gio_pg_composite_decode, gio_pg_range_decode, gio_pg_multirange_decode,
        wrapped_decode,      gio_pg_text_decode,      gio_pg_text_decode};
    static const GioPgEncode encoders[] = {
        gio_pg_array_encode, gio_pg_composite_encode, gio_pg_range_encode, gio_pg_multirange_encode,
        wrapped_encode,      gio_pg_text_encode,      gio_pg_text_encode};
    const char *word, *name;
    unsigned oid;
    PyObject *element = Py_None, *names = NULL, *decoder = NULL, *encoder = NULL, *schema = NULL;
    GioPgState *st = gio_pg_state(type);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sIs|OOOOU:Codec", keywords, &word, &oid, &name,
                                     &element, &names, &decoder, &encoder, &schema))
        return NULL;
    int form = 0;
    while (form <= FOREIGN && strcmp(word, forms[form]) != 0)
        form++;
    if (form > FOREIGN)
        return PyErr_Format(PyExc_ValueError, "there is no codec of the form %s", word);
    bool atomic = form == TEXT || form == FOREIGN;
    GioPgCodec *codec = gio_pg_codec_new(st, oid, name, decoders[form], encoders[form], atomic);
    if (codec == NULL)
        return NULL;
    if (schema != NULL)
        Py_SETREF(codec->schema, Py_NewRef(schema));
    if (form == COMPOSITE) {
        if (make_composite(st, codec, names, element) < 0)
            goto error;
    }
    else if (!atomic) {
        if (!Py_IS_TYPE(element, st->codec_type)) {
            PyErr_SetString(PyExc_TypeError, "the element of a codec is a codec");
            goto error;
        }
        codec->element = (GioPgCodec *)Py_NewRef(element);
        codec->text = codec->element->text;
    }
    codec->text = codec->text || form == FOREIGN;
    codec->form = forms[form];
    if (form == WRAPPED && (decoder == NULL || decoder == Py_None))
        codec->atomic = codec->element->atomic;
    if (keep_callable(&codec->decoder, decoder) < 0 || keep_callable(&codec->encoder, encoder) < 0)
        goto error;
    codec->tuples = form == COMPOSITE || form == RANGE ||
                    (form == WRAPPED && (codec->encoder != NULL || codec->element->tuples));
    return (PyObject *)codec;

error:
    Py_DECREF(codec);
    return NULL;
}

/* ---- the type -------------------------------------------------------------------------------- */

/* decode(bytes), encode(value): for tests, and for COPY in Python. */
static PyObject *
codec_decode(GioPgCodec *codec, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_CONTIG_RO) < 0)
        return NULL;
    PyObject *value = codec->decode(gio_pg_state(Py_TYPE(codec)), codec, view.buf, view.len);
    PyBuffer_Release(&view);
    return value;
}

static PyObject *
codec_encode(GioPgCodec *codec, PyObject *value)
{
    GioBuf out = {NULL, 0, 0};
    PyObject *bytes = NULL;
    if (codec->encode == NULL)
        return PyErr_Format(PyExc_TypeError, "values of type %U cannot be sent", codec->name);
    if (codec->encode(gio_pg_state(Py_TYPE(codec)), codec, value, &out) == 0)
        bytes = PyBytes_FromStringAndSize(out.data, out.len);
    gio_buf_free(&out);
    return bytes;
}

static PyObject *
codec_repr(GioPgCodec *codec)
{
    return PyUnicode_FromFormat("<Codec of %U, oid %u>", codec->name, codec->oid);
}

static PyObject *
codec_form(GioPgCodec *codec, void *Py_UNUSED(closure))
{
    return codec->form == NULL ? Py_NewRef(Py_None) : PyUnicode_FromString(codec->form);
}

static int
codec_traverse(GioPgCodec *codec, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(codec));
    Py_VISIT(codec->element);
    Py_VISIT(codec->fields);
    Py_VISIT(codec->decoder);
    Py_VISIT(codec->encoder);
    return 0;
}

static int
codec_clear(GioPgCodec *codec)
{
    Py_CLEAR(codec->decoder);
    Py_CLEAR(codec->encoder);
    return 0;
}

static void
codec_dealloc(GioPgCodec *codec)
{
    PyTypeObject *type = Py_TYPE(codec);
    PyObject_GC_UnTrack(codec);
    Py_TRASHCAN_BEGIN(codec, codec_dealloc) codec_clear(codec);
    Py_CLEAR(codec->name);
    Py_CLEAR(codec->schema);
    Py_CLEAR(codec->element);
    Py_CLEAR(codec->fields);
    Py_CLEAR(codec->desc);
    type->tp_free(codec);
    Py_DECREF(type);
    Py_TRASHCAN_END
}

static PyMemberDef codec_members[] = {
    {"oid", T_UINT, offsetof(GioPgCodec, oid), READONLY, "The type's oid."},
    {"name", T_OBJECT_EX, offsetof(GioPgCodec, name), READONLY, "The type's name."},
    {"schema", T_OBJECT_EX, offsetof(GioPgCodec, schema), READONLY, "The schema that it is in."},
    {"element", T_OBJECT, offsetof(GioPgCodec, element), READONLY, "The codec it is made of."},
    {"decoder", T_OBJECT, offsetof(GioPgCodec, decoder), READONLY,
     "What is made of a value that was read, or None."},
    {"is_text", T_BOOL, offsetof(GioPgCodec, text), READONLY, "Whether values travel as text."},
    {NULL},
};

static PyMethodDef codec_methods[] = {
    {"decode", (PyCFunction)codec_decode, METH_O,
     "decode($self, data, /)\n--\n\nThe value that the server sent as these bytes."},
    {"encode", (PyCFunction)codec_encode, METH_O,
     "encode($self, value, /)\n--\n\nThe bytes that a value is sent as."},
    {NULL},
};

static PyGetSetDef codec_getset[] = {
    {"form", (getter)codec_form, NULL, "How it is made of others; None: it is built in.", NULL},
    {NULL},
};

static PyType_Slot codec_slots[] = {
    {Py_tp_doc, "Codec(form, oid, name, element=None, names=(), decoder=None, encoder=None, "
                "schema='pg_catalog')\n--\n\n"
                "How the values of one type of the server are read and written."},
    {Py_tp_new, codec_make},
    {Py_tp_dealloc, codec_dealloc},
    {Py_tp_traverse, codec_traverse},
    {Py_tp_clear, codec_clear},
    {Py_tp_repr, codec_repr},
    {Py_tp_members, codec_members},
    {Py_tp_getset, codec_getset},
    {Py_tp_methods, codec_methods},
    {0, NULL},
};

static PyType_Spec codec_spec = {
    .name = "greenletio._pg.Codec",
    .basicsize = sizeof(GioPgCodec),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = codec_slots,
};

int
gio_pg_codec_setup_types(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->codec_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &codec_spec, NULL);
    if (st->codec_type == NULL || PyModule_AddType(module, st->codec_type) < 0)
        return -1;
    st->builtin = PyDict_New();
    if (st->builtin == NULL || gio_pg_basic_add(st) < 0 || gio_pg_numeric_add(st) < 0 ||
        gio_pg_time_add(st) < 0)
        return -1;
    return 0;
}
