/* Filling columns from binary results: no Python object is made.
 *
 * A type has an Arrow form if it has one without loss; else its binary form is handed on as it is,
 * under its name. What Arrow's form cannot say (infinity of a timestamp, NaN of a decimal) is an
 * error that names the column.
 */
#include "pg/columns.h"

#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define HUGE_FROM (2 * HUGE_PAGE) /* expected bytes: of the last page a part may be lost */
#define MOST ((size_t)1 << 30)    /* that is expected of a column */

#define DAYS 10957 /* from 1970 to 2000 */
#define DAY_US 86400000000LL
#define MICROSECONDS 946684800000000LL /* the same */

/* ---- memory ----------------------------------------------------------------------------- */

/* Room for `n` more bytes, which count at once; NULL with MemoryError. */
static inline char *
add(GioPgBytes *b, size_t n)
{
    if (n > b->size - b->len || b->data == NULL) {
        size_t size = b->size ? b->size : 1024;
        while (size - b->len < n)
            size *= 2;
        char *data = realloc(b->data, size);
        if (data == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        b->data = data;
        b->size = size;
    }
    char *at = b->data + b->len;
    b->len += n;
    return at;
}

/* Room for `size` bytes in all, if there is as much. What is large is in large pages: the kernel
 * gives those with far less work. */
static void
expect(GioPgBytes *b, size_t size)
{
    size = size < MOST ? size : MOST;
    if (size <= b->size || b->len == 0)
        return;
    size_t paged = size / HUGE_PAGE * HUGE_PAGE;
    void *data = NULL;
    if (paged < HUGE_FROM) {
        data = realloc(b->data, size);
    }
    else if (posix_memalign(&data, HUGE_PAGE, size) == 0) {
        madvise(data, paged, MADV_HUGEPAGE); /* a kernel without it does what it can */
        memcpy(data, b->data, b->len);
        free(b->data);
    }
    if (data != NULL) {
        b->data = data;
        b->size = size;
    }
}

static inline int
add_bit(GioPgBytes *b, int64_t at, bool on)
{
    if (at % 8 == 0) {
        char *p = add(b, 1);
        if (p == NULL)
            return -1;
        *p = 0;
    }
    if (on)
        b->data[at / 8] = (char)(b->data[at / 8] | 1 << at % 8);
    return 0;
}

static char *
copy_of(const char *text)
{
    char *copy = strdup(text);
    if (copy == NULL)
        PyErr_NoMemory();
    return copy;
}

/* ---- values ------------------------------------------------------------------------------ */

static int
fail(GioPgColumn *col, const char *what)
{
    gio_pg_error_set("DataError", "column %s: %s", col->name, what);
    return -1;
}

static int
malformed(GioPgColumn *col)
{
    gio_pg_error_set("InternalError", "the server sent a malformed value of type %s", col->type);
    return -1;
}

static int
append_bool(GioPgColumn *col, const char *data, int len)
{
    return len != 1 ? malformed(col) : add_bit(&col->data, col->rows, *data != 0);
}

#define APPEND_NUMBER(bits)                                                                        \
    static int append_##bits(GioPgColumn *col, const char *data, int len)                          \
    {                                                                                              \
        if (len != bits / 8)                                                                       \
            return malformed(col);                                                                 \
        char *p = add(&col->data, bits / 8);                                                       \
        if (p == NULL)                                                                             \
            return -1;                                                                             \
        uint##bits##_t v = gio_get##bits(data);                                                    \
        memcpy(p, &v, sizeof v);                                                                   \
        return 0;                                                                                  \
    }
APPEND_NUMBER(16)
APPEND_NUMBER(32)
APPEND_NUMBER(64)

static int
append_uuid(GioPgColumn *col, const char *data, int len)
{
    char *p = len != 16 ? NULL : add(&col->data, 16);
    if (p == NULL)
        return len != 16 ? malformed(col) : -1;
    memcpy(p, data, 16);
    return 0;
}

static int
append_date(GioPgColumn *col, const char *data, int len)
{
    if (len != 4)
        return malformed(col);
    int32_t v = (int32_t)gio_get32(data);
    if (v == INT32_MAX || v == INT32_MIN)
        return fail(col, "an infinite date has no Arrow form: select it as text, or nullif() it");
    if (v > INT32_MAX - DAYS)
        return malformed(col);
    char *p = add(&col->data, 4);
    if (p == NULL)
        return -1;
    v += DAYS;
    memcpy(p, &v, 4);
    return 0;
}

static int
append_time(GioPgColumn *col, const char *data, int len)
{
    if (len == 8 && (int64_t)gio_get64(data) >= DAY_US)
        return fail(col, "24:00:00 has no Arrow form: select it as text");
    return append_64(col, data, len);
}

static int
append_timestamp(GioPgColumn *col, const char *data, int len)
{
    if (len != 8)
        return malformed(col);
    int64_t v = (int64_t)gio_get64(data);
    if (v == INT64_MAX || v == INT64_MIN)
        return fail(col, "an infinite timestamp has no Arrow form: select it as text, or "
                         "nullif() it");
    if (v > INT64_MAX - MICROSECONDS)
        return fail(col, "a timestamp is too late for Arrow: select it as text");
    char *p = add(&col->data, 8);
    if (p == NULL)
        return -1;
    v += MICROSECONDS;
    memcpy(p, &v, 8);
    return 0;
}

/* microseconds, days, months; Arrow's: months, days, nanoseconds */
static int
append_interval(GioPgColumn *col, const char *data, int len)
{
    if (len != 16)
        return malformed(col);
    int64_t us = (int64_t)gio_get64(data), ns;
    int32_t days = (int32_t)gio_get32(data + 8), months = (int32_t)gio_get32(data + 12);
    bool infinite = (us == INT64_MAX && days == INT32_MAX && months == INT32_MAX) ||
                    (us == INT64_MIN && days == INT32_MIN && months == INT32_MIN);
    if (infinite || __builtin_mul_overflow(us, (int64_t)1000, &ns))
        return fail(col, "an interval is too long for Arrow: select it as text");
    char *p = add(&col->data, 16);
    if (p == NULL)
        return -1;
    memcpy(p, &months, 4);
    memcpy(p + 4, &days, 4);
    memcpy(p + 8, &ns, 8);
    return 0;
}

static int
end_value(GioPgColumn *col, size_t len)
{
    if (len > INT32_MAX)
        return fail(col, "more than 2 GB in one batch: ask for batches of fewer rows");
    int32_t end = (int32_t)len;
    char *p = add(&col->ends, sizeof end);
    if (p == NULL)
        return -1;
    memcpy(p, &end, sizeof end);
    return 0;
}

static int
append_bytes(GioPgColumn *col, const char *data, int len)
{
    char *p = add(&col->data, (size_t)len);
    if (p == NULL)
        return -1;
    if (len > 0)
        memcpy(p, data, (size_t)len);
    return end_value(col, col->data.len);
}

static int
append_text(GioPgColumn *col, const char *data, int len)
{
    if (col->checked) { /* those who read Arrow trust that it is UTF-8 */
        PyObject *text = PyUnicode_DecodeUTF8(data, len, NULL);
        if (text == NULL) {
            if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
                return -1;
            PyErr_Clear();
            return fail(col, "a text is not UTF-8, which Arrow's is: select it as bytea");
        }
        Py_DECREF(text);
    }
    return append_bytes(col, data, len);
}

static int
append_jsonb(GioPgColumn *col, const char *data, int len)
{
    if (len < 1 || *data != 1)
        return malformed(col);
    return append_text(col, data + 1, len - 1);
}

/* ---- numeric ------------------------------------------------------------------------------ */

typedef unsigned __int128 Wide;

static bool
scale_up(Wide *value, int digits, unsigned group)
{
    Wide power = 1;
    for (int i = 0; i < digits; i++)
        power *= 10;
    return !__builtin_mul_overflow(*value, power, value) &&
           !__builtin_add_overflow(*value, (Wide)group, value);
}

/* Base 10000, most significant first, times 10000 to the power of weight. */
static int
append_decimal(GioPgColumn *col, const char *data, int len)
{
    static const unsigned powers[] = {1, 10, 100, 1000, 10000};
    static const char *wide = "a value does not fit the precision of its type in Arrow";
    if (len < 8 || len != 8 + 2 * (int)gio_get16(data))
        return malformed(col);
    int n = gio_get16(data), weight = (int16_t)gio_get16(data + 2);
    unsigned sign = gio_get16(data + 4);
    if ((sign & 0xC000) == 0xC000)
        return fail(col, "NaN and infinity have no decimal form in Arrow: ask for "
                         "numeric=\"text\" or \"float64\"");
    if (sign != 0 && sign != 0x4000)
        return malformed(col);
    Wide value = 0;
    int left = 4 * (weight + 1) + col->scale; /* decimal digits that are to come */
    for (int i = 0; i < n; i++, left -= 4) {
        unsigned group = gio_get16(data + 8 + 2 * i);
        int digits = left >= 4 ? 4 : left > 0 ? left : 0;
        if (group >= 10000)
            return malformed(col);
        if (group % powers[4 - digits] != 0 ||
            !scale_up(&value, digits, group / powers[4 - digits]))
            return fail(col, wide);
    }
    if (value != 0 && (left > 38 || (left > 0 && !scale_up(&value, left, 0))))
        return fail(col, wide);
    if (value > ~(Wide)0 >> 1)
        return fail(col, wide);
    __int128 result = sign == 0x4000 ? -(__int128)value : (__int128)value;
    char *p = add(&col->data, sizeof result);
    if (p == NULL)
        return -1;
    memcpy(p, &result, sizeof result);
    return 0;
}

static int
append_numeric_text(GioPgColumn *col, const char *data, int len)
{
    char small[GIO_PG_NUMERIC_SMALL], *text = small;
    Py_ssize_t n = gio_pg_numeric_text(data, len, &text);
    int rc = n == -1 ? malformed(col) : -1;
    if (n >= 0) {
        char *from = text + (n > 0 && *text == '-'), *digits = from, *end = text + n;
        while (end - digits > 1 && digits[0] == '0' && digits[1] != '.')
            digits++; /* the server's first digit is one of base 10000 */
        memmove(from, digits, (size_t)(end - digits));
        rc = append_bytes(col, text, (int)(n - (digits - from)));
    }
    if (text != small)
        PyMem_Free(text);
    return rc;
}

static int
append_numeric_float(GioPgColumn *col, const char *data, int len)
{
    char small[GIO_PG_NUMERIC_SMALL], *text = small;
    Py_ssize_t n = gio_pg_numeric_text(data, len, &text);
    int rc = n == -1 ? malformed(col) : -1;
    if (n >= 0) {
        text[n] = '\0';
        double value = PyOS_string_to_double(text, NULL, NULL); /* too large: infinity */
        char *p = value == -1.0 && PyErr_Occurred() ? NULL : add(&col->data, sizeof value);
        if (p != NULL) {
            memcpy(p, &value, sizeof value);
            rc = 0;
        }
    }
    if (text != small)
        PyMem_Free(text);
    return rc;
}

/* ---- values made of others --------------------------------------------------------------------
 */

static int
append_null(GioPgColumn *col)
{
    if (col->nulls == 0) { /* those before it were none */
        size_t n = (size_t)col->rows / 8;
        char *p = add(&col->valid, n + (col->rows % 8 != 0));
        if (p == NULL)
            return -1;
        memset(p, 0xFF, n);
        if (col->rows % 8 != 0)
            p[n] = (char)((1 << col->rows % 8) - 1);
    }
    if (add_bit(&col->valid, col->rows, false) < 0)
        return -1;
    col->nulls++;
    if (col->bits)
        return add_bit(&col->data, col->rows, false);
    if (col->width > 0) {
        char *p = add(&col->data, (size_t)col->width);
        if (p == NULL)
            return -1;
        memset(p, 0, (size_t)col->width);
        return 0;
    }
    if (col->format[0] != '+')
        return end_value(col, col->data.len);
    if (col->format[1] == 'l')
        return end_value(col, (size_t)col->children[0].rows);
    int rc = 0;
    for (int i = 0; rc == 0 && i < col->nchildren; i++) {
        rc = append_null(&col->children[i]);
        col->children[i].rows++;
    }
    return rc;
}

/* `data` is not looked at if `len` is -1: NULL. */
static inline int
append(GioPgColumn *col, const char *data, int len)
{
    int rc = len < 0 ? append_null(col) : col->append(col, data, len);
    if (rc == 0 && len >= 0 && col->nulls > 0)
        rc = add_bit(&col->valid, col->rows, true);
    col->rows += rc == 0;
    return rc;
}

/* A length and as many bytes, of a value inside another one. */
static int
append_part(GioPgColumn *col, GioPgColumn *part, const char **data, const char *end)
{
    if (end - *data < 4)
        return malformed(col);
    int32_t len = (int32_t)gio_get32(*data);
    *data += 4;
    if (len < -1 || len > end - *data)
        return malformed(col);
    if (append(part, *data, len) < 0)
        return -1;
    *data += len < 0 ? 0 : len;
    return 0;
}

static int
append_list(GioPgColumn *col, const char *data, int len)
{
    GioPgColumn *part = col->children;
    const char *end = data + len;
    if (len < 12)
        return malformed(col);
    int32_t dimensions = (int32_t)gio_get32(data), n = 0;
    if (dimensions != 0 &&
        (gio_get32(data + 8) != col->element || dimensions < 0 || dimensions > 6))
        return malformed(col);
    if (dimensions > 1)
        return fail(col, "an array of several dimensions has no Arrow form: unnest() it, or "
                         "select it as text");
    if (dimensions == 1) {
        if (len < 20 || (n = (int32_t)gio_get32(data + 12)) < 0)
            return malformed(col);
        data += 8;
    }
    data += 12;
    for (int32_t i = 0; i < n; i++)
        if (append_part(col, part, &data, end) < 0)
            return -1;
    return data != end ? malformed(col) : end_value(col, (size_t)part->rows);
}

static int
append_struct(GioPgColumn *col, const char *data, int len)
{
    const char *end = data + len;
    if (len < 4 || (int32_t)gio_get32(data) != col->nchildren)
        return malformed(col);
    data += 4;
    for (int i = 0; i < col->nchildren; i++) {
        if (end - data < 4)
            return malformed(col);
        data += 4; /* its type, which is what the composite says */
        if (append_part(col, &col->children[i], &data, end) < 0)
            return -1;
    }
    return data != end ? malformed(col) : 0;
}

/* ---- results ------------------------------------------------------------------------------------
 */

int
gio_pg_column_put(GioPgColumn *col, const char *data, int len)
{
    return append(col, data, len);
}

int
gio_pg_column_take(GioPgColumn *col, const PGresult *res, int i, int n)
{
    int rc = 0;
    for (int row = 0; rc == 0 && row < n; row++) {
        int len = PQgetlength(res, row, i);
        if (len == 0 && PQgetisnull(res, row, i))
            len = -1;
        rc = append(col, PQgetvalue(res, row, i), len);
    }
    return rc;
}

void
gio_pg_column_expect(GioPgColumn *col, int64_t rows)
{
    if (col->rows == 0) /* of lists that are empty so far: nothing is known */
        return;
    double share = (double)rows / (double)col->rows;
    GioPgBytes *all[] = {&col->valid, &col->data, &col->ends};
    for (int i = 0; i < 3; i++)
        expect(all[i], (size_t)(share * (double)all[i]->len * 17 / 16));
    for (int i = 0; i < col->nchildren; i++)
        gio_pg_column_expect(&col->children[i], (int64_t)(share * (double)col->children[i].rows));
}

/* ---- layout
 * -------------------------------------------------------------------------------------- */

typedef struct {
    Oid oid;
    const char *format;
    GioPgAppend append;
    int width;
} Form;

static const Form forms[] = {
    {16, "b", append_bool, 0},
    {17, "z", append_bytes, 0},
    {18, "u", append_text, 0}, /* "char": a byte, maybe beyond ASCII */
    {19, "u", append_text, 0},
    {20, "l", append_64, 8},
    {21, "s", append_16, 2},
    {23, "i", append_32, 4},
    {25, "u", append_text, 0},
    {26, "I", append_32, 4},
    {28, "I", append_32, 4},
    {29, "I", append_32, 4},
    {114, "u", append_text, 0},
    {142, "u", append_text, 0},
    {700, "f", append_32, 4},
    {701, "g", append_64, 8},
    {705, "u", append_text, 0},
    {1042, "u", append_text, 0},
    {1043, "u", append_text, 0},
    {1082, "tdD", append_date, 4},
    {1083, "ttu", append_time, 8},
    {1114, "tsu:", append_timestamp, 8},
    {1184, "tsu:UTC", append_timestamp, 8},
    {1186, "tin", append_interval, 16},
    {2950, "w:16", append_uuid, 16},
    {3220, "L", append_64, 8}, /* pg_lsn */
    {3802, "u", append_jsonb, 0},
    {4072, "u", append_jsonb, 0},
    {5069, "L", append_64, 8}, /* xid8 */
};

static void
set_form(GioPgColumn *col, const char *format, GioPgAppend append_value, int width)
{
    PyOS_snprintf(col->format, sizeof col->format, "%s", format);
    col->append = append_value;
    col->width = width;
    col->bits = strcmp(format, "b") == 0;
}

static void
set_numeric(GioPgColumn *col, int modifier, GioPgNumeric numeric)
{
    int declared = modifier < 4 ? 0 : modifier - 4;
    int precision = (declared >> 16) & 0xFFFF, scale = ((declared & 0x7FF) ^ 1024) - 1024;
    if (numeric == GIO_PG_AS_FLOAT) {
        set_form(col, "g", append_numeric_float, 8);
    }
    else if (numeric == GIO_PG_AS_TEXT || precision < 1 || precision > 38 || scale < 0 ||
             scale > 38) {
        set_form(col, "u", append_numeric_text, 0);
    }
    else {
        set_form(col, "", append_decimal, 16);
        PyOS_snprintf(col->format, sizeof col->format, "d:%d,%d",
                      scale > precision ? scale : precision, scale);
        col->scale = scale;
    }
}

static int
add_children(GioPgColumn *col, int n)
{
    col->children = calloc((size_t)n + 1, sizeof *col->children);
    if (col->children == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    col->nchildren = n;
    return 0;
}

static int
init_struct(GioPgColumn *col, const GioPgLayout *layout, GioPgCodec *codec)
{
    int n = (int)PyTuple_GET_SIZE(codec->fields);
    PyObject *names = PyObject_GetAttrString(codec->desc, "names");
    int rc = names == NULL ? -1 : add_children(col, n);
    set_form(col, "+s", append_struct, 0);
    for (int i = 0; rc == 0 && i < n; i++) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        rc = name == NULL
                 ? -1
                 : gio_pg_column_init(&col->children[i], layout,
                                      (GioPgCodec *)PyTuple_GET_ITEM(codec->fields, i), name, -1);
    }
    Py_XDECREF(names);
    return rc;
}

int
gio_pg_column_init(GioPgColumn *col, const GioPgLayout *layout, GioPgCodec *codec, const char *name,
                   int modifier)
{
    const char *type = PyUnicode_AsUTF8(codec->name);
    col->name = copy_of(name);
    col->type = type == NULL ? NULL : copy_of(type);
    if (col->name == NULL || col->type == NULL)
        return -1;
    codec = gio_pg_codec_plain(layout->st, codec);
    if (codec == NULL)
        return -1;
    int rc = 0;
    if (codec->oid == 1700) {
        set_numeric(col, modifier, layout->numeric);
    }
    else if (codec->decode == gio_pg_array_decode && codec->element != NULL) {
        set_form(col, "+l", append_list, 0);
        col->element = codec->element->oid;
        if (Py_EnterRecursiveCall(" in the type of a column"))
            return -1;
        rc = add_children(col, 1);
        if (rc == 0)
            rc = gio_pg_column_init(col->children, layout, codec->element, "item", modifier);
        Py_LeaveRecursiveCall();
    }
    else if (codec->decode == gio_pg_composite_decode && codec->fields != NULL) {
        if (Py_EnterRecursiveCall(" in the type of a column"))
            return -1;
        rc = init_struct(col, layout, codec);
        Py_LeaveRecursiveCall();
    }
    else {
        const Form *form = NULL;
        for (size_t i = 0; form == NULL && i < sizeof forms / sizeof *forms; i++)
            if (forms[i].oid == codec->oid)
                form = &forms[i];
        if (form != NULL)
            set_form(col, form->format, form->append, form->width);
        else if (codec->form != NULL && strcmp(codec->form, "text") == 0)
            set_form(col, "u", append_text, 0); /* an enum */
        else {
            set_form(col, "z", append_bytes, 0);
            col->other = col->type;
        }
        col->uuid = codec->oid == 2950;
        col->checked = layout->checked || codec->oid == 18;
    }
    bool by_ends = col->width == 0 && !col->bits && strcmp(col->format, "+s") != 0;
    return rc < 0 || (by_ends && end_value(col, 0) < 0) ? -1 : 0;
}

void
gio_pg_column_free(GioPgColumn *col)
{
    for (int i = 0; i < col->nchildren; i++)
        gio_pg_column_free(&col->children[i]);
    free(col->children);
    free(col->valid.data);
    free(col->data.data);
    free(col->ends.data);
    free(col->name);
    free(col->type);
}
