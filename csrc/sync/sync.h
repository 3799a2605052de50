/* What green/ builds on: the parts of its classes that are hot. */
#ifndef GIO_SYNC_H
#define GIO_SYNC_H

#include "core/core.h"

/* One call of a green socket's method: how long it may wait for all its steps together. */
typedef struct {
    GioState *st;
    PyObject *self; /* borrowed */
    int flags;
    bool blocking; /* it may wait */
    bool endless;  /* no timeout */
    int64_t deadline;
} GioOp;

/* -1 with an exception. */
int gio_op_begin(GioOp *op, PyTypeObject *cls, PyObject *self, int flags);
/* The descriptor, asked for anew before each step: the socket may have been closed meanwhile. */
int gio_op_fd(GioOp *op);
/* The step has failed with errno: 0 to try again, -1 with an exception. May switch. */
int gio_op_again(GioOp *op, int fd, int events, const char *timed_out);

#define GIO_SYNC_BUFFER (256 * 1024)
/* Memory that is used between two calls of Python; NULL with MemoryError. */
char *gio_sync_buffer(GioState *st);
/* Keep what is in it from whatever may run Python meanwhile: take it, and give it back. */
char *gio_sync_take(GioState *st);
void gio_sync_give(GioState *st, char *taken);

int gio_socket_setup_types(PyObject *module, GioState *st);
int gio_green_tls_setup_types(PyObject *module, GioState *st);

#endif
