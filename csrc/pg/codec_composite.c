/* Composites, as Records; ranges and multiranges, as greenletio.pg's Range.
 *
 * A range's codec has the class Range as its decoder: it is called with the bounds, and its
 * attributes are read when one is sent.
 */
#include "pg/pg.h"

enum { EMPTY = 1, LOWER_INC = 2, UPPER_INC = 4, LOWER_INF = 8, UPPER_INF = 16 };

/* ---- composites ---------------------------------------------------------------------- */

PyObject *
gio_pg_composite_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    const char *end = data + len;
    Py_ssize_t n = PyTuple_GET_SIZE(codec->fields);
    if (len < 4)
        return gio_pg_malformed(codec);
    if ((Py_ssize_t)gio_get32(data) != n)
        return gio_pg_error_set("OutdatedTypes",
                                "unexpected number of attributes of composite type %U: %u, not %zd",
                                codec->name, gio_get32(data), n);
    GioPgRecord *record = gio_pg_record_new(st, st->gc_record_type, codec->desc, n);
    if (record == NULL)
        return NULL;
    data += 4;
    for (Py_ssize_t i = 0; i < n; i++) {
        GioPgCodec *field = (GioPgCodec *)PyTuple_GET_ITEM(codec->fields, i);
        if (end - data < 4) {
            gio_pg_malformed(codec);
            goto error;
        }
        if (gio_get32(data) != field->oid) {
            gio_pg_error_set("OutdatedTypes",
                             "unexpected data type of composite type %U: its attribute %zd has the "
                             "oid %u, not %U",
                             codec->name, i + 1, gio_get32(data), field->name);
            goto error;
        }
        data += 4;
        record->items[i] = gio_pg_part_decode(st, codec, field, &data, end);
        if (record->items[i] == NULL)
            goto error;
    }
    return (PyObject *)record;

error:
    Py_DECREF(record);
    return NULL;
}

/* A row without a name, of whatever types: a tuple. */
PyObject *
gio_pg_row_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    const char *end = data + len;
    Py_ssize_t n = len < 4 ? -1 : (Py_ssize_t)gio_get32(data);
    if (n < 0 || n > len / 8)
        return gio_pg_malformed(codec);
    PyObject *tuple = gio_pg_hidden(PyTuple_New(n));
    data += 4;
    for (Py_ssize_t i = 0; tuple != NULL && i < n; i++) {
        if (end - data < 4) {
            Py_DECREF(tuple);
            return gio_pg_malformed(codec);
        }
        Oid oid = gio_get32(data);
        PyObject *key = PyLong_FromUnsignedLong(oid);
        GioPgCodec *field =
            key == NULL ? NULL : (GioPgCodec *)PyDict_GetItemWithError(st->builtin, key);
        Py_XDECREF(key);
        PyObject *value = NULL;
        data += 4;
        if (field != NULL)
            value = gio_pg_part_decode(st, codec, field, &data, end);
        else if (!PyErr_Occurred())
            gio_pg_error_set("NotSupportedError",
                             "a row without a name has a column of the type with oid %u: "
                             "only rows of a type can have that",
                             oid);
        if (value == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, value);
    }
    return gio_pg_shown(tuple);
}

int
gio_pg_row_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    gio_pg_error_set("NotSupportedError", "input of anonymous composite types is not supported: "
                                          "cast the parameter to a type with a name");
    return -1;
}

/* 0 if all keys of a mapping are names of fields. */
static int
check_keys(GioPgCodec *codec, PyObject *names, PyObject *mapping)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(mapping, &at, &key, &value)) {
        int known = PyUnicode_CheckExact(key) ? PySequence_Contains(names, key) : 0;
        if (known == 0)
            PyErr_Format(PyExc_ValueError, "%R is not a valid element of composite type %U", key,
                         codec->name);
        if (known <= 0)
            return -1;
    }
    return 0;
}

/* A mapping's values by the fields' names: a new tuple. */
static PyObject *
values_of_mapping(GioPgCodec *codec, PyObject *mapping)
{
    PyObject *names = PyObject_GetAttrString(codec->desc, "names");
    Py_ssize_t n = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    PyObject *values =
        names == NULL || check_keys(codec, names, mapping) < 0 ? NULL : PyTuple_New(n);
    for (Py_ssize_t i = 0; values != NULL && i < n; i++) {
        PyObject *value = PyDict_GetItemWithError(mapping, PyTuple_GET_ITEM(names, i));
        if (value == NULL && PyErr_Occurred())
            Py_CLEAR(values);
        else
            PyTuple_SET_ITEM(values, i, Py_NewRef(value == NULL ? Py_None : value));
    }
    Py_XDECREF(names);
    return values;
}

int
gio_pg_composite_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    Py_ssize_t n = PyTuple_GET_SIZE(codec->fields);
    PyObject *values = NULL;
    int rc = -1;
    if (PyDict_Check(value))
        values = values_of_mapping(codec, value);
    else if (PyTuple_Check(value) || PyList_Check(value) ||
             PyObject_TypeCheck(value, st->record_type))
        values = PySequence_Tuple(value);
    else
        PyErr_Format(PyExc_TypeError, "a tuple or a mapping is required for %U, not %.100s",
                     codec->name, Py_TYPE(value)->tp_name);
    if (values == NULL)
        return -1;
    if (PyTuple_GET_SIZE(values) != n) {
        PyErr_Format(PyExc_ValueError, "%U has %zd attributes, %zd values were given", codec->name,
                     n, PyTuple_GET_SIZE(values));
        goto done;
    }
    if (gio_put32(out, (uint32_t)n) < 0)
        goto done;
    for (Py_ssize_t i = 0; i < n; i++) {
        GioPgCodec *field = (GioPgCodec *)PyTuple_GET_ITEM(codec->fields, i);
        if (gio_put32(out, field->oid) < 0 ||
            gio_pg_part_encode(st, field, PyTuple_GET_ITEM(values, i), out) < 0)
            goto done;
    }
    rc = 0;
done:
    Py_DECREF(values);
    return rc;
}

/* ---- ranges ------------------------------------------------------------------------------ */

PyObject *
gio_pg_range_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    const char *end = data + len;
    if (len < 1 || codec->decoder == NULL)
        return gio_pg_malformed(codec);
    int flags = *data++;
    PyObject *lower = Py_NewRef(Py_None), *upper = Py_NewRef(Py_None), *range = NULL;
    if (!(flags & (EMPTY | LOWER_INF)))
        Py_SETREF(lower, gio_pg_part_decode(st, codec, codec->element, &data, end));
    if (lower != NULL && !(flags & (EMPTY | UPPER_INF)))
        Py_SETREF(upper, gio_pg_part_decode(st, codec, codec->element, &data, end));
    if (lower != NULL && upper != NULL)
        range = PyObject_CallFunction(
            codec->decoder, "OOOOO", lower, upper, flags & LOWER_INC ? Py_True : Py_False,
            flags & UPPER_INC ? Py_True : Py_False, flags & EMPTY ? Py_True : Py_False);
    Py_XDECREF(lower);
    Py_XDECREF(upper);
    return range;
}

static int
truth_of(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name);
    int truth = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return truth;
}

/* Both are in the range; of none it is the empty range, one is the lower. */
static PyObject *
range_of_bounds(GioPgCodec *codec, PyObject *value)
{
    PyObject *bounds = PySequence_Tuple(value), *range = NULL;
    Py_ssize_t n = bounds == NULL ? 0 : PyTuple_GET_SIZE(bounds);
    if (bounds != NULL && n > 2)
        PyErr_Format(PyExc_ValueError, "expected 0, 1 or 2 elements in range (got %zd)", n);
    else if (bounds != NULL && n == 0)
        range = PyObject_CallFunction(codec->decoder, "OOOOO", Py_None, Py_None, Py_False, Py_False,
                                      Py_True);
    else if (bounds != NULL)
        range =
            PyObject_CallFunction(codec->decoder, "OOOO", PyTuple_GET_ITEM(bounds, 0),
                                  n == 2 ? PyTuple_GET_ITEM(bounds, 1) : Py_None, Py_True, Py_True);
    Py_XDECREF(bounds);
    return range;
}

int
gio_pg_range_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    PyObject *range = NULL, *lower = NULL, *upper = NULL;
    int rc = -1;
    if (codec->decoder == NULL) {
        PyErr_SetString(PyExc_TypeError, "this codec has no class of ranges");
        return -1;
    }
    if (PyTuple_Check(value) || PyList_Check(value))
        range = range_of_bounds(codec, value);
    else
        range = Py_NewRef(value);
    if (range == NULL)
        return -1;
    int is_range = PyObject_IsInstance(range, codec->decoder);
    if (is_range == 0)
        PyErr_Format(PyExc_TypeError, "list, tuple or Range object expected (got type %.100s)",
                     Py_TYPE(value)->tp_name);
    if (is_range <= 0)
        goto done;
    int empty = truth_of(range, "isempty");
    int lower_inc = truth_of(range, "lower_inc"), upper_inc = truth_of(range, "upper_inc");
    lower = PyObject_GetAttrString(range, "lower");
    upper = PyObject_GetAttrString(range, "upper");
    if (empty < 0 || lower_inc < 0 || upper_inc < 0 || lower == NULL || upper == NULL)
        goto done;
    char flags = (char)((lower_inc ? LOWER_INC : 0) | (upper_inc ? UPPER_INC : 0) |
                        (lower == Py_None ? LOWER_INF : 0) | (upper == Py_None ? UPPER_INF : 0));
    if (empty)
        flags = EMPTY;
    if (gio_put(out, &flags, 1) < 0)
        goto done;
    if (!empty && lower != Py_None && gio_pg_part_encode(st, codec->element, lower, out) < 0)
        goto done;
    if (!empty && upper != Py_None && gio_pg_part_encode(st, codec->element, upper, out) < 0)
        goto done;
    rc = 0;
done:
    Py_XDECREF(lower);
    Py_XDECREF(upper);
    Py_DECREF(range);
    return rc;
}

/* ---- multiranges: the element is the range's codec ------------------------------------------ */

PyObject *
gio_pg_multirange_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    const char *end = data + len;
    Py_ssize_t n = len < 4 ? -1 : (Py_ssize_t)gio_get32(data);
    if (n < 0 || n > len / 4)
        return gio_pg_malformed(codec);
    data += 4;
    PyObject *list = gio_pg_hidden(PyList_New(n));
    for (Py_ssize_t i = 0; list != NULL && i < n; i++) {
        PyObject *range = gio_pg_part_decode(st, codec, codec->element, &data, end);
        if (range == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, range);
    }
    return gio_pg_shown(list);
}

int
gio_pg_multirange_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    if (!PyList_Check(value) && !PyTuple_Check(value)) {
        PyErr_Format(PyExc_TypeError, "expected a sequence of ranges (got type %.100s)",
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    PyObject *ranges = PySequence_Tuple(value);
    int rc = ranges == NULL ? -1 : gio_put32(out, (uint32_t)PyTuple_GET_SIZE(ranges));
    for (Py_ssize_t i = 0; rc == 0 && i < PyTuple_GET_SIZE(ranges); i++)
        rc = gio_pg_part_encode(st, codec->element, PyTuple_GET_ITEM(ranges, i), out);
    Py_XDECREF(ranges);
    return rc;
}
