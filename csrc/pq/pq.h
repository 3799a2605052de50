/* What the files of _pq share: the module's state and what is known of each
 * psycopg2 connection. Everything here needs the GIL.
 *
 * Who waits where: psycopg2 holds the connection's mutex while it calls the wait
 * callback (wait.c), so nothing else may enter psycopg2 on that connection from
 * the same thread. The guards (guard.c) stand before psycopg2's methods: they
 * take the connection's turn (turn.c) first, and raise afterwards what
 * interrupted a wait. The callback itself never raises an interruption, because
 * psycopg2 closes the connection of a callback that raises.
 */
#ifndef GIO_PQ_H
#define GIO_PQ_H

#include <Python.h>

#include <stdbool.h>

#include "core/api.h"
#include "pq/libpq.h"
#include "pq/request.h"

typedef struct GioPqNode GioPqNode;

/* One psycopg2 connection. Lives until that connection is deallocated. */
typedef struct {
    PyObject_HEAD
    PyObject *module;
    PyObject *key;       /* its key in GioPqState.conns */
    PyObject *weak;      /* weak reference to the connection; calls this object back */
    PyObject *conn;      /* borrowed; NULL once deallocated */
    PGconn *pg;          /* borrowed from psycopg2; NULL before the first wait and after close() */
    PyObject *pending;   /* what interrupted the operation under way; the guard raises it */
    PyObject *copy_file; /* the file of the COPY under way, or NULL */
    Py_ssize_t copy_size;
    PyObject *owner;  /* the greenlet whose turn it is, or NULL */
    int depth;        /* guards that the owner is in */
    GioPqNode *first; /* who waits for a turn, in order */
    GioPqNode *last;
    long mark;         /* ends of transactions so far */
    int fd;            /* the socket when last seen */
    bool waiting;      /* psycopg2's mutex is held: in the wait callback */
    bool blocking;     /* the user wants this one to block */
    bool was_blocking; /* made before the patch: unpatching sets it back */
} GioPqConn;

typedef struct {
    const GioAPI *api;
    GioLibpq pq;
    PyTypeObject *conn_type;
    PyTypeObject *guard_type;
    PyTypeObject *property_type;
    PyObject *conns;     /* {address of a psycopg2 connection: GioPqConn} */
    GioPqConn *recent;   /* borrowed from conns: the one asked for last */
    int64_t cancel_time; /* ns that cancelling may take */

    /* psycopg2's own, found by gio_pq_bind() */
    PyTypeObject *connection;
    PyTypeObject *cursor;
    PyCFunction poll;  /* connection.poll */
    PyObject *execute; /* cursor.execute, unguarded */
    PyObject *pointer; /* connection.pgconn_ptr, whatever a subclass has of that name */
    PyObject *operational_error;
    PyObject *programming_error;
    PyObject *encodings;
    Py_ssize_t cursor_connection; /* offsets of members */
    Py_ssize_t cursor_name;
    Py_ssize_t connection_closed;
    Py_ssize_t connection_async;
    Py_ssize_t connection_status;

    /* other modules' */
    PyObject *getcurrent; /* greenlet.getcurrent */
    PyObject *greenlet_exit;
    PyObject *would_block;
    PyObject *text_io;

    /* patch.c */
    PyObject *replaced; /* [(type, name, what stood there)], or NULL when not patched */
    iternextfunc iternext;
} GioPqState;

/* psycopg2's connection.status */
enum {
    GIO_STATUS_SETUP = 0,
    GIO_STATUS_READY = 1,
    GIO_STATUS_BEGIN = 2,
    GIO_STATUS_CONNECTING = 20
};

#define GIO_PQ_MEMBER(type, object, offset) (*(type *)((char *)(object) + (offset)))

static inline GioPqState *
gio_pq_state(PyObject *module)
{
    return (GioPqState *)PyModule_GetState(module);
}

static inline bool
gio_pq_connecting(GioPqState *st, PyObject *conn)
{
    int status = GIO_PQ_MEMBER(int, conn, st->connection_status);
    return status == GIO_STATUS_SETUP || status == GIO_STATUS_CONNECTING;
}

/* Whether the connection was shut down; what libpq knew of it is gone then. */
static inline bool
gio_pq_is_closed(GioPqState *st, PyObject *conn)
{
    return GIO_PQ_MEMBER(long, conn, st->connection_closed) == 1;
}

/* conn.c */
int gio_pq_conn_setup_types(PyObject *module);
/* Find psycopg2's types, members and exceptions. 0, or -1 with an exception. */
int gio_pq_bind(PyObject *module, PyObject *psycopg);
/* New reference to what is known of `conn`; made at the first call. */
GioPqConn *gio_pq_conn_get(PyObject *module, PyObject *conn);
/* Read the PGconn of an open connection, once. 0, or -1 with an exception. */
int gio_pq_conn_attach(GioPqState *st, GioPqConn *c);
/* The first of psycopg2's error messages that applies, as OperationalError; returns -1. */
int gio_pq_conn_failed(GioPqState *st, GioPqConn *c);
/* Call before the connection's socket closes, or right after. Keeps the exception that is set. */
void gio_pq_conn_gone(GioPqState *st, GioPqConn *c);
/* The socket that it had when last seen is closed already. */
void gio_pq_conn_closed_fd(GioPqState *st, GioPqConn *c);

/* turn.c: FIFO, one greenlet or thread at a time, re-entrant */
/* Whether the turn is the caller's: 1 or 0, -1 with an exception. */
int gio_pq_turn_is_mine(GioPqState *st, GioPqConn *c);
/* Wait for the turn. 0, or -1 with an exception (then the turn was not taken). */
int gio_pq_turn_take(GioPqState *st, GioPqConn *c);
/* End it; the next in the queue has it at once. Never fails. */
void gio_pq_turn_end(GioPqState *st, GioPqConn *c);

/* wait.c */
enum { GIO_PQ_DONE = 0, GIO_PQ_FAILED = -1, GIO_PQ_INTERRUPTED = -2 };
/* The callback psycopg2 is given: METH_O of the module. */
PyObject *gio_pq_wait(PyObject *module, PyObject *conn);
/* Wait as the connection's policy says. Like GioAPI.wait_fds. */
int gio_pq_wait_fds(GioPqState *st, GioPqConn *c, const int *fds, const int *events, int *ready,
                    int n, int64_t deadline);
/* One conn.poll(): the events to wait for, 0 when the result is there, -1 with an exception. */
int gio_pq_step(GioPqState *st, GioPqConn *c);
/* Wait for the connection's socket. Ready events, 0 at the deadline, -1 with an exception. */
int gio_pq_wait_socket(GioPqState *st, GioPqConn *c, int events, int64_t deadline);

/* copy.c */
/* The COPY that libpq is in: PGRES_COPY_IN, PGRES_COPY_OUT, or 0. */
int gio_pq_copy_kind(GioPqState *st, GioPqConn *c);
/* Do it, with c->copy_file. GIO_PQ_DONE, _FAILED or _INTERRUPTED with an exception. */
int gio_pq_copy_run(GioPqState *st, GioPqConn *c, int kind);
/* End it without data: events to wait for, 0 to go on polling, -1 with an exception. */
int gio_pq_copy_discard(GioPqState *st, GioPqConn *c, int kind);

/* cancel.c */
/* c->pending interrupted the operation: cancel it on the server and poll until it
 * is over. 0; or -1 with c->pending raised when the server does not answer. */
int gio_pq_drain(GioPqState *st, GioPqConn *c);
/* connection.cancel(): 0, or -1 with an exception. */
int gio_pq_cancel(GioPqState *st, GioPqConn *c);
/* Put `context` (stolen, may be NULL) at the end of `exc`'s contexts, before what they share. */
void gio_pq_chain(PyObject *exc, PyObject *context);
/* Raise c->pending, the exception that is set as its context. */
void gio_pq_raise_pending(GioPqConn *c);

/* guard.c */
enum {
    GIO_GUARD_NAMED = 1, /* waits for named cursors only */
    GIO_GUARD_TX = 2,    /* waits inside a transaction only */
    GIO_GUARD_QUIET = 4, /* takes the turn but never waits for the server */
    GIO_GUARD_MARK = 8,  /* ends the transaction */
    GIO_GUARD_CLOSE = 16,
    GIO_GUARD_CANCEL = 32, /* asks the server to cancel: takes no turn */
    GIO_GUARD_MANY = 64    /* executemany: stops at the item that was interrupted */
};
int gio_pq_guard_setup_types(PyObject *module);
/* A guard for `original`, found under `name` in `type`. New reference or NULL. */
PyObject *gio_pq_guard_new(PyObject *module, PyTypeObject *type, const char *name,
                           PyObject *original, int flags);
PyObject *gio_pq_guard_property(PyObject *module, const char *name, PyObject *original);
/* tp_iternext of psycopg2's cursor types while patched. */
PyObject *gio_pq_guard_iternext(PyObject *cursor);
/* copy(cursor, sql, file, size): METH_FASTCALL of the module. */
PyObject *gio_pq_guard_copy(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* patch.c */
/* patch(overrides), unpatch(): methods of the module. */
PyObject *gio_pq_patch(PyObject *module, PyObject *overrides);
PyObject *gio_pq_unpatch(PyObject *module, PyObject *unused);

#endif
