/* Numbers, text, bytes, uuid, json: types whose value is a few bytes in order.
 *
 * Decoding trusts nothing: a length that does not fit is an error, not a read past the end.
 * Encoders take what Python takes for the type, and raise TypeError, ValueError or OverflowError.
 */
#include "pg/pg.h"

/* ---- integers and booleans ---------------------------------------------------------- */

static PyObject *
bool_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len != 1)
        return gio_pg_malformed(codec);
    return PyBool_FromLong(*data);
}

static int
bool_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    if (!PyBool_Check(value)) {
        PyErr_Format(PyExc_TypeError, "a boolean is required (got type %.100s)",
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    return gio_put(out, value == Py_True ? "\1" : "\0", 1);
}

/* 2.0, Decimal(2) and the like: new reference; NULL with an exception for what is no whole number.
 */
static PyObject *
as_whole_number(PyObject *value)
{
    PyNumberMethods *number = Py_TYPE(value)->tp_as_number;
    if (number != NULL && number->nb_int != NULL && !PyBool_Check(value)) {
        PyObject *integer = PyNumber_Long(value);
        int same = integer == NULL ? -1 : PyObject_RichCompareBool(integer, value, Py_EQ);
        if (same > 0)
            return integer;
        Py_XDECREF(integer);
        if (same < 0)
            return NULL;
    }
    PyErr_Format(PyExc_TypeError, "an integer is required (got type %.100s)",
                 Py_TYPE(value)->tp_name);
    return NULL;
}

/* A Python integer within the bounds of a type: 0, or -1 with an exception. */
static int
as_integer(PyObject *value, int64_t low, int64_t high, const char *name, int64_t *n)
{
    int overflow = 0;
    PyObject *integer =
        PyIndex_Check(value) && !PyBool_Check(value) ? Py_NewRef(value) : as_whole_number(value);
    if (integer == NULL)
        return -1;
    *n = PyLong_AsLongLongAndOverflow(integer, &overflow);
    Py_DECREF(integer);
    if (*n == -1 && PyErr_Occurred())
        return -1;
    if (overflow != 0 || *n < low || *n > high) {
        PyErr_Format(PyExc_OverflowError, "value out of %s range", name);
        return -1;
    }
    return 0;
}

static PyObject *
int2_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return len != 2 ? gio_pg_malformed(codec) : gio_pg_integer(st, (int16_t)gio_get16(data));
}

static int
int2_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    int64_t n;
    return as_integer(value, INT16_MIN, INT16_MAX, "int16", &n) < 0 ? -1
                                                                    : gio_put16(out, (uint16_t)n);
}

PyObject *
gio_pg_int4_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return len != 4 ? gio_pg_malformed(codec) : gio_pg_integer(st, (int32_t)gio_get32(data));
}

static int
int4_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    int64_t n;
    return as_integer(value, INT32_MIN, INT32_MAX, "int32", &n) < 0 ? -1
                                                                    : gio_put32(out, (uint32_t)n);
}

static PyObject *
int8_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return len != 8 ? gio_pg_malformed(codec) : gio_pg_integer(st, (int64_t)gio_get64(data));
}

static int
int8_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    int64_t n;
    return as_integer(value, INT64_MIN, INT64_MAX, "int64", &n) < 0 ? -1
                                                                    : gio_put64(out, (uint64_t)n);
}

/* oid, xid, cid, and the regsomething types, which are oids */
static PyObject *
oid_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return len != 4 ? gio_pg_malformed(codec) : gio_pg_integer(st, gio_get32(data));
}

static int
oid_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    int64_t n;
    return as_integer(value, 0, UINT32_MAX, "uint32", &n) < 0 ? -1 : gio_put32(out, (uint32_t)n);
}

static PyObject *
xid8_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return len != 8 ? gio_pg_malformed(codec) : PyLong_FromUnsignedLongLong(gio_get64(data));
}

static int
xid8_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    PyObject *n = PyNumber_Index(value);
    unsigned long long v = n == NULL ? 0 : PyLong_AsUnsignedLongLong(n);
    Py_XDECREF(n);
    return PyErr_Occurred() ? -1 : gio_put64(out, v);
}

static PyObject *
tid_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len != 6)
        return gio_pg_malformed(codec);
    return Py_BuildValue("(II)", gio_get32(data), (unsigned)gio_get16(data + 4));
}

static int
tid_part(PyObject *pair, Py_ssize_t i, int64_t high, const char *message, int64_t *n)
{
    int rc = as_integer(PyTuple_GET_ITEM(pair, i), 0, high, "tid", n);
    if (rc < 0 && PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_SetString(PyExc_OverflowError, message);
    return rc;
}

static int
tid_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    int64_t block, offset;
    PyObject *pair = NULL;
    int rc = -1;
    if (PyTuple_Check(value) || PyList_Check(value))
        pair = PySequence_Tuple(value);
    else
        PyErr_Format(PyExc_TypeError, "list or tuple expected (got type %.100s)",
                     Py_TYPE(value)->tp_name);
    if (pair != NULL && PyTuple_GET_SIZE(pair) != 2)
        PyErr_Format(PyExc_ValueError, "invalid number of elements in tid tuple, expecting 2: %zd",
                     PyTuple_GET_SIZE(pair));
    else if (pair != NULL &&
             tid_part(pair, 0, UINT32_MAX, "tuple id block value out of uint32 range", &block) ==
                 0 &&
             tid_part(pair, 1, UINT16_MAX, "tuple id offset value out of uint16 range", &offset) ==
                 0 &&
             gio_put32(out, (uint32_t)block) == 0)
        rc = gio_put16(out, (uint16_t)offset);
    Py_XDECREF(pair);
    return rc;
}

/* ---- floats -------------------------------------------------------------------------- */

static PyObject *
float4_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len != 4)
        return gio_pg_malformed(codec);
    uint32_t bits = gio_get32(data);
    float value;
    memcpy(&value, &bits, sizeof value);
    return PyFloat_FromDouble((double)value);
}

static int
float4_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    double wide = PyFloat_AsDouble(value);
    if (wide == -1.0 && PyErr_Occurred())
        return -1;
    float narrow = (float)wide;
    if (Py_IS_INFINITY((double)narrow) && !Py_IS_INFINITY(wide)) {
        PyErr_SetString(PyExc_OverflowError, "value out of float32 range");
        return -1;
    }
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    return gio_put32(out, bits);
}

static PyObject *
float8_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len != 8)
        return gio_pg_malformed(codec);
    uint64_t bits = gio_get64(data);
    double value;
    memcpy(&value, &bits, sizeof value);
    return PyFloat_FromDouble(value);
}

static int
float8_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred())
        return -1;
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return gio_put64(out, bits);
}

/* ---- text and bytes ------------------------------------------------------------------ */

PyObject *
gio_pg_text_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return PyUnicode_DecodeUTF8(data, len, NULL);
}

int
gio_pg_text_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    Py_ssize_t len;
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "expected str, got %.100s", Py_TYPE(value)->tp_name);
        return -1;
    }
    const char *text = PyUnicode_AsUTF8AndSize(value, &len);
    return text == NULL ? -1 : gio_put(out, text, len);
}

static PyObject *
bytea_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return PyBytes_FromStringAndSize(data, len);
}

static int
bytea_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    Py_buffer view;
    if (PyBytes_Check(value))
        return gio_put(out, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    if (PyObject_GetBuffer(value, &view, PyBUF_CONTIG_RO) < 0)
        return -1;
    int rc = gio_put(out, view.buf, view.len);
    PyBuffer_Release(&view);
    return rc;
}

/* "char": one byte */
static int
char_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    if (PyUnicode_Check(value) && PyUnicode_GET_LENGTH(value) == 1 &&
        PyUnicode_READ_CHAR(value, 0) < 128) {
        char byte = (char)PyUnicode_READ_CHAR(value, 0);
        return gio_put(out, &byte, 1);
    }
    if (PyBytes_Check(value) && PyBytes_GET_SIZE(value) == 1)
        return gio_put(out, PyBytes_AS_STRING(value), 1);
    PyErr_SetString(PyExc_ValueError, "one byte is required");
    return -1;
}

/* jsonb, tsquery and the like would have a number of their format before the text: jsonb does. */
static PyObject *
jsonb_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len < 1 || *data != 1)
        return gio_pg_malformed(codec);
    return PyUnicode_DecodeUTF8(data + 1, len - 1, NULL);
}

static int
jsonb_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    return gio_put(out, "\1", 1) < 0 ? -1 : gio_pg_text_encode(st, codec, value, out);
}

static PyObject *
void_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    Py_RETURN_NONE;
}

static int
void_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    return 0;
}

/* ---- uuid ------------------------------------------------------------------------------ */

static PyObject *
uuid_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len != 16)
        return gio_pg_malformed(codec);
    PyTypeObject *type = (PyTypeObject *)st->uuid;
    PyObject *number = _PyLong_FromByteArray((const unsigned char *)data, 16, 0, 0);
    PyObject *uuid = number == NULL ? NULL : type->tp_new(type, st->empty_tuple, NULL);
    /* Past uuid.UUID.__setattr__, which refuses, and __init__, which is slow. */
    if (uuid != NULL && (PyObject_GenericSetAttr(uuid, st->str_int, number) < 0 ||
                         PyObject_GenericSetAttr(uuid, st->str_is_safe, st->uuid_safe) < 0))
        Py_CLEAR(uuid);
    Py_XDECREF(number);
    return uuid;
}

static int
uuid_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    PyObject *uuid = Py_NewRef(value);
    if (PyUnicode_Check(value))
        Py_SETREF(uuid, PyObject_CallOneArg(st->uuid, value));
    if (uuid == NULL)
        return -1;
    PyObject *bytes = NULL;
    int rc = -1;
    if (!PyObject_TypeCheck(uuid, (PyTypeObject *)st->uuid))
        PyErr_Format(PyExc_TypeError, "expected UUID or str, got %.100s", Py_TYPE(value)->tp_name);
    else
        bytes = PyObject_GetAttr(uuid, st->str_bytes);
    if (bytes != NULL && PyBytes_Check(bytes) && PyBytes_GET_SIZE(bytes) == 16)
        rc = gio_put(out, PyBytes_AS_STRING(bytes), 16);
    else if (bytes != NULL)
        PyErr_SetString(PyExc_ValueError, "a UUID has 16 bytes");
    Py_XDECREF(bytes);
    Py_DECREF(uuid);
    return rc;
}

/* ---- the table --------------------------------------------------------------------------- */

typedef struct {
    Oid oid, array;
    const char *name;
    GioPgDecode decode;
    GioPgEncode encode;
} Row;

#define TEXT gio_pg_text_decode, gio_pg_text_encode
#define OID oid_decode, oid_encode

static const Row rows[] = {
    {16, 1000, "bool", bool_decode, bool_encode},
    {17, 1001, "bytea", bytea_decode, bytea_encode},
    {18, 1002, "char", bytea_decode, char_encode},
    {19, 1003, "name", TEXT},
    {20, 1016, "int8", int8_decode, int8_encode},
    {21, 1005, "int2", int2_decode, int2_encode},
    {23, 1007, "int4", gio_pg_int4_decode, int4_encode},
    {25, 1009, "text", TEXT},
    {26, 1028, "oid", OID},
    {27, 1010, "tid", tid_decode, tid_encode},
    {28, 1011, "xid", OID},
    {29, 1012, "cid", OID},
    {114, 199, "json", TEXT},
    {142, 143, "xml", TEXT},
    {194, 0, "pg_node_tree", TEXT},
    {700, 1021, "float4", float4_decode, float4_encode},
    {701, 1022, "float8", float8_decode, float8_encode},
    {705, 0, "unknown", TEXT},
    {1042, 1014, "bpchar", TEXT},
    {1043, 1015, "varchar", TEXT},
    {1790, 2201, "refcursor", TEXT},
    {2275, 1263, "cstring", TEXT},
    {2249, 2287, "record", gio_pg_row_decode, gio_pg_row_encode},
    {2278, 0, "void", void_decode, void_encode},
    {2950, 2951, "uuid", uuid_decode, uuid_encode},
    {3220, 3221, "pg_lsn", xid8_decode, xid8_encode},
    {3802, 3807, "jsonb", jsonb_decode, jsonb_encode},
    {4072, 4073, "jsonpath", jsonb_decode, jsonb_encode},
    {5069, 271, "xid8", xid8_decode, xid8_encode},
};

int
gio_pg_basic_add(GioPgState *st)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const Row *r = &rows[i];
        if (gio_pg_codec_add(st, r->oid, r->array, r->name, r->decode, r->encode,
                             r->decode != gio_pg_row_decode) < 0)
            return -1;
    }
    return 0;
}
