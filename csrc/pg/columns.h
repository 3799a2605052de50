/* Columns of a result in Arrow's memory layout: what columns.c fills, batch.c hands out.
 *
 * Memory is C's, since whoever gets it may free it without the GIL.
 */
#ifndef GIO_PG_COLUMNS_H
#define GIO_PG_COLUMNS_H

#include "pg/pg.h"

typedef enum { GIO_PG_AS_DECIMAL, GIO_PG_AS_TEXT, GIO_PG_AS_FLOAT } GioPgNumeric;

typedef struct GioPgColumn GioPgColumn;

/* Append a value that is not NULL: 0, or -1 with an exception. */
typedef int (*GioPgAppend)(GioPgColumn *col, const char *data, int len);

typedef struct {
    char *data;
    size_t len, size;
} GioPgBytes;

struct GioPgColumn {
    char *name;
    char format[24];   /* Arrow's */
    bool uuid;         /* of Arrow's type of that name */
    const char *other; /* the type's name, where its binary form is handed on as it is; or NULL */
    char *type;        /* the server's name of it, for errors */
    GioPgAppend append;
    int width;           /* bytes of a value; 0: by `ends` */
    bool bits;           /* a bit each */
    bool checked;        /* its text may be anything but UTF-8 */
    int scale;           /* of decimals */
    int64_t rows, nulls; /* values in it */
    GioPgBytes valid;    /* a bit per value, once there was a NULL */
    GioPgBytes data;
    GioPgBytes ends; /* int32_t: 0, and where each value ends in `data`, or in the child */
    GioPgColumn *children;
    int nchildren;
    Oid oid;     /* of a result's column */
    Oid element; /* of a list */
};

typedef struct {
    GioPgState *st;
    GioPgNumeric numeric;
    bool checked; /* text may be anything: an encoding is SQL_ASCII, or the client's not UTF-8 */
} GioPgLayout;

/* Lay out a column for a type: 0, or -1 with an exception. Free it in either case. */
int gio_pg_column_init(GioPgColumn *col, const GioPgLayout *layout, GioPgCodec *codec,
                       const char *name, int modifier);
void gio_pg_column_free(GioPgColumn *col);
/* Append one value in binary, or with a length of -1 NULL: as gio_pg_column_take(). */
int gio_pg_column_put(GioPgColumn *col, const char *data, int len);
/* Append column `i` of a result of `n` rows, which is binary: 0, or -1 with an exception, after
 * which it is of no use. */
int gio_pg_column_take(GioPgColumn *col, const PGresult *res, int i, int n);
/* Have room for so many rows in all, if they go on as they have begun; a wish. */
void gio_pg_column_expect(GioPgColumn *col, int64_t rows);

#endif
