/* Values of Arrow columns in the server's binary form.
 *
 * For each column an encoder is chosen by what it has and by what the table's column takes. Where
 * there is none for the two, the value goes through a Python object and the column's codec.
 */
#include "pg/encoder.h"

#include <float.h>
#include <math.h>

#define DAYS 10957 /* from 1970 to 2000 */
#define MICROSECONDS 946684800000000LL
#define DAY_US 86400000000LL

void
gio_pg_encoder_free(GioPgEncoder *e)
{
    for (int i = 0; i < e->nchildren; i++)
        gio_pg_encoder_free(&e->children[i]);
    PyMem_Free(e->children);
    if (e->dictionary != NULL)
        gio_pg_encoder_free(e->dictionary);
    PyMem_Free(e->dictionary);
    Py_CLEAR(e->codec);
}

/* ---- reading ------------------------------------------------------------------------------------
 */

static inline bool
is_null(const GioPgEncoder *e, const struct ArrowArray *array, int64_t i)
{
    const void *valid = array->n_buffers > 0 ? array->buffers[0] : NULL;
    if (e->schema->format[0] == 'n')
        return true;
    i += array->offset;
    return array->null_count != 0 && valid != NULL && !gio_pg_bit_at(valid, i);
}

static int64_t
integer_at(const GioPgEncoder *e, const struct ArrowArray *array, int64_t i)
{
    const void *data = array->buffers[1];
    i += array->offset;
    switch (e->schema->format[0]) {
    case 'c':
        return ((const int8_t *)data)[i];
    case 'C':
        return ((const uint8_t *)data)[i];
    case 's':
        return ((const int16_t *)data)[i];
    case 'S':
        return ((const uint16_t *)data)[i];
    case 'I':
        return ((const uint32_t *)data)[i];
    case 'l':
    case 'L': /* the caller looks at the sign */
        return ((const int64_t *)data)[i];
    default: /* 'i', and times */
        return e->width == 4 ? ((const int32_t *)data)[i] : ((const int64_t *)data)[i];
    }
}

static bool
is_beyond(const GioPgEncoder *e, int64_t value) /* an uint64_t that is no int64_t */
{
    return e->schema->format[0] == 'L' && value < 0;
}

static double
float_at(const GioPgEncoder *e, const struct ArrowArray *array, int64_t i)
{
    i += array->offset;
    if (e->kind == GIO_PG_INTEGER) {
        int64_t value = integer_at(e, array, i - array->offset);
        return is_beyond(e, value) ? (double)(uint64_t)value : (double)value;
    }
    return e->width == 4 ? (double)((const float *)array->buffers[1])[i]
                         : ((const double *)array->buffers[1])[i];
}

static bool
bool_at(const struct ArrowArray *array, int64_t i)
{
    return gio_pg_bit_at(array->buffers[1], array->offset + i);
}

/* Where a value of variable length begins and ends; `at` is with the array's offset. */
static void
read_span(const struct ArrowArray *array, int64_t at, bool wide, int64_t *start, int64_t *end)
{
    const int32_t *narrow = array->buffers[1];
    const int64_t *ends = array->buffers[1];
    *start = wide ? ends[at] : narrow[at];
    *end = wide ? ends[at + 1] : narrow[at + 1];
}

static const char *
bytes_at(const GioPgEncoder *e, const struct ArrowArray *array, int64_t i, int64_t *len)
{
    const char *format = e->schema->format;
    i += array->offset;
    if (format[0] == 'v') {
        const char *view = (const char *)array->buffers[1] + 16 * i;
        int32_t parts[4]; /* length, its first bytes, buffer, offset */
        memcpy(parts, view, sizeof parts);
        *len = parts[0];
        return parts[0] <= 12 ? view + 4 : (const char *)array->buffers[2 + parts[2]] + parts[3];
    }
    if (e->width > 0) {
        *len = e->width;
        return (const char *)array->buffers[1] + e->width * i;
    }
    int64_t start, end;
    read_span(array, i, format[0] == 'U' || format[0] == 'Z', &start, &end);
    *len = end - start;
    return end == start ? "" : (const char *)array->buffers[2] + start;
}

/* ---- writing
 * -------------------------------------------------------------------------------------- */

static int
too_large(const GioPgEncoder *e)
{
    gio_pg_error_set("DataError", "a value is out of the range of type %U", e->codec->name);
    return -1;
}

static int
put_bool(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    return gio_put(out, bool_at(array, i) ? "\1" : "\0", 1);
}

static int
put_int2(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t v = integer_at(e, array, i);
    return is_beyond(e, v) || v != (int16_t)v ? too_large(e) : gio_put16(out, (uint16_t)v);
}

static int
put_int4(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t v = integer_at(e, array, i);
    return is_beyond(e, v) || v != (int32_t)v ? too_large(e) : gio_put32(out, (uint32_t)v);
}

static int
put_int8(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t v = integer_at(e, array, i);
    return is_beyond(e, v) ? too_large(e) : gio_put64(out, (uint64_t)v);
}

static int
put_oid(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t v = integer_at(e, array, i);
    return is_beyond(e, v) || v != (uint32_t)v ? too_large(e) : gio_put32(out, (uint32_t)v);
}

static int
put_float4(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    double wide = float_at(e, array, i);
    if (isfinite(wide) && fabs(wide) > FLT_MAX)
        return too_large(e);
    float v = (float)wide;
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return gio_put32(out, bits);
}

static int
put_float8(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    double v = float_at(e, array, i);
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return gio_put64(out, bits);
}

static int
put_bytes(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t len;
    const char *data = bytes_at(e, array, i, &len);
    return gio_put(out, data, len);
}

static int
put_jsonb(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    return gio_put(out, "\1", 1) < 0 ? -1 : put_bytes(e, array, i, out);
}

/* Microseconds of a time of any unit; what is less than one is dropped, downwards. */
static bool
as_microseconds(const GioPgEncoder *e, int64_t value, int64_t *us)
{
    if (e->unit <= 1000000)
        return !__builtin_mul_overflow(value, 1000000 / e->unit, us);
    *us = value / 1000 - (value % 1000 < 0);
    return true;
}

static bool
stamp_at(const GioPgEncoder *e, const struct ArrowArray *array, int64_t i, int64_t *us)
{
    int64_t value = integer_at(e, array, i);
    if (e->kind == GIO_PG_DATE && e->width == 4)
        return !__builtin_mul_overflow(value, DAY_US, us);
    return as_microseconds(e, value, us);
}

static int
put_timestamp(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t us;
    if (!stamp_at(e, array, i, &us) || __builtin_sub_overflow(us, MICROSECONDS, &us))
        return too_large(e);
    return gio_put64(out, (uint64_t)us);
}

static int
put_date(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t us, days = 0;
    if (e->kind == GIO_PG_DATE && e->width == 4) {
        days = integer_at(e, array, i);
    }
    else {
        if (!stamp_at(e, array, i, &us))
            return too_large(e);
        days = us / DAY_US - (us % DAY_US < 0);
    }
    days -= DAYS;
    return days != (int32_t)days ? too_large(e) : gio_put32(out, (uint32_t)days);
}

static int
put_time(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t us;
    if (!as_microseconds(e, integer_at(e, array, i), &us))
        return too_large(e);
    return gio_put64(out, (uint64_t)us);
}

static int
put_interval(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int64_t us = 0;
    int32_t days = 0, months = 0;
    const char *format = e->schema->format;
    if (format[1] == 'D') { /* a duration */
        if (!as_microseconds(e, integer_at(e, array, i), &us))
            return too_large(e);
    }
    else {
        const char *data = (const char *)array->buffers[1] + e->width * (array->offset + i);
        int32_t ms;
        int64_t ns;
        switch (format[2]) {
        case 'M':
            memcpy(&months, data, 4);
            break;
        case 'D':
            memcpy(&days, data, 4);
            memcpy(&ms, data + 4, 4);
            us = (int64_t)ms * 1000;
            break;
        default:
            memcpy(&months, data, 4);
            memcpy(&days, data + 4, 4);
            memcpy(&ns, data + 8, 8);
            us = ns / 1000 - (ns % 1000 < 0);
        }
    }
    return gio_put64(out, (uint64_t)us) < 0 || gio_put32(out, (uint32_t)days) < 0
               ? -1
               : gio_put32(out, (uint32_t)months);
}

/* The digits of a 128-bit integer, and where the point is. */
static PyObject *
decimal_at(const GioPgEncoder *e, const struct ArrowArray *array, int64_t i)
{
    __int128 value;
    char text[64], *p = text + sizeof text; /* 39 digits at most, a point, a sign */
    memcpy(&value, (const char *)array->buffers[1] + 16 * (array->offset + i), sizeof value);
    bool negative = value < 0;
    unsigned __int128 rest = negative ? -(unsigned __int128)value : (unsigned __int128)value;
    int scale = e->scale;
    for (int place = 0; rest > 0 || place <= scale || place == 0; place++) {
        if (place == scale && scale > 0)
            *--p = '.';
        *--p = (char)('0' + (int)(rest % 10));
        rest /= 10;
    }
    if (negative)
        *--p = '-';
    return PyObject_CallFunction(e->st->decimal, "s#", p, (Py_ssize_t)(text + sizeof text - p));
}

/* Through an object, for the codec to encode. */
static int
put_object(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    PyObject *value = NULL;
    int64_t v, len;
    const char *data;
    switch (e->kind) {
    case GIO_PG_INTEGER:
        v = integer_at(e, array, i);
        value = is_beyond(e, v) ? PyLong_FromUnsignedLongLong((uint64_t)v) : PyLong_FromLongLong(v);
        break;
    case GIO_PG_FLOATING:
        value = PyFloat_FromDouble(float_at(e, array, i));
        if (value != NULL && e->codec->oid == 1700) /* with the digits that are shown */
            Py_SETREF(value, PyObject_Repr(value));
        if (value != NULL && e->codec->oid == 1700)
            Py_SETREF(value, PyObject_CallOneArg(e->st->decimal, value));
        break;
    case GIO_PG_BOOLEAN:
        value = PyBool_FromLong(bool_at(array, i));
        break;
    case GIO_PG_DECIMAL:
        value = decimal_at(e, array, i);
        break;
    default:
        data = bytes_at(e, array, i, &len);
        value = strchr("uU", e->schema->format[e->schema->format[0] == 'v']) != NULL
                    ? PyUnicode_DecodeUTF8(data, len, NULL)
                    : PyBytes_FromStringAndSize(data, len);
    }
    int rc = value == NULL ? -1 : e->codec->encode(e->st, e->codec, value, out);
    Py_XDECREF(value);
    return rc;
}

/* ---- values made of others, each with its length before it
 * ---------------------------------------- */

int
gio_pg_encoder_put(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    if (is_null(e, array, i))
        return gio_put32(out, UINT32_MAX);
    if (e->dictionary != NULL) { /* what it is the index of may be NULL, too */
        int64_t index = integer_at(e, array, i);
        if (index >= 0 && index < array->dictionary->length)
            return gio_pg_encoder_put(e->dictionary, array->dictionary, index, out);
        gio_pg_error_set("DataError", "an index is beyond its dictionary");
        return -1;
    }
    Py_ssize_t at = out->len;
    if (gio_buf_add(out, 4) == NULL || e->put(e, array, i, out) < 0)
        return -1;
    Py_ssize_t len = out->len - at - 4;
    if (len > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a value is longer than 2 GB");
        return -1;
    }
    gio_set32(out->data + at, (uint32_t)len);
    return 0;
}

static int
put_list(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    const struct ArrowArray *items = array->children[0];
    const char *format = e->schema->format;
    int64_t at = array->offset + i, start, end;
    if (format[1] == 'w') {
        start = at * e->width;
        end = start + e->width;
    }
    else {
        read_span(array, at, format[1] == 'L', &start, &end);
    }
    if (end - start > INT32_MAX)
        return too_large(e);
    if (gio_put32(out, end > start) < 0 || gio_put32(out, 1) < 0 || /* dimensions; NULLs, perhaps */
        gio_put32(out, e->codec->element->oid) < 0)
        return -1;
    if (end == start)
        return 0;
    if (gio_put32(out, (uint32_t)(end - start)) < 0 || gio_put32(out, 1) < 0)
        return -1;
    int rc = 0;
    for (int64_t j = start; rc == 0 && j < end; j++)
        rc = gio_pg_encoder_put(e->children, items, j, out);
    return rc;
}

static int
put_struct(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out)
{
    int rc = gio_put32(out, (uint32_t)e->nchildren);
    for (int j = 0; rc == 0 && j < e->nchildren; j++) {
        rc = gio_put32(out, e->children[j].oid);
        if (rc == 0)
            rc = gio_pg_encoder_put(&e->children[j], array->children[j], array->offset + i, out);
    }
    return rc;
}

/* ---- choosing
 * ----------------------------------------------------------------------------------------- */

static int
refuse(const struct ArrowSchema *schema, GioPgCodec *codec)
{
    gio_pg_error_set("NotSupportedError", "column %s: Arrow's \"%s\" cannot be sent as type %U",
                     schema->name == NULL ? "" : schema->name, schema->format, codec->name);
    return -1;
}

static int64_t
unit_of(char letter)
{
    return letter == 's' ? 1 : letter == 'm' ? 1000 : letter == 'u' ? 1000000 : 1000000000;
}

/* What the format says: false if it is none of those that are read here. */
static bool
read_format(GioPgEncoder *e)
{
    const char *f = e->schema->format;
    e->kind = GIO_PG_OTHER;
    if (f[0] != '\0' && f[1] == '\0' && strchr("cCsSiIlL", f[0]) != NULL) {
        e->kind = GIO_PG_INTEGER;
        e->width = f[0] == 'i' ? 4 : 8; /* of the others the format says it */
    }
    else if (strcmp(f, "f") == 0 || strcmp(f, "g") == 0) {
        e->kind = GIO_PG_FLOATING;
        e->width = f[0] == 'f' ? 4 : 8;
    }
    else if (strcmp(f, "b") == 0) {
        e->kind = GIO_PG_BOOLEAN;
    }
    else if (strcmp(f, "u") == 0 || strcmp(f, "U") == 0 || strcmp(f, "z") == 0 ||
             strcmp(f, "Z") == 0 || strcmp(f, "vu") == 0 || strcmp(f, "vz") == 0) {
        e->kind = GIO_PG_BYTES;
    }
    else if (strncmp(f, "w:", 2) == 0) {
        e->kind = GIO_PG_BYTES;
        e->width = atoi(f + 2);
        return e->width > 0;
    }
    else if (strncmp(f, "d:", 2) == 0) {
        int precision, bits = 128;
        e->kind = GIO_PG_DECIMAL;
        return sscanf(f, "d:%d,%d,%d", &precision, &e->scale, &bits) >= 2 && bits == 128 &&
               e->scale >= 0 && e->scale <= 38;
    }
    else if (strcmp(f, "tdD") == 0 || strcmp(f, "tdm") == 0) {
        e->kind = GIO_PG_DATE;
        e->width = f[2] == 'D' ? 4 : 8;
        e->unit = 1000;
    }
    else if (strncmp(f, "tt", 2) == 0 || strncmp(f, "ts", 2) == 0 || strncmp(f, "tD", 2) == 0) {
        e->kind = f[1] == 't' ? GIO_PG_TIME : f[1] == 's' ? GIO_PG_STAMP : GIO_PG_SPAN;
        e->unit = unit_of(f[2]);
        e->width = e->kind == GIO_PG_TIME && e->unit <= 1000 ? 4 : 8;
    }
    else if (strncmp(f, "ti", 2) == 0) {
        e->kind = GIO_PG_SPAN;
        e->width = f[2] == 'M' ? 4 : f[2] == 'D' ? 8 : 16;
    }
    else if (strncmp(f, "+w:", 3) == 0) {
        e->width = atoi(f + 3);
        return e->width >= 0;
    }
    return true;
}

static bool
is_text(const GioPgCodec *codec)
{
    static const Oid oids[] = {18, 19, 25, 114, 142, 705, 1042, 1043, 2275};
    for (size_t i = 0; i < sizeof oids / sizeof *oids; i++)
        if (codec->oid == oids[i])
            return true;
    return codec->form != NULL && strcmp(codec->form, "text") == 0; /* an enum */
}

static GioPgPut
choose(const GioPgEncoder *e)
{
    bool number = e->kind == GIO_PG_INTEGER || e->kind == GIO_PG_FLOATING;
    char f = e->schema->format[e->schema->format[0] == 'v'];
    bool text = e->kind == GIO_PG_BYTES && (f == 'u' || f == 'U');
    switch (e->codec->oid) {
    case 16:
        return e->kind == GIO_PG_BOOLEAN ? put_bool : NULL;
    case 17:
        return e->kind == GIO_PG_BYTES ? put_bytes : NULL;
    case 20:
        return e->kind == GIO_PG_INTEGER ? put_int8 : NULL;
    case 21:
        return e->kind == GIO_PG_INTEGER ? put_int2 : NULL;
    case 23:
        return e->kind == GIO_PG_INTEGER ? put_int4 : NULL;
    case 26:
        return e->kind == GIO_PG_INTEGER ? put_oid : NULL;
    case 700:
        return number ? put_float4 : NULL;
    case 701:
        return number ? put_float8 : NULL;
    case 1082:
        return e->kind == GIO_PG_DATE || e->kind == GIO_PG_STAMP ? put_date : NULL;
    case 1083:
        return e->kind == GIO_PG_TIME ? put_time : NULL;
    case 1114:
    case 1184:
        return e->kind == GIO_PG_DATE || e->kind == GIO_PG_STAMP ? put_timestamp : NULL;
    case 1186:
        return e->kind == GIO_PG_SPAN ? put_interval : NULL;
    case 2950:
        return e->kind == GIO_PG_BYTES && e->width == 16 ? put_bytes : NULL;
    case 3802:
        return text ? put_jsonb : NULL;
    default:
        return text && is_text(e->codec) ? put_bytes : NULL;
    }
}

/* The value of a key of the metadata: pairs of strings, each with its length before it. */
static const char *
find_metadata(const struct ArrowSchema *schema, const char *key, int32_t *len)
{
    const char *p = schema->metadata;
    int32_t pairs = 0, n;
    if (p != NULL) {
        memcpy(&pairs, p, sizeof pairs);
        p += sizeof pairs;
    }
    for (; pairs > 0; pairs--) {
        memcpy(&n, p, sizeof n);
        p += sizeof n;
        bool found = n == (int32_t)strlen(key) && memcmp(p, key, (size_t)n) == 0;
        p += n;
        memcpy(len, p, sizeof *len);
        p += sizeof *len;
        if (found)
            return p;
        p += *len;
    }
    return NULL;
}

/* Its bytes are those of a value of that very type, as ArrowBatch hands them out. */
static bool
is_opaque(const struct ArrowSchema *schema, GioPgCodec *codec)
{
    int32_t len;
    const char *name = find_metadata(schema, "ARROW:extension:name", &len);
    const char *type = PyUnicode_AsUTF8(codec->name), *value;
    char quoted[256];
    if (type == NULL)
        PyErr_Clear();
    if (type == NULL || name == NULL || len != 12 || memcmp(name, "arrow.opaque", 12) != 0 ||
        (value = find_metadata(schema, "ARROW:extension:metadata", &len)) == NULL)
        return false;
    int n = PyOS_snprintf(quoted, sizeof quoted, "\"%s\"", type);
    return n < (int)sizeof quoted && memmem(value, (size_t)len, quoted, (size_t)n) != NULL;
}

static int
add_children(GioPgEncoder *e, const struct ArrowSchema *schema, int n)
{
    e->children = PyMem_Calloc((size_t)n + 1, sizeof *e->children);
    if (e->children == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int rc = 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        GioPgCodec *codec = e->codec->element;
        if (e->codec->fields != NULL)
            codec = (GioPgCodec *)PyTuple_GET_ITEM(e->codec->fields, i);
        e->nchildren++;
        rc = gio_pg_encoder_init(&e->children[i], e->st, schema->children[i], codec);
    }
    return rc;
}

static int
init_dictionary(GioPgEncoder *e, const struct ArrowSchema *schema)
{
    e->dictionary = PyMem_Calloc(1, sizeof *e->dictionary);
    if (e->dictionary == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return gio_pg_encoder_init(e->dictionary, e->st, schema->dictionary, e->codec);
}

int
gio_pg_encoder_init(GioPgEncoder *e, GioPgState *st, const struct ArrowSchema *schema,
                    GioPgCodec *codec)
{
    e->schema = schema;
    e->st = st;
    e->oid = codec->oid;
    bool same = is_opaque(schema, codec);
    codec = gio_pg_codec_plain(st, codec);
    if (codec == NULL)
        return -1;
    e->codec = (GioPgCodec *)Py_NewRef((PyObject *)codec);
    const char *f = schema->format;
    bool list = strcmp(f, "+l") == 0 || strcmp(f, "+L") == 0 || strncmp(f, "+w:", 3) == 0;
    list = list && schema->n_children == 1;
    int rc;
    if (strcmp(f, "n") == 0)
        return 0; /* nothing but NULL */
    if (!read_format(e))
        return refuse(schema, codec);
    if (Py_EnterRecursiveCall(" in the type of a column"))
        return -1;
    if (schema->dictionary != NULL) {
        rc = e->kind == GIO_PG_INTEGER ? init_dictionary(e, schema) : refuse(schema, codec);
    }
    else if (list && codec->encode == gio_pg_array_encode && codec->element != NULL) {
        e->put = put_list;
        rc = add_children(e, schema, 1);
    }
    else if (strcmp(f, "+s") == 0 && codec->fields != NULL &&
             schema->n_children == PyTuple_GET_SIZE(codec->fields)) {
        e->put = put_struct;
        rc = add_children(e, schema, (int)schema->n_children);
    }
    else {
        e->put = same && e->kind == GIO_PG_BYTES ? put_bytes : choose(e);
        bool plain = e->kind <= GIO_PG_DECIMAL && codec->encode != NULL && !codec->text;
        if (e->put == NULL && plain)
            e->put = put_object;
        rc = e->put == NULL ? refuse(schema, codec) : 0;
    }
    Py_LeaveRecursiveCall();
    return rc;
}
