/* Moves data through a TLS session: ciphertext in and out by a BIO of ours, plaintext by direct
 * calls.
 *
 * OpenSSL reads the received ciphertext where it lies and appends what it has to send to
 * `out`; both work the same for Python's methods of the object (do_handshake, shutdown). Reading
 * may produce ciphertext, too (KeyUpdate, alerts): whoever has called anything here looks at `out`
 * afterwards. OpenSSL's queue of errors is the thread's: it is left empty.
 */
#include "loop/tls.h"

#include <errno.h>

/* From OpenSSL's headers. */
#define BIO_FLAGS_READ 0x01
#define BIO_FLAGS_RWS 0x07
#define BIO_FLAGS_SHOULD_RETRY 0x08
#define BIO_TYPE_SOURCE_SINK 0x0400
#define BIO_CTRL_EOF 2
#define BIO_CTRL_FLUSH 11
#define SSL_ERROR_WANT_READ 2
#define SSL_ERROR_WANT_WRITE 3
#define SSL_ERROR_ZERO_RETURN 6

/* ---- buffers -------------------------------------------------------------------------------- */

int
gio_buffer_add(GioBuffer *b, const char *data, size_t size)
{
    if (b->start == b->end) {
        b->start = b->end = 0;
    }
    if (size > b->room - b->end) {
        size_t room = b->room < 1024 ? 1024 : b->room;
        while (room - b->end < size) {
            room *= 2;
        }
        char *grown = PyMem_RawRealloc(b->data, room);
        if (grown == NULL) {
            return -ENOMEM;
        }
        b->data = grown;
        b->room = room;
    }
    memcpy(b->data + b->end, data, size);
    b->end += size;
    return 0;
}

void
gio_buffer_free(GioBuffer *b)
{
    PyMem_RawFree(b->data);
    *b = (GioBuffer){0};
}

/* ---- the BIO: no GIL, no Python -------------------------------------------------------------- */

/* A BIO's functions are given nothing but the BIO. Set once; never freed, as a BIO may outlive us.
 */
static const GioOpenSSL *openssl;

static int
bio_read(GioBIO *bio, char *buf, int size)
{
    GioTlsEngine *e = openssl->BIO_get_data(bio);
    openssl->BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY);
    if (e == NULL || size <= 0) {
        return 0;
    }
    if (e->in_size == 0 && e->eof) {
        return 0;
    }
    if (e->in_size == 0) {
        openssl->BIO_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY);
        return -1;
    }
    size_t n = (size_t)size < e->in_size ? (size_t)size : e->in_size;
    memcpy(buf, e->in, n);
    e->in += n;
    e->in_size -= n;
    return (int)n;
}

static int
bio_write(GioBIO *bio, const char *data, int size)
{
    GioTlsEngine *e = openssl->BIO_get_data(bio);
    openssl->BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY);
    if (e == NULL || size <= 0 || gio_buffer_add(&e->out, data, (size_t)size) < 0) {
        return -1;
    }
    return size;
}

static long
bio_ctrl(GioBIO *bio, int command, long number, void *pointer)
{
    GioTlsEngine *e = openssl->BIO_get_data(bio);
    (void)number, (void)pointer;
    switch (command) {
    case BIO_CTRL_FLUSH:
        return 1;
    case BIO_CTRL_EOF:
        return e == NULL || (e->eof && e->in_size == 0);
    default:
        return 0;
    }
}

int
gio_tls_make_method(GioOpenSSL *lib)
{
    lib->bio_type = lib->BIO_get_new_index() | BIO_TYPE_SOURCE_SINK;
    lib->method = lib->BIO_meth_new(lib->bio_type, "greenletio");
    if (lib->method == NULL) {
        return -1;
    }
    lib->BIO_meth_set_read(lib->method, bio_read);
    lib->BIO_meth_set_write(lib->method, bio_write);
    lib->BIO_meth_set_ctrl(lib->method, bio_ctrl);
    openssl = lib;
    return 0;
}

/* ---- a session's beginning and end -------------------------------------------------------------
 */

int
gio_tls_attach(GioTlsEngine *e, GioState *st, PyObject *object)
{
    const GioOpenSSL *lib = gio_openssl(st);
    GioSSL *ssl = lib == NULL ? NULL : gio_openssl_of(lib, object);
    if (ssl == NULL) {
        return 0;
    }
    GioBIO *before = lib->SSL_get_rbio(ssl);
    if (before != NULL && lib->BIO_method_type(before) == lib->bio_type &&
        lib->BIO_get_data(before) != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the session is in use");
        return -1;
    }
    GioBIO *bio = lib->BIO_new(lib->method);
    if (bio == NULL) {
        lib->ERR_clear_error();
        PyErr_NoMemory();
        return -1;
    }
    *e = (GioTlsEngine){.lib = lib, .object = Py_NewRef(object), .ssl = ssl, .bio = bio};
    lib->BIO_set_data(bio, e);
    lib->BIO_set_init(bio, 1);
    lib->SSL_set_bio(ssl, bio, bio); /* which takes the one reference */
    return 1;
}

void
gio_tls_detach(GioTlsEngine *e)
{
    PyObject *object = e->object;
    if (object != NULL) {
        e->lib->BIO_set_data(e->bio, NULL);
        gio_buffer_free(&e->kept);
        gio_buffer_free(&e->out);
        PyObject *error = e->error;
        *e = (GioTlsEngine){0};
        Py_XDECREF(error);
        Py_DECREF(object);
    }
}

/* ---- ciphertext
 * ----------------------------------------------------------------------------------- */

int
gio_tls_feed(GioTlsEngine *e, const char *data, size_t size)
{
    if (e->busy) {
        PyErr_SetString(PyExc_RuntimeError, "the session is in use");
        return -1;
    }
    if (e->in_size == 0) {
        e->in = data;
        e->in_size = size;
        return 0;
    }
    e->kept.start = e->kept.end - e->in_size; /* it is there: gio_tls_keep has seen to it */
    if (gio_buffer_add(&e->kept, data, size) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    e->in = e->kept.data + e->kept.start;
    e->in_size += size;
    return 0;
}

int
gio_tls_keep(GioTlsEngine *e)
{
    if (e->in_size == 0) {
        gio_buffer_free(&e->kept);
        return 0;
    }
    if (e->kept.data != NULL && e->in + e->in_size == e->kept.data + e->kept.end) {
        return 0;
    }
    gio_buffer_free(&e->kept);
    if (gio_buffer_add(&e->kept, e->in, e->in_size) < 0) {
        e->in_size = 0; /* its memory is the caller's: the session cannot go on */
        PyErr_NoMemory();
        return -1;
    }
    e->in = e->kept.data;
    return 0;
}

/* ---- plaintext
 * -------------------------------------------------------------------------------------- */

/* Why a call has not done what it should. */
static GioTlsEnd
why(GioTlsEngine *e, int returned)
{
    switch (e->lib->SSL_get_error(e->ssl, returned)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        e->lib->ERR_clear_error();
        return GIO_TLS_AGAIN;
    case SSL_ERROR_ZERO_RETURN:
        e->lib->ERR_clear_error();
        return GIO_TLS_CLOSED;
    default:
        gio_openssl_raise(e->lib);
        return GIO_TLS_FAILED;
    }
}

/* A session that has failed fails for good. */
static bool
has_failed(GioTlsEngine *e, GioTlsEnd *end)
{
    if (e->error == NULL) {
        return false;
    }
    gio_err_give(Py_NewRef(e->error));
    *end = GIO_TLS_FAILED;
    return true;
}

size_t
gio_tls_read(GioTlsEngine *e, char *buf, size_t size, GioTlsEnd *end)
{
    size_t got = 0;
    *end = GIO_TLS_AGAIN;
    if (e->busy || has_failed(e, end)) {
        return 0;
    }
    e->busy = true;
    e->lib->ERR_clear_error();
    for (;;) {
        if (got == size) {
            *end = GIO_TLS_FULL;
            break;
        }
        size_t n = 0;
        int r = e->lib->SSL_read_ex(e->ssl, buf + got, size - got, &n);
        if (r <= 0) {
            *end = why(e, r);
            break;
        }
        got += n;
        if (got < size && !gio_tls_pending(e)) { /* as another call would say, at some expense */
            break;
        }
    }
    e->busy = false;
    if (got > 0 && *end != GIO_TLS_AGAIN) { /* the rest is for the next call to tell */
        if (*end == GIO_TLS_FAILED) {
            e->error = gio_err_take();
        }
        *end = GIO_TLS_FULL;
    }
    return got;
}

GioTlsEnd
gio_tls_peek(GioTlsEngine *e)
{
    GioTlsEnd end = GIO_TLS_AGAIN;
    if (e->busy || has_failed(e, &end)) {
        return end;
    }
    char byte;
    size_t n = 0;
    e->busy = true;
    e->lib->ERR_clear_error();
    int r = e->lib->SSL_peek_ex(e->ssl, &byte, 1, &n);
    end = r > 0 ? GIO_TLS_FULL : why(e, r);
    e->busy = false;
    return end;
}

Py_ssize_t
gio_tls_write(GioTlsEngine *e, const char *data, size_t size)
{
    size_t written = 0;
    if (e->busy) {
        return 0;
    }
    e->busy = true;
    e->lib->ERR_clear_error();
    while (written < size) { /* Python has set SSL_MODE_ENABLE_PARTIAL_WRITE: a record each */
        size_t n = 0;
        int r = e->lib->SSL_write_ex(e->ssl, data + written, size - written, &n);
        if (r <= 0) {
            if (why(e, r) != GIO_TLS_AGAIN) {
                if (!PyErr_Occurred()) {
                    PyErr_SetString(e->lib->error, "the session was closed");
                }
                e->busy = false;
                return -1;
            }
            break;
        }
        written += n;
    }
    e->busy = false;
    return (Py_ssize_t)written;
}

bool
gio_tls_pending(GioTlsEngine *e)
{
    return e->in_size > 0 || e->lib->SSL_has_pending(e->ssl);
}

/* ---- TlsEngine
 * ---------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    GioTlsEngine engine;
} TlsEngine;

static PyObject *
engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"ssl_object", NULL};
    PyObject *ssl_object;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:TlsEngine", keywords, &ssl_object)) {
        return NULL;
    }
    PyObject *object = PyObject_GetAttrString(ssl_object, "_sslobj");
    TlsEngine *self = object == NULL ? NULL : (TlsEngine *)type->tp_alloc(type, 0);
    if (self != NULL) {
        int r = gio_tls_attach(&self->engine, PyType_GetModuleState(type), object);
        if (r == 0) {
            PyErr_SetString(PyExc_NotImplementedError,
                            "the OpenSSL of this Python's ssl module cannot be used from outside");
        }
        if (r <= 0) {
            Py_CLEAR(self);
        }
    }
    Py_XDECREF(object);
    return (PyObject *)self;
}

static PyObject *
engine_feed(TlsEngine *self, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    int r = gio_tls_feed(&self->engine, view.buf, (size_t)view.len);
    if (r == 0) {
        r = gio_tls_keep(&self->engine);
    }
    PyBuffer_Release(&view);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
engine_read(TlsEngine *self, PyObject *arg)
{
    Py_ssize_t size = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    if (size <= 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "read() of nothing");
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (data == NULL) {
        return NULL;
    }
    GioTlsEnd end;
    size_t got = gio_tls_read(&self->engine, PyBytes_AS_STRING(data), (size_t)size, &end);
    if (got == 0 && end != GIO_TLS_CLOSED) {
        Py_DECREF(data);
        return end == GIO_TLS_FAILED ? NULL : Py_NewRef(Py_None);
    }
    if (got < (size_t)size) {
        _PyBytes_Resize(&data, (Py_ssize_t)got);
    }
    return data;
}

static PyObject *
engine_write(TlsEngine *self, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    Py_ssize_t n = gio_tls_write(&self->engine, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return n < 0 ? NULL : PyLong_FromSsize_t(n);
}

static PyObject *
engine_take(TlsEngine *self, PyObject *Py_UNUSED(ignored))
{
    GioBuffer *out = &self->engine.out;
    PyObject *data =
        PyBytes_FromStringAndSize(out->data + out->start, (Py_ssize_t)gio_buffer_size(out));
    if (data != NULL) {
        gio_buffer_free(out);
    }
    return data;
}

static PyObject *
engine_pending(TlsEngine *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(gio_tls_pending(&self->engine));
}

static PyObject *
engine_address(TlsEngine *self, void *Py_UNUSED(closure))
{
    return PyLong_FromVoidPtr(self->engine.ssl);
}

static int
engine_traverse(TlsEngine *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->engine.object);
    Py_VISIT(self->engine.error);
    return 0;
}

static int
engine_clear(TlsEngine *self)
{
    Py_CLEAR(self->engine.error); /* the session refers to nothing of ours */
    return 0;
}

static void
engine_dealloc(TlsEngine *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    gio_tls_detach(&self->engine);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef engine_methods[] = {
    {"feed", (PyCFunction)engine_feed, METH_O,
     "feed($self, data, /)\n--\n\nTake ciphertext that has arrived."},
    {"read", (PyCFunction)engine_read, METH_O,
     "read($self, size, /)\n--\n\n"
     "Up to size bytes of plaintext; b'' after the peer's close_notify, None if more ciphertext is\n"
     "needed first."},
    {"write", (PyCFunction)engine_write, METH_O,
     "write($self, data, /)\n--\n\n"
     "Encrypt data; how much of it: less than all if something must be received first."},
    {"take", (PyCFunction)engine_take, METH_NOARGS,
     "take($self, /)\n--\n\nThe ciphertext that is to be sent."},
    {NULL},
};

static PyGetSetDef engine_getset[] = {
    {"pending", (getter)engine_pending, NULL, "Whether read() may succeed without feed().", NULL},
    {"address", (getter)engine_address, NULL, "Of OpenSSL's SSL, as an int.", NULL},
    {NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc,
     "TlsEngine(ssl_object)\n--\n\n"
     "Moves the data of a session that SSLContext.wrap_bio() has made, whose own BIOs are\n"
     "used no more. Handshake and shutdown remain the ssl_object's business."},
    {Py_tp_new, engine_new},
    {Py_tp_methods, engine_methods},
    {Py_tp_getset, engine_getset},
    {Py_tp_traverse, engine_traverse},
    {Py_tp_clear, engine_clear},
    {Py_tp_dealloc, engine_dealloc},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    .name = "greenletio._core.TlsEngine",
    .basicsize = sizeof(TlsEngine),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = engine_slots,
};

int
gio_tls_setup_types(PyObject *module, GioState *st)
{
    PyTypeObject *type = gio_add_type(module, &engine_spec, NULL, true);
    Py_XDECREF(type);
    return type == NULL ? -1 : gio_tls_setup_transport(module, st);
}
