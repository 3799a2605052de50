/* GreenSocket: the methods of green.socket.socket that move bytes.
 *
 * A mix-in without fields of its own, to stand before socket.socket in a class whose descriptor is
 * nonblocking and whose `_timeout` is what the user has set. Each method tries first and waits
 * only after EAGAIN. The GIL is kept: no call here blocks. What is received goes through one
 * buffer, which is safe because nothing runs between the call and the copy.
 */
#include "sync/sync.h"

#include <errno.h>
#include <sys/socket.h>

#define DIRECT_MAX 2048  /* up to here, bytes of the asked-for size are made at once */
#define MUCH (16 * 1024) /* from here on a copy costs more than memory that is cut to size */

int
gio_op_begin(GioOp *op, PyTypeObject *cls, PyObject *self, int flags)
{
    op->st = PyType_GetModuleState(cls);
    op->self = self;
    op->flags = flags;
    op->deadline = GIO_NEVER;
    PyObject *timeout = PyObject_GetAttr(self, op->st->str_timeout);
    if (timeout == NULL) {
        return -1;
    }
    op->endless = timeout == Py_None;
    double seconds = op->endless ? 0 : PyFloat_AsDouble(timeout);
    op->blocking = (op->endless || seconds != 0) && !(flags & MSG_DONTWAIT);
    int r = seconds == -1.0 && PyErr_Occurred() ? -1 : 0;
    if (r == 0 && op->blocking && !op->endless) {
        r = gio_deadline(timeout, &op->deadline);
    }
    Py_DECREF(timeout);
    return r;
}

int
gio_op_fd(GioOp *op)
{
    PyObject *number = PyObject_CallMethodNoArgs(op->self, op->st->str_fileno);
    if (number == NULL) {
        return -1;
    }
    int fd = gio_as_int(number);
    Py_DECREF(number);
    if (fd < 0 && !PyErr_Occurred()) {
        errno = EBADF;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return fd;
}

int
gio_op_again(GioOp *op, int fd, int events, const char *timed_out)
{
    if (errno == EINTR) {
        return PyErr_CheckSignals();
    }
    if ((errno != EAGAIN && errno != EWOULDBLOCK) || !op->blocking) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    int r = gio_wait_fd(op->st, fd, events | GIO_KEEP, op->deadline);
    if (r == 0) {
        PyErr_SetString(PyExc_TimeoutError, timed_out);
        return -1;
    }
    return r < 0 ? -1 : 0;
}

char *
gio_sync_buffer(GioState *st)
{
    if (st->receive_buffer == NULL) {
        st->receive_buffer = PyMem_Malloc(GIO_SYNC_BUFFER);
        if (st->receive_buffer == NULL) {
            PyErr_NoMemory();
        }
    }
    return st->receive_buffer;
}

char *
gio_sync_take(GioState *st)
{
    char *taken = gio_sync_buffer(st);
    st->receive_buffer = NULL;
    return taken;
}

void
gio_sync_give(GioState *st, char *taken)
{
    PyMem_Free(st->receive_buffer); /* of whoever needed some meanwhile, and is done */
    st->receive_buffer = taken;
}

static Py_ssize_t
op_send(GioOp *op, const char *data, size_t size)
{
    for (;;) {
        int fd = gio_op_fd(op);
        if (fd < 0) {
            return -1;
        }
        ssize_t n = send(fd, data, size, op->flags | MSG_NOSIGNAL);
        if (n >= 0) {
            return n;
        }
        if (gio_op_again(op, fd, GIO_WRITE, "timed out") < 0) {
            return -1;
        }
    }
}

static Py_ssize_t
op_recv(GioOp *op, char *data, size_t size)
{
    for (;;) {
        int fd = gio_op_fd(op);
        if (fd < 0) {
            return -1;
        }
        ssize_t n = recv(fd, data, size, op->flags & ~MSG_WAITALL);
        if (n >= 0) {
            return n;
        }
        if (gio_op_again(op, fd, GIO_READ, "timed out") < 0) {
            return -1;
        }
    }
}

/* MSG_WAITALL waits for all of it only where nothing limits the wait, as in the kernel. */
static Py_ssize_t
op_recv_all(GioOp *op, char *data, size_t size)
{
    bool all = op->flags & MSG_WAITALL && op->endless && !(op->flags & (MSG_DONTWAIT | MSG_PEEK));
    size_t got = 0;
    if (size == 0) {
        return 0; /* as _socket: nothing is asked for, nothing is waited for */
    }
    do {
        Py_ssize_t n = op_recv(op, data + got, size - got);
        if (n < 0) {
            return -1;
        }
        if (n == 0) {
            break;
        }
        got += (size_t)n;
    } while (all && got < size);
    return (Py_ssize_t)got;
}

/* ---- arguments -------------------------------------------------------------------------- */

static int
count_args(Py_ssize_t nargs, PyObject *kwnames, Py_ssize_t most, const char *name)
{
    if (kwnames != NULL && PyTuple_GET_SIZE(kwnames) > 0) {
        PyErr_Format(PyExc_TypeError, "socket.%s() takes no keyword arguments", name);
        return -1;
    }
    if (nargs < 1 || nargs > most) {
        PyErr_Format(PyExc_TypeError, "%s() takes from 1 to %zd arguments (%zd given)", name, most,
                     nargs);
        return -1;
    }
    return 0;
}

static int
int_arg(PyObject *const *args, Py_ssize_t nargs, Py_ssize_t i, int *value)
{
    *value = i < nargs ? gio_as_int(args[i]) : 0;
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

/* ---- methods ------------------------------------------------------------------------------ */

/* What comes is mostly less than what may come: it is copied out of the shared memory. Where the
 * last was much, this one may be, too, and is received where it will stay. */
static PyObject *
recv_large(GioOp *op, size_t size)
{
    for (;;) {
        int fd = gio_op_fd(op);
        char *shared = fd < 0 ? NULL : gio_sync_buffer(op->st);
        if (shared == NULL) {
            return NULL;
        }
        PyObject *data = NULL;
        if (op->st->much_received) {
            data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
            if (data == NULL) {
                return NULL;
            }
        }
        ssize_t n = recv(fd, data == NULL ? shared : PyBytes_AS_STRING(data), size, op->flags);
        if (n >= 0) {
            op->st->much_received = n >= MUCH;
            if (data == NULL) {
                return PyBytes_FromStringAndSize(shared, n);
            }
            if ((size_t)n != size) {
                _PyBytes_Resize(&data, n);
            }
            return data;
        }
        int error = errno;
        Py_XDECREF(data); /* not kept while it waits */
        errno = error;
        if (gio_op_again(op, fd, GIO_READ, "timed out") < 0) {
            return NULL;
        }
    }
}

static PyObject *
socket_recv(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
            PyObject *kwnames)
{
    GioOp op;
    int flags;
    if (count_args(nargs, kwnames, 2, "recv") < 0 || int_arg(args, nargs, 1, &flags) < 0) {
        return NULL;
    }
    Py_ssize_t size = PyNumber_AsSsize_t(args[0], PyExc_OverflowError);
    if (size == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "negative buffersize in recv");
        return NULL;
    }
    if (gio_op_begin(&op, cls, self, flags) < 0) {
        return NULL;
    }
    if (size > DIRECT_MAX && size <= GIO_SYNC_BUFFER && !(flags & (MSG_WAITALL | MSG_TRUNC))) {
        return recv_large(&op, (size_t)size);
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (data == NULL) {
        return NULL;
    }
    if (flags & MSG_TRUNC) { /* the number says more than was received, or nothing was */
        memset(PyBytes_AS_STRING(data), 0, (size_t)size);
    }
    Py_ssize_t n = op_recv_all(&op, PyBytes_AS_STRING(data), (size_t)size);
    if (n < 0) {
        Py_DECREF(data);
        return NULL;
    }
    if (n != size && _PyBytes_Resize(&data, n) == 0 && n > size) {
        memset(PyBytes_AS_STRING(data) + size, 0, (size_t)(n - size));
    }
    return data;
}

static PyObject *
socket_recv_into(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *kwnames)
{
    static const char *const names[] = {"buffer", "nbytes", "flags"};
    PyObject *given[3] = {NULL};
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    if (nargs > 3) {
        PyErr_Format(PyExc_TypeError, "recv_into() takes at most 3 arguments (%zd given)", nargs);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < nargs; i++) {
        given[i] = args[i];
    }
    for (Py_ssize_t k = 0; k < nkw; k++) {
        int i = 0;
        while (i < 3 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, k), names[i])) {
            i++;
        }
        if (i == 3 || given[i] != NULL) {
            PyErr_Format(PyExc_TypeError, "recv_into() got an unexpected or repeated argument %R",
                         PyTuple_GET_ITEM(kwnames, k));
            return NULL;
        }
        given[i] = args[nargs + k];
    }
    if (given[0] == NULL) {
        PyErr_SetString(PyExc_TypeError, "recv_into() needs a buffer");
        return NULL;
    }
    Py_ssize_t size = given[1] == NULL ? 0 : PyNumber_AsSsize_t(given[1], PyExc_OverflowError);
    int flags;
    if ((size == -1 && PyErr_Occurred()) ||
        int_arg(given, given[2] != NULL ? 3 : 0, 2, &flags) < 0) {
        return NULL;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(given[0], &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    GioOp op;
    Py_ssize_t n = -1;
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "negative buffersize in recv_into");
    }
    else if (size > view.len) {
        PyErr_SetString(PyExc_ValueError, "buffer too small for requested bytes");
    }
    else if (gio_op_begin(&op, cls, self, flags) == 0) {
        n = op_recv_all(&op, view.buf, (size_t)(size ? size : view.len));
    }
    PyBuffer_Release(&view);
    return n < 0 ? NULL : PyLong_FromSsize_t(n);
}

/* Sends once, or until all is sent. */
static PyObject *
do_send(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
        PyObject *kwnames, bool all)
{
    GioOp op;
    Py_buffer view;
    int flags;
    if (count_args(nargs, kwnames, 2, all ? "sendall" : "send") < 0 ||
        int_arg(args, nargs, 1, &flags) < 0 || gio_op_begin(&op, cls, self, flags) < 0 ||
        PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    Py_ssize_t n, sent = 0;
    do {
        n = op_send(&op, (const char *)view.buf + sent, (size_t)(view.len - sent));
        sent += n;
    } while (all && n >= 0 && sent < view.len);
    PyBuffer_Release(&view);
    return n < 0 ? NULL : all ? Py_NewRef(Py_None) : PyLong_FromSsize_t(sent);
}

static PyObject *
socket_send(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
            PyObject *kwnames)
{
    return do_send(self, cls, args, nargs, kwnames, false);
}

static PyObject *
socket_sendall(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
               PyObject *kwnames)
{
    return do_send(self, cls, args, nargs, kwnames, true);
}

#define METHOD(name, doc)                                                                          \
    {#name, (PyCFunction)(void (*)(void))socket_##name,                                            \
     METH_METHOD | METH_FASTCALL | METH_KEYWORDS, doc}

static PyMethodDef socket_methods[] = {
    METHOD(recv, "recv($self, bufsize, flags=0, /)\n--\n\n"
                 "Receive up to bufsize bytes, waiting for the first; b'' at the end."),
    METHOD(recv_into, "recv_into($self, buffer, nbytes=0, flags=0)\n--\n\n"
                      "Receive into a buffer, up to nbytes (0: its size); the number received."),
    METHOD(send, "send($self, data, flags=0, /)\n--\n\n"
                 "Send what fits, waiting until something does; the number of bytes sent."),
    METHOD(sendall, "sendall($self, data, flags=0, /)\n--\n\n"
                    "Send all of data, waiting as often as it takes."),
    {NULL},
};

static PyType_Slot socket_slots[] = {
    {Py_tp_doc, "The methods of a green socket that move bytes."},
    {Py_tp_methods, socket_methods},
    {0, NULL},
};

static PyType_Spec socket_spec = {
    .name = "greenletio._core.GreenSocket",
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = socket_slots,
};

int
gio_socket_setup_types(PyObject *module, GioState *st)
{
    st->green_socket_type = gio_add_type(module, &socket_spec, NULL, true);
    return st->green_socket_type == NULL ? -1 : 0;
}
