/* Arrays of any dimension, as lists in lists.
 *
 * The server's lower bounds are not kept: a list begins at 0. As on the server, all lists of one
 * level have the same length.
 */
#include "pg/pg.h"

#define MAX_DIMENSIONS 6 /* the server's own limit */

PyObject *
gio_pg_part_decode(GioPgState *st, GioPgCodec *codec, GioPgCodec *part, const char **data,
                   const char *end)
{
    if (end - *data < 4)
        return gio_pg_malformed(codec);
    int32_t len = (int32_t)gio_get32(*data);
    *data += 4;
    if (len == -1)
        Py_RETURN_NONE;
    if (len < 0 || len > end - *data)
        return gio_pg_malformed(codec);
    const char *value = *data;
    *data += len;
    if (Py_EnterRecursiveCall(" in a value of the server"))
        return NULL;
    PyObject *decoded = part->decode(st, part, value, len);
    Py_LeaveRecursiveCall();
    return decoded;
}

int
gio_pg_part_encode(GioPgState *st, GioPgCodec *part, PyObject *value, GioBuf *out)
{
    Py_ssize_t at = out->len;
    if (gio_put32(out, UINT32_MAX) < 0)
        return -1;
    if (value == Py_None)
        return 0;
    if (part->encode == NULL) {
        PyErr_Format(PyExc_TypeError, "values of type %U cannot be sent", part->name);
        return -1;
    }
    if (Py_EnterRecursiveCall(" in a value for the server"))
        return -1;
    int rc = part->encode(st, part, value, out);
    Py_LeaveRecursiveCall();
    if (rc < 0)
        return -1;
    Py_ssize_t len = out->len - at - 4;
    if (len > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a value is longer than 2 GB");
        return -1;
    }
    gio_set32(out->data + at, (uint32_t)len);
    return 0;
}

typedef struct {
    GioPgState *st;
    GioPgCodec *codec;
    int n;
    Py_ssize_t sizes[MAX_DIMENSIONS];
    const char *data, *end;
} Array;

/* The int4s that come next, up to one that is NULL or malformed: how many. Large arrays mostly are
 * of them, and there the way of all others would take most of the time. */
static Py_ssize_t
decode_integers(Array *a, PyObject *list, Py_ssize_t from)
{
    Py_ssize_t i = from, n = PyList_GET_SIZE(list);
    const char *data = a->data;
    for (; i < n && a->end - data >= 8 && gio_get32(data) == 4; i++, data += 8) {
        PyObject *item = gio_pg_integer(a->st, (int32_t)gio_get32(data + 4));
        if (item == NULL) {
            PyErr_Clear(); /* the other way will find that there is no memory */
            break;
        }
        PyList_SET_ITEM(list, i, item);
    }
    a->data = data;
    return i - from;
}

static PyObject *
decode_level(Array *a, int level)
{
    GioPgCodec *element = a->codec->element;
    bool is_last = level + 1 == a->n, integers = is_last && element->decode == gio_pg_int4_decode;
    PyObject *list = gio_pg_hidden(PyList_New(a->sizes[level]));
    for (Py_ssize_t i = 0; list != NULL && i < a->sizes[level]; i++) {
        if (integers && (i += decode_integers(a, list, i)) == a->sizes[level])
            break;
        PyObject *item = is_last ? gio_pg_part_decode(a->st, a->codec, element, &a->data, a->end)
                                 : decode_level(a, level + 1);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return gio_pg_shown(list);
}

/* An array whose elements travel as text: greenletio/pg/_text.py reads and writes it. */
static PyObject *
decode_text(GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    PyObject *module = PyImport_ImportModule("greenletio.pg._text"), *value = NULL;
    if (module != NULL)
        value =
            PyObject_CallMethod(module, "read_array", "Os#", (PyObject *)codec->element, data, len);
    Py_XDECREF(module);
    return value;
}

static int
encode_text(GioPgCodec *codec, PyObject *sequence, GioBuf *out)
{
    PyObject *module = PyImport_ImportModule("greenletio.pg._text"), *text = NULL;
    Py_ssize_t len = 0;
    if (module != NULL)
        text =
            PyObject_CallMethod(module, "write_array", "OO", (PyObject *)codec->element, sequence);
    const char *utf8 = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, &len);
    int rc = utf8 == NULL ? -1 : gio_put(out, utf8, len);
    Py_XDECREF(text);
    Py_XDECREF(module);
    return rc;
}

PyObject *
gio_pg_array_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (codec->text)
        return decode_text(codec, data, len);
    Array a = {.st = st, .codec = codec, .data = data + 12, .end = data + len};
    if (len < 12)
        return gio_pg_malformed(codec);
    a.n = (int32_t)gio_get32(data);
    if (a.n < 0 || a.n > MAX_DIMENSIONS || a.end - a.data < 8 * a.n)
        return gio_pg_malformed(codec);
    if (a.n == 0)
        return PyList_New(0);
    Py_ssize_t limit = (a.end - a.data) / 4, all = 1;
    for (int i = 0; i < a.n; i++, a.data += 8) {
        a.sizes[i] = (int32_t)gio_get32(a.data);
        if (a.sizes[i] < 0 || (a.sizes[i] > 0 && all > limit / a.sizes[i]))
            return gio_pg_malformed(codec);
        all *= a.sizes[i] > 0 ? a.sizes[i] : 1;
    }
    return decode_level(&a, 0);
}

/* ---- encoding ------------------------------------------------------------------------------ */

/* What is a level of an array, and not a value. */
static bool
is_level(GioPgCodec *element, PyObject *value)
{
    if (PyList_Check(value))
        return true;
    return PyTuple_Check(value) && !element->tuples;
}

/* Any sized iterable but a mapping, for the outermost level. A list or tuple, new reference. */
static PyObject *
as_sequence(PyObject *value)
{
    if (PyList_Check(value) || PyTuple_Check(value))
        return Py_NewRef(value);
    if (PyUnicode_Check(value) || PyBytes_Check(value) || PyByteArray_Check(value) ||
        PyMemoryView_Check(value) || PyDict_Check(value) || PyObject_Size(value) < 0) {
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError))
            return NULL;
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "a sized iterable container expected (got type '%.100s')",
                     Py_TYPE(value)->tp_name);
        return NULL;
    }
    return PySequence_List(value);
}

static void
explain(Py_ssize_t i)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception) || gio_pg_error_is("NotSupportedError"))
        return;
    PyObject *cause = gio_err_take(), *why = PyObject_Str(cause);
    gio_err_give(cause);
    if (why != NULL)
        gio_pg_error_wrap("DataError", "invalid array element at index %zd: %U", i, why);
    Py_XDECREF(why);
}

static int
encode_level(Array *a, PyObject *value, int level, GioBuf *out)
{
    if (level < a->n && PySequence_Fast_GET_SIZE(value) != a->sizes[level]) {
        PyErr_SetString(PyExc_ValueError,
                        "non-homogeneous array: lists of one level differ in length");
        return -1;
    }
    /* An encoder may be Python and change the list: its size is looked at anew. */
    for (Py_ssize_t i = 0; i < a->sizes[level]; i++) {
        if (i >= PySequence_Fast_GET_SIZE(value)) {
            PyErr_SetString(PyExc_RuntimeError, "an array changed while it was encoded");
            return -1;
        }
        PyObject *item = Py_NewRef(PySequence_Fast_GET_ITEM(value, i));
        int rc;
        if (level + 1 == a->n && is_level(a->codec->element, item)) {
            PyErr_SetString(PyExc_ValueError, "non-homogeneous array: a list among other values");
            rc = -1;
        }
        else if (level + 1 == a->n) {
            rc = gio_pg_part_encode(a->st, a->codec->element, item, out);
            if (rc < 0)
                explain(i);
        }
        else if (is_level(a->codec->element, item))
            rc = encode_level(a, item, level + 1, out);
        else {
            PyErr_SetString(PyExc_ValueError, "non-homogeneous array: a list is missing");
            rc = -1;
        }
        Py_DECREF(item);
        if (rc < 0)
            return -1;
    }
    return 0;
}

int
gio_pg_array_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    Array a = {.st = st, .codec = codec};
    PyObject *sequence = as_sequence(value);
    int rc = -1;
    if (sequence == NULL)
        return -1;
    if (codec->text) {
        rc = encode_text(codec, sequence, out);
        goto done;
    }
    /* The first item of each level tells how deep it is. */
    PyObject *at = sequence;
    while (PySequence_Fast_GET_SIZE(at) > 0) {
        if (a.n == MAX_DIMENSIONS) {
            PyErr_Format(PyExc_ValueError, "an array has at most %d dimensions", MAX_DIMENSIONS);
            goto done;
        }
        a.sizes[a.n++] = PySequence_Fast_GET_SIZE(at);
        at = PySequence_Fast_GET_ITEM(at, 0);
        if (!is_level(codec->element, at))
            break;
    }
    if (gio_put32(out, (uint32_t)a.n) < 0 || gio_put32(out, 1) < 0 ||
        gio_put32(out, codec->element->oid) < 0)
        goto done;
    for (int i = 0; i < a.n; i++)
        if (gio_put32(out, (uint32_t)a.sizes[i]) < 0 || gio_put32(out, 1) < 0)
            goto done;
    rc = a.n == 0 ? 0 : encode_level(&a, sequence, 0, out);
done:
    Py_DECREF(sequence);
    return rc;
}
