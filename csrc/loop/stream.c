/* StreamTransport: a connected stream socket, TCP or Unix, read straight into its protocol.
 *
 * One read per turn of the loop, so that nobody starves. Small ones go through a buffer that
 * all transports of a loop share, and become a bytes object of exactly their size. Copying a
 * large one costs more than asking the kernel first how large it is: where the last one was
 * large, the next is received in place. Receiving holds the GIL: it never waits.
 */
#include "loop/transport.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <structmember.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define LARGE (16 * 1024)

/* ---- reading ----------------------------------------------------------------------------------
 */

static const char *
failure(GioTransport *t)
{
    return t->pipe ? "Fatal read error on pipe transport" : "Fatal read error on socket transport";
}

/* Bytes read; 0 at the end; -1 when there are none, and -2 with OSError. */
static ssize_t
receive(GioTransport *t, char *buf, size_t size)
{
    ssize_t n = t->pipe ? read(t->fd, buf, size) : recv(t->fd, buf, size, 0);
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -2;
    }
    return n;
}

static int
at_end(GioTransport *t)
{
    if (t->loop->debug && gio_transport_log(t, "received EOF", NULL) < 0) {
        return -1;
    }
    PyObject *protocol = Py_NewRef(t->protocol.object);
    PyObject *r = PyObject_CallMethodNoArgs(protocol, t->state->str_eof_received);
    Py_DECREF(protocol);
    int keep_open = r == NULL ? -1 : PyObject_IsTrue(r);
    Py_XDECREF(r);
    if (keep_open < 0) {
        return gio_transport_fatal(t, "Fatal error: protocol.eof_received() call failed.");
    }
    if (!keep_open) {
        return gio_transport_close(t);
    }
    return t->loop == NULL ? 0 : gio_poll_stop(&t->read);
}

PyObject *
gio_stream_receive(GioTransport *t)
{
    int size;
    if (t->bulky && ioctl(t->fd, FIONREAD, &size) == 0 && size >= LARGE) {
        size = size > GIO_READ_MAX ? GIO_READ_MAX : size;
        PyObject *data = PyBytes_FromStringAndSize(NULL, size);
        ssize_t n = data == NULL ? -2 : receive(t, PyBytes_AS_STRING(data), (size_t)size);
        if (n < 0) {
            Py_CLEAR(data);
        }
        else if (n != size) {
            _PyBytes_Resize(&data, n);
        }
        return data;
    }
    char *buf = gio_loop_scratch(t->loop);
    ssize_t n = buf == NULL ? -2 : receive(t, buf, GIO_READ_MAX);
    t->bulky = n >= LARGE;
    return n < 0 ? NULL : PyBytes_FromStringAndSize(buf, n);
}

static int
read_bytes(GioTransport *t)
{
    PyObject *data = gio_stream_receive(t);
    if (data == NULL) {
        return PyErr_Occurred() ? gio_transport_fatal(t, failure(t)) : 0;
    }
    if (PyBytes_GET_SIZE(data) == 0) {
        Py_DECREF(data);
        return at_end(t);
    }
    if (gio_protocol_data(&t->protocol, t->state, data) < 0) {
        return gio_transport_fatal(t, "Fatal error: protocol.data_received() call failed.");
    }
    return 0;
}

/* Into a buffer of the protocol's own. */
static int
read_buffered(GioTransport *t)
{
    Py_buffer view;
    if (gio_protocol_buffer(&t->protocol, t->state, &view) < 0) {
        return gio_transport_fatal(t, "Fatal error: protocol.get_buffer() call failed.");
    }
    ssize_t n = -1;
    if (t->read.started) { /* get_buffer() may have ended that */
        n = receive(t, view.buf, (size_t)view.len);
    }
    PyBuffer_Release(&view);
    if (n < 0) {
        return n == -1 ? 0 : gio_transport_fatal(t, failure(t));
    }
    if (t->loop == NULL) { /* the buffer's own end was the connection's */
        return 0;
    }
    if (n == 0) {
        return at_end(t);
    }
    if (gio_protocol_filled(&t->protocol, t->state, (size_t)n) < 0) {
        return gio_transport_fatal(t, "Fatal error: protocol.buffer_updated() call failed.");
    }
    return 0;
}

int
gio_stream_readable(GioLoop *Py_UNUSED(loop), PyObject *self)
{
    GioTransport *t = (GioTransport *)self;
    if (!t->read.started || t->conn_lost > 0) { /* since the poll */
        return 0;
    }
    return gio_transport_in_context(t, t->read_context,
                                    t->protocol.buffered ? read_buffered : read_bytes);
}

/* ---- a transport's start -------------------------------------------------------------------- */

PyObject *
gio_stream_ask(PyObject *sock, const char *method)
{
    PyObject *address = PyObject_CallMethod(sock, method, NULL);
    if (address == NULL && PyErr_ExceptionMatches(PyExc_OSError)) {
        PyErr_Clear();
        address = Py_NewRef(Py_None);
    }
    return address;
}

/* Steals the value; NULL: there is an exception. */
static int
add_extra(PyObject *extra, const char *key, PyObject *value)
{
    int r = value == NULL ? -1 : PyDict_SetItemString(extra, key, value);
    Py_XDECREF(value);
    return r;
}

int
gio_stream_describe(GioTransport *t)
{
    PyObject *extra = Py_NewRef(t->extra), *sock = Py_NewRef(t->file); /* t may let go of both */
    int r = add_extra(extra, "socket", PyObject_CallOneArg(t->state->transport_socket, sock));
    if (r == 0 && t->address != NULL) {
        r = add_extra(extra, "peername", Py_NewRef(t->address));
    }
    if (r == 0) {
        r = add_extra(extra, "sockname", gio_stream_ask(sock, "getsockname"));
    }
    Py_DECREF(sock);
    Py_DECREF(extra);
    return r;
}

PyObject *
gio_transport_extra(GioTransport *t)
{
    if (t->extra == NULL && (t->extra = PyDict_New()) == NULL) {
        return NULL;
    }
    if (t->undescribed && t->file != NULL) {
        t->undescribed = false;
        if (gio_stream_describe(t) < 0) {
            t->undescribed = true;
            return NULL;
        }
    }
    return t->extra;
}

/* Count as a user of the socket, as a file made from it does: whoever closes the socket, its fd
 * stays ours until we are done with it. Without that its number could come to mean another
 * connection, and our data go there. */
int
gio_stream_hold_socket(GioTransport *t)
{
    PyObject *users = PyObject_GetAttrString(t->file, "_io_refs");
    if (users == NULL) { /* not a socket.socket */
        PyErr_Clear();
        return 0;
    }
    PyObject *one = PyLong_FromLong(1), *more = one == NULL ? NULL : PyNumber_Add(users, one);
    int r = more == NULL ? -1 : PyObject_SetAttrString(t->file, "_io_refs", more);
    t->holds_socket = r == 0;
    Py_XDECREF(one);
    Py_XDECREF(more);
    Py_DECREF(users);
    return r;
}

static int
join_server(GioTransport *t, PyObject *server)
{
    if (server == NULL || server == Py_None) {
        return 0;
    }
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *r = PyObject_CallMethod(server, "_attach", "O", t);
#else
    PyObject *r = PyObject_CallMethod(server, "_attach", NULL);
#endif
    if (r != NULL) {
        t->server = Py_NewRef(server);
        Py_DECREF(r);
    }
    return r == NULL ? -1 : 0;
}

GioTransport *
gio_stream_new(GioLoop *loop, PyTypeObject *type, PyObject *sock, PyObject *protocol,
               PyObject *waiter, PyObject *extra, PyObject *peername, PyObject *server)
{
    GioTransport *t =
        gio_transport_new(type, loop, sock, protocol, extra, gio_stream_readable, gio_write_ready);
    if (t == NULL) {
        return NULL;
    }
    int on = 1; /* in vain on a Unix socket */
    setsockopt(t->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    t->undescribed = true;
    /* Of a peer that goes away, the socket would not know the name any more. */
    if (peername != NULL)
        t->address = Py_NewRef(peername);
    else if (extra == NULL || extra == Py_None || PyDict_GetItemString(extra, "peername") == NULL)
        t->address = gio_stream_ask(sock, "getpeername");
    if (PyErr_Occurred() || gio_polls_claim_fd(loop, t->fd, (PyObject *)t) < 0 ||
        gio_stream_hold_socket(t) < 0 || join_server(t, server) < 0 ||
        gio_transport_begin(t, waiter) < 0) {
        Py_CLEAR(t);
    }
    return t;
}

static PyObject *
loop_make_socket_transport(GioLoop *loop, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"sock", "protocol", "waiter", "extra", "server", NULL};
    PyObject *sock, *protocol, *waiter = NULL, *extra = NULL, *server = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$OO:_make_socket_transport", keywords,
                                     &sock, &protocol, &waiter, &extra, &server)) {
        return NULL;
    }
    if (extra != NULL && extra != Py_None && !PyDict_Check(extra)) {
        PyErr_Format(PyExc_TypeError, "what get_extra_info() knows is a dict, not %R", extra);
        return NULL;
    }
    return (PyObject *)gio_stream_new(loop, loop->state->stream_type, sock, protocol, waiter, extra,
                                      NULL, server);
}

/* ---- the Python face ----------------------------------------------------------------------------
 */

static PyObject *
stream_write_eof(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    if (t->closing || t->eof) {
        Py_RETURN_NONE;
    }
    if (gio_tls_flush_above(t) < 0) {
        return NULL;
    }
    t->eof = true;
    if (t->queue.bytes == 0 && shutdown(t->fd, SHUT_WR) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *
stream_can_write_eof(GioTransport *Py_UNUSED(t), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_TRUE;
}

static PyObject *
stream__make_empty_waiter(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    if (t->empty_waiter != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Empty waiter is already set");
        return NULL;
    }
    if (t->loop == NULL) {
        PyErr_SetString(PyExc_ConnectionError, "Connection is closed");
        return NULL;
    }
    t->empty_waiter = PyObject_CallMethod((PyObject *)t->loop, "create_future", NULL);
    if (t->empty_waiter != NULL && t->queue.bytes == 0) {
        PyObject *r = PyObject_CallMethod(t->empty_waiter, "set_result", "O", Py_None);
        if (r == NULL) {
            return NULL;
        }
        Py_DECREF(r);
    }
    return Py_XNewRef(t->empty_waiter);
}

static PyObject *
stream__reset_empty_waiter(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(t->empty_waiter);
    Py_RETURN_NONE;
}

static PyMethodDef stream_methods[] = {
    {"write_eof", (PyCFunction)stream_write_eof, METH_NOARGS,
     "write_eof($self, /)\n--\n\nSend what is left, then say that nothing more comes."},
    {"can_write_eof", (PyCFunction)stream_can_write_eof, METH_NOARGS,
     "can_write_eof($self, /)\n--\n\nTrue."},
    {"_make_empty_waiter", (PyCFunction)stream__make_empty_waiter, METH_NOARGS,
     "A future that is done when nothing is left to be sent; until it is reset, nobody writes."},
    {"_reset_empty_waiter", (PyCFunction)stream__reset_empty_waiter, METH_NOARGS, NULL},
    {NULL},
};

PyMethodDef gio_stream_loop_methods[] = {
    {"_make_socket_transport", (PyCFunction)(void (*)(void))loop_make_socket_transport,
     METH_VARARGS | METH_KEYWORDS, "A transport on a connected socket."},
    {NULL},
};

static PyMemberDef stream_members[] = {
    {"_sock", T_OBJECT, offsetof(GioTransport, file), READONLY, NULL},
    {"_sock_fd", T_INT, offsetof(GioTransport, fd), READONLY, NULL},
};

/* The constants by which loop.start_tls() and loop.sendfile() know whom they can work with. */
static int
add_constants(PyTypeObject *type)
{
    PyObject *constants = PyImport_ImportModule("asyncio.constants");
    PyObject *modes = constants == NULL ? NULL : PyObject_GetAttrString(constants, "_SendfileMode");
    PyObject *native = modes == NULL ? NULL : PyObject_GetAttrString(modes, "TRY_NATIVE");
    int r = -1;
    if (native != NULL &&
        PyObject_SetAttrString((PyObject *)type, "_sendfile_compatible", native) == 0) {
        r = PyObject_SetAttrString((PyObject *)type, "_start_tls_compatible", Py_True);
    }
    Py_XDECREF(native);
    Py_XDECREF(modes);
    Py_XDECREF(constants);
    return r;
}

int
gio_stream_add_members(PyTypeObject *type)
{
    for (size_t i = 0; i < sizeof stream_members / sizeof *stream_members; i++) {
        PyObject *member = PyDescr_NewMember(type, &stream_members[i]);
        int r = member == NULL
                    ? -1
                    : PyObject_SetAttrString((PyObject *)type, stream_members[i].name, member);
        Py_XDECREF(member);
        if (r < 0) {
            return -1;
        }
    }
    return 0;
}

int
gio_stream_setup_types(PyObject *module, GioState *st)
{
    PyMethodDef *tables[] = {gio_transport_read_methods, gio_write_methods, gio_flow_methods,
                             stream_methods, NULL};
    PyTypeObject *type = st->stream_type = gio_transport_add_type(
        module, "greenletio._core.StreamTransport", "_FlowControlMixin", NULL, tables);
    if (type == NULL || gio_stream_add_members(type) < 0) {
        return -1;
    }
    return add_constants(type);
}
