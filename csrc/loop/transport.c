/* What all transports have in common: from connection_made to connection_lost.
 *
 * A transport is kept alive by whoever watches its fd for it (GioPoll), by the calls that are
 * scheduled for it, and by nobody else: one that is dropped while it neither reads nor writes
 * is closed by its finalizer, with a ResourceWarning. It owns its loop until the connection
 * is lost; then it lets go of everything, and its methods do nothing any more.
 */
#include "loop/transport.h"

#include <structmember.h>

bool
gio_ends_run(void)
{
    return PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) ||
           PyErr_ExceptionMatches(PyExc_SystemExit);
}

int
gio_transport_soon(GioTransport *t, PyObject *context, PyObject *callback, PyObject *const *args,
                   Py_ssize_t nargs)
{
    GioLoop *loop = t->loop;
    if (gio_loop_check_open(loop) < 0) {
        return -1;
    }
    if (loop->debug) {
        PyObject *argv[5] = {(PyObject *)loop, callback};
        memcpy(argv + 2, args, (size_t)nargs * sizeof *args);
        argv[2 + nargs] = context;
        PyObject *r = PyObject_VectorcallMethod(t->state->str_call_soon, argv, (size_t)nargs + 2,
                                                context != NULL ? t->state->kw_context : NULL);
        Py_XDECREF(r);
        return r == NULL ? -1 : 0;
    }
    GioHandle *h = gio_handle_new(loop, t->state->handle_type, callback, args, nargs, context);
    int r = h == NULL ? -1 : gio_ready_push(loop, gio_handle_run, (PyObject *)h);
    Py_XDECREF(h);
    return r;
}

int
gio_transport_in_context(GioTransport *t, PyObject *context, int (*step)(GioTransport *t))
{
    Py_INCREF(context);
    int r = PyContext_Enter(context);
    if (r == 0) {
        r = step(t);
        PyObject *exc = r < 0 ? gio_err_take() : NULL;
        if (PyContext_Exit(context) < 0) {
            PyErr_WriteUnraisable((PyObject *)t);
        }
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
    Py_DECREF(context);
    return r;
}

/* ---- the beginning ------------------------------------------------------------------------ */

GioTransport *
gio_transport_new(PyTypeObject *type, GioLoop *loop, PyObject *file, PyObject *protocol,
                  PyObject *extra, GioRun readable, GioRun writable)
{
    if (gio_loop_check_open(loop) < 0 || gio_loop_check_idle(loop) < 0) {
        return NULL;
    }
    int fd = PyObject_AsFileDescriptor(file);
    if (fd < 0) {
        return NULL;
    }
    GioTransport *t = (GioTransport *)type->tp_alloc(type, 0);
    if (t == NULL) {
        return NULL;
    }
    t->state = loop->state;
    t->fd = fd;
    t->marks = (GioMarks){64 * 1024, 16 * 1024};
    t->extra = extra == Py_None ? NULL : Py_XNewRef(extra);
    t->read_context = PyContext_CopyCurrent();
    if (t->read_context == NULL || gio_protocol_set(&t->protocol, t->state, protocol) < 0) {
        Py_DECREF(t);
        return NULL;
    }
    t->loop = (GioLoop *)Py_NewRef((PyObject *)loop);
    gio_poll_init(&t->read, loop, fd, EV_READ, readable, (PyObject *)t);
    gio_poll_init(&t->write, loop, fd, EV_WRITE, writable, (PyObject *)t);
    t->file = Py_NewRef(file);
    return t;
}

static int
start_reading(GioLoop *Py_UNUSED(loop), PyObject *self)
{
    GioTransport *t = (GioTransport *)self;
    if (t->loop == NULL || t->closing || t->paused) {
        return 0;
    }
    return gio_poll_start(&t->read) < 0 ? gio_transport_fatal(t, "Reading could not start") : 0;
}

int
gio_transport_begin(GioTransport *t, PyObject *waiter)
{
    PyObject *self = (PyObject *)t;
    PyObject *made = PyObject_GetAttr(t->protocol.object, t->state->str_connection_made);
    int r = made == NULL ? -1 : gio_transport_soon(t, NULL, made, &self, 1);
    Py_XDECREF(made);
    if (r == 0) {
        r = gio_ready_push(t->loop, start_reading, self);
    }
    if (r == 0 && waiter != NULL && waiter != Py_None) {
        PyObject *args[] = {waiter, Py_None};
        r = gio_transport_soon(t, NULL, t->state->set_result, args, 2);
    }
    return r;
}

/* ---- the end ------------------------------------------------------------------------------ */

static int
schedule_lost(GioTransport *t, PyObject *context, PyObject *exc)
{
    PyObject *lost = PyObject_GetAttrString((PyObject *)t, "_call_connection_lost");
    if (lost == NULL) {
        return -1;
    }
    exc = exc == NULL ? Py_None : exc;
    int r = gio_transport_soon(t, context, lost, &exc, 1);
    Py_DECREF(lost);
    return r;
}

int
gio_transport_close(GioTransport *t)
{
    if (t->closing || t->loop == NULL) {
        return 0;
    }
    if (gio_poll_stop(&t->read) < 0) {
        return -1;
    }
    t->closing = true;
    if (t->queue.bytes > 0) {
        return 0; /* it goes on in gio_transport_flushed */
    }
    t->conn_lost++;
    return schedule_lost(t, NULL, NULL);
}

/* Not at once: the poll that comes before tells the kernel that the fd is watched no more. */
int
gio_transport_flushed(GioTransport *t)
{
    t->conn_lost++;
    return schedule_lost(t, t->write_context, NULL);
}

int
gio_transport_force_close(GioTransport *t, PyObject *exc)
{
    if (t->conn_lost > 0 || t->loop == NULL) {
        return 0;
    }
    if (gio_poll_stop(&t->write) < 0 || gio_poll_stop(&t->read) < 0) {
        return -1;
    }
    t->closing = true;
    t->conn_lost++;
    gio_write_clear(t);
    return schedule_lost(t, NULL, exc);
}

/* A method of an object that need not have it; what it raises is reported. */
static void
call_reported(PyObject *obj, const char *method, PyObject *arg)
{
    PyObject *r = arg == NULL ? PyObject_CallMethod(obj, method, NULL)
                              : PyObject_CallMethod(obj, method, "O", arg);
    if (r == NULL) {
        PyErr_WriteUnraisable(obj);
    }
    Py_XDECREF(r);
}

/* Close the fd and let go of everything. */
static void
finish(GioTransport *t)
{
    GioLoop *loop = t->loop;
    PyObject *file = t->file, *server = t->server;
    t->closing = true;
    gio_poll_stop(&t->read);
    gio_poll_stop(&t->write);
    gio_write_clear(t);
    if (loop != NULL) {
        gio_polls_release_fd(loop, t->fd, (PyObject *)t);
    }
    t->file = NULL;
    t->server = NULL;
    t->loop = NULL;
    if (file != NULL) {
        call_reported(file, "close", NULL);
        if (t->holds_socket) {
            t->holds_socket = false;
            call_reported(file, "_decref_socketios", NULL);
        }
        Py_DECREF(file);
    }
    gio_protocol_clear(&t->protocol);
    Py_CLEAR(t->read_context);
    Py_CLEAR(t->write_context);
    if (server != NULL) {
#if PY_VERSION_HEX >= 0x030D0000
        call_reported(server, "_detach", (PyObject *)t);
#else
        call_reported(server, "_detach", NULL);
#endif
        Py_DECREF(server);
    }
    Py_XDECREF(loop);
}

static int
fail_empty_waiter(GioTransport *t)
{
    PyObject *exc =
        PyObject_CallFunction(PyExc_ConnectionError, "s", "Connection is closed by peer");
    int r = exc == NULL ? -1 : gio_write_tell_waiter(t, "set_exception", exc);
    Py_XDECREF(exc);
    return r;
}

static PyObject *
transport__call_connection_lost(GioTransport *t, PyObject *exc)
{
    if (t->loop != NULL && gio_loop_check_idle(t->loop) < 0) {
        return NULL;
    }
    PyObject *r = Py_NewRef(Py_None);
    if (t->protocol.object != NULL && t->loop != NULL) {
        PyObject *protocol = Py_NewRef(t->protocol.object);
        Py_SETREF(r, PyObject_CallMethodOneArg(protocol, t->state->str_connection_lost, exc));
        Py_DECREF(protocol);
    }
    PyObject *raised = r == NULL ? gio_err_take() : NULL;
    if (gio_transport_extra(t) == NULL) { /* it may be asked for after the socket's end, too */
        if (raised == NULL && gio_ends_run()) {
            raised = gio_err_take();
            Py_CLEAR(r);
        }
        else {
            PyErr_WriteUnraisable((PyObject *)t);
        }
    }
    finish(t);
    if (t->empty_waiter != NULL && fail_empty_waiter(t) < 0) {
        PyErr_WriteUnraisable((PyObject *)t);
    }
    if (raised != NULL) {
        gio_err_give(raised);
    }
    return r;
}

/* ---- errors ------------------------------------------------------------------------------- */

int
gio_transport_report(GioTransport *t, const char *message)
{
    if (gio_ends_run()) {
        return -1;
    }
    PyObject *exc = gio_err_take(), *r = NULL;
    PyObject *about =
        Py_BuildValue("{s:s,s:O,s:O,s:O}", "message", message, "exception", exc, "transport", t,
                      "protocol", t->protocol.object == NULL ? Py_None : t->protocol.object);
    if (about != NULL && t->loop != NULL) {
        PyObject *loop = Py_NewRef((PyObject *)t->loop);
        r = PyObject_CallMethod(loop, "call_exception_handler", "O", about);
        Py_DECREF(loop);
    }
    else if (about != NULL) { /* nobody is left to be told */
        gio_err_give(Py_NewRef(exc));
    }
    Py_XDECREF(about);
    Py_DECREF(exc);
    if (r == NULL) {
        if (gio_ends_run()) {
            return -1;
        }
        PyErr_WriteUnraisable((PyObject *)t);
    }
    Py_XDECREF(r);
    return 0;
}

GIO_COLD int
gio_transport_log(GioTransport *t, const char *what, PyObject *exc)
{
    PyObject *cold = PyImport_ImportModule("greenletio._event_loop");
    PyObject *r = cold == NULL ? NULL
                               : PyObject_CallMethod(cold, "log_transport", "OsO", t, what,
                                                     exc == NULL ? Py_None : exc);
    Py_XDECREF(cold);
    if (r == NULL) {
        if (gio_ends_run()) {
            return -1;
        }
        PyErr_WriteUnraisable((PyObject *)t);
    }
    Py_XDECREF(r);
    return 0;
}

/* Whether an exception is nothing but what happens to connections. */
static bool
quiet(GioTransport *t, PyObject *exc)
{
    if (!PyErr_GivenExceptionMatches(exc, PyExc_OSError)) {
        return false;
    }
    if (t->quiet_errno == 0) {
        return true;
    }
    PyObject *number = PyObject_GetAttrString(exc, "errno");
    bool same = number != NULL && PyLong_Check(number) && PyLong_AsLong(number) == t->quiet_errno;
    Py_XDECREF(number);
    PyErr_Clear();
    return same;
}

int
gio_transport_fatal(GioTransport *t, const char *message)
{
    if (gio_ends_run()) {
        return -1;
    }
    PyObject *exc = gio_err_take();
    int r = 0;
    if (!quiet(t, exc)) {
        gio_err_give(Py_NewRef(exc));
        r = gio_transport_report(t, message);
    }
    else if (t->loop != NULL && t->loop->debug) {
        r = gio_transport_log(t, message, exc);
    }
    if (r == 0) {
        r = gio_transport_force_close(t, exc);
    }
    Py_DECREF(exc);
    return r;
}

/* ---- the Python face ------------------------------------------------------------------------ */

static PyObject *
none_or_error(int r)
{
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
transport_get_extra_info(GioTransport *t, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"name", "default", NULL};
    PyObject *name, *otherwise = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:get_extra_info", keywords, &name,
                                     &otherwise)) {
        return NULL;
    }
    PyObject *extra = Py_XNewRef(gio_transport_extra(t)); /* the name's __eq__ may set another */
    PyObject *value = extra == NULL ? NULL : PyDict_GetItemWithError(extra, name);
    value = value == NULL && !PyErr_Occurred() ? Py_NewRef(otherwise) : Py_XNewRef(value);
    Py_XDECREF(extra);
    return value;
}

static PyObject *
transport_extra(GioTransport *t, void *Py_UNUSED(closure))
{
    return Py_XNewRef(gio_transport_extra(t));
}

static int
transport_set_extra(GioTransport *t, PyObject *extra, void *Py_UNUSED(closure))
{
    if (extra == NULL || !PyDict_Check(extra)) {
        PyErr_SetString(PyExc_TypeError, "what get_extra_info() knows is a dict");
        return -1;
    }
    t->undescribed = false;
    Py_XSETREF(t->extra, Py_NewRef(extra));
    return 0;
}

static PyObject *
transport_get_protocol(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(t->protocol.object != NULL ? t->protocol.object : Py_None);
}

static PyObject *
transport_set_protocol(GioTransport *t, PyObject *protocol)
{
    return none_or_error(gio_protocol_set(&t->protocol, t->state, protocol));
}

static PyObject *
transport_is_closing(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(t->closing);
}

static PyObject *
transport_is_reading(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(!t->closing && !t->paused);
}

static PyObject *
transport_pause_reading(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    if (t->closing || t->paused) {
        Py_RETURN_NONE;
    }
    if (gio_poll_stop(&t->read) < 0) {
        return NULL;
    }
    t->paused = true;
    return none_or_error(t->loop->debug ? gio_transport_log(t, "pauses reading", NULL) : 0);
}

static PyObject *
transport_resume_reading(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    if (t->closing || !t->paused) {
        Py_RETURN_NONE;
    }
    PyObject *context = PyContext_CopyCurrent();
    if (context == NULL || gio_poll_start(&t->read) < 0) {
        Py_XDECREF(context);
        return NULL;
    }
    t->paused = false;
    Py_XSETREF(t->read_context, context);
    return none_or_error(t->loop->debug ? gio_transport_log(t, "resumes reading", NULL) : 0);
}

int
gio_transport_hand_over(GioLoop *loop, PyObject *self)
{
    if (loop == NULL || !loop->polling) {
        return 0;
    }
    PyObject *close = PyObject_GetAttrString(self, "close"), *r = NULL;
    if (close != NULL) {
        r = PyObject_CallMethod((PyObject *)loop, "call_soon_threadsafe", "O", close);
        Py_DECREF(close);
    }
    Py_XDECREF(r);
    return r == NULL ? -1 : 1;
}

static PyObject *
transport_close(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    int r = gio_transport_hand_over(t->loop, (PyObject *)t);
    if (r == 0) {
        r = gio_tls_flush_above(t) < 0 ? -1 : gio_transport_close(t);
    }
    return none_or_error(r);
}

static PyObject *
transport_abort(GioTransport *t, PyObject *Py_UNUSED(ignored))
{
    return none_or_error(gio_transport_force_close(t, NULL));
}

static PyObject *
transport__force_close(GioTransport *t, PyObject *exc)
{
    return none_or_error(gio_transport_force_close(t, exc));
}

static PyObject *
transport__fatal_error(GioTransport *t, PyObject *args)
{
    PyObject *exc;
    const char *message = "Fatal error on transport";
    if (!PyArg_ParseTuple(args, "O|s:_fatal_error", &exc, &message)) {
        return NULL;
    }
    if (!PyExceptionInstance_Check(exc)) {
        PyErr_SetString(PyExc_TypeError, "_fatal_error() takes an exception");
        return NULL;
    }
    gio_err_give(Py_NewRef(exc));
    return none_or_error(gio_transport_fatal(t, message));
}

static PyObject *
transport_repr(GioTransport *t)
{
    const char *name = strrchr(Py_TYPE(t)->tp_name, '.');
    return PyUnicode_FromFormat("<%s%s fd=%d read=%s write=<%s, bufsize=%zu>>",
                                name == NULL ? Py_TYPE(t)->tp_name : name + 1,
                                t->file == NULL ? " closed"
                                : t->closing    ? " closing"
                                : t->pipe       ? " open"
                                                : "",
                                t->fd, t->read.started ? "polling" : "idle",
                                t->write.started ? "polling" : "idle", t->queue.bytes);
}

#define KEYWORDS(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef common_methods[] = {
    {"get_extra_info", KEYWORDS(transport_get_extra_info), METH_VARARGS | METH_KEYWORDS,
     "get_extra_info($self, name, default=None)\n--\n\n"
     "What is known about the connection under a name: 'socket', 'sockname', 'peername', ..."},
    {"get_protocol", (PyCFunction)transport_get_protocol, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nThe protocol that is told what happens here."},
    {"set_protocol", (PyCFunction)transport_set_protocol, METH_O,
     "set_protocol($self, protocol, /)\n--\n\nHave another protocol told what happens here."},
    {"is_closing", (PyCFunction)transport_is_closing, METH_NOARGS,
     "is_closing($self, /)\n--\n\nWhether it is closing, or closed."},
    {"close", (PyCFunction)transport_close, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "Send what is left, then close; nothing more is received. connection_lost(None) follows."},
    {"abort", (PyCFunction)transport_abort, METH_NOARGS,
     "abort($self, /)\n--\n\nClose at once; what is left to be sent is lost."},
    {"_force_close", (PyCFunction)transport__force_close, METH_O, NULL},
    {"_fatal_error", (PyCFunction)transport__fatal_error, METH_VARARGS, NULL},
    {"_call_connection_lost", (PyCFunction)transport__call_connection_lost, METH_O, NULL},
    {NULL},
};

PyMethodDef gio_transport_read_methods[] = {
    {"is_reading", (PyCFunction)transport_is_reading, METH_NOARGS,
     "is_reading($self, /)\n--\n\nWhether data is received: neither paused nor closing."},
    {"pause_reading", (PyCFunction)transport_pause_reading, METH_NOARGS,
     "pause_reading($self, /)\n--\n\nReceive nothing until resume_reading()."},
    {"resume_reading", (PyCFunction)transport_resume_reading, METH_NOARGS,
     "resume_reading($self, /)\n--\n\nReceive again."},
    {NULL},
};

static PyMemberDef common_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioTransport, weakrefs), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(GioTransport, dict), READONLY, NULL},
    {"_loop", T_OBJECT, offsetof(GioTransport, loop), READONLY, NULL},
    {"_protocol", T_OBJECT, offsetof(GioTransport, protocol.object), READONLY, NULL},
    {"_server", T_OBJECT, offsetof(GioTransport, server), READONLY, NULL},
    {"_empty_waiter", T_OBJECT, offsetof(GioTransport, empty_waiter), READONLY, NULL},
    {"_conn_lost", T_PYSSIZET, offsetof(GioTransport, conn_lost), READONLY, NULL},
    {"_closing", T_BOOL, offsetof(GioTransport, closing), READONLY, NULL},
    {"_paused", T_BOOL, offsetof(GioTransport, paused), READONLY, NULL},
    {"_eof", T_BOOL, offsetof(GioTransport, eof), READONLY, NULL},
    {"_protocol_paused", T_BOOL, offsetof(GioTransport, protocol_paused), READONLY, NULL},
    {NULL},
};

static PyGetSetDef common_getset[] = {
    {"_extra", (getter)transport_extra, (setter)transport_set_extra, NULL, NULL},
    {NULL},
};

/* ---- lifetime ------------------------------------------------------------------------------- */

static int
transport_traverse(GioTransport *t, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(t));
    Py_VISIT(t->extra);
    for (size_t i = 0; i < 4; i++) {
        Py_VISIT(t->slots[i]);
    }
    Py_VISIT(t->dict);
    Py_VISIT(t->loop);
    Py_VISIT(t->file);
    Py_VISIT(t->server);
    Py_VISIT(t->read_context);
    Py_VISIT(t->write_context);
    Py_VISIT(t->empty_waiter);
    Py_VISIT(t->address);
    Py_VISIT(t->pending);
    return gio_protocol_traverse(&t->protocol, visit, arg); /* what is queued is bytes */
}

/* The loop and the file stay, for dealloc to give the fd back. */
static int
transport_clear(GioTransport *t)
{
    Py_CLEAR(t->extra);
    for (size_t i = 0; i < 4; i++) {
        Py_CLEAR(t->slots[i]);
    }
    Py_CLEAR(t->dict);
    gio_protocol_clear(&t->protocol);
    Py_CLEAR(t->server);
    Py_CLEAR(t->read_context);
    Py_CLEAR(t->write_context);
    Py_CLEAR(t->empty_waiter);
    Py_CLEAR(t->address);
    gio_write_clear(t);
    return 0;
}

static void
transport_finalize(GioTransport *t)
{
    bool watched = t->read.started || t->write.started;
    if (t->file == NULL || (watched && t->loop->polling)) { /* called by hand, in another thread */
        return;
    }
    PyObject *raised = gio_err_take();
    if (PyErr_ResourceWarning((PyObject *)t, 1, "unclosed transport %R", t) < 0) {
        PyErr_WriteUnraisable((PyObject *)t);
    }
    finish(t);
    if (raised != NULL) {
        gio_err_give(raised);
    }
}

static void
transport_dealloc(GioTransport *t)
{
    PyTypeObject *type = Py_TYPE(t);
    if (PyObject_CallFinalizerFromDealloc((PyObject *)t) < 0) {
        return; /* somebody has it again */
    }
    PyObject_GC_UnTrack(t);
    if (t->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)t);
    }
    finish(t);
    transport_clear(t);
    type->tp_free(t);
    Py_DECREF(type);
}

static PyType_Slot slots[] = {
    {Py_tp_methods, common_methods},
    {Py_tp_members, common_members},
    {Py_tp_getset, common_getset},
    {Py_tp_repr, transport_repr},
    {Py_tp_traverse, transport_traverse},
    {Py_tp_clear, transport_clear},
    {Py_tp_finalize, transport_finalize},
    {Py_tp_dealloc, transport_dealloc},
    {0, NULL},
};

/* The classes of asyncio's that a type derives from, as a tuple. */
static PyObject *
bases_of(const char *base_name, const char *other_name)
{
    PyObject *module = PyImport_ImportModule("asyncio.transports"), *bases = NULL;
    PyObject *base = module == NULL ? NULL : PyObject_GetAttrString(module, base_name);
    PyObject *other =
        base == NULL || other_name == NULL ? NULL : PyObject_GetAttrString(module, other_name);
    if (base != NULL &&
        ((PyTypeObject *)base)->tp_basicsize > (Py_ssize_t)offsetof(GioTransport, weakrefs)) {
        PyErr_Format(PyExc_ImportError, "asyncio.transports.%s has grown", base_name);
    }
    else if (base != NULL && (other != NULL || other_name == NULL)) {
        bases = other == NULL ? PyTuple_Pack(1, base) : PyTuple_Pack(2, base, other);
    }
    Py_XDECREF(other);
    Py_XDECREF(base);
    Py_XDECREF(module);
    return bases;
}

PyTypeObject *
gio_transport_add_type(PyObject *module, const char *name, const char *base_name,
                       const char *other_name, PyMethodDef *const *tables)
{
    PyType_Spec spec = {
        .name = name,
        .basicsize = sizeof(GioTransport),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
                 Py_TPFLAGS_DISALLOW_INSTANTIATION,
        .slots = slots,
    };
    PyObject *bases = bases_of(base_name, other_name);
    PyTypeObject *type = bases == NULL ? NULL : gio_add_type(module, &spec, bases, true);
    Py_XDECREF(bases);
    for (; type != NULL && *tables != NULL; tables++) {
        if (gio_add_methods(type, *tables) < 0) {
            Py_CLEAR(type);
        }
    }
    return type;
}
