/* Blocks of columns as Arrow's structures.
 *
 * None of this needs the GIL: what was handed out is released by whoever has it.
 */
#include "pg/block.h"

GioPgBlock *
gio_pg_block_new(int ncols)
{
    GioPgBlock *block = calloc(1, sizeof *block + (size_t)ncols * sizeof *block->cols);
    if (block != NULL) {
        atomic_init(&block->refs, 1);
        block->ncols = ncols;
    }
    return block;
}

GioPgBlock *
gio_pg_block_ref(GioPgBlock *block)
{
    atomic_fetch_add(&block->refs, 1);
    return block;
}

void
gio_pg_block_unref(GioPgBlock *block)
{
    if (block == NULL || atomic_fetch_sub(&block->refs, 1) != 1)
        return;
    for (int i = 0; i < block->ncols; i++)
        gio_pg_column_free(&block->cols[i]);
    free(block);
}

/* ---- schemas -------------------------------------------------------------------------------- */

typedef struct {
    char *metadata;
    struct ArrowSchema *pointers[];
} SchemaHeld;

static void
schema_release(struct ArrowSchema *schema)
{
    SchemaHeld *held = schema->private_data;
    for (int64_t i = 0; i < schema->n_children; i++) {
        if (schema->children[i]->release != NULL)
            schema->children[i]->release(schema->children[i]);
        free(schema->children[i]);
    }
    free((char *)schema->name);
    free((char *)schema->format);
    free(held->metadata);
    free(held);
    schema->release = NULL;
}

static char *
put_string(char *p, const char *text)
{
    int32_t len = (int32_t)strlen(text);
    memcpy(p, &len, sizeof len);
    memcpy(p + sizeof len, text, (size_t)len);
    return p + sizeof len + len;
}

/* The number of pairs, then each string with its length before it. */
static char *
metadata_of(const char *extension, const char *value)
{
    static const char *name_key = "ARROW:extension:name";
    static const char *value_key = "ARROW:extension:metadata";
    int32_t pairs = 2;
    char *metadata = malloc(5 * sizeof pairs + strlen(name_key) + strlen(value_key) +
                            strlen(extension) + strlen(value));
    if (metadata == NULL)
        return NULL;
    memcpy(metadata, &pairs, sizeof pairs);
    char *p = put_string(metadata + sizeof pairs, name_key);
    p = put_string(p, extension);
    p = put_string(p, value_key);
    put_string(p, value);
    return metadata;
}

/* {"type_name": …} in JSON */
static char *
opaque_metadata(const char *type)
{
    static const char *start = "{\"type_name\": \"", *end = "\", \"vendor_name\": \"PostgreSQL\"}";
    char *json = malloc(strlen(start) + 6 * strlen(type) + strlen(end) + 1), *metadata = NULL;
    if (json == NULL)
        return NULL;
    char *p = json + strlen(strcpy(json, start));
    for (; *type != '\0'; type++) {
        unsigned char c = (unsigned char)*type;
        if (c < ' ' || c == '"' || c == '\\')
            p += sprintf(p, "\\u%04x", c);
        else
            *p++ = (char)c;
    }
    strcpy(p, end);
    metadata = metadata_of("arrow.opaque", json);
    free(json);
    return metadata;
}

static int column_schema(const GioPgColumn *col, struct ArrowSchema *out);

/* `cols` are the children. 0, or -1 when there is no memory. */
static int
make_schema(struct ArrowSchema *out, const char *format, const char *name, char *metadata,
            const GioPgColumn *cols, int ncols)
{
    SchemaHeld *held = calloc(1, sizeof *held + (size_t)ncols * sizeof *held->pointers);
    memset(out, 0, sizeof *out);
    if (held == NULL) {
        free(metadata);
        return -1;
    }
    held->metadata = metadata;
    out->private_data = held;
    out->release = schema_release;
    out->metadata = metadata;
    out->flags = ARROW_FLAG_NULLABLE;
    out->children = held->pointers;
    out->format = strdup(format);
    out->name = strdup(name);
    int rc = out->format == NULL || out->name == NULL ? -1 : 0;
    for (int i = 0; rc == 0 && i < ncols; i++) {
        struct ArrowSchema *child = malloc(sizeof *child);
        rc = child == NULL ? -1 : column_schema(&cols[i], child);
        if (rc == 0)
            held->pointers[out->n_children++] = child;
        else
            free(child);
    }
    if (rc < 0)
        schema_release(out);
    return rc;
}

static int
column_schema(const GioPgColumn *col, struct ArrowSchema *out)
{
    char *metadata = NULL;
    out->release = NULL;
    if (col->uuid && (metadata = metadata_of("arrow.uuid", "")) == NULL)
        return -1;
    if (col->other != NULL && (metadata = opaque_metadata(col->other)) == NULL)
        return -1;
    return make_schema(out, col->format, col->name, metadata, col->children, col->nchildren);
}

int
gio_pg_block_schema(const GioPgBlock *block, struct ArrowSchema *out)
{
    return make_schema(out, "+s", "", NULL, block->cols, block->ncols);
}

/* ---- arrays ------------------------------------------------------------------------------------
 */

typedef struct {
    GioPgBlock *block;
    const void *buffers[3];
    struct ArrowArray *pointers[];
} ArrayHeld;

static void
array_release(struct ArrowArray *array)
{
    ArrayHeld *held = array->private_data;
    for (int64_t i = 0; i < array->n_children; i++) {
        if (array->children[i]->release != NULL)
            array->children[i]->release(array->children[i]);
        free(array->children[i]);
    }
    gio_pg_block_unref(held->block);
    free(held);
    array->release = NULL;
}

static int column_array(GioPgBlock *block, const GioPgColumn *col, struct ArrowArray *out);

static int
make_array(struct ArrowArray *out, GioPgBlock *block, const GioPgColumn *cols, int ncols)
{
    ArrayHeld *held = calloc(1, sizeof *held + (size_t)ncols * sizeof *held->pointers);
    memset(out, 0, sizeof *out);
    if (held == NULL)
        return -1;
    held->block = gio_pg_block_ref(block);
    out->private_data = held;
    out->release = array_release;
    out->buffers = held->buffers;
    out->children = held->pointers;
    out->n_buffers = 1;
    for (int i = 0; i < ncols; i++) {
        struct ArrowArray *child = malloc(sizeof *child);
        if (child == NULL || column_array(block, &cols[i], child) < 0) {
            free(child);
            array_release(out);
            return -1;
        }
        held->pointers[out->n_children++] = child;
    }
    return 0;
}

static int
column_array(GioPgBlock *block, const GioPgColumn *col, struct ArrowArray *out)
{
    static const int64_t nothing[2];
    if (make_array(out, block, col->children, col->nchildren) < 0)
        return -1;
    out->length = col->rows;
    out->null_count = col->nulls;
    out->buffers[0] = col->valid.data;
    if (col->ends.len > 0)
        out->buffers[out->n_buffers++] = col->ends.data;
    if (col->format[0] != '+')
        out->buffers[out->n_buffers++] = col->data.data != NULL ? col->data.data : (void *)nothing;
    return 0;
}

int
gio_pg_block_array(GioPgBlock *block, struct ArrowArray *out)
{
    if (make_array(out, block, block->cols, block->ncols) < 0)
        return -1;
    out->length = block->rows;
    return 0;
}
