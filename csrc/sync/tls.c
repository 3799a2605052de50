/* GreenTlsSocket: the methods of green.ssl.SSLSocket that move bytes, on the engine of csrc/loop.
 *
 * A mix-in without fields of its own, like GreenSocket. The socket's `_tls` is a TlsSession, made
 * by green/ssl.py as the handshake begins; without one, and for whatever is out of the ordinary,
 * the methods call those that are written in Python (`_slow_read` and its kin), which use the
 * session that Python's ssl module has made, by the same buffers.
 *
 * Never is more received than what was asked for, or the record that has begun: what is left here
 * is in a record of which the session has told, or is less than one. So select() and pending()
 * say what they say of a standard SSLSocket. Of a nonblocking socket it is that record alone: the
 * next may be the end, which holds no data, and which select() has to tell of. What was encrypted
 * and could not be sent stays in `out`; a write that gives up in that state is owed, as by OpenSSL:
 * the next one is taken to be the same again.
 */
#include "loop/tls.h"
#include "sync/sync.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

#define HALF (GIO_SYNC_BUFFER / 2) /* of the shared memory: ciphertext, and plaintext behind it */
#define DIRECT_MAX 2048            /* up to here, bytes of the asked-for size are made at once */
#define RECORD (16 * 1024)         /* of plaintext; what one call of send() takes */
#define BATCH (128 * 1024)         /* encrypted before it is sent */
#define SPARE_MAX (256 * 1024)     /* memory kept for the next who sends */
#define HEADER 5

static const char *const READING = "The read operation timed out";
static const char *const WRITING = "The write operation timed out";

typedef struct {
    PyObject_HEAD
    GioTlsEngine engine;
    uint64_t sent;                /* bytes of ciphertext, ever */
    size_t owed;                  /* plaintext of a write that gave up with it in `out` */
    unsigned char header[HEADER]; /* of the record that is being received */
    size_t header_size;
    size_t body_left;
    bool drained; /* the last time less came than was asked for: there is no more, most likely */
    bool starved; /* it has nothing to read before there is more ciphertext */
} Session;

/* Python's methods of the session release the GIL: another thread must not come in between. */
static int
check_free(const Session *s)
{
    if (s->engine.busy) {
        PyErr_SetString(PyExc_RuntimeError, "the TLS session is in use");
        return -1;
    }
    return 0;
}

/* ---- receiving ------------------------------------------------------------------------------- */

/* Ciphertext was received: how far is its last record? */
static void
count_records(Session *s, const unsigned char *data, size_t size)
{
    while (size > 0) {
        size_t n = size < s->body_left ? size : s->body_left;
        if (s->body_left == 0) {
            s->header[s->header_size++] = *data;
            n = 1;
            if (s->header_size == HEADER) {
                s->body_left = (size_t)s->header[3] << 8 | s->header[4];
            }
        }
        else {
            s->body_left -= n;
        }
        if (s->header_size == HEADER && s->body_left == 0) {
            s->header_size = 0;
        }
        data += n;
        size -= n;
    }
}

/* How much to receive, so that plaintext of `size` bytes takes it all in, or one record is whole.
 */
static size_t
to_receive(const Session *s, size_t size)
{
    size_t missing = s->body_left > 0 ? s->body_left : HEADER - s->header_size;
    size_t have = s->header_size;
    if (s->header_size == HEADER) {
        have += ((size_t)s->header[3] << 8 | s->header[4]) - s->body_left;
    }
    size_t more = size > have ? size - have : 0;
    more = more > missing ? more : missing;
    return more < HALF ? more : HALF;
}

/* 1: something has come, or the end; 0: nothing yet (errno says so); -1 with an exception. What has
 * come lies in the shared memory until gio_tls_keep. */
static int
fill(Session *s, GioState *st, int fd, size_t size)
{
    char *shared = gio_sync_buffer(st);
    if (shared == NULL || check_free(s) < 0) {
        return -1;
    }
    size_t most = to_receive(s, size);
    ssize_t n = recv(fd, shared, most, 0);
    s->drained = n > 0 && (size_t)n < most;
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
            return 0;
        }
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    s->starved = false;
    if (n == 0) {
        s->engine.eof = true;
        return 1;
    }
    if (gio_tls_feed(&s->engine, shared, (size_t)n) < 0) {
        return -1;
    }
    count_records(s, (unsigned char *)shared, (size_t)n);
    return 1;
}

/* ---- sending -----------------------------------------------------------------------------------
 */

/* Memory for ciphertext is lent to who has some. */
static void
borrow_out(Session *s, GioState *st)
{
    if (s->engine.out.data == NULL && st->spare_out != NULL) {
        s->engine.out.data = st->spare_out;
        s->engine.out.room = st->spare_room;
        st->spare_out = NULL;
    }
}

static void
return_out(Session *s, GioState *st)
{
    GioBuffer *out = &s->engine.out;
    if (out->data != NULL && gio_buffer_size(out) == 0) {
        if (st->spare_out == NULL && out->room <= SPARE_MAX) {
            st->spare_out = out->data;
            st->spare_room = out->room;
            *out = (GioBuffer){0};
        }
        gio_buffer_free(out);
    }
}

/* Send what is to be sent: 1, or 0 if not all of it can be now (errno says so); -1 with an
 * exception. */
static int
flush(Session *s, GioState *st, int fd)
{
    GioBuffer *out = &s->engine.out;
    if (check_free(s) < 0) {
        return -1;
    }
    while (gio_buffer_size(out) > 0) {
        ssize_t n = send(fd, out->data + out->start, gio_buffer_size(out), MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
                return 0;
            }
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        out->start += (size_t)n;
        s->sent += (uint64_t)n;
    }
    return_out(s, st);
    return 1;
}

/* The same, in a nonblocking socket's call: raises what is wanted. */
static int
want_write(GioOp *op)
{
    PyObject *r = PyObject_CallMethod(op->self, "_want_write", NULL);
    Py_XDECREF(r); /* it raises */
    return -1;
}

/* Wait until all that is to be sent by now has been: 0, or -1 with an exception. */
static int
flush_all(GioOp *op, Session *s)
{
    uint64_t mark = s->sent + gio_buffer_size(&s->engine.out);
    while (s->sent < mark) { /* others may add to it, and send it */
        int fd = gio_op_fd(op);
        int r = fd < 0 ? -1 : flush(s, op->st, fd);
        if (r == 0 && errno != EINTR && !op->blocking) {
            r = want_write(op);
        }
        if (r < 0 || (r == 0 && gio_op_again(op, fd, GIO_WRITE, WRITING) < 0)) {
            return -1;
        }
    }
    return 0;
}

/* ---- reading
 * ------------------------------------------------------------------------------------- */

/* One attempt: plaintext into `buf`, or, where that is NULL, as bytes, *made. What was received
 * lies in the shared memory, and OpenSSL may call Python (the SNI callback). -1 if memory is
 * lacking. */
static int
attempt(GioOp *op, Session *s, char *buf, size_t size, size_t *n, PyObject **made, GioTlsEnd *end)
{
    char *shared = gio_sync_take(op->st);
    if (shared == NULL) {
        return -1;
    }
    char *into = buf == NULL ? shared + HALF : buf;
    *n = s->starved ? 0 : gio_tls_read(&s->engine, into, size, end);
    s->starved = *end == GIO_TLS_AGAIN;
    int r = gio_tls_keep(&s->engine);
    if (buf == NULL && *n > 0 && r == 0) {
        *made = PyBytes_FromStringAndSize(into, (Py_ssize_t)*n);
        r = *made == NULL ? -1 : 0;
    }
    gio_sync_give(op->st, shared);
    return r;
}

/* Plaintext, as above: how much; 0 at the end; -1 with an exception, or with *slow if the end is
 * not the session's, or nothing has come and nothing is waited for. */
static Py_ssize_t
session_read(GioOp *op, Session *s, char *buf, size_t size, PyObject **made, bool *slow)
{
    for (;;) {
        GioTlsEnd end = GIO_TLS_AGAIN;
        if (check_free(s) < 0) {
            return -1;
        }
        *slow = s->engine.eof && s->engine.in_size == 0; /* Python knows how to tell of it */
        if (*slow) {
            return -1;
        }
        size_t n = 0;
        int kept = attempt(op, s, buf, size, &n, made, &end), fd = -1, r = 1;
        if (gio_buffer_size(&s->engine.out) > 0) { /* an alert, or new keys */
            PyObject *exc = gio_err_take();
            fd = gio_op_fd(op);
            if (fd < 0 || flush(s, op->st, fd) < 0) {
                PyErr_Clear(); /* whoever writes hears of it */
            }
            if (exc != NULL) {
                gio_err_give(exc);
            }
        }
        if (n > 0 || end == GIO_TLS_CLOSED) {
            return kept < 0 ? -1 : (Py_ssize_t)n;
        }
        if (end == GIO_TLS_FAILED || kept < 0 || (fd = gio_op_fd(op)) < 0) {
            return -1;
        }
        if (s->drained && op->blocking) { /* as a try would say, too */
            s->drained = false;
            errno = EAGAIN;
            r = 0;
        }
        else if ((r = fill(s, op->st, fd, op->blocking ? size : 0)) < 0) {
            return -1;
        }
        if (r == 0) {
            *slow = errno != EINTR && !op->blocking;
            int events = gio_buffer_size(&s->engine.out) > 0 ? GIO_READ | GIO_WRITE : GIO_READ;
            if (*slow || gio_op_again(op, fd, events, READING) < 0) {
                return -1;
            }
        }
    }
}

/* ---- writing
 * --------------------------------------------------------------------------------------- */

/* How much of it was encrypted and sent; -1 with an exception. */
static Py_ssize_t
session_write(GioOp *op, Session *s, const char *data, size_t size)
{
    if (check_free(s) < 0) {
        return -1;
    }
    if (s->owed > 0 && size > 0) {
        size_t owed = s->owed < size ? s->owed : size;
        if (flush_all(op, s) < 0) {
            return -1;
        }
        s->owed = 0;
        return (Py_ssize_t)owed;
    }
    Py_ssize_t n = 0;
    while (size > 0) {
        if (check_free(s) < 0) { /* a thread has begun to use it during the wait below */
            return -1;
        }
        borrow_out(s, op->st);
        n = gio_tls_write(&s->engine, data, size);
        if (n != 0) {
            break;
        }
        /* It has to receive something first. */
        int fd, r;
        if (flush_all(op, s) < 0 || (fd = gio_op_fd(op)) < 0 || (r = fill(s, op->st, fd, 0)) < 0 ||
            gio_tls_keep(&s->engine) < 0) {
            return -1;
        }
        if (s->engine.eof) {
            PyErr_SetString(PyExc_ConnectionResetError, "the connection has ended");
            return -1;
        }
        if (r == 0 && gio_op_again(op, fd, GIO_READ, WRITING) < 0) {
            return -1;
        }
    }
    if (n > 0 && flush_all(op, s) < 0) {
        s->owed = (size_t)n;
        return -1;
    }
    return n;
}

/* ---- the socket's methods
 * ----------------------------------------------------------------------------- */

/* The session, a new reference; NULL without an exception if there is none. */
static Session *
session_of(PyTypeObject *cls, PyObject *self)
{
    GioState *st = PyType_GetModuleState(cls);
    PyObject *session = PyObject_GetAttr(self, st->str_tls);
    if (session != NULL && !Py_IS_TYPE(session, st->tls_session_type)) {
        Py_CLEAR(session);
    }
    return (Session *)session;
}

/* The method in Python, with the same arguments. */
static PyObject *
by_python(PyObject *self, const char *method, PyObject *const *args, Py_ssize_t nargs,
          PyObject *kwnames)
{
    PyObject *fn = PyObject_GetAttrString(self, method);
    PyObject *r = fn == NULL ? NULL : PyObject_Vectorcall(fn, args, (size_t)nargs, kwnames);
    Py_XDECREF(fn);
    return r;
}

static PyObject *
read_bytes(PyTypeObject *cls, PyObject *self, Session *s, Py_ssize_t size, bool *slow)
{
    GioOp op;
    if (gio_op_begin(&op, cls, self, 0) < 0) {
        return NULL;
    }
    PyObject *data = NULL;
    if (size > DIRECT_MAX) {
        size = size < HALF ? size : HALF;
        Py_ssize_t n = session_read(&op, s, NULL, (size_t)size, &data, slow);
        if (n < 0) {
            Py_CLEAR(data);
        }
        return n == 0 ? PyBytes_FromStringAndSize(NULL, 0) : data;
    }
    data = PyBytes_FromStringAndSize(NULL, size);
    if (data == NULL) {
        return NULL;
    }
    Py_ssize_t n = session_read(&op, s, PyBytes_AS_STRING(data), (size_t)size, NULL, slow);
    if (n < 0) {
        Py_CLEAR(data);
    }
    else if (n != size) {
        _PyBytes_Resize(&data, n);
    }
    return data;
}

/* recv(size) and read(size): nothing else is asked for, so it is done here. */
static PyObject *
do_read(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
        PyObject *kwnames, const char *method)
{
    Session *s =
        nargs == 1 && kwnames == NULL && PyLong_CheckExact(args[0]) ? session_of(cls, self) : NULL;
    Py_ssize_t size = s == NULL ? 0 : PyLong_AsSsize_t(args[0]);
    bool slow = size <= 0;
    PyErr_Clear();
    PyObject *data = slow ? NULL : read_bytes(cls, self, s, size, &slow);
    Py_XDECREF(s);
    return slow ? by_python(self, method, args, nargs, kwnames) : data;
}

static PyObject *
tls_recv(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
         PyObject *kwnames)
{
    return do_read(self, cls, args, nargs, kwnames, "_slow_recv");
}

static PyObject *
tls_read(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
         PyObject *kwnames)
{
    return do_read(self, cls, args, nargs, kwnames, "_slow_read");
}

/* recv_into(buffer) and recv_into(buffer, size) */
static PyObject *
tls_recv_into(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
              PyObject *kwnames)
{
    bool simple = kwnames == NULL && (nargs == 1 || (nargs == 2 && PyLong_CheckExact(args[1])));
    Session *s = simple ? session_of(cls, self) : NULL;
    Py_buffer view;
    if (s == NULL || PyObject_GetBuffer(args[0], &view, PyBUF_WRITABLE) < 0) {
        PyErr_Clear();
        Py_XDECREF(s);
        return by_python(self, "_slow_recv_into", args, nargs, kwnames);
    }
    Py_ssize_t size = nargs == 2 ? PyLong_AsSsize_t(args[1]) : view.len, n = -1;
    bool slow = size <= 0 || size > view.len;
    PyErr_Clear();
    GioOp op;
    if (!slow && gio_op_begin(&op, cls, self, 0) == 0) {
        n = session_read(&op, s, view.buf, (size_t)size, NULL, &slow);
    }
    PyBuffer_Release(&view);
    Py_DECREF(s);
    if (slow) {
        return by_python(self, "_slow_recv_into", args, nargs, kwnames);
    }
    return n < 0 ? NULL : PyLong_FromSsize_t(n);
}

/* Of data alone: once, or until all is sent. */
static PyObject *
do_write(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
         PyObject *kwnames, bool all, const char *method)
{
    Session *s = nargs == 1 && kwnames == NULL ? session_of(cls, self) : NULL;
    GioOp op;
    Py_buffer view;
    if (s == NULL) {
        return PyErr_Occurred() ? NULL : by_python(self, method, args, nargs, kwnames);
    }
    if (gio_op_begin(&op, cls, self, 0) < 0 ||
        PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0) {
        Py_DECREF(s);
        return NULL;
    }
    Py_ssize_t n, done = 0;
    do {
        size_t left = (size_t)(view.len - done), most = all ? BATCH : RECORD;
        n = session_write(&op, s, (const char *)view.buf + done, left < most ? left : most);
        done += n;
    } while (all && n > 0 && done < view.len);
    PyBuffer_Release(&view);
    Py_DECREF(s);
    return n < 0 ? NULL : all ? Py_NewRef(Py_None) : PyLong_FromSsize_t(done);
}

static PyObject *
tls_send(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
         PyObject *kwnames)
{
    return do_write(self, cls, args, nargs, kwnames, false, "_slow_send");
}

static PyObject *
tls_write(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
          PyObject *kwnames)
{
    return do_write(self, cls, args, nargs, kwnames, false, "_slow_write");
}

static PyObject *
tls_sendall(PyObject *self, PyTypeObject *cls, PyObject *const *args, Py_ssize_t nargs,
            PyObject *kwnames)
{
    return do_write(self, cls, args, nargs, kwnames, true, "_slow_sendall");
}

#define METHOD(name, doc)                                                                          \
    {#name, (PyCFunction)(void (*)(void))tls_##name, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,  \
     doc}

static PyMethodDef socket_methods[] = {
    METHOD(recv, "recv($self, buflen=1024, flags=0)\n--\n\n"
                 "Receive up to buflen bytes, waiting for the first; b'' at the end."),
    METHOD(recv_into, "recv_into($self, buffer, nbytes=None, flags=0)\n--\n\n"
                      "Receive into a buffer, up to nbytes (None: its size); the number received."),
    METHOD(read, "read($self, len=1024, buffer=None)\n--\n\n"
                 "Receive up to len bytes, or into a buffer; b'' or 0 at the end."),
    METHOD(send, "send($self, data, flags=0)\n--\n\n"
                 "Send at least some of data, at most a record; the number of bytes sent."),
    METHOD(write, "write($self, data)\n--\n\n"
                  "Send at least some of data, at most a record; the number of bytes sent."),
    METHOD(sendall, "sendall($self, data, flags=0)\n--\n\n"
                    "Send all of data, waiting as often as it takes."),
    {NULL},
};

static PyType_Slot socket_slots[] = {
    {Py_tp_doc, "The methods of a green TLS socket that move bytes."},
    {Py_tp_methods, socket_methods},
    {0, NULL},
};

static PyType_Spec socket_spec = {
    .name = "greenletio._core.GreenTlsSocket",
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = socket_slots,
};

/* ---- TlsSession, as green/ssl.py uses it
 * ----------------------------------------------------------- */

static PyObject *
session_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"ssl_object", NULL};
    PyObject *ssl_object;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:TlsSession", keywords, &ssl_object)) {
        return NULL;
    }
    Session *s = (Session *)type->tp_alloc(type, 0);
    int r = s == NULL ? -1 : gio_tls_attach(&s->engine, PyType_GetModuleState(type), ssl_object);
    if (r == 0) {
        PyErr_SetString(PyExc_NotImplementedError,
                        "the OpenSSL of this Python's ssl module cannot be used from outside");
    }
    if (r <= 0) {
        Py_CLEAR(s);
    }
    return (PyObject *)s;
}

static PyObject *
session_call(Session *s, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "call() needs a function");
        return NULL;
    }
    if (check_free(s) < 0) {
        return NULL;
    }
    s->engine.busy = true;
    s->starved = false;
    PyObject *r = PyObject_Vectorcall(args[0], args + 1, (size_t)(nargs - 1), NULL);
    s->engine.busy = false;
    return r;
}

static PyObject *
session_fill(Session *s, PyObject *arg)
{
    int fd = gio_as_int(arg);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    int r = fill(s, GIO_STATE(s), fd, 0);
    if (r < 0 || gio_tls_keep(&s->engine) < 0) {
        return NULL;
    }
    return PyBool_FromLong(r);
}

static PyObject *
session_flush(Session *s, PyObject *arg)
{
    int fd = gio_as_int(arg);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    int r = flush(s, GIO_STATE(s), fd);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
session_rest(Session *s, PyObject *Py_UNUSED(ignored))
{
    if (check_free(s) < 0) {
        return NULL;
    }
    return PyBytes_FromStringAndSize(s->engine.in, (Py_ssize_t)s->engine.in_size);
}

static int
session_traverse(Session *s, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(s));
    Py_VISIT(s->engine.object);
    Py_VISIT(s->engine.error);
    return 0;
}

static int
session_clear(Session *s)
{
    Py_CLEAR(s->engine.error);
    return 0;
}

static void
session_dealloc(Session *s)
{
    PyTypeObject *type = Py_TYPE(s);
    PyObject_GC_UnTrack(s);
    gio_tls_detach(&s->engine);
    type->tp_free(s);
    Py_DECREF(type);
}

static PyMethodDef session_methods[] = {
    {"call", (PyCFunction)(void (*)(void))session_call, METH_FASTCALL,
     "call($self, fn, /, *args)\n--\n\nfn(*args), which uses the session; nobody else may meanwhile."},
    {"fill", (PyCFunction)session_fill, METH_O,
     "fill($self, fd, /)\n--\n\n"
     "Receive the rest of the record that is due; False if nothing has come yet."},
    {"flush", (PyCFunction)session_flush, METH_O,
     "flush($self, fd, /)\n--\n\nSend what the session has to send; False if not all of it can be."},
    {"rest", (PyCFunction)session_rest, METH_NOARGS,
     "rest($self, /)\n--\n\nWhat was received and is not the session's, once that has ended."},
    {NULL},
};

static PyType_Slot session_slots[] = {
    {Py_tp_doc,
     "TlsSession(ssl_object)\n--\n\n"
     "Moves the data of an _ssl._SSLSocket, which must not have begun its handshake, over a\n"
     "nonblocking descriptor. The object's own methods work by the same buffers, between fill()\n"
     "and flush()."},
    {Py_tp_new, session_new},
    {Py_tp_methods, session_methods},
    {Py_tp_traverse, session_traverse},
    {Py_tp_clear, session_clear},
    {Py_tp_dealloc, session_dealloc},
    {0, NULL},
};

static PyType_Spec session_spec = {
    .name = "greenletio._core.TlsSession",
    .basicsize = sizeof(Session),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = session_slots,
};

int
gio_green_tls_setup_types(PyObject *module, GioState *st)
{
    PyTypeObject *mixin = gio_add_type(module, &socket_spec, NULL, true);
    Py_XDECREF(mixin);
    st->tls_session_type = gio_add_type(module, &session_spec, NULL, true);
    return mixin == NULL || st->tls_session_type == NULL ? -1 : 0;
}
