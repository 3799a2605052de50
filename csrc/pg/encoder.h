/* How values of an Arrow column are sent: what encoder.c chooses and does, source.c asks for. */
#ifndef GIO_PG_ENCODER_H
#define GIO_PG_ENCODER_H

#include "pg/pg.h"

#include "pg/arrow.h"

typedef struct GioPgEncoder GioPgEncoder;

/* Value `i` of the array, which is not NULL, as the server has it; without its length. */
typedef int (*GioPgPut)(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out);

typedef enum {
    GIO_PG_INTEGER,
    GIO_PG_FLOATING,
    GIO_PG_BOOLEAN,
    GIO_PG_BYTES,
    GIO_PG_DECIMAL,
    GIO_PG_DATE,
    GIO_PG_TIME,
    GIO_PG_STAMP,
    GIO_PG_SPAN,
    GIO_PG_OTHER
} GioPgKindOfArrow;

struct GioPgEncoder {
    const struct ArrowSchema *schema; /* borrowed from the source */
    GioPgState *st;
    GioPgCodec *codec; /* owned; of the value that is sent */
    Oid oid;           /* of the column, which may be of a domain */
    GioPgPut put;
    GioPgKindOfArrow kind;
    int width;                /* bytes of a value; 0: of variable length */
    int64_t unit;             /* per second */
    int scale;                /* of decimals */
    GioPgEncoder *dictionary; /* of the values that it has indices of */
    GioPgEncoder *children;
    int nchildren;
};

static inline bool
gio_pg_bit_at(const void *bits, int64_t i)
{
    return ((const uint8_t *)bits)[i / 8] >> i % 8 & 1;
}

/* Choose how: 0, or -1 with an exception. Free it in either case. */
int gio_pg_encoder_init(GioPgEncoder *e, GioPgState *st, const struct ArrowSchema *schema,
                        GioPgCodec *codec);
void gio_pg_encoder_free(GioPgEncoder *e);
/* Append value `i` of the array with its length before it: 0, or -1 with an exception. Runs Python
 * where there is no other way than through an object. */
int gio_pg_encoder_put(GioPgEncoder *e, const struct ArrowArray *array, int64_t i, GioBuf *out);

#endif
