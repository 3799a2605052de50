/* What green/ builds on: the parts of its classes that are hot. */
#ifndef GIO_SYNC_H
#define GIO_SYNC_H

#include "core/core.h"

int gio_socket_setup_types(PyObject *module, GioState *st);

#endif
