/* Bytes in the server's order: a buffer that grows, and the reading and writing of numbers.
 *
 * Owned by whoever has the GioBuf; memory is Python's, so it needs the GIL.
 */
#ifndef GIO_PG_BUF_H
#define GIO_PG_BUF_H

#include <Python.h>

#include <endian.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    char *data;
    Py_ssize_t len, size;
} GioBuf;

/* Room for `n` more bytes, which count at once: where they begin; NULL with MemoryError. What was
 * returned before may have moved. */
static inline char *
gio_buf_add(GioBuf *b, Py_ssize_t n)
{
    if (b->data == NULL || n > b->size - b->len) { /* no bytes have a place, too */
        Py_ssize_t size = b->size ? b->size : 256;
        while (size - b->len < n) {
            if (size > PY_SSIZE_T_MAX / 2) {
                PyErr_NoMemory();
                return NULL;
            }
            size *= 2;
        }
        char *data = PyMem_Realloc(b->data, (size_t)size);
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

static inline void
gio_buf_free(GioBuf *b)
{
    PyMem_Free(b->data);
    b->data = NULL;
    b->len = b->size = 0;
}

static inline uint16_t
gio_get16(const char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return be16toh(v);
}

static inline uint32_t
gio_get32(const char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return be32toh(v);
}

static inline uint64_t
gio_get64(const char *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return be64toh(v);
}

static inline void
gio_set16(char *p, uint16_t v)
{
    v = htobe16(v);
    memcpy(p, &v, sizeof v);
}

static inline void
gio_set32(char *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof v);
}

static inline void
gio_set64(char *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof v);
}

static inline int
gio_put16(GioBuf *b, uint16_t v)
{
    char *p = gio_buf_add(b, 2);
    if (p == NULL)
        return -1;
    gio_set16(p, v);
    return 0;
}

static inline int
gio_put32(GioBuf *b, uint32_t v)
{
    char *p = gio_buf_add(b, 4);
    if (p == NULL)
        return -1;
    gio_set32(p, v);
    return 0;
}

static inline int
gio_put64(GioBuf *b, uint64_t v)
{
    char *p = gio_buf_add(b, 8);
    if (p == NULL)
        return -1;
    gio_set64(p, v);
    return 0;
}

static inline int
gio_put(GioBuf *b, const char *data, Py_ssize_t n)
{
    char *p = gio_buf_add(b, n);
    if (p == NULL)
        return -1;
    if (n > 0)
        memcpy(p, data, (size_t)n);
    return 0;
}

#endif
