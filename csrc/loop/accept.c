/* Accepting connections.
 *
 * A listening socket is watched as add_reader() would; what is run then takes every connection
 * that waits, and makes its transport at once: no task, and no further turn of the loop.
 */
#include "loop/sock.h"
#include "loop/transport.h"

#include <errno.h>
#include <unistd.h>

typedef struct {
    PyObject *factory, *sock, *server; /* borrowed */
    PyObject *family, *type, *proto;   /* of the socket */
} Listener;

static PyObject *
socket_from(GioLoop *loop, Listener *l, int fd)
{
    PyObject *number = PyLong_FromLong(fd), *sock = NULL;
    if (number != NULL) {
        PyObject *args[] = {NULL, l->family, l->type, l->proto, number};
        sock = PyObject_Vectorcall((PyObject *)loop->state->socket_type, args + 1,
                                   4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        Py_DECREF(number);
    }
    if (sock == NULL) {
        close(fd);
        return NULL;
    }
    PyObject *r = PyObject_CallMethod(sock, "setblocking", "O", Py_False);
    if (r == NULL) {
        Py_CLEAR(sock);
    }
    Py_XDECREF(r);
    return sock;
}

/* What a server's protocol factory makes gets a transport of its own. */
static int
serve(GioLoop *loop, Listener *l, PyObject *sock, PyObject *peername)
{
    PyObject *protocol = PyObject_CallNoArgs(l->factory);
    GioTransport *t = NULL;
    if (protocol != NULL) {
        t = gio_stream_new(loop, loop->state->stream_type, sock, protocol, NULL, NULL, peername,
                           l->server);
    }
    int r = t == NULL ? -1 : 0;
    Py_XDECREF(protocol);
    Py_XDECREF(t);
    return r;
}

/* -1 only if it ends the loop's run. */
static int
accepted(GioLoop *loop, Listener *l, int fd, const struct sockaddr_storage *address, socklen_t size)
{
    PyObject *sock = socket_from(loop, l, fd);
    PyObject *peername = sock == NULL ? NULL : gio_address_to_python(address, size);
    PyObject *context = peername == NULL ? NULL : PyContext_CopyCurrent();
    int r = context == NULL ? -1 : PyContext_Enter(context);
    if (r == 0) {
        r = serve(loop, l, sock, peername);
        PyObject *exc = r < 0 ? gio_err_take() : NULL;
        PyContext_Exit(context);
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
    if (r < 0) {
        r = gio_loop_report(loop, "Error on transport creation for incoming connection", "socket",
                            sock);
        PyObject *exc = r < 0 ? gio_err_take() : NULL;
        PyObject *closed = sock == NULL ? NULL : PyObject_CallMethod(sock, "close", NULL);
        if (closed == NULL && PyErr_Occurred()) {
            PyErr_WriteUnraisable(sock);
        }
        Py_XDECREF(closed);
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
    Py_XDECREF(context);
    Py_XDECREF(peername);
    Py_XDECREF(sock);
    return r;
}

static int
accept_all(GioLoop *loop, Listener *l, long backlog)
{
    for (long i = 0; i < backlog; i++) {
        struct sockaddr_storage address;
        socklen_t size = sizeof address;
        int listening = PyObject_AsFileDescriptor(l->sock); /* a factory may have closed it */
        if (listening < 0) {
            PyErr_Clear();
            return 0;
        }
        int fd =
            accept4(listening, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ||
                errno == ECONNABORTED) {
                return 0;
            }
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (accepted(loop, l, fd, &address, size) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
loop_accept(GioLoop *loop, PyObject *args)
{
    Listener l = {.family = NULL};
    long backlog;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OOOl:_accept", &l.factory, &l.sock, &l.server, &backlog) ||
        gio_loop_check_idle(loop) < 0) {
        return NULL;
    }
    l.family = PyObject_GetAttrString(l.sock, "family");
    l.type = PyObject_GetAttrString(l.sock, "type");
    l.proto = PyObject_GetAttrString(l.sock, "proto");
    if (l.family != NULL && l.type != NULL && l.proto != NULL) {
        if (accept_all(loop, &l, backlog) == 0) {
            result = Py_NewRef(Py_None);
        }
        else if (!gio_ends_run()) {
            PyObject *exc = gio_err_take();
            result = PyObject_CallMethod((PyObject *)loop, "_accept_failed", "OOOOl", exc,
                                         l.factory, l.sock, l.server, backlog);
            Py_DECREF(exc);
        }
    }
    Py_XDECREF(l.family);
    Py_XDECREF(l.type);
    Py_XDECREF(l.proto);
    return result;
}

PyMethodDef gio_accept_loop_methods[] = {
    {"_accept", (PyCFunction)loop_accept, METH_VARARGS,
     "Take every connection that waits at a listening socket."},
    {NULL},
};
