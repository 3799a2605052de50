/* What green/ builds on: the parts of its classes that are hot. */
#ifndef GIO_SYNC_H
#define GIO_SYNC_H

#include "core/core.h"

#include <stddef.h>
#include <structmember.h>

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

/* ---- what its types have in common (line.c) --------------------------------- */

/* How each of them begins. */
typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
} GioWeakly;

/* And those that consist of a line and plain numbers. */
typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    GioLine line;
} GioLined;

/* Let go of all: `clear` is its own, not that of a class made from it. */
void gio_sync_free(PyObject *self, inquiry clear);
int gio_lined_traverse(PyObject *self, visitproc visit, void *arg);
int gio_lined_clear(PyObject *self);
void gio_lined_dealloc(PyObject *self);

#define GIO_WEAKLY {"__weaklistoffset__", T_PYSSIZET, offsetof(GioWeakly, weakrefs), READONLY, NULL}
#define GIO_FAST(fn) ((PyCFunction)(void (*)(void))(fn)), METH_FASTCALL
#define GIO_FAST_KEYWORDS(fn) ((PyCFunction)(void (*)(void))(fn)), METH_FASTCALL | METH_KEYWORDS

/* ---- lines (line.c) ------------------------------------------------------- */

/* Stand in it, at its end or (again, after a turn that came to nothing) at its head: the waiter, a
 * new one whose reference is the caller's; NULL with an exception. Making it may run Python, so
 * look again at what is waited for: from there to the wait nothing does. */
GioWaiter *gio_line_join(GioState *st, GioLine *line, bool at_head);
/* Leave it without having waited. Steals w. Whether its turn had come by then. */
bool gio_line_quit(GioWaiter *w);

typedef enum {
    GIO_LINE_LOST = -2, /* woken, but an exception is raised: the turn is to be passed on */
    GIO_LINE_ERROR = -1,
    GIO_LINE_LATE = 0, /* the deadline has passed */
    GIO_LINE_WOKEN = 1,
} GioTurn;

/* Wait for one's turn. Steals w. Switches. `what`: as gio_wait_for. */
GioTurn gio_line_wait(GioState *st, GioWaiter *w, int64_t deadline, const char *what);
/* Wake the first of those that still wait, who gets `value` (borrowed; NULL: None): false if there
 * is none. He has left the line before anything hears of it. May run Python. */
bool gio_line_wake(GioLine *line, PyObject *value);
/* The same for all that stand in it now. */
void gio_line_wake_all(GioLine *line);
/* Forget those that stand in it. Runs no Python. */
void gio_line_clear(GioLine *line);
int gio_line_traverse(GioLine *line, visitproc visit, void *arg);

/* Who runs here, as get_ident() says: never 0. */
uintptr_t gio_sync_me(GioState *st);
PyObject *gio_sync_get_ident(PyObject *module, PyObject *ignored);
PyObject *gio_sync_become_main(PyObject *module, PyObject *call);
/* Positional and keyword arguments by `names` (which ends with NULL): into `found`, borrowed, where
 * those not given stay. -1 with TypeError. */
int gio_sync_arguments(const char *fn, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                       const char *const *names, PyObject **found);
/* `block` and `timeout` as queues take them: 1 wait until *deadline, 0 do not wait, -1 with an
 * exception. */
int gio_sync_queue_timeout(PyObject *block, PyObject *timeout, int64_t *deadline);
/* A call that was not to wait has come to nothing. Who asks on and on gives way now and then: that
 * switches. -1 with an exception: a cancellation, say. */
int gio_sync_in_vain(GioState *st);

/* ---- locks (lock.c) --------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    GioLine line;
    bool locked;
} GioLock;

typedef struct {
    GioLock lock;
    uintptr_t owner;
    unsigned long count;
} GioRLock;

/* Take it: 1; 0 if it was not to be had until the deadline; -1 with an exception. Switches. */
int gio_lock_acquire(GioState *st, GioLock *lock, int64_t deadline);
/* Hand it to the first who waits, or open it. May run Python. */
void gio_lock_release(GioLock *lock);
int gio_rlock_acquire(GioState *st, GioRLock *lock, int64_t deadline);
/* -1 with RuntimeError. */
int gio_rlock_release(GioState *st, GioRLock *lock);

/* ---- conditions (condition.c) --------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    PyObject *lock;
    GioLine line;
} GioCondition;

int gio_lock_setup_types(PyObject *module, GioState *st);
int gio_condition_setup_types(PyObject *module, GioState *st);
int gio_event_setup_types(PyObject *module, GioState *st);
int gio_simple_queue_setup_types(PyObject *module, GioState *st);
int gio_queue_setup_types(PyObject *module, GioState *st);
int gio_local_setup_types(PyObject *module, GioState *st);
int gio_socket_setup_types(PyObject *module, GioState *st);
int gio_green_tls_setup_types(PyObject *module, GioState *st);

#endif
