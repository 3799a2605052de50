/* DatagramTransport: UDP and Unix datagram sockets.
 *
 * Datagrams are received until none is left, at most BATCH in one turn of the loop. Those that
 * the kernel does not take at once wait in a deque: it takes all or nothing of each, so they
 * share no queue with streams, only the count of what waits (queue.bytes) and the water marks.
 */
#include "loop/sock.h"
#include "loop/transport.h"

#include <errno.h>

#define BATCH 16
#define OVERHEAD 8 /* an empty datagram counts, too */

/* ---- receiving --------------------------------------------------------------------------------
 */

/* error_received() with the exception that is raised. */
static int
tell_error(GioTransport *t)
{
    PyObject *exc = gio_err_take(), *protocol = Py_NewRef(t->protocol.object);
    PyObject *r = PyObject_CallMethodOneArg(protocol, t->state->str_error_received, exc);
    Py_DECREF(protocol);
    Py_DECREF(exc);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

static int
deliver(GioTransport *t, PyObject *data, PyObject *address)
{
    PyObject *args[] = {NULL, data, address};
    PyObject *r = gio_protocol_call(&t->protocol, &t->protocol.on_data,
                                    t->state->str_datagram_received, args + 1, 2);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* 1: there may be more. */
static int
receive_one(GioTransport *t)
{
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    char *buf = gio_loop_scratch(t->loop);
    if (buf == NULL) {
        return -1;
    }
    ssize_t n = recvfrom(t->fd, buf, GIO_READ_MAX, 0, (struct sockaddr *)&from, &size);
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
            return 0;
        }
        PyErr_SetFromErrno(PyExc_OSError);
        return tell_error(t);
    }
    PyObject *data = PyBytes_FromStringAndSize(buf, n);
    PyObject *address = data == NULL ? NULL : gio_address_to_python(&from, size);
    int r = address == NULL ? -1 : deliver(t, data, address);
    Py_XDECREF(data);
    Py_XDECREF(address);
    return r < 0 ? -1 : 1;
}

static int
receive(GioTransport *t)
{
    for (int i = 0; i < BATCH && t->read.started && t->conn_lost == 0; i++) {
        int r = receive_one(t);
        if (r <= 0) {
            return r < 0 ? gio_transport_report(t, "Exception in a datagram protocol") : 0;
        }
    }
    return 0;
}

static int
readable(GioLoop *Py_UNUSED(loop), PyObject *self)
{
    GioTransport *t = (GioTransport *)self;
    return t->read.started ? gio_transport_in_context(t, t->read_context, receive) : 0;
}

/* ---- sending ----------------------------------------------------------------------------------
 */

/* Send one; 0 when it has to wait; -1 with whatever exception, which says what is wrong with it. */
static int
send_one(GioTransport *t, PyObject *data, PyObject *address)
{
    Py_buffer view;
    struct sockaddr_storage to;
    socklen_t size = 0;
    if (!t->to_peer && !gio_address_from_python(t->family, address, &to, &size)) {
        /* Names to look up, and errors: as the socket module has them. */
        PyObject *r = PyObject_CallMethod(t->file, "sendto", "OO", data, address);
        if (r == NULL && PyErr_ExceptionMatches(PyExc_BlockingIOError)) {
            PyErr_Clear();
            return 0;
        }
        Py_XDECREF(r);
        return r == NULL ? -1 : 1;
    }
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    ssize_t n = sendto(t->fd, view.buf, (size_t)view.len, MSG_NOSIGNAL,
                       size == 0 ? NULL : (struct sockaddr *)&to, size);
    int error = errno;
    PyBuffer_Release(&view);
    if (n >= 0) {
        return 1;
    }
    if (error == EAGAIN || error == EWOULDBLOCK || error == EINTR) {
        return 0;
    }
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static int
send_failed(GioTransport *t)
{
    return PyErr_ExceptionMatches(PyExc_OSError)
               ? tell_error(t)
               : gio_transport_fatal(t, "Fatal write error on datagram transport");
}

/* Keep one for later. */
static int
keep(GioTransport *t, PyObject *data, PyObject *address)
{
    PyObject *copy = PyBytes_FromObject(data);
    PyObject *item = copy == NULL ? NULL : PyTuple_Pack(2, copy, address);
    PyObject *r = NULL;
    if (item != NULL && t->pending == NULL) {
        PyObject *collections = PyImport_ImportModule("collections");
        t->pending = collections == NULL ? NULL : PyObject_CallMethod(collections, "deque", NULL);
        Py_XDECREF(collections);
    }
    if (item != NULL && t->pending != NULL) {
        r = PyObject_CallMethod(t->pending, "append", "(O)", item);
    }
    if (r != NULL) {
        t->queue.bytes += (size_t)PyBytes_GET_SIZE(copy) + OVERHEAD;
    }
    Py_XDECREF(copy);
    Py_XDECREF(item);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* Send the oldest that waits: as send_one. It is gone unless it has to wait. */
static int
send_kept(GioTransport *t)
{
    PyObject *item = PySequence_GetItem(t->pending, 0);
    if (item == NULL) {
        return -1;
    }
    PyObject *data = PyTuple_GET_ITEM(item, 0);
    int r = send_one(t, data, PyTuple_GET_ITEM(item, 1));
    if (r != 0 && t->pending != NULL) { /* a socket's own sendto() may have ended the transport */
        PyObject *raised = gio_err_take();
        PyObject *gone = PyObject_CallMethod(t->pending, "popleft", NULL);
        t->queue.bytes -= (size_t)PyBytes_GET_SIZE(data) + OVERHEAD;
        Py_XDECREF(gone);
        if (raised != NULL) {
            gio_err_give(raised);
        }
    }
    Py_DECREF(item);
    return r;
}

static int
send_on(GioTransport *t)
{
    int r = 1;
    while (r > 0 && t->queue.bytes > 0) {
        r = send_kept(t);
    }
    if (r < 0 && send_failed(t) < 0) {
        return gio_transport_report(t, "Exception in a datagram protocol");
    }
    if (t->conn_lost > 0 || t->loop == NULL || gio_write_resume(t) < 0) {
        return PyErr_Occurred() ? -1 : 0;
    }
    if (t->queue.bytes > 0 || t->conn_lost > 0 || t->loop == NULL) {
        return 0;
    }
    if (gio_poll_stop(&t->write) < 0) {
        return -1;
    }
    return t->closing ? gio_transport_flushed(t) : 0;
}

static int
writable(GioLoop *Py_UNUSED(loop), PyObject *self)
{
    GioTransport *t = (GioTransport *)self;
    return t->write.started ? gio_transport_in_context(t, t->write_context, send_on) : 0;
}

/* Where a datagram goes, borrowed: `given` unless the transport has but one address. */
static PyObject *
destination(GioTransport *t, PyObject *given)
{
    if (t->address == NULL) {
        return given;
    }
    int same = given == Py_None ? 1 : PyObject_RichCompareBool(given, t->address, Py_EQ);
    if (same == 0) {
        PyErr_Format(PyExc_ValueError, "Invalid address: must be None or %S", t->address);
    }
    return same > 0 ? t->address : NULL;
}

static int
send_datagram(GioTransport *t, PyObject *data, PyObject *address)
{
    if (t->queue.bytes == 0) {
        int r = send_one(t, data, address);
        if (r != 0) {
            return r < 0 ? send_failed(t) : 0;
        }
        if (gio_write_watch(t) < 0) {
            return -1;
        }
    }
    return keep(t, data, address) < 0 ? -1 : gio_write_pause(t);
}

static PyObject *
datagram_sendto(GioTransport *t, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"data", "addr", NULL};
    PyObject *data, *address = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:sendto", keywords, &data, &address)) {
        return NULL;
    }
    if (gio_check_data(data) < 0) {
        return NULL;
    }
#if PY_VERSION_HEX < 0x030D0000
    if (PyObject_Size(data) == 0) { /* as asyncio of that time */
        Py_RETURN_NONE;
    }
#endif
    address = destination(t, address);
    if (address == NULL || (t->loop != NULL && gio_loop_check_idle(t->loop) < 0)) {
        return NULL;
    }
    if (t->conn_lost > 0 || t->loop == NULL) {
        return gio_write_lost(t);
    }
    Py_INCREF(address); /* error_received() may end the transport */
    int r = send_datagram(t, data, address);
    Py_DECREF(address);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- making them ------------------------------------------------------------------------------
 */

static PyObject *
loop_make_datagram(GioLoop *loop, PyObject *args)
{
    PyObject *sock, *protocol, *address, *waiter, *extra;
    if (!PyArg_ParseTuple(args, "OOOOO:_make_datagram", &sock, &protocol, &address, &waiter,
                          &extra)) {
        return NULL;
    }
    GioTransport *t = gio_transport_new(loop->state->datagram_type, loop, sock, protocol, extra,
                                        readable, writable);
    if (t == NULL) {
        return NULL;
    }
    socklen_t size = sizeof t->family;
    if (getsockopt(t->fd, SOL_SOCKET, SO_DOMAIN, &t->family, &size) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto error;
    }
    PyObject *known = gio_transport_extra(t);
    if (known == NULL || gio_polls_claim_fd(loop, t->fd, (PyObject *)t) < 0 ||
        gio_stream_hold_socket(t) < 0 || gio_stream_describe(t) < 0) {
        goto error;
    }
    PyObject *peername = PyDict_GetItemString(known, "peername");
    if (peername == NULL) {
        PyObject *asked = gio_stream_ask(sock, "getpeername");
        int r = asked == NULL ? -1 : PyDict_SetItemString(known, "peername", asked);
        peername = asked;
        Py_XDECREF(asked); /* `known` has it */
        if (r < 0) {
            goto error;
        }
    }
    int to_peer = PyObject_IsTrue(peername);
    if (to_peer < 0) {
        goto error;
    }
    t->to_peer = to_peer;
    t->address = address == Py_None ? NULL : Py_NewRef(address);
    if (gio_transport_begin(t, waiter) < 0) {
        goto error;
    }
    return (PyObject *)t;
error:
    Py_DECREF(t);
    return NULL;
}

#define KEYWORDS(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef datagram_methods[] = {
    {"sendto", KEYWORDS(datagram_sendto), METH_VARARGS | METH_KEYWORDS,
     "sendto($self, data, addr=None)\n--\n\n"
     "Send a datagram, now if that goes without blocking, else when it does."},
    {NULL},
};

PyMethodDef gio_datagram_loop_methods[] = {
    {"_make_datagram", (PyCFunction)loop_make_datagram, METH_VARARGS,
     "A transport on a datagram socket of a family whose addresses are known here."},
    {NULL},
};

int
gio_datagram_setup_types(PyObject *module, GioState *st)
{
    PyMethodDef *tables[] = {gio_transport_read_methods, gio_flow_methods, datagram_methods, NULL};
    st->datagram_type = gio_transport_add_type(module, "greenletio._core.DatagramTransport",
                                               "_FlowControlMixin", "DatagramTransport", tables);
    return st->datagram_type == NULL ? -1 : gio_stream_add_members(st->datagram_type);
}
