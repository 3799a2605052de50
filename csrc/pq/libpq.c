/* Looks up libpq's functions in what psycopg2 has loaded.
 *
 * Called once per module, with the GIL held. Owns the dlopen handle. Never
 * loads a library that was not loaded: a second libpq would not know psycopg2's
 * connections.
 */
#include <Python.h> /* defines _GNU_SOURCE, which RTLD_NOLOAD needs */

#include <dlfcn.h>

#include "libpq.h"

static void *
required(GioLibpq *pq, const char *name)
{
    void *symbol = dlsym(pq->handle, name);
    if (symbol == NULL)
        PyErr_Format(
            PyExc_ImportError,
            "the libpq that psycopg2 has loaded lacks %s: greenletio needs libpq 12 or later",
            name);
    return symbol;
}

int
gio_libpq_load(GioLibpq *pq, const char *path)
{
    pq->handle = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (pq->handle == NULL) {
        PyErr_Format(PyExc_ImportError,
                     "psycopg2's extension module is not a shared object that can be found again "
                     "(%s): install psycopg2 or psycopg2-binary 2.9",
                     path);
        return -1;
    }

/* POSIX lets a pointer from dlsym be a function's; ISO C wants it copied. */
#define LOOK_UP(type, name, args)                                                                  \
    *(void **)&pq->name = required(pq, #name);                                                     \
    if (pq->name == NULL)                                                                          \
        goto error;
#define LOOK_UP_NEW(type, name, args) *(void **)&pq->name = dlsym(pq->handle, #name);

    GIO_LIBPQ_REQUIRED(LOOK_UP)
    GIO_LIBPQ_CANCEL(LOOK_UP_NEW)
#undef LOOK_UP
#undef LOOK_UP_NEW
    return 0;

error:
    gio_libpq_unload(pq);
    return -1;
}

void
gio_libpq_unload(GioLibpq *pq)
{
    void *handle = pq->handle;
    pq->handle = NULL;
    if (handle != NULL)
        dlclose(handle);
}
