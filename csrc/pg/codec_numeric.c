/* numeric: the server's digits in base 10000, and decimal.Decimal.
 *
 * Goes through the text form, which Decimal reads quickly. Nothing is rounded: the scale that the
 * server sends is the one that the Decimal has, and the other way round.
 */
#include "pg/pg.h"

enum {
    POSITIVE = 0x0000,
    NEGATIVE = 0x4000,
    NOT_A_NUMBER = 0xC000,
    PLUS_INF = 0xD000,
    MINUS_INF = 0xF000
};

#define BASE 10000
#define GROUP 4          /* decimal digits in one of the server's */
#define MAX_SCALE 16383  /* digits after the point */
#define MAX_GROUPS 32768 /* before the point */

static char *
put_group(char *p, unsigned group)
{
    p[0] = (char)('0' + group / 1000);
    p[1] = (char)('0' + group / 100 % 10);
    p[2] = (char)('0' + group / 10 % 10);
    p[3] = (char)('0' + group % 10);
    return p + GROUP;
}

Py_ssize_t
gio_pg_numeric_text(const char *data, Py_ssize_t len, char **text)
{
    if (len < 8)
        return -1;
    int n = gio_get16(data), weight = (int16_t)gio_get16(data + 2);
    unsigned sign = gio_get16(data + 4);
    int scale = gio_get16(data + 6);
    const char *digits = data + 8, *special = NULL;
    switch (sign) {
    case NOT_A_NUMBER:
        special = "NaN";
        break;
    case PLUS_INF:
        special = "Infinity";
        break;
    case MINUS_INF:
        special = "-Infinity";
        break;
    case POSITIVE:
    case NEGATIVE:
        break;
    default:
        return -1;
    }
    if (special != NULL) {
        strcpy(*text, special);
        return (Py_ssize_t)strlen(special);
    }
    if (len != 8 + 2 * (Py_ssize_t)n || scale > MAX_SCALE)
        return -1;

    char *small = *text;
    size_t size = (size_t)(weight > 0 ? weight : 0) * GROUP + (size_t)scale + 4 * GROUP;
    if (size > GIO_PG_NUMERIC_SMALL && (*text = PyMem_Malloc(size)) == NULL) {
        *text = small;
        PyErr_NoMemory();
        return -2;
    }
    char *p = *text;
    if (sign == NEGATIVE)
        *p++ = '-';
    if (weight < 0)
        *p++ = '0';
    for (int i = 0; i <= weight; i++) {
        unsigned group = i < n ? gio_get16(digits + 2 * i) : 0;
        if (group >= BASE)
            return -1;
        p = put_group(p, group);
    }
    if (scale > 0) {
        *p++ = '.';
        char *end = p + scale;
        for (int i = weight + 1; p < end; i++) {
            unsigned group = i >= 0 && i < n ? gio_get16(digits + 2 * i) : 0;
            if (group >= BASE)
                return -1;
            p = put_group(p, group);
        }
        p = end;
    }
    return p - *text;
}

static PyObject *
numeric_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    char small[GIO_PG_NUMERIC_SMALL], *text = small;
    Py_ssize_t n = gio_pg_numeric_text(data, len, &text);
    PyObject *number = NULL;
    if (n == -1)
        gio_pg_malformed(codec);
    else if (n > 0 && text[n - 1] == 'N') /* those are made once */
        number = Py_NewRef(st->decimal_nan);
    else if (n > 0 && text[n - 1] == 'y')
        number = Py_NewRef(text[0] == '-' ? st->decimal_ninf : st->decimal_inf);
    else if (n > 0) {
        PyObject *string = PyUnicode_DecodeASCII(text, n, NULL);
        number = string == NULL ? NULL : PyObject_CallOneArg(st->decimal, string);
        Py_XDECREF(string);
    }
    if (text != small)
        PyMem_Free(text);
    return number;
}

static int
put_special(GioBuf *out, unsigned sign)
{
    char *p = gio_buf_add(out, 8);
    if (p == NULL)
        return -1;
    memset(p, 0, 8);
    gio_set16(p + 4, (uint16_t)sign);
    return 0;
}

/* Append what a plain decimal ("-12.340") says. */
static int
put_digits(const char *text, Py_ssize_t len, GioBuf *out)
{
    const char *end = text + len;
    bool negative = *text == '-';
    if (negative)
        text++;
    const char *point = memchr(text, '.', (size_t)(end - text));
    Py_ssize_t whole = (point != NULL ? point : end) - text;
    Py_ssize_t scale = point != NULL ? end - point - 1 : 0;
    Py_ssize_t before = (whole + GROUP - 1) / GROUP, after = (scale + GROUP - 1) / GROUP;
    if (scale > MAX_SCALE || before > MAX_GROUPS) {
        PyErr_SetString(PyExc_OverflowError, "value overflows numeric format");
        return -1;
    }
    Py_ssize_t start = out->len;
    if (gio_buf_add(out, 8 + 2 * (before + after)) == NULL)
        return -1;
    char *head = out->data + start, *digits = head + 8;
    Py_ssize_t n = 0, weight = before - 1;
    for (Py_ssize_t g = 0; g < before + after; g++) {
        unsigned group = 0;
        for (Py_ssize_t k = 0; k < GROUP; k++) {
            Py_ssize_t at =
                g < before ? whole - (before - g) * GROUP + k : (g - before) * GROUP + k;
            char c = '0';
            if (g < before)
                c = at >= 0 ? text[at] : '0';
            else if (at < scale)
                c = point[1 + at];
            group = group * 10 + (unsigned)(c - '0');
        }
        if (n == 0 && group == 0) { /* leading zeros are not sent */
            weight--;
            continue;
        }
        gio_set16(digits + 2 * n++, (uint16_t)group);
    }
    while (n > 0 && gio_get16(digits + 2 * (n - 1)) == 0)
        n--;
    gio_set16(head, (uint16_t)n);
    gio_set16(head + 2, (uint16_t)(n == 0 ? 0 : weight));
    gio_set16(head + 4, negative && n > 0 ? NEGATIVE : POSITIVE);
    gio_set16(head + 6, (uint16_t)scale);
    out->len = start + 8 + 2 * n;
    return 0;
}

/* Whether writing it out would take more digits than the server has: 1, 0, -1 with an exception. */
static int
is_too_large(GioPgState *st, PyObject *decimal)
{
    PyObject *adjusted = PyObject_CallMethodNoArgs(decimal, st->str_adjusted);
    long exponent = adjusted == NULL ? 0 : PyLong_AsLong(adjusted);
    Py_XDECREF(adjusted);
    if (PyErr_Occurred())
        return -1;
    return exponent > (long)MAX_GROUPS * GROUP || exponent < -2L * MAX_SCALE;
}

static int
numeric_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    /* A subclass may write its numbers otherwise. */
    PyObject *decimal = Py_IS_TYPE(value, (PyTypeObject *)st->decimal)
                            ? Py_NewRef(value)
                            : PyObject_CallOneArg(st->decimal, value);
    PyObject *spec = NULL, *text = NULL;
    int rc = -1;
    if (decimal == NULL)
        return -1;
    int too_large = is_too_large(st, decimal);
    if (too_large < 0)
        goto done;
    if (too_large) {
        PyErr_SetString(PyExc_OverflowError, "value overflows numeric format");
        goto done;
    }
    spec = PyUnicode_FromString("f");
    text = spec == NULL ? NULL : PyObject_Format(decimal, spec);
    Py_ssize_t len = 0;
    const char *utf8 = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, &len);
    if (utf8 == NULL)
        goto done;
    if (strchr(utf8, 'N') != NULL)
        rc = put_special(out, NOT_A_NUMBER);
    else if (strchr(utf8, 'I') != NULL)
        rc = put_special(out, *utf8 == '-' ? MINUS_INF : PLUS_INF);
    else
        rc = put_digits(utf8, len, out);
done:
    Py_XDECREF(spec);
    Py_XDECREF(text);
    Py_DECREF(decimal);
    return rc;
}

int
gio_pg_numeric_add(GioPgState *st)
{
    return gio_pg_codec_add(st, 1700, 1231, "numeric", numeric_decode, numeric_encode, true);
}
