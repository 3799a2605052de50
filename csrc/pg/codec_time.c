/* Dates, times, timestamps and intervals.
 *
 * The server counts days and microseconds from 2000-01-01. The infinities are Python's first and
 * last moment, both ways; what lies outside the years 1 to 9999 is a DataError. This is the one
 * file that includes datetime.h, whose table of functions is a static of each file.
 */
#include "pg/pg.h"

#include <datetime.h>

#define US_PER_DAY INT64_C(86400000000)
#define US_PER_SECOND 1000000
/* Days from 0001-01-01 and from 9999-12-31 to 2000-01-01. */
#define FIRST_DAY (-730119)
#define LAST_DAY 2921939

static PyObject *
out_of_range(GioPgCodec *codec)
{
    return gio_pg_error_set("DataError", "a %U is outside the years 1 to 9999 of Python's dates",
                            codec->name);
}

/* ---- the calendar ------------------------------------------------------------------- */

typedef struct {
    int year, month, day;
} Ymd;

/* Proleptic Gregorian; years are taken to begin in March, so that the leap day is the last. */
static Ymd
ymd_of_days(int64_t days)
{
    int64_t z = days + 730425; /* since 0000-03-01 */
    int64_t era = z / 146097;
    int64_t in_era = z - era * 146097;
    int64_t year = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
    int64_t in_year = in_era - (365 * year + year / 4 - year / 100);
    int64_t month = (5 * in_year + 2) / 153;
    Ymd r = {
        .year = (int)(year + era * 400 + (month >= 10)),
        .month = (int)(month < 10 ? month + 3 : month - 9),
        .day = (int)(in_year - (153 * month + 2) / 5 + 1),
    };
    return r;
}

static int64_t
days_of_ymd(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = y / 400, in_era_year = y - era * 400;
    int64_t in_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t in_era = in_era_year * 365 + in_era_year / 4 - in_era_year / 100 + in_year;
    return era * 146097 + in_era - 730425;
}

/* ---- dates ---------------------------------------------------------------------------- */

static PyObject *
date_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len != 4)
        return gio_pg_malformed(codec);
    int64_t days = (int32_t)gio_get32(data);
    if (days == INT32_MAX)
        return PyDate_FromDate(9999, 12, 31);
    if (days == INT32_MIN)
        return PyDate_FromDate(1, 1, 1);
    if (days < FIRST_DAY || days > LAST_DAY)
        return out_of_range(codec);
    Ymd d = ymd_of_days(days);
    return PyDate_FromDate(d.year, d.month, d.day);
}

static int64_t
days_of_date(PyObject *date)
{
    return days_of_ymd(PyDateTime_GET_YEAR(date), PyDateTime_GET_MONTH(date),
                       PyDateTime_GET_DAY(date));
}

static int
date_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    if (!PyDate_Check(value)) {
        PyErr_Format(PyExc_TypeError, "expected a date, got %.100s", Py_TYPE(value)->tp_name);
        return -1;
    }
    int64_t days = days_of_date(value);
    if (days == LAST_DAY && !PyDateTime_Check(value))
        days = INT32_MAX;
    else if (days == FIRST_DAY && !PyDateTime_Check(value))
        days = INT32_MIN;
    return gio_put32(out, (uint32_t)days);
}

/* ---- times ------------------------------------------------------------------------------ */

static PyObject *
make_time(GioPgCodec *codec, int64_t us, PyObject *tz)
{
    if (us < 0 || us > US_PER_DAY)
        return gio_pg_malformed(codec);
    if (us == US_PER_DAY) /* 24:00 */
        us = 0;
    int seconds = (int)(us / US_PER_SECOND);
    return PyDateTimeAPI->Time_FromTime(seconds / 3600, seconds / 60 % 60, seconds % 60,
                                        (int)(us % US_PER_SECOND), tz, PyDateTimeAPI->TimeType);
}

static PyObject *
time_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return len != 8 ? gio_pg_malformed(codec) : make_time(codec, (int64_t)gio_get64(data), Py_None);
}

static int
time_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    if (!PyTime_Check(value)) {
        PyErr_Format(PyExc_TypeError, "expected a time, got %.100s", Py_TYPE(value)->tp_name);
        return -1;
    }
    int64_t seconds = PyDateTime_TIME_GET_HOUR(value) * 3600 +
                      PyDateTime_TIME_GET_MINUTE(value) * 60 + PyDateTime_TIME_GET_SECOND(value);
    return gio_put64(out,
                     (uint64_t)(seconds * US_PER_SECOND + PyDateTime_TIME_GET_MICROSECOND(value)));
}

static PyObject *
timetz_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len != 12)
        return gio_pg_malformed(codec);
    int32_t west = (int32_t)gio_get32(data + 8);
    if (west == INT32_MIN)
        return gio_pg_malformed(codec);
    PyObject *offset = PyDelta_FromDSU(0, -west, 0);
    PyObject *tz = offset == NULL ? NULL : PyTimeZone_FromOffset(offset);
    PyObject *time = tz == NULL ? NULL : make_time(codec, (int64_t)gio_get64(data), tz);
    Py_XDECREF(offset);
    Py_XDECREF(tz);
    return time;
}

static int
timetz_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    if (time_encode(st, codec, value, out) < 0)
        return -1;
    PyObject *offset = PyObject_CallMethodNoArgs(value, st->str_utcoffset);
    int rc = -1;
    if (offset != NULL && PyDelta_Check(offset) && PyDateTime_DELTA_GET_DAYS(offset) >= -1 &&
        PyDateTime_DELTA_GET_DAYS(offset) <= 0) {
        int seconds =
            PyDateTime_DELTA_GET_DAYS(offset) * 86400 + PyDateTime_DELTA_GET_SECONDS(offset);
        rc = gio_put32(out, (uint32_t)-seconds);
    }
    else if (offset != NULL) {
        PyErr_SetString(PyExc_ValueError, "a time with a time zone is required");
    }
    Py_XDECREF(offset);
    return rc;
}

/* ---- timestamps --------------------------------------------------------------------------- */

static PyObject *
make_timestamp(GioPgCodec *codec, const char *data, Py_ssize_t len, PyObject *tz)
{
    if (len != 8)
        return gio_pg_malformed(codec);
    int64_t us = (int64_t)gio_get64(data);
    PyTypeObject *type = PyDateTimeAPI->DateTimeType;
    if (us == INT64_MAX)
        return PyDateTimeAPI->DateTime_FromDateAndTime(9999, 12, 31, 23, 59, 59, 999999, tz, type);
    if (us == INT64_MIN)
        return PyDateTimeAPI->DateTime_FromDateAndTime(1, 1, 1, 0, 0, 0, 0, tz, type);
    int64_t days = us / US_PER_DAY, rest = us % US_PER_DAY;
    if (rest < 0) {
        days--;
        rest += US_PER_DAY;
    }
    if (days < FIRST_DAY || days > LAST_DAY)
        return out_of_range(codec);
    Ymd d = ymd_of_days(days);
    int seconds = (int)(rest / US_PER_SECOND);
    return PyDateTimeAPI->DateTime_FromDateAndTime(d.year, d.month, d.day, seconds / 3600,
                                                   seconds / 60 % 60, seconds % 60,
                                                   (int)(rest % US_PER_SECOND), tz, type);
}

static PyObject *
timestamp_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return make_timestamp(codec, data, len, Py_None);
}

static PyObject *
timestamptz_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    return make_timestamp(codec, data, len, PyDateTime_TimeZone_UTC);
}

static int
put_timestamp(PyObject *value, GioBuf *out)
{
    int hour = PyDateTime_DATE_GET_HOUR(value), minute = PyDateTime_DATE_GET_MINUTE(value);
    int64_t days = days_of_date(value);
    int64_t us =
        ((int64_t)hour * 3600 + minute * 60 + PyDateTime_DATE_GET_SECOND(value)) * US_PER_SECOND +
        PyDateTime_DATE_GET_MICROSECOND(value);
    if (days == LAST_DAY && us == US_PER_DAY - 1)
        return gio_put64(out, (uint64_t)INT64_MAX);
    if (days == FIRST_DAY && us == 0)
        return gio_put64(out, (uint64_t)INT64_MIN);
    return gio_put64(out, (uint64_t)(days * US_PER_DAY + us));
}

/* A datetime, made of a date if need be: new reference. */
static PyObject *
as_datetime(PyObject *value, PyObject *tz)
{
    if (PyDateTime_Check(value))
        return Py_NewRef(value);
    if (PyDate_Check(value))
        return PyDateTimeAPI->DateTime_FromDateAndTime(
            PyDateTime_GET_YEAR(value), PyDateTime_GET_MONTH(value), PyDateTime_GET_DAY(value), 0,
            0, 0, 0, tz, PyDateTimeAPI->DateTimeType);
    PyErr_Format(PyExc_TypeError, "expected a datetime.date or datetime.datetime, got '%.100s'",
                 Py_TYPE(value)->tp_name);
    return NULL;
}

static int
timestamp_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    PyObject *moment = as_datetime(value, Py_None);
    int rc = -1;
    if (moment != NULL && ((PyDateTime_DateTime *)moment)->hastzinfo)
        PyErr_SetString(PyExc_TypeError,
                        "a datetime with a time zone was given for a timestamp without");
    else if (moment != NULL)
        rc = put_timestamp(moment, out);
    Py_XDECREF(moment);
    return rc;
}

static PyObject *
tzinfo_of(PyObject *moment)
{
    PyDateTime_DateTime *d = (PyDateTime_DateTime *)moment;
    return d->hastzinfo ? d->tzinfo : Py_None;
}

static int
timestamptz_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    PyObject *utc = PyDateTime_TimeZone_UTC;
    PyObject *moment = as_datetime(value, utc);
    if (moment == NULL)
        return -1;
    bool is_first = PyDateTime_GET_YEAR(moment) == 1, is_last = PyDateTime_GET_YEAR(moment) == 9999;
    if (tzinfo_of(moment) != utc) {
        PyObject *there = PyObject_CallMethodOneArg(moment, st->str_astimezone, utc);
        if (there == NULL && (is_first || is_last) && tzinfo_of(moment) == Py_None) {
            PyErr_Clear(); /* datetime.max and .min, which no time zone can move */
        }
        else {
            Py_SETREF(moment, there);
            if (moment == NULL)
                return -1;
            if (!PyDateTime_Check(moment)) { /* a subclass's astimezone() */
                PyErr_Format(PyExc_TypeError, "astimezone() gave %.100s, not a datetime",
                             Py_TYPE(moment)->tp_name);
                Py_DECREF(moment);
                return -1;
            }
        }
    }
    int rc = put_timestamp(moment, out);
    Py_DECREF(moment);
    return rc;
}

/* ---- intervals ------------------------------------------------------------------------------ */

static PyObject *
interval_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len)
{
    if (len != 16)
        return gio_pg_malformed(codec);
    int64_t us = (int64_t)gio_get64(data);
    int64_t days = (int32_t)gio_get32(data + 8), months = (int32_t)gio_get32(data + 12);
    days += months / 12 * 365 + months % 12 * 30 + us / US_PER_DAY;
    us %= US_PER_DAY;
    if (days < -999999999 || days > 999999999)
        return gio_pg_error_set("DataError",
                                "an interval is infinite, or too long for a timedelta: "
                                "cast it to text");
    return PyDelta_FromDSU((int)days, (int)(us / US_PER_SECOND), (int)(us % US_PER_SECOND));
}

static int
interval_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out)
{
    if (!PyDelta_Check(value)) {
        PyErr_Format(PyExc_TypeError, "expected a timedelta, got %.100s", Py_TYPE(value)->tp_name);
        return -1;
    }
    int64_t us = (int64_t)PyDateTime_DELTA_GET_SECONDS(value) * US_PER_SECOND +
                 PyDateTime_DELTA_GET_MICROSECONDS(value);
    if (gio_put64(out, (uint64_t)us) < 0 ||
        gio_put32(out, (uint32_t)PyDateTime_DELTA_GET_DAYS(value)) < 0)
        return -1;
    return gio_put32(out, 0);
}

int
gio_pg_time_add(GioPgState *st)
{
    PyDateTime_IMPORT;
    if (PyDateTimeAPI == NULL)
        return -1;
    bool failed =
        gio_pg_codec_add(st, 1082, 1182, "date", date_decode, date_encode, true) < 0 ||
        gio_pg_codec_add(st, 1083, 1183, "time", time_decode, time_encode, true) < 0 ||
        gio_pg_codec_add(st, 1266, 1270, "timetz", timetz_decode, timetz_encode, true) < 0 ||
        gio_pg_codec_add(st, 1114, 1115, "timestamp", timestamp_decode, timestamp_encode, true) <
            0 ||
        gio_pg_codec_add(st, 1184, 1185, "timestamptz", timestamptz_decode, timestamptz_encode,
                         true) < 0 ||
        gio_pg_codec_add(st, 1186, 1187, "interval", interval_decode, interval_encode, true) < 0;
    return failed ? -1 : 0;
}
