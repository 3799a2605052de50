/* sock_recv and its kin: the awaitables, and the registrations that they share.
 *
 * sock.c has the registrations and the queues, sockop.c the awaitable, sockcall.c the calls
 * themselves, address.c the addresses.
 */
#ifndef GIO_SOCK_H
#define GIO_SOCK_H

#include "loop/loop.h"

#include <sys/socket.h>

/* The head of _socket.socket's object; sockcall.c verifies it. */
typedef struct {
    PyObject_HEAD
    int fd, family, type, proto;
} GioSocketHead;

#define GIO_SOCKET(obj) ((const GioSocketHead *)(obj))

typedef struct GioSockOp GioSockOp;

typedef struct {
    const char *name;
    int which; /* 0 waits until the socket is readable, 1 writable */
    /* 1 it is done, with a result; 0 it would block; -1 with an exception. */
    int (*attempt)(GioSockOp *op, PyObject **result);
} GioSockKind;

typedef enum {
    GIO_OP_NEW,
    GIO_OP_WAITING, /* in a queue */
    GIO_OP_READY,   /* value is the result, and whoever awaits it will fetch it */
    GIO_OP_FAILED,  /* value is the exception, as above */
    GIO_OP_CANCELLED,
    GIO_OP_DONE,
} GioSockOpStatus;

/* The awaitable of one call. While it waits it is also the future that its task waits for. */
struct GioSockOp {
    PyObject_HEAD
    GioLoop *loop; /* owned */
    const GioSockKind *kind;
    PyObject *sock;     /* owned: a socket.socket, never of a subclass */
    PyObject *arg;      /* owned: what is sent, or received into; or NULL */
    PyObject *address;  /* owned: where to; or NULL */
    PyObject *value;    /* owned: the result, exception, or cancel message */
    PyObject *callback; /* owned: the wake-up of the task, in its ... */
    PyObject *context;
    GioSock *queue;         /* borrowed; set exactly while it waits: it owns a reference to us */
    GioSockOp *prev, *next; /* in the queue */
    Py_ssize_t size;        /* how much to receive */
    Py_buffer view;         /* of arg, while it is being sent */
    Py_ssize_t sent;
    GioSockOpStatus status;
    bool connecting; /* connect(2) was called */
    bool blocking;   /* was just yielded to a task */
    bool attempting; /* inside an attempt: nobody may end it, or step it, meanwhile */
};

/* One fd number: who waits for it, and whether libevent watches it. In the slot of its fd as long
 * as the loop is open; belongs to one socket object from its first wait until nobody waits any
 * more. */
struct GioSock {
    PyObject_HEAD
    GioLoop *loop;  /* borrowed: it owns us */
    PyObject *sock; /* owned; NULL: nobody's */
    int fd;
    GioPoll poll[2];               /* reading, writing */
    GioSockOp *head[2], *tail[2];  /* first come, first served; owned */
    GioSock *active_prev, *active; /* the ring of all that belong to a socket */
    GioSock *idle;                 /* next of those that the sweep will look at */
    bool bulky;                    /* the last read was large */
    bool listed;                   /* among those */
    bool level;                    /* level-triggered, for others watch the fd, too */
};

/* ---- sock.c ------------------------------------------------------------------------- */

/* What the loop knows of its socket; borrowed, NULL: nothing yet. */
GioSock *gio_sock_of(GioSockOp *op);
/* Whether others wait before it for the same thing. */
bool gio_sock_must_queue(GioSockOp *op);
/* Put it into the queue, and have the loop watch its socket. -1 with an exception. */
int gio_sock_wait(GioSockOp *op);
/* Off its queue, which may have held the last reference. Runs no Python otherwise. */
void gio_sock_leave(GioSockOp *op);
int gio_sock_setup_types(PyObject *module, GioState *st);

/* ---- sockop.c ----------------------------------------------------------------------- */

GioSockOp *gio_sockop_new(GioLoop *loop, const GioSockKind *kind, PyObject *sock);
/* Have its kind try. What that runs, or another thread, may cancel it meanwhile. */
int gio_sockop_attempt(GioSockOp *op, PyObject **result);
/* Wake the task of one that is not waiting any more: at once if `direct` (only from the loop),
 * else in its turn. -1 for KeyboardInterrupt and SystemExit only. */
int gio_sockop_wake(GioSockOp *op, bool direct);
int gio_sockop_setup_types(PyObject *module, GioState *st);

/* ---- sockcall.c --------------------------------------------------------------------- */

extern PyMethodDef gio_sock_methods[]; /* of Loop */
int gio_sockcall_setup(GioState *st);
/* Whether its timeout is 0; -1 with an exception. */
int gio_socket_nonblocking(GioState *st, PyObject *sock);

/* ---- address.c ---------------------------------------------------------------------- */

/* As _socket's: a tuple, str or bytes; None if the kernel gave no address. Only for
 * AF_INET, AF_INET6 and AF_UNIX. */
PyObject *gio_address_to_python(const struct sockaddr_storage *from, socklen_t size);
/* false: not one of the families above, or not in the plain form that needs neither a name to
 * be resolved nor an exception to be raised: leave it to _socket. */
bool gio_address_from_python(int family, PyObject *address, struct sockaddr_storage *to,
                             socklen_t *size);

#endif
