/* ReadPipeTransport and WritePipeTransport: one end of a pipe, FIFO, pty, or socket used as one.
 *
 * A subprocess's stdin, stdout and stderr are these. Writing ends watch for reading, too: that
 * is how they learn that their reader has gone.
 */
#include "loop/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static int
schedule(GioTransport *t, PyObject *owner, PyObject *name)
{
    PyObject *method = PyObject_GetAttr(owner, name);
    int r = method == NULL ? -1 : gio_transport_soon(t, NULL, method, NULL, 0);
    Py_XDECREF(method);
    return r;
}

static int
read_pipe(GioTransport *t)
{
    PyObject *data = gio_stream_receive(t);
    if (data == NULL) {
        return PyErr_Occurred() ? gio_transport_fatal(t, "Fatal read error on pipe transport") : 0;
    }
    if (PyBytes_GET_SIZE(data) > 0) {
        int r = gio_protocol_data(&t->protocol, t->state, data);
        return r < 0 ? gio_transport_report(t, "protocol.data_received() failed") : 0;
    }
    Py_DECREF(data);
    if (t->loop->debug && gio_transport_log(t, "was closed by peer", NULL) < 0) {
        return -1;
    }
    if (schedule(t, t->protocol.object, t->state->str_eof_received) < 0) {
        return gio_transport_fatal(t, "eof_received() could not be called");
    }
    return gio_transport_close(t);
}

static int
readable(GioLoop *Py_UNUSED(loop), PyObject *self)
{
    GioTransport *t = (GioTransport *)self;
    return t->read.started ? gio_transport_in_context(t, t->read_context, read_pipe) : 0;
}

/* The reader of a pipe that is written to has gone. */
static int
reader_gone(GioLoop *loop, PyObject *self)
{
    GioTransport *t = (GioTransport *)self;
    if (!t->read.started) {
        return 0;
    }
    if (loop->debug && gio_transport_log(t, "was closed by peer", NULL) < 0) {
        return -1;
    }
    PyObject *exc = t->queue.bytes > 0 ? PyObject_CallNoArgs(PyExc_BrokenPipeError) : NULL;
    if (exc == NULL && PyErr_Occurred()) {
        return gio_transport_report(t, "Out of memory");
    }
    int r = gio_transport_force_close(t, exc);
    Py_XDECREF(exc);
    return r;
}

/* ---- making them -------------------------------------------------------------------------- */

static GioTransport *
pipe_new(GioLoop *loop, bool writes, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"pipe", "protocol", "waiter", "extra", NULL};
    PyObject *pipe, *protocol, *waiter = NULL, *extra = NULL;
    struct stat s;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OO", keywords, &pipe, &protocol, &waiter,
                                     &extra)) {
        return NULL;
    }
    int fd = PyObject_AsFileDescriptor(pipe);
    if (fd < 0) {
        return NULL;
    }
    if (fstat(fd, &s) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    if (!S_ISFIFO(s.st_mode) && !S_ISSOCK(s.st_mode) && !S_ISCHR(s.st_mode)) {
        PyErr_SetString(PyExc_ValueError,
                        writes ? "Pipe transport is only for pipes, sockets and character devices"
                               : "Pipe transport is for pipes/sockets only.");
        return NULL;
    }
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    GioState *st = loop->state;
    GioTransport *t =
        gio_transport_new(writes ? st->write_pipe_type : st->read_pipe_type, loop, pipe, protocol,
                          extra, writes ? reader_gone : readable, gio_write_ready);
    if (t == NULL) {
        return NULL;
    }
    t->pipe = true;
    t->quiet_errno = writes ? 0 : EIO;
    t->paused = writes && S_ISCHR(s.st_mode); /* it cannot tell: it never starts to look */
    PyObject *known = gio_transport_extra(t);
    if (known == NULL || PyDict_SetItemString(known, "pipe", pipe) < 0 ||
        gio_transport_begin(t, waiter) < 0) {
        Py_CLEAR(t);
    }
    return t;
}

static PyObject *
loop_make_read_pipe_transport(GioLoop *loop, PyObject *args, PyObject *kwargs)
{
    return (PyObject *)pipe_new(loop, false, args, kwargs);
}

static PyObject *
loop_make_write_pipe_transport(GioLoop *loop, PyObject *args, PyObject *kwargs)
{
    return (PyObject *)pipe_new(loop, true, args, kwargs);
}

static PyObject *
pipe_can_write_eof(GioTransport *Py_UNUSED(t), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_TRUE;
}

static PyObject *
pipe_write_eof(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    if (gio_transport_close(t) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef write_pipe_methods[] = {
    {"write_eof", (PyCFunction)pipe_write_eof, METH_NOARGS,
     "write_eof($self, /)\n--\n\nThe same as close(): a pipe has but one direction."},
    {"can_write_eof", (PyCFunction)pipe_can_write_eof, METH_NOARGS,
     "can_write_eof($self, /)\n--\n\nTrue."},
    {NULL},
};

#define KEYWORDS(fn) ((PyCFunction)(void (*)(void))(fn))

PyMethodDef gio_pipe_loop_methods[] = {
    {"_make_read_pipe_transport", KEYWORDS(loop_make_read_pipe_transport),
     METH_VARARGS | METH_KEYWORDS, "A transport on the end of a pipe that is read."},
    {"_make_write_pipe_transport", KEYWORDS(loop_make_write_pipe_transport),
     METH_VARARGS | METH_KEYWORDS, "A transport on the end of a pipe that is written to."},
    {NULL},
};

int
gio_pipe_setup_types(PyObject *module, GioState *st)
{
    PyMethodDef *reading[] = {gio_transport_read_methods, NULL};
    PyMethodDef *writing[] = {gio_write_methods, gio_flow_methods, write_pipe_methods, NULL};
    st->read_pipe_type = gio_transport_add_type(module, "greenletio._core.ReadPipeTransport",
                                                "ReadTransport", NULL, reading);
    if (st->read_pipe_type == NULL) {
        return -1;
    }
    st->write_pipe_type = gio_transport_add_type(module, "greenletio._core.WritePipeTransport",
                                                 "_FlowControlMixin", NULL, writing);
    return st->write_pipe_type == NULL ? -1 : 0;
}
