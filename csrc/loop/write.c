/* Sending: what the kernel does not take at once is queued, and the protocol is told to pause.
 *
 * Data is never copied while it can be referred to: a piece keeps the bytes object that it is
 * part of. What others could change meanwhile (a bytearray) is copied.
 */
#include "loop/transport.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define BATCH 256            /* pieces in one system call */
#define LOST_WRITES_LOGGED 5 /* as asyncio has it */

static bool
later(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* ---- the queue ------------------------------------------------------------------------------ */

/* Steals `owner`, even if it fails. */
static int
queue_add(GioQueue *q, PyObject *owner, const char *data, size_t size)
{
    if (q->end == q->room) {
        if (q->head > q->room / 2) {
            memmove(q->pieces, q->pieces + q->head, (q->end - q->head) * sizeof *q->pieces);
            q->end -= q->head;
            q->head = 0;
        }
        else {
            size_t room = q->room ? q->room * 2 : 4;
            GioPiece *pieces = PyMem_Realloc(q->pieces, room * sizeof *pieces);
            if (pieces == NULL) {
                Py_DECREF(owner);
                PyErr_NoMemory();
                return -1;
            }
            q->pieces = pieces;
            q->room = room;
        }
    }
    q->pieces[q->end++] = (GioPiece){owner, data, size};
    q->bytes += size;
    return 0;
}

int
gio_check_data(PyObject *data)
{
    if (PyBytes_Check(data) || PyByteArray_Check(data) || PyMemoryView_Check(data)) {
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not '%.200s'",
                 Py_TYPE(data)->tp_name);
    return -1;
}

/* The bytes object that keeps some data as it is, NULL if there is none; borrowed. */
static PyObject *
keeper(PyObject *obj)
{
    if (PyMemoryView_Check(obj)) {
        obj = PyMemoryView_GET_BUFFER(obj)->obj;
    }
    return obj != NULL && PyBytes_CheckExact(obj) ? obj : NULL;
}

int
gio_queue_data(GioQueue *q, PyObject *obj, const char *data, size_t size)
{
    PyObject *owner = keeper(obj);
    if (owner != NULL) {
        Py_INCREF(owner);
    }
    else {
        owner = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
        if (owner == NULL) {
            return -1;
        }
        data = PyBytes_AS_STRING(owner);
    }
    return queue_add(q, owner, data, size);
}

int
gio_queue_items(GioQueue *q, PyObject *items)
{
    size_t before = q->bytes;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); i++) {
        PyObject *item = Py_NewRef(PySequence_Fast_GET_ITEM(items, i));
        Py_buffer view;
        int r = PyObject_GetBuffer(item, &view, PyBUF_SIMPLE);
        if (r == 0) {
            r = view.len == 0 ? 0 : gio_queue_data(q, item, view.buf, (size_t)view.len);
            PyBuffer_Release(&view);
        }
        Py_DECREF(item);
        if (r < 0) {
            while (q->bytes > before) {
                GioPiece piece = q->pieces[--q->end];
                q->bytes -= piece.size;
                Py_DECREF(piece.owner);
            }
            return -1;
        }
    }
    return 0;
}

void
gio_queue_drop(GioQueue *q, size_t sent)
{
    q->bytes -= sent;
    while (sent > 0) {
        GioPiece *piece = &q->pieces[q->head];
        if (sent < piece->size) {
            piece->data += sent;
            piece->size -= sent;
            return;
        }
        sent -= piece->size;
        q->head++;
        Py_DECREF(piece->owner); /* bytes: runs no Python */
    }
    if (q->head == q->end) {
        q->head = q->end = 0;
    }
}

void
gio_write_clear(GioTransport *t)
{
    if (t->pending != NULL) { /* it keeps datagrams there */
        t->queue.bytes = 0;
        Py_CLEAR(t->pending);
        return;
    }
    gio_queue_drop(&t->queue, t->queue.bytes);
    PyMem_Free(t->queue.pieces);
    t->queue = (GioQueue){0};
}

/* ---- flow control --------------------------------------------------------------------------- */

static int
tell_protocol(GioTransport *t, const char *method, const char *failure)
{
    PyObject *protocol = Py_NewRef(t->protocol.object);
    PyObject *r = PyObject_CallMethod(protocol, method, NULL);
    Py_DECREF(protocol);
    Py_XDECREF(r);
    return r == NULL ? gio_transport_report(t, failure) : 0;
}

int
gio_write_pause(GioTransport *t)
{
    if (t->protocol_paused || t->protocol.object == NULL ||
        t->queue.bytes <= (size_t)t->marks.high) {
        return 0;
    }
    t->protocol_paused = true;
    return tell_protocol(t, "pause_writing", "protocol.pause_writing() failed");
}

int
gio_write_resume(GioTransport *t)
{
    if (!t->protocol_paused || t->protocol.object == NULL ||
        t->queue.bytes > (size_t)t->marks.low) {
        return 0;
    }
    t->protocol_paused = false;
    return tell_protocol(t, "resume_writing", "protocol.resume_writing() failed");
}

/* ---- sending -------------------------------------------------------------------------------- */

/* Send what the kernel takes of the queue; -1 with OSError. */
static int
flush(GioTransport *t)
{
    struct iovec iov[BATCH];
    GioQueue *q = &t->queue;
    size_t asked;
    ssize_t sent;
    do {
        int n = 0;
        asked = 0;
        for (size_t i = q->head; i < q->end && n < BATCH; i++, n++) {
            iov[n] = (struct iovec){(void *)q->pieces[i].data, q->pieces[i].size};
            asked += q->pieces[i].size;
        }
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)n};
        sent = t->pipe ? writev(t->fd, iov, n) : sendmsg(t->fd, &message, MSG_NOSIGNAL);
        if (sent < 0) {
            if (later(errno)) {
                return 0;
            }
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        gio_queue_drop(q, (size_t)sent);
    } while ((size_t)sent == asked && q->bytes > 0);
    return 0;
}

static const char *
failure(GioTransport *t)
{
    return t->pipe ? "Fatal write error on pipe transport"
                   : "Fatal write error on socket transport";
}

int
gio_write_watch(GioTransport *t)
{
    PyObject *context = PyContext_CopyCurrent();
    if (context == NULL || gio_poll_start(&t->write) < 0) {
        Py_XDECREF(context);
        return -1;
    }
    Py_XSETREF(t->write_context, context);
    return 0;
}

int
gio_write(GioTransport *t, PyObject *owner, const char *data, size_t size)
{
    if (t->queue.bytes == 0) {
        ssize_t sent = t->pipe ? write(t->fd, data, size) : send(t->fd, data, size, MSG_NOSIGNAL);
        if (sent == (ssize_t)size) {
            return 0;
        }
        if (sent < 0 && !later(errno)) {
            PyErr_SetFromErrno(PyExc_OSError);
            return gio_transport_fatal(t, failure(t));
        }
        if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
        }
        if (gio_write_watch(t) < 0) {
            return -1;
        }
    }
    if (gio_queue_data(&t->queue, owner, data, size) < 0) {
        return -1;
    }
    return gio_write_pause(t);
}

int
gio_write_tell_waiter(GioTransport *t, const char *method, PyObject *value)
{
    PyObject *waiter = Py_XNewRef(t->empty_waiter);
    if (waiter == NULL) {
        return 0;
    }
    PyObject *done = PyObject_CallMethod(waiter, "done", NULL);
    int r = done == NULL ? -1 : PyObject_IsTrue(done);
    if (r == 0) {
        PyObject *told = PyObject_CallMethod(waiter, method, "O", value);
        r = told == NULL ? -1 : 0;
        Py_XDECREF(told);
    }
    Py_XDECREF(done);
    Py_DECREF(waiter);
    return r < 0 ? -1 : 0;
}

static int
tell_waiter(GioTransport *t, const char *method, PyObject *value)
{
    int r = gio_write_tell_waiter(t, method, value);
    return r < 0 ? gio_transport_report(t, "loop.sendfile() could not go on") : 0;
}

static int
write_failed(GioTransport *t)
{
    PyObject *exc = gio_err_take();
    gio_err_give(Py_NewRef(exc));
    int r = gio_transport_fatal(t, failure(t));
    if (r == 0) {
        r = tell_waiter(t, "set_exception", exc);
    }
    Py_DECREF(exc);
    return r;
}

static int
write_on(GioTransport *t)
{
    if (flush(t) < 0) {
        return write_failed(t);
    }
    if (gio_write_resume(t) < 0) {
        return -1;
    }
    /* The protocol may have written more, or ended the connection. */
    if (t->queue.bytes > 0 || t->conn_lost > 0 || t->loop == NULL) {
        return 0;
    }
    if (gio_poll_stop(&t->write) < 0 || tell_waiter(t, "set_result", Py_None) < 0) {
        return -1;
    }
    if (t->closing) {
        return gio_transport_flushed(t);
    }
    if (t->eof && shutdown(t->fd, SHUT_WR) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return gio_transport_fatal(t, failure(t));
    }
    return 0;
}

int
gio_write_ready(GioLoop *Py_UNUSED(loop), PyObject *self)
{
    GioTransport *t = (GioTransport *)self;
    if (!t->write.started || t->conn_lost > 0) {
        return 0;
    }
    return gio_transport_in_context(t, t->write_context, write_on);
}

/* ---- the Python face --------------------------------------------------------------------------
 */

static int
check_writable(GioTransport *t, const char *method)
{
    if (t->eof) {
        PyErr_Format(PyExc_RuntimeError, "Cannot call %s() after write_eof()", method);
        return -1;
    }
    if (t->empty_waiter != NULL) {
        PyErr_Format(PyExc_RuntimeError, "unable to %s; sendfile is in progress", method);
        return -1;
    }
    return t->loop == NULL ? 0 : gio_loop_check_idle(t->loop);
}

/* Whether what is written goes nowhere. A socket that is closing, a pipe does not, still takes it.
 */
static bool
lost(GioTransport *t)
{
    return t->conn_lost > 0 || t->loop == NULL || (t->pipe && t->closing);
}

PyObject *
gio_write_lost(GioTransport *t)
{
    if (t->conn_lost > 0 && t->conn_lost++ >= LOST_WRITES_LOGGED) {
        PyObject *log = PyImport_ImportModule("asyncio.log");
        PyObject *logger = log == NULL ? NULL : PyObject_GetAttrString(log, "logger");
        PyObject *r =
            logger == NULL
                ? NULL
                : PyObject_CallMethod(
                      logger, "warning", "s",
                      t->pipe ? "pipe closed by peer or os.write(pipe, data) raised exception."
                              : "socket.send() raised exception.");
        Py_XDECREF(log);
        Py_XDECREF(logger);
        if (r == NULL) {
            return NULL;
        }
        Py_DECREF(r);
    }
    Py_RETURN_NONE;
}

static PyObject *
transport_write(GioTransport *t, PyObject *data)
{
    bool bytes = PyBytes_CheckExact(data);
    if (gio_check_data(data) < 0 || check_writable(t, "write") < 0) {
        return NULL;
    }
    Py_buffer view = {.buf = NULL};
    if (bytes) {
        view.buf = PyBytes_AS_STRING(data);
        view.len = PyBytes_GET_SIZE(data);
    }
    else if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    if (view.len == 0) {
        result = Py_NewRef(Py_None);
    }
    else if (lost(t)) {
        result = gio_write_lost(t);
    }
    else if (gio_write(t, data, view.buf, (size_t)view.len) == 0) {
        result = Py_NewRef(Py_None);
    }
    if (!bytes) {
        PyBuffer_Release(&view);
    }
    return result;
}

static PyObject *
transport_writelines(GioTransport *t, PyObject *list)
{
    if (check_writable(t, "writelines") < 0) {
        return NULL;
    }
    PyObject *items = PySequence_Fast(list, "writelines() takes an iterable of bytes-like objects");
    if (items == NULL) {
        return NULL;
    }
    bool idle = t->queue.bytes == 0;
    int r = 0;
    if (lost(t)) {
        PyObject *nothing =
            PySequence_Fast_GET_SIZE(items) == 0 ? Py_NewRef(Py_None) : gio_write_lost(t);
        Py_DECREF(items);
        return nothing;
    }
    r = gio_queue_items(&t->queue, items);
    Py_DECREF(items);
    if (r == 0 && idle && t->queue.bytes > 0) {
        r = flush(t) < 0         ? gio_transport_fatal(t, failure(t))
            : t->queue.bytes > 0 ? gio_write_watch(t)
                                 : 0;
    }
    if (r < 0 || gio_write_pause(t) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
transport_get_write_buffer_size(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(t->queue.bytes);
}

static PyObject *
transport_get_write_buffer_limits(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    return gio_marks_get(&t->marks);
}

static PyObject *
transport_set_write_buffer_limits(GioTransport *t, PyObject *args, PyObject *kwargs)
{
    if (gio_marks_set(&t->marks, 64 * 1024, args, kwargs) < 0 || gio_write_pause(t) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

#define KEYWORDS(fn) ((PyCFunction)(void (*)(void))(fn))

PyMethodDef gio_write_methods[] = {
    {"write", (PyCFunction)transport_write, METH_O,
     "write($self, data, /)\n--\n\n"
     "Send data, now as far as that goes without blocking, and the rest when it does."},
    {"writelines", (PyCFunction)transport_writelines, METH_O,
     "writelines($self, list_of_data, /)\n--\n\nSend several pieces of data as one."},
    {NULL},
};

PyMethodDef gio_flow_methods[] = {
    {"get_write_buffer_size", (PyCFunction)transport_get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size($self, /)\n--\n\nHow many bytes wait to be sent."},
    {"get_write_buffer_limits", (PyCFunction)transport_get_write_buffer_limits, METH_NOARGS,
     "get_write_buffer_limits($self, /)\n--\n\nThe water marks, (low, high), in bytes."},
    {"set_write_buffer_limits", KEYWORDS(transport_set_write_buffer_limits),
     METH_VARARGS | METH_KEYWORDS,
     "set_write_buffer_limits($self, high=None, low=None)\n--\n\n"
     "Above how many bytes the protocol's pause_writing() is called, and at how many\n"
     "resume_writing()."},
    {NULL},
};
