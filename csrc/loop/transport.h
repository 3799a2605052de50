/* Transports: what stands between a protocol and an fd, and how the files that make them share
 * the work. transport.c has their common life, write.c the queue of what is to be sent.
 *
 * Only the thread that runs the loop uses a transport. Every call into a protocol may close,
 * abort or drop the transport, or give it another protocol: whoever calls holds a reference to
 * it, and reads its fields anew afterwards.
 */
#ifndef GIO_TRANSPORT_H
#define GIO_TRANSPORT_H

#include "loop/loop.h"

/* A part of what is to be sent. */
typedef struct {
    PyObject *owner; /* bytes, owned */
    const char *data;
    size_t size; /* > 0 */
} GioPiece;

typedef struct {
    GioPiece *pieces; /* those before `head` have been sent */
    size_t head, end, room;
    size_t bytes; /* in all that are left */
} GioQueue;

/* Whoever is told what happens (protocol.c). */
typedef struct {
    PyObject *object;    /* owned, as all of it; NULL: none */
    PyObject *on_data;   /* its data_received, get_buffer or datagram_received; NULL: not yet */
    PyObject *on_filled; /* its buffer_updated, likewise */
    bool buffered;       /* it is a BufferedProtocol */
} GioProtocol;

/* The water marks of a queue: above one its protocol is paused, and at the other resumed. */
typedef struct {
    Py_ssize_t high, low;
} GioMarks;

typedef struct {
    PyObject_HEAD
    PyObject *extra;    /* the place of asyncio.BaseTransport's slot _extra: must stay the first;
                           NULL: see gio_transport_extra() */
    PyObject *slots[4]; /* asyncio's _FlowControlMixin has them; NULL unless others set them */
    PyObject *weakrefs;
    PyObject *dict;   /* of attributes that others have set */
    GioState *state;  /* borrowed */
    GioLoop *loop;    /* owned; NULL once connection_lost has been called, as what follows is */
    PyObject *file;   /* a socket or a pipe, which is closed in the end */
    PyObject *server; /* asyncio's Server that counts it, or NULL */
    GioProtocol protocol;
    PyObject *read_context, *write_context; /* that the protocol is called in */
    PyObject *empty_waiter;                 /* of loop.sendfile(), or NULL */
    GioPoll read, write;
    GioQueue queue;
    GioMarks marks;
    Py_ssize_t conn_lost; /* > 0: connection_lost is scheduled; then counts writes */
    int fd;
    int quiet_errno;   /* the one that is not reported; 0: no OSError is */
    bool pipe;         /* read(2) and write(2) instead of recv(2) and send(2) */
    bool bulky;        /* the last read was large */
    bool holds_socket; /* we count as a user of the socket: it stays open if others close it */
    PyObject *address; /* of datagrams: the only one that this transport sends to, or NULL; of
                          streams: the peer's, until `extra` has it */
    PyObject *pending; /* of datagrams: a deque of those that wait, or NULL */
    int family;        /* of datagrams: the socket's */
    bool to_peer;      /* of datagrams: the socket is connected */
    bool undescribed;  /* `extra` lacks what is known of the socket */
    bool closing, paused, eof, protocol_paused;
} GioTransport;

/* ---- transport.c ------------------------------------------------------------------------ */

/* The rest of this header: -1 (or NULL) with an exception, unless it says otherwise. */

/* A transport that is not started yet; `extra` may be NULL or None. */
GioTransport *gio_transport_new(PyTypeObject *type, GioLoop *loop, PyObject *file,
                                PyObject *protocol, PyObject *extra, GioRun readable,
                                GioRun writable);
/* Have connection_made called, then reading started, then `waiter` (may be NULL) told. */
int gio_transport_begin(GioTransport *t, PyObject *waiter);
/* call_soon; `context` NULL: a copy of the current one. */
int gio_transport_soon(GioTransport *t, PyObject *context, PyObject *callback,
                       PyObject *const *args, Py_ssize_t nargs);
/* Run `step` in the context that is given. */
int gio_transport_in_context(GioTransport *t, PyObject *context, int (*step)(GioTransport *t));
/* Something is raised that ends the connection: it is reported, or logged where it is nothing
 * but the network's doing. -1 if it ends the loop's run instead, and stays raised. */
int gio_transport_fatal(GioTransport *t, const char *message);
/* Tell the loop's exception handler about what is raised; -1 as above. */
int gio_transport_report(GioTransport *t, const char *message);
/* What debug mode logs; -1 as above. `exc` may be NULL. */
int gio_transport_log(GioTransport *t, const char *what, PyObject *exc);
/* For a close() that may come from elsewhere, as from the garbage collector of another thread: 1 if
 * it was handed over to the loop. */
int gio_transport_hand_over(GioLoop *loop, PyObject *self);
/* Flush, then connection_lost(None). */
int gio_transport_close(GioTransport *t);
/* Drop what is queued, then connection_lost(exc); exc NULL: None. */
int gio_transport_force_close(GioTransport *t, PyObject *exc);
/* The queue of one that is closing has been sent. */
int gio_transport_flushed(GioTransport *t);
/* Whether what is raised ends the loop's run: KeyboardInterrupt or SystemExit. */
bool gio_ends_run(void);
/* A public type with what all have, derived from one or two classes of asyncio.transports (the
 * second may be NULL), and more methods: tables that end with NULL. */
PyTypeObject *gio_transport_add_type(PyObject *module, const char *name, const char *base_name,
                                     const char *other_name, PyMethodDef *const *tables);
extern PyMethodDef gio_transport_read_methods[];

/* ---- protocol.c ---------------------------------------------------------------------------- */

int gio_protocol_set(GioProtocol *p, GioState *st, PyObject *object);
void gio_protocol_clear(GioProtocol *p);
int gio_protocol_traverse(GioProtocol *p, visitproc visit, void *arg);
/* Call a method that is kept in `place`; args[-1] is scratch. The protocol must be there. */
PyObject *gio_protocol_call(GioProtocol *p, PyObject **place, PyObject *name, PyObject *const *args,
                            Py_ssize_t nargs);
/* Hand up data (stolen; NULL with an exception is handed on). */
int gio_protocol_data(GioProtocol *p, GioState *st, PyObject *data);
/* Ask for a buffer, which is never empty; tell how much of it was filled. */
int gio_protocol_buffer(GioProtocol *p, GioState *st, Py_buffer *view);
int gio_protocol_filled(GioProtocol *p, GioState *st, size_t size);
/* What get_write_buffer_limits() and set_write_buffer_limits() are about. */
PyObject *gio_marks_get(const GioMarks *marks);
int gio_marks_set(GioMarks *marks, Py_ssize_t otherwise, PyObject *args, PyObject *kwargs);

/* ---- stream.c ----------------------------------------------------------------------------- */

/* Start a transport on a connected socket; `peername` NULL: the socket is asked; `server`, `waiter`
 * and `extra` may be NULL, too. */
GioTransport *gio_stream_new(GioLoop *loop, PyTypeObject *type, PyObject *sock, PyObject *protocol,
                             PyObject *waiter, PyObject *extra, PyObject *peername,
                             PyObject *server);
/* The GioRun of a transport whose fd is readable. */
int gio_stream_readable(GioLoop *loop, PyObject *self);
/* What has arrived, as bytes: empty at the end, NULL with or without an exception. */
PyObject *gio_stream_receive(GioTransport *t);
/* The address that a method of a socket gives: None if it cannot be had. */
PyObject *gio_stream_ask(PyObject *sock, const char *method);
/* Put what is known of the socket into `extra`; neither may be NULL. */
int gio_stream_describe(GioTransport *t);
/* What get_extra_info() knows, a borrowed dict. A stream's is made when it is first asked for, or
 * at the end: an idle connection has none. */
PyObject *gio_transport_extra(GioTransport *t);
/* Keep the socket's fd ours, whoever closes the socket. */
int gio_stream_hold_socket(GioTransport *t);
extern PyMethodDef gio_stream_loop_methods[]; /* of Loop, as the next three */
/* What asyncio's own code looks at: _sock, _sock_fd. */
int gio_stream_add_members(PyTypeObject *type);
int gio_stream_setup_types(PyObject *module, GioState *st);

/* ---- tls_write.c ---------------------------------------------------------------------------- */

/* What a TLS transport on top of this one has yet to send comes before what is done next. */
int gio_tls_flush_above(GioTransport *under);

/* ---- accept.c, pipe.c, datagram.c------------------------------------------------------------ */

extern PyMethodDef gio_accept_loop_methods[], gio_pipe_loop_methods[];
extern PyMethodDef gio_datagram_loop_methods[];
int gio_pipe_setup_types(PyObject *module, GioState *st);
int gio_datagram_setup_types(PyObject *module, GioState *st);

/* ---- write.c ------------------------------------------------------------------------------ */

/* Send `size` bytes at `data`, or queue them. They belong to `owner`. */
int gio_write(GioTransport *t, PyObject *owner, const char *data, size_t size);
/* Queue data that `obj` exports; a copy, where others could change it. */
int gio_queue_data(GioQueue *q, PyObject *obj, const char *data, size_t size);
/* Queue every item of a list or tuple; none if one cannot be. */
int gio_queue_items(GioQueue *q, PyObject *items);
/* What write() takes: bytes, bytearray, memoryview. */
int gio_check_data(PyObject *data);
/* Drop as many bytes from the front. */
void gio_queue_drop(GioQueue *q, size_t sent);
/* The GioRun of a transport whose fd is writable. */
int gio_write_ready(GioLoop *loop, PyObject *self);
/* Have the GioRun above called when the fd is writable. */
int gio_write_watch(GioTransport *t);
/* Tell the protocol, if it is time for it. */
int gio_write_pause(GioTransport *t);
int gio_write_resume(GioTransport *t);
/* Something was written to a connection that is lost: None, and in the end a warning. */
PyObject *gio_write_lost(GioTransport *t);
/* A future of loop.sendfile()'s is told, unless it is done, that the queue is empty, or that it
 * never will be. */
int gio_write_tell_waiter(GioTransport *t, const char *method, PyObject *value);
void gio_write_clear(GioTransport *t);
extern PyMethodDef gio_write_methods[], gio_flow_methods[];

#endif
