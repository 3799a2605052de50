/* The memory of some rows as columns. It is counted: the batch has a reference, and so has each
 * array that was handed out, which may live longer than the interpreter and is released by any
 * thread. */
#ifndef GIO_PG_BLOCK_H
#define GIO_PG_BLOCK_H

#include "pg/columns.h"

#include <stdatomic.h>

#include "pg/arrow.h"

typedef struct {
    atomic_int refs;
    int64_t rows;
    int ncols;
    GioPgColumn cols[];
} GioPgBlock;

/* NULL when there is no memory. */
GioPgBlock *gio_pg_block_new(int ncols);
GioPgBlock *gio_pg_block_ref(GioPgBlock *block);
void gio_pg_block_unref(GioPgBlock *block); /* NULL, too */
/* Fill Arrow's structure: 0, or -1 when there is no memory. */
int gio_pg_block_schema(const GioPgBlock *block, struct ArrowSchema *out);
int gio_pg_block_array(GioPgBlock *block, struct ArrowArray *out);

#endif
