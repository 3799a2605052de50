/* TlsTransport: the hot half of a TLS connection; greenletio/_tls.py has the other half.
 *
 * It is the protocol of the StreamTransport below it and the transport of the protocol above.
 * Once it has taken the stream over, what arrives comes here without a call of Python's: it
 * is received into the loop's scratch memory, decrypted and handed up, at most once per turn of the
 * loop. The scratch memory is taken from the loop meanwhile: whoever is called and needs some
 * gets other. Any call up may close the connection, or change the protocol.
 */
#include "loop/tls.h"

#include <errno.h>
#include <structmember.h>
#include <sys/socket.h>

#define LARGE (16 * 1024) /* from here on a copy costs more than memory */
/* More than plaintext can exceed the ciphertext that was received: by a record that was begun. */
#define HEAD (32 * 1024)

int
gio_tls_call(GioTls *t, const char *method)
{
    PyObject *r = PyObject_CallMethod((PyObject *)t, method, NULL);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

int
gio_tls_failed(GioTls *t)
{
    if (gio_ends_run()) {
        return -1;
    }
    PyObject *exc = gio_err_take();
    PyObject *r = PyObject_CallMethod((PyObject *)t, "_fatal_error", "Os", exc,
                                      "Fatal error on SSL protocol");
    Py_DECREF(exc);
    if (r == NULL) {
        return gio_loop_report(t->loop, "Fatal error on SSL protocol", "transport", (PyObject *)t);
    }
    Py_DECREF(r);
    return 0;
}

/* ---- reading ----------------------------------------------------------------------------------
 */

static bool
wants_data(GioTls *t)
{
    return !t->read_paused && !t->closed && t->protocol.object != NULL && t->engine.lib != NULL;
}

/* Plaintext as bytes; NULL if there is none, or with an exception. It may overwrite the scratch
 * memory from its start: it never catches up with the ciphertext, HEAD behind it. */
static PyObject *
decrypt(GioTls *t, GioTlsEnd *end)
{
    GioTlsEngine *e = &t->engine;
    if (t->scratch != NULL && e->in_size < LARGE) {
        size_t n = gio_tls_read(e, t->scratch, HEAD, end);
        return n == 0 ? NULL : PyBytes_FromStringAndSize(t->scratch, (Py_ssize_t)n);
    }
    size_t room = e->in_size + HEAD;
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    if (data == NULL) {
        return NULL;
    }
    size_t n = gio_tls_read(e, PyBytes_AS_STRING(data), room, end);
    if (n == 0) {
        Py_CLEAR(data);
    }
    else if (n < room) {
        _PyBytes_Resize(&data, (Py_ssize_t)n);
    }
    return data;
}

static int
read_bytes(GioTls *t, GioTlsEnd *end)
{
    PyObject *data = decrypt(t, end);
    if (data == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    return gio_protocol_data(&t->protocol, t->loop->state, data);
}

/* Into a buffer of the protocol's own, which is not asked for in vain. */
static int
read_buffered(GioTls *t, GioTlsEnd *end)
{
    Py_buffer view;
    *end = gio_tls_peek(&t->engine);
    if (*end != GIO_TLS_FULL) {
        return *end == GIO_TLS_FAILED ? -1 : 0;
    }
    if (gio_protocol_buffer(&t->protocol, t->loop->state, &view) < 0) {
        return -1;
    }
    size_t n = 0;
    int r = 0;
    if (wants_data(t)) { /* get_buffer() may have ended that */
        n = gio_tls_read(&t->engine, view.buf, (size_t)view.len, end);
        r = *end == GIO_TLS_FAILED ? -1 : 0;
    }
    PyBuffer_Release(&view);
    if (r < 0 || n == 0 || t->protocol.object == NULL) { /* which the buffer's own end may do */
        return r;
    }
    return gio_protocol_filled(&t->protocol, t->loop->state, n);
}

/* Hand up what there is, then send what has been written meanwhile. -1 ends the loop's run. */
static int
deliver(GioTls *t)
{
    GioTlsEnd end = GIO_TLS_FULL;
    bool outermost = !t->reading;
    int r = 0;
    t->reading = true;
    while (r == 0 && end == GIO_TLS_FULL && wants_data(t)) {
        end = GIO_TLS_AGAIN;
        r = t->protocol.buffered ? read_buffered(t, &end) : read_bytes(t, &end);
    }
    t->reading = !outermost;
    if (r < 0) { /* what the protocol has written before, and an alert, still go out */
        PyObject *exc = gio_err_take();
        if (gio_tls_flush(t) < 0 && gio_tls_failed(t) < 0) {
            Py_DECREF(exc);
            return -1;
        }
        gio_err_give(exc);
        return gio_tls_failed(t);
    }
    if (end == GIO_TLS_CLOSED && gio_tls_call(t, "_closed_by_peer") < 0) {
        return gio_tls_failed(t);
    }
    return gio_tls_flush(t) < 0 ? gio_tls_failed(t) : 0;
}

GioTls *
gio_tls_of_stream(GioTransport *under)
{
    PyObject *protocol = under->protocol.object;
    if (protocol == NULL || !PyObject_TypeCheck(protocol, under->state->tls_type) ||
        ((GioTls *)protocol)->under != under) {
        return NULL;
    }
    return (GioTls *)protocol;
}

/* Something has been fed. */
static int
arrived(GioTransport *under)
{
    GioTls *t = gio_tls_of_stream(under);
    if (t->state == GIO_TLS_WRAPPED) {
        return deliver(t);
    }
    if (gio_tls_call(t, "_advance") < 0) {
        return gio_transport_fatal(under, "Fatal error: protocol.data_received() call failed.");
    }
    return 0;
}

int
gio_tls_readable(GioLoop *loop, PyObject *self)
{
    GioTransport *under = (GioTransport *)self;
    GioTls *t = gio_tls_of_stream(under);
    if (!under->read.started || under->conn_lost > 0) { /* since the poll */
        return 0;
    }
    if (t == NULL || t->engine.lib == NULL) {
        return gio_stream_readable(loop, self);
    }
    char *memory = gio_loop_scratch(loop);
    if (memory == NULL) {
        return gio_transport_fatal(under, "Fatal read error on socket transport");
    }
    ssize_t n = recv(under->fd, memory + HEAD, GIO_READ_MAX - HEAD, 0);
    if (n == 0) {
        return gio_stream_readable(loop, self); /* which sees the end, too */
    }
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
            return 0;
        }
        PyErr_SetFromErrno(PyExc_OSError);
        return gio_transport_fatal(under, "Fatal read error on socket transport");
    }
    Py_INCREF(t);
    t->scratch = memory;
    loop->scratch = NULL;
    int r = gio_tls_feed(&t->engine, memory + HEAD, (size_t)n);
    r = r < 0 ? gio_tls_failed(t) : gio_transport_in_context(under, under->read_context, arrived);
    if (gio_tls_keep(&t->engine) < 0 && r == 0) {
        r = gio_tls_failed(t);
    }
    t->scratch = NULL;
    if (loop->scratch == NULL) {
        loop->scratch = memory;
    }
    else {
        PyMem_Free(memory);
    }
    Py_DECREF(t);
    return r;
}

/* ---- for _tls.py ------------------------------------------------------------------------------
 */

static PyObject *
tls__attach(GioTls *t, PyTypeObject *defining_class, PyObject *const *args, Py_ssize_t nargs,
            PyObject *Py_UNUSED(kwnames))
{
    GioState *st = PyType_GetModuleState(defining_class);
    if (nargs != 3 || !PyObject_TypeCheck(args[0], st->loop_type) || t->loop != NULL) {
        PyErr_SetString(PyExc_TypeError, "_attach() takes a loop, a protocol and a session, once");
        return NULL;
    }
    PyObject *object = PyObject_GetAttrString(args[2], "_sslobj");
    int r = object == NULL ? -1 : gio_tls_attach(&t->engine, st, object);
    Py_XDECREF(object);
    if (r == 1) {
        t->loop = (GioLoop *)Py_NewRef(args[0]);
        r = gio_protocol_set(&t->protocol, st, args[1]) < 0 ? -1 : 1;
    }
    else if (r == 0) {
        t->closed = true; /* it is nothing that has to be closed */
    }
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
tls__take_over(GioTls *t, PyObject *stream)
{
    if (t->loop == NULL || t->under != NULL || !Py_IS_TYPE(stream, t->loop->state->stream_type) ||
        ((GioTransport *)stream)->loop != t->loop) {
        PyErr_SetString(PyExc_TypeError, "_take_over() takes a StreamTransport of the same loop");
        return NULL;
    }
    t->under = (GioTransport *)Py_NewRef(stream);
    t->under->read.run = gio_tls_readable;
    Py_RETURN_NONE;
}

static PyObject *
tls__let_go(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    gio_tls_forget_flush(t);
    gio_queue_drop(&t->backlog, t->backlog.bytes);
    if (!t->engine.busy) {
        gio_tls_detach(&t->engine);
    }
    t->conn_lost++;
    t->closed = true;
    t->state = GIO_TLS_UNWRAPPED;
    gio_protocol_clear(&t->protocol);
    Py_CLEAR(t->under);
    Py_RETURN_NONE;
}

static PyObject *
tls__read(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    return deliver(t) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
tls__discard(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    char junk[4096];
    GioTlsEnd end = t->engine.lib == NULL ? GIO_TLS_AGAIN : GIO_TLS_FULL;
    while (end == GIO_TLS_FULL) {
        gio_tls_read(&t->engine, junk, sizeof junk, &end);
    }
    return end == GIO_TLS_FAILED ? NULL : Py_NewRef(Py_None);
}

/* ---- the Python face --------------------------------------------------------------------------
 */

static PyObject *
tls_get_protocol(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(t->protocol.object != NULL ? t->protocol.object : Py_None);
}

static PyObject *
tls_set_protocol(GioTls *t, PyObject *protocol)
{
    if (t->loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "it has not been started");
        return NULL;
    }
    int r = gio_protocol_set(&t->protocol, t->loop->state, protocol);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
tls_close(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    int r = t->closed ? 0 : gio_transport_hand_over(t->loop, (PyObject *)t);
    if (r == 0 && !t->closed) {
        t->closed = true;
        r = gio_tls_call(t, "_start_shutdown");
    }
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
tls_is_closing(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(t->closed || (t->under != NULL && t->under->closing));
}

static PyObject *
tls_is_reading(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(!t->closed && !t->read_paused);
}

/* The stream has to be read all the same during the handshake and the shutdown. */
static PyObject *
tls_pause_reading(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    if (!t->read_paused && t->under != NULL && t->state == GIO_TLS_WRAPPED) {
        PyObject *r = PyObject_CallMethod((PyObject *)t->under, "pause_reading", NULL);
        Py_XDECREF(r);
        if (r == NULL) {
            return NULL;
        }
    }
    t->read_paused = true;
    Py_RETURN_NONE;
}

static PyObject *
tls_resume_reading(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    if (!t->read_paused) {
        Py_RETURN_NONE;
    }
    t->read_paused = false;
    if (t->under == NULL || gio_tls_call(t, "_resume") < 0) {
        return t->under == NULL ? Py_NewRef(Py_None) : NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
tls_can_write_eof(GioTls *Py_UNUSED(t), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_FALSE;
}

static PyObject *
tls_repr(GioTls *t)
{
    static const char *const states[] = {"unwrapped", "handshake", "wrapped", "flushing",
                                         "shutdown"};
    const char *name = strrchr(Py_TYPE(t)->tp_name, '.');
    size_t state = (size_t)t->state < sizeof states / sizeof *states ? (size_t)t->state : 0;
    return PyUnicode_FromFormat("<%s %s%s over %S>", name == NULL ? Py_TYPE(t)->tp_name : name + 1,
                                t->closed ? "closing " : "", states[state],
                                t->under == NULL ? Py_None : (PyObject *)t->under);
}

/* ---- lifetime ---------------------------------------------------------------------------------
 */

static int
tls_traverse(GioTls *t, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(t));
    Py_VISIT(t->extra);
    for (size_t i = 0; i < 4; i++) {
        Py_VISIT(t->slots[i]);
    }
    Py_VISIT(t->loop);
    Py_VISIT(t->under);
    Py_VISIT(t->engine.object);
    Py_VISIT(t->engine.error);
    return gio_protocol_traverse(&t->protocol, visit, arg); /* what is queued is bytes */
}

static int
tls_clear(GioTls *t)
{
    Py_CLEAR(t->extra);
    for (size_t i = 0; i < 4; i++) {
        Py_CLEAR(t->slots[i]);
    }
    Py_CLEAR(t->under);
    gio_protocol_clear(&t->protocol);
    Py_CLEAR(t->engine.error);
    return 0; /* the loop and the engine stay, for dealloc */
}

static void
tls_finalize(GioTls *t)
{
    if (t->closed || t->under == NULL) {
        return;
    }
    PyObject *raised = gio_err_take();
    t->closed = true;
    if (PyErr_ResourceWarning((PyObject *)t, 1, "unclosed transport %R", t) < 0) {
        PyErr_WriteUnraisable((PyObject *)t);
    }
    if (raised != NULL) {
        gio_err_give(raised);
    }
}

static void
tls_dealloc(GioTls *t)
{
    PyTypeObject *type = Py_TYPE(t);
    if (PyObject_CallFinalizerFromDealloc((PyObject *)t) < 0) {
        return; /* somebody has it again */
    }
    PyObject_GC_UnTrack(t);
    if (t->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)t);
    }
    gio_queue_drop(&t->backlog, t->backlog.bytes);
    PyMem_Free(t->backlog.pieces);
    gio_tls_detach(&t->engine);
    tls_clear(t);
    Py_CLEAR(t->loop);
    type->tp_free(t);
    Py_DECREF(type);
}

static PyObject *
tls_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    GioTls *t = (GioTls *)type->tp_alloc(type, 0);
    if (t != NULL) {
        t->marks = (GioMarks){GIO_TLS_HIGH_WATER, GIO_TLS_HIGH_WATER / 4};
    }
    return (PyObject *)t;
}

#define METHOD(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef tls_methods[] = {
    {"get_protocol", (PyCFunction)tls_get_protocol, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nThe protocol above."},
    {"set_protocol", (PyCFunction)tls_set_protocol, METH_O,
     "set_protocol($self, protocol, /)\n--\n\nHave another protocol above."},
    {"close", (PyCFunction)tls_close, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "Send what is left and close_notify, wait for the peer's, then close."},
    {"is_closing", (PyCFunction)tls_is_closing, METH_NOARGS,
     "is_closing($self, /)\n--\n\nWhether it is closing, or closed."},
    {"is_reading", (PyCFunction)tls_is_reading, METH_NOARGS,
     "is_reading($self, /)\n--\n\nWhether data is handed up: neither paused nor closing."},
    {"pause_reading", (PyCFunction)tls_pause_reading, METH_NOARGS,
     "pause_reading($self, /)\n--\n\nHand nothing up until resume_reading()."},
    {"resume_reading", (PyCFunction)tls_resume_reading, METH_NOARGS,
     "resume_reading($self, /)\n--\n\nHand data up again."},
    {"can_write_eof", (PyCFunction)tls_can_write_eof, METH_NOARGS,
     "can_write_eof($self, /)\n--\n\nFalse: TLS has no half-closed connections."},
    {"_attach", METHOD(tls__attach), METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "Work on a session, for a protocol: False where OpenSSL cannot be used from here."},
    {"_take_over", (PyCFunction)tls__take_over, METH_O, "Have a stream's data come here."},
    {"_let_go", (PyCFunction)tls__let_go, METH_NOARGS, "The connection is lost."},
    {"_read", (PyCFunction)tls__read, METH_NOARGS,
     "_read($self, /)\n--\n\nHand up what has arrived, then send what was written."},
    {"_discard", (PyCFunction)tls__discard, METH_NOARGS,
     "_discard($self, /)\n--\n\nDrop what has arrived."},
    {NULL},
};

static PyMemberDef tls_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioTls, weakrefs), READONLY, NULL},
    {"_loop", T_OBJECT, offsetof(GioTls, loop), READONLY, NULL},
    {"_stream", T_OBJECT, offsetof(GioTls, under), READONLY, NULL},
    {"_protocol", T_OBJECT, offsetof(GioTls, protocol.object), READONLY, NULL},
    {"_state", T_INT, offsetof(GioTls, state), 0, NULL},
    {"_closed", T_BOOL, offsetof(GioTls, closed), 0, NULL},
    {"_read_paused", T_BOOL, offsetof(GioTls, read_paused), READONLY, NULL},
    {"_protocol_paused", T_BOOL, offsetof(GioTls, protocol_paused), READONLY, NULL},
    {NULL},
};

static PyType_Slot tls_slots[] = {
    {Py_tp_doc, "The C half of the transport of a TLS connection."},
    {Py_tp_new, tls_new},
    {Py_tp_methods, tls_methods},
    {Py_tp_members, tls_members},
    {Py_tp_repr, tls_repr},
    {Py_tp_traverse, tls_traverse},
    {Py_tp_clear, tls_clear},
    {Py_tp_finalize, tls_finalize},
    {Py_tp_dealloc, tls_dealloc},
    {0, NULL},
};

static PyType_Spec tls_spec = {
    .name = "greenletio._core.TlsTransport",
    .basicsize = sizeof(GioTls),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = tls_slots,
};

int
gio_tls_setup_transport(PyObject *module, GioState *st)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio.transports");
    PyObject *base = asyncio == NULL ? NULL : PyObject_GetAttrString(asyncio, "_FlowControlMixin");
    Py_XDECREF(asyncio);
    if (base == NULL) {
        return -1;
    }
    if (((PyTypeObject *)base)->tp_basicsize > (Py_ssize_t)offsetof(GioTls, weakrefs)) {
        PyErr_SetString(PyExc_ImportError, "asyncio.transports._FlowControlMixin has grown");
    }
    else {
        st->tls_type = gio_add_type(module, &tls_spec, base, true);
    }
    Py_DECREF(base);
    return st->tls_type == NULL ? -1 : gio_add_methods(st->tls_type, gio_tls_write_methods);
}
