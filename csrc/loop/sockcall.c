/* The calls themselves: recv(2) and its kin, and the methods of Loop that begin them.
 *
 * In C if the socket is a plain socket.socket and the arguments are what they usually are. For
 * everything else (subclasses, SSL sockets, names to be resolved, keywords, mistakes) the method
 * that asyncio's loop has does it, exceptions included.
 */
#include "loop/sock.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <structmember.h>
#include <unistd.h>

#define LARGE (16 * 1024)          /* a read that is not worth copying */
#define WORTH_A_SWITCH (64 * 1024) /* bytes whose copying other threads need not wait for */

/* ---- attempts ------------------------------------------------------------------------- */

/* What a system call that returned -1 is to its attempt. */
static int
failed(void)
{
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
        return 0;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* recvfrom(2), without the address if `size` is NULL. */
static ssize_t
receive(GioSockOp *op, void *to, Py_ssize_t room, struct sockaddr_storage *from, socklen_t *size)
{
    int fd = GIO_SOCKET(op->sock)->fd;
    ssize_t n;
    if (size != NULL) {
        *size = sizeof *from;
        memset(from, 0, sizeof *from);
    }
    PyThreadState *released = room > WORTH_A_SWITCH * 4 ? PyEval_SaveThread() : NULL;
    do {
        n = recvfrom(fd, to, (size_t)room, MSG_DONTWAIT, (struct sockaddr *)from, size);
    } while (n < 0 && errno == EINTR);
    if (released != NULL) {
        PyEval_RestoreThread(released);
    }
    return n;
}

/* Receive bytes. How many will come is not known: mostly few, so through a buffer that is used
 * again and again. Straight into new memory where the last read was large, and where a message
 * could be larger than the buffer and be cut off. */
static int
receive_bytes(GioSockOp *op, struct sockaddr_storage *from, socklen_t *size, PyObject **result)
{
    bool stream = GIO_SOCKET(op->sock)->type == SOCK_STREAM;
    Py_ssize_t room = op->size < GIO_READ_MAX || !stream ? op->size : GIO_READ_MAX;
    GioSock *s = gio_sock_of(op);
    bool direct = room > GIO_READ_MAX || (room >= LARGE && s != NULL && s->bulky);
    PyObject *bytes = direct ? PyBytes_FromStringAndSize(NULL, room) : NULL;
    char *to =
        direct ? (bytes == NULL ? NULL : PyBytes_AS_STRING(bytes)) : gio_loop_scratch(op->loop);
    if (to == NULL) {
        return -1;
    }
    ssize_t n = receive(op, to, room, from, size);
    if (n < 0) {
        Py_XDECREF(bytes);
        return failed();
    }
    if (s != NULL) {
        s->bulky = n >= LARGE;
    }
    if (!direct) {
        bytes = PyBytes_FromStringAndSize(to, n);
    }
    else if (_PyBytes_Resize(&bytes, n) < 0) {
        return -1;
    }
    *result = bytes;
    return bytes == NULL ? -1 : 1;
}

static int
receive_into(GioSockOp *op, struct sockaddr_storage *from, socklen_t *size, PyObject **result)
{
    Py_buffer view;
    if (PyObject_GetBuffer(op->arg, &view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    int r = -1;
    if (op->size > view.len) {
        PyErr_SetString(PyExc_ValueError, "nbytes is greater than the length of the buffer");
    }
    else {
        ssize_t n = 0;
        if (view.len > 0 || size != NULL) { /* as socket.recv_into: nothing is asked for nothing */
            n = receive(op, view.buf, op->size > 0 ? op->size : view.len, from, size);
        }
        r = n < 0 ? failed() : 1;
        *result = r > 0 ? PyLong_FromSsize_t(n) : NULL;
        r = r > 0 && *result == NULL ? -1 : r;
    }
    PyBuffer_Release(&view);
    return r;
}

/* Make (what, address) of what was received, and the address. */
static int
with_address(const struct sockaddr_storage *from, socklen_t size, PyObject **result)
{
    PyObject *address = gio_address_to_python(from, size);
    PyObject *pair = address == NULL ? NULL : PyTuple_Pack(2, *result, address);
    Py_XDECREF(address);
    Py_SETREF(*result, pair);
    return pair == NULL ? -1 : 1;
}

static int
try_recv(GioSockOp *op, PyObject **result)
{
    return receive_bytes(op, NULL, NULL, result);
}

static int
try_recv_into(GioSockOp *op, PyObject **result)
{
    return receive_into(op, NULL, NULL, result);
}

static int
try_recvfrom(GioSockOp *op, PyObject **result)
{
    struct sockaddr_storage from;
    socklen_t size;
    int r = receive_bytes(op, &from, &size, result);
    return r <= 0 ? r : with_address(&from, size, result);
}

static int
try_recvfrom_into(GioSockOp *op, PyObject **result)
{
    struct sockaddr_storage from;
    socklen_t size;
    int r = receive_into(op, &from, &size, result);
    return r <= 0 ? r : with_address(&from, size, result);
}

static ssize_t
send_some(GioSockOp *op, const void *data, size_t n, const struct sockaddr_storage *to,
          socklen_t size)
{
    int fd = GIO_SOCKET(op->sock)->fd;
    ssize_t sent;
    PyThreadState *released = n > WORTH_A_SWITCH ? PyEval_SaveThread() : NULL;
    do {
        sent = sendto(fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL, (const struct sockaddr *)to, size);
    } while (sent < 0 && errno == EINTR);
    if (released != NULL) {
        PyEval_RestoreThread(released);
    }
    return sent;
}

static int
try_sendall(GioSockOp *op, PyObject **result)
{
    if (op->view.obj == NULL && PyObject_GetBuffer(op->arg, &op->view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    do {
        ssize_t n = send_some(op, (char *)op->view.buf + op->sent,
                              (size_t)(op->view.len - op->sent), NULL, 0);
        if (n < 0) {
            return failed();
        }
        op->sent += n;
    } while (op->sent < op->view.len);
    *result = Py_NewRef(Py_None);
    return 1;
}

static int
try_sendto(GioSockOp *op, PyObject **result)
{
    struct sockaddr_storage to;
    socklen_t size;
    if (!gio_address_from_python(GIO_SOCKET(op->sock)->family, op->address, &to, &size)) {
        PyErr_Format(PyExc_ValueError, "not an address: %R", op->address);
        return -1;
    }
    if (op->view.obj == NULL && (PySys_Audit("socket.sendto", "OO", op->sock, op->address) < 0 ||
                                 PyObject_GetBuffer(op->arg, &op->view, PyBUF_SIMPLE) < 0)) {
        return -1;
    }
    ssize_t n = send_some(op, op->view.buf, (size_t)op->view.len, &to, size);
    if (n < 0) {
        return failed();
    }
    *result = PyLong_FromSsize_t(n);
    return *result == NULL ? -1 : 1;
}

static int
try_accept(GioSockOp *op, PyObject **result)
{
    const GioSocketHead *listener = GIO_SOCKET(op->sock);
    GioState *st = op->loop->state;
    struct sockaddr_storage from = {0};
    socklen_t size = sizeof from;
    PyObject *conn = NULL, *address = NULL, *r = NULL;
    int fd;
    do {
        fd = accept4(listener->fd, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return failed();
    }
    conn = PyObject_CallFunction((PyObject *)st->socket_type, "iiii", listener->family,
                                 listener->type, listener->proto, fd);
    if (conn == NULL) {
        close(fd);
        return -1;
    }
    r = PyObject_CallMethod(conn, "setblocking", "O", Py_False);
    address = r == NULL ? NULL : gio_address_to_python(&from, size);
    *result = address == NULL ? NULL : PyTuple_Pack(2, conn, address);
    Py_XDECREF(address);
    Py_XDECREF(r);
    Py_DECREF(conn);
    return *result == NULL ? -1 : 1;
}

/* The outcome of connect_ex(), or of SO_ERROR. */
static int
connect_failed(GioSockOp *op, int error)
{
    PyObject *text = PyUnicode_FromFormat("Connect call failed %S", op->address);
    PyObject *exc = text == NULL ? NULL : PyObject_CallFunction(PyExc_OSError, "iN", error, text);
    if (exc != NULL) {
        gio_err_give(exc);
    }
    return -1;
}

static int
try_connect(GioSockOp *op, PyObject **result)
{
    int error = 0;
    if (!op->connecting) {
        op->connecting = true;
        /* The socket's own method knows every family; the system call is what costs. */
        PyObject *r = PyObject_CallMethod(op->sock, "connect_ex", "(O)", op->address);
        error = r == NULL ? -1 : (int)PyLong_AsLong(r);
        Py_XDECREF(r);
        if (error < 0) {
            return -1;
        }
        if (error == EINPROGRESS || error == EINTR) {
            return 0;
        }
        if (error != 0) { /* EAGAIN, too: a Unix socket's backlog is full, and nothing tells when */
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    else {
        /* No error may also mean that it is connecting still, and we were called for nothing. */
        struct pollfd p = {.fd = GIO_SOCKET(op->sock)->fd, .events = POLLOUT};
        socklen_t size = sizeof error;
        if (poll(&p, 1, 0) == 0) {
            return 0;
        }
        if (getsockopt(p.fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (error != 0) {
            return connect_failed(op, error);
        }
    }
    *result = Py_NewRef(Py_None);
    return 1;
}

static const GioSockKind kind_recv = {"sock_recv", 0, try_recv};
static const GioSockKind kind_recv_into = {"sock_recv_into", 0, try_recv_into};
static const GioSockKind kind_recvfrom = {"sock_recvfrom", 0, try_recvfrom};
static const GioSockKind kind_recvfrom_into = {"sock_recvfrom_into", 0, try_recvfrom_into};
static const GioSockKind kind_sendall = {"sock_sendall", 1, try_sendall};
static const GioSockKind kind_sendto = {"sock_sendto", 1, try_sendto};
static const GioSockKind kind_accept = {"sock_accept", 0, try_accept};
static const GioSockKind kind_connect = {"sock_connect", 1, try_connect};

/* ---- who may have it in C ----------------------------------------------------------------- */

/* The place of a C field that a Python attribute of the type stands for; -1: there is none. */
static Py_ssize_t
member_offset(PyTypeObject *type, const char *name)
{
    PyObject *member = PyObject_GetAttrString((PyObject *)type, name);
    Py_ssize_t offset = -1;
    if (member == NULL) {
        PyErr_Clear();
    }
    else if (Py_IS_TYPE(member, &PyMemberDescr_Type)) {
        offset = ((PyMemberDescrObject *)member)->d_member->offset;
    }
    Py_XDECREF(member);
    return offset;
}

/* Whether the fd is where we look for it, asked of the first open socket that comes by. */
GIO_COLD static bool
layout_verified(GioState *st, PyObject *sock)
{
    int fd = PyObject_AsFileDescriptor(sock);
    if (fd < 0) { /* closed: let asyncio say so */
        PyErr_Clear();
        return false;
    }
    PyTypeObject *base = st->socket_type->tp_base;
    st->socket_layout = fd == GIO_SOCKET(sock)->fd &&
                                member_offset(base, "family") == offsetof(GioSocketHead, family) &&
                                member_offset(base, "type") == offsetof(GioSocketHead, type) &&
                                member_offset(base, "proto") == offsetof(GioSocketHead, proto)
                            ? 1
                            : -1;
    return st->socket_layout > 0;
}

static bool
plain(GioState *st, PyObject *sock)
{
    return Py_IS_TYPE(sock, st->socket_type) &&
           (st->socket_layout > 0 || (st->socket_layout == 0 && layout_verified(st, sock)));
}

static bool
has_address(PyObject *sock)
{
    int family = GIO_SOCKET(sock)->family;
    return family == AF_INET || family == AF_INET6 || family == AF_UNIX;
}

/* accept(2) and connect(2) take no MSG_DONTWAIT. */
static bool
nonblocking(PyObject *sock)
{
    PyObject *timeout = PyObject_CallMethod(sock, "gettimeout", NULL);
    bool yes = timeout != NULL && PyFloat_Check(timeout) && PyFloat_AS_DOUBLE(timeout) == 0.0;
    Py_XDECREF(timeout);
    PyErr_Clear();
    return yes;
}

/* An int from `least` upwards, or -1. */
static Py_ssize_t
count_of(PyObject *obj, Py_ssize_t least)
{
    Py_ssize_t n = PyLong_CheckExact(obj) ? PyLong_AsSsize_t(obj) : -1;
    if (n < least) {
        PyErr_Clear();
        return -1;
    }
    return n;
}

/* The method of the loop that is asyncio's own. */
GIO_COLD static PyObject *
inherited(GioLoop *loop, const GioSockKind *kind, PyObject *const *args, Py_ssize_t nargs,
          PyObject *kwnames)
{
    PyObject *module = PyImport_ImportModule("asyncio.selector_events");
    PyObject *type =
        module == NULL ? NULL : PyObject_GetAttrString(module, "BaseSelectorEventLoop");
    PyObject *method = type == NULL ? NULL : PyObject_GetAttrString(type, kind->name), *r = NULL;
    Py_ssize_t n = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject **all = method == NULL ? NULL : PyMem_Malloc((size_t)(n + 1) * sizeof *all);
    if (all != NULL) {
        all[0] = (PyObject *)loop;
        memcpy(all + 1, args, (size_t)n * sizeof *all);
        r = PyObject_Vectorcall(method, all, (size_t)nargs + 1, kwnames);
        PyMem_Free(all);
    }
    else if (method != NULL) {
        PyErr_NoMemory();
    }
    Py_XDECREF(method);
    Py_XDECREF(type);
    Py_XDECREF(module);
    return r;
}

/* The awaitable of one call; arg and address may be NULL. */
static PyObject *
operation(GioLoop *loop, const GioSockKind *kind, PyObject *sock, PyObject *arg, PyObject *address,
          Py_ssize_t size)
{
    GioSockOp *op = gio_sockop_new(loop, kind, sock);
    if (op != NULL) {
        op->arg = Py_XNewRef(arg);
        op->address = Py_XNewRef(address);
        op->size = size;
    }
    return (PyObject *)op;
}

/* ---- the methods ----------------------------------------------------------------------------- */

#define ARGUMENTS GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames
#define GIVEN(n) (nargs == (n) && kwnames == NULL && plain(loop->state, args[0]))
#define INHERITED(kind) inherited(loop, kind, args, nargs, kwnames)

static PyObject *
loop_sock_recv(ARGUMENTS)
{
    Py_ssize_t n;
    if (GIVEN(2) && (n = count_of(args[1], 1)) > 0) {
        return operation(loop, &kind_recv, args[0], NULL, NULL, n);
    }
    return INHERITED(&kind_recv);
}

static PyObject *
loop_sock_recv_into(ARGUMENTS)
{
    if (GIVEN(2)) {
        return operation(loop, &kind_recv_into, args[0], args[1], NULL, 0);
    }
    return INHERITED(&kind_recv_into);
}

static PyObject *
loop_sock_recvfrom(ARGUMENTS)
{
    Py_ssize_t n;
    if (GIVEN(2) && has_address(args[0]) && (n = count_of(args[1], 0)) >= 0) {
        return operation(loop, &kind_recvfrom, args[0], NULL, NULL, n);
    }
    return INHERITED(&kind_recvfrom);
}

static PyObject *
loop_sock_recvfrom_into(ARGUMENTS)
{
    Py_ssize_t n = 0;
    if ((GIVEN(2) || (GIVEN(3) && (n = count_of(args[2], 0)) >= 0)) && has_address(args[0])) {
        return operation(loop, &kind_recvfrom_into, args[0], args[1], NULL, n);
    }
    return INHERITED(&kind_recvfrom_into);
}

static PyObject *
loop_sock_sendall(ARGUMENTS)
{
    if (GIVEN(2)) {
        return operation(loop, &kind_sendall, args[0], args[1], NULL, 0);
    }
    return INHERITED(&kind_sendall);
}

static PyObject *
loop_sock_sendto(ARGUMENTS)
{
    struct sockaddr_storage to;
    socklen_t size;
    if (GIVEN(3) && gio_address_from_python(GIO_SOCKET(args[0])->family, args[2], &to, &size)) {
        return operation(loop, &kind_sendto, args[0], args[1], args[2], 0);
    }
    return INHERITED(&kind_sendto);
}

static PyObject *
loop_sock_accept(ARGUMENTS)
{
    if (GIVEN(1) && has_address(args[0]) && nonblocking(args[0])) {
        return operation(loop, &kind_accept, args[0], NULL, NULL, 0);
    }
    return INHERITED(&kind_accept);
}

/* Whether there is nothing to resolve, as asyncio sees it. */
static bool
resolved(const GioSocketHead *sock, PyObject *address)
{
    struct sockaddr_storage to;
    socklen_t size;
    if (sock->family != AF_INET && sock->family != AF_INET6) {
        return true;
    }
    return (sock->type == SOCK_STREAM || sock->type == SOCK_DGRAM) &&
           gio_address_from_python(sock->family, address, &to, &size);
}

static PyObject *
loop_sock_connect(ARGUMENTS)
{
    if (!GIVEN(2) || !nonblocking(args[0]) || !resolved(GIO_SOCKET(args[0]), args[1])) {
        return INHERITED(&kind_connect);
    }
    if (GIO_SOCKET(args[0])->family == AF_INET6 && PyTuple_GET_SIZE(args[1]) == 2) {
        /* In full, as asyncio has it in what it says of a failure. */
        PyObject *full = Py_BuildValue("(OOii)", PyTuple_GET_ITEM(args[1], 0),
                                       PyTuple_GET_ITEM(args[1], 1), 0, 0);
        PyObject *op = full == NULL ? NULL : operation(loop, &kind_connect, args[0], NULL, full, 0);
        Py_XDECREF(full);
        return op;
    }
    return operation(loop, &kind_connect, args[0], NULL, args[1], 0);
}

int
gio_sockcall_setup(GioState *st)
{
    PyObject *module = PyImport_ImportModule("socket");
    PyObject *type = module == NULL ? NULL : PyObject_GetAttrString(module, "socket");
    Py_XDECREF(module);
    if (type != NULL && !PyType_Check(type)) {
        PyErr_SetString(PyExc_TypeError, "socket.socket is not a type");
        Py_CLEAR(type);
    }
    st->socket_type = (PyTypeObject *)type;
    return type == NULL ? -1 : 0;
}

#define METHOD(name, doc)                                                                          \
    {#name, (PyCFunction)(void (*)(void))loop_##name, METH_FASTCALL | METH_KEYWORDS, doc}

PyMethodDef gio_sock_methods[] = {
    METHOD(sock_recv, "sock_recv($self, sock, n)\n--\n\n"
                      "Receive at least one byte and at most n: bytes, empty at the end."),
    METHOD(sock_recv_into, "sock_recv_into($self, sock, buf)\n--\n\n"
                           "Receive into a buffer; the number of bytes."),
    METHOD(sock_recvfrom, "sock_recvfrom($self, sock, bufsize)\n--\n\n"
                          "Receive a datagram: (bytes, address)."),
    METHOD(sock_recvfrom_into, "sock_recvfrom_into($self, sock, buf, nbytes=0)\n--\n\n"
                               "Receive a datagram into a buffer: (number of bytes, address)."),
    METHOD(sock_sendall, "sock_sendall($self, sock, data)\n--\n\n"
                         "Send all of data. After an exception nobody knows how much was sent."),
    METHOD(sock_sendto, "sock_sendto($self, sock, data, address)\n--\n\n"
                        "Send a datagram; the number of bytes."),
    METHOD(sock_accept, "sock_accept($self, sock)\n--\n\n"
                        "Accept a connection: (socket that does not block, address)."),
    METHOD(sock_connect, "sock_connect($self, sock, address)\n--\n\n"
                         "Connect, after the name was resolved if it is no IP address."),
    {NULL},
};
