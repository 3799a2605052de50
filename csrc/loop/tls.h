/* TLS by OpenSSL itself, on an object that Python's ssl module made: what the files share.
 *
 * tls_openssl.c finds the OpenSSL that _ssl has loaded, tls_engine.c moves data through it,
 * tls.c is the transport. Handshake, shutdown, verification and what can be asked of a
 * session stay with Python's object, which reads and writes through the same buffers.
 *
 * Everything here needs the GIL, but for the BIO's callbacks: Python's methods release it.
 */
#ifndef GIO_TLS_H
#define GIO_TLS_H

#include "loop/transport.h"

/* ---- OpenSSL (tls_openssl.c) -------------------------------------------------------------- */

/* As opaque as they are to us: no header of OpenSSL's is needed, and no version of it assumed. */
typedef struct ssl_st GioSSL;
typedef struct bio_st GioBIO;
typedef struct bio_method_st GioBIOMethod;

/* The functions that we use of the OpenSSL that _ssl uses (≥ 1.1.1), by their own names. */
#define GIO_OPENSSL_FUNCTIONS(F)                                                                   \
    F(void *, SSL_get_ex_data, (const GioSSL *, int))                                              \
    F(void, SSL_set_bio, (GioSSL *, GioBIO *, GioBIO *))                                           \
    F(GioBIO *, SSL_get_rbio, (const GioSSL *))                                                    \
    F(int, SSL_read_ex, (GioSSL *, void *, size_t, size_t *))                                      \
    F(int, SSL_peek_ex, (GioSSL *, void *, size_t, size_t *))                                      \
    F(int, SSL_write_ex, (GioSSL *, const void *, size_t, size_t *))                               \
    F(int, SSL_get_error, (const GioSSL *, int))                                                   \
    F(int, SSL_has_pending, (const GioSSL *))                                                      \
    F(void, ERR_clear_error, (void))                                                               \
    F(unsigned long, ERR_peek_last_error, (void))                                                  \
    F(const char *, ERR_lib_error_string, (unsigned long))                                         \
    F(const char *, ERR_reason_error_string, (unsigned long))                                      \
    F(int, BIO_get_new_index, (void))                                                              \
    F(GioBIOMethod *, BIO_meth_new, (int, const char *))                                           \
    F(int, BIO_meth_set_read, (GioBIOMethod *, int (*)(GioBIO *, char *, int)))                    \
    F(int, BIO_meth_set_write, (GioBIOMethod *, int (*)(GioBIO *, const char *, int)))             \
    F(int, BIO_meth_set_ctrl, (GioBIOMethod *, long (*)(GioBIO *, int, long, void *)))             \
    F(GioBIO *, BIO_new, (const GioBIOMethod *))                                                   \
    F(int, BIO_method_type, (const GioBIO *))                                                      \
    F(void, BIO_set_data, (GioBIO *, void *))                                                      \
    F(void *, BIO_get_data, (GioBIO *))                                                            \
    F(void, BIO_set_init, (GioBIO *, int))                                                         \
    F(void, BIO_set_flags, (GioBIO *, int))                                                        \
    F(void, BIO_clear_flags, (GioBIO *, int))                                                      \
    F(int, CRYPTO_get_ex_new_index, (int, long, void *, void *, void *, void *))                   \
    F(int, CRYPTO_free_ex_index, (int, int))

typedef struct GioOpenSSL {
#define DECLARE(type, name, args) type(*name) args;
    GIO_OPENSSL_FUNCTIONS(DECLARE)
#undef DECLARE
    GioBIOMethod *method; /* of our BIOs, which are known by ... */
    int bio_type;
    PyTypeObject *type; /* _ssl._SSLSocket */
    Py_ssize_t offset;  /* of the SSL* in it */
    PyObject *error;    /* ssl.SSLError */
} GioOpenSSL;

/* Borrowed from the module's state. NULL without an exception: it could not be found or not be
 * verified, and never will be. */
const GioOpenSSL *gio_openssl(GioState *st);
/* The SSL* of an _ssl._SSLSocket, NULL (no exception) if it is not plainly there. */
GioSSL *gio_openssl_of(const GioOpenSSL *lib, PyObject *sslsocket);
/* Raise ssl.SSLError from OpenSSL's error queue. */
void gio_openssl_raise(const GioOpenSSL *lib);

/* The method of our BIOs; -1 without an exception. */
int gio_tls_make_method(GioOpenSSL *lib);

/* ---- the engine (tls_engine.c) -------------------------------------------------------------- */

int gio_buffer_add(GioBuffer *b, const char *data, size_t size);
void gio_buffer_free(GioBuffer *b);
static inline size_t
gio_buffer_size(const GioBuffer *b)
{
    return b->end - b->start;
}

typedef struct {
    const GioOpenSSL *lib; /* borrowed; NULL: not attached */
    PyObject *object;      /* _ssl._SSLSocket, owned */
    GioSSL *ssl;           /* borrowed from it */
    GioBIO *bio;           /* borrowed from ssl */
    const char *in;        /* ciphertext that was received: the caller's, or in `kept` */
    size_t in_size;
    GioBuffer kept;  /* what was left of it */
    GioBuffer out;   /* ciphertext that is to be sent */
    PyObject *error; /* that reading has met; owned, to be visited by the garbage collector */
    bool busy;       /* inside OpenSSL, which may call Python (the SNI callback) */
    bool eof;        /* no more ciphertext will come, whatever the session says */
} GioTlsEngine;

typedef enum {
    GIO_TLS_FULL,   /* there may be more than fits */
    GIO_TLS_AGAIN,  /* more ciphertext is needed */
    GIO_TLS_CLOSED, /* the peer's close_notify */
    GIO_TLS_FAILED, /* an exception is set */
} GioTlsEnd;

/* Take an _ssl._SSLSocket, made by wrap_bio(), over: 1; 0 if that is not safe here; -1 with an
 * exception. */
int gio_tls_attach(GioTlsEngine *e, GioState *st, PyObject *object);
/* Python's object lives on, as one whose connection has gone. */
void gio_tls_detach(GioTlsEngine *e);
/* Ciphertext has arrived. It is not copied: gio_tls_keep must follow before the memory is used
 * for something else. -1 with an exception. */
int gio_tls_feed(GioTlsEngine *e, const char *data, size_t size);
/* Keep what is left of it. -1 with an exception. */
int gio_tls_keep(GioTlsEngine *e);
/* Plaintext: how much was read, and in *end why not more. What came before an error or the end
 * comes first, and then the next call tells of it. */
size_t gio_tls_read(GioTlsEngine *e, char *buf, size_t size, GioTlsEnd *end);
/* The same for one byte, which stays. */
GioTlsEnd gio_tls_peek(GioTlsEngine *e);
/* How much of the plaintext was written: less than all if OpenSSL wants to read first, and then
 * the same data must be offered again. -1 with an exception. */
Py_ssize_t gio_tls_write(GioTlsEngine *e, const char *data, size_t size);
/* Whether reading could give something without new ciphertext. */
bool gio_tls_pending(GioTlsEngine *e);
int gio_tls_setup_types(PyObject *module, GioState *st);

/* ---- the transport (tls.c) --------------------------------------------------------------------
 */

/* Written down in greenletio/_tls.py, too. */
typedef enum {
    GIO_TLS_UNWRAPPED, /* before and after */
    GIO_TLS_HANDSHAKE,
    GIO_TLS_WRAPPED,
    GIO_TLS_FLUSHING, /* no more is taken; what was, is still encrypted and sent */
    GIO_TLS_SHUTDOWN, /* waits for the peer's close_notify */
} GioTlsState;

struct GioTls {
    PyObject_HEAD
    PyObject *extra; /* as in GioTransport: asyncio's slots */
    PyObject *slots[4];
    PyObject *weakrefs;
    GioLoop *loop;        /* owned; NULL before _attach() */
    GioTransport *under;  /* the stream; NULL before the connection is made and after it is lost */
    GioProtocol protocol; /* the one above; none when the connection is lost */
    GioTlsEngine engine;
    GioQueue backlog;     /* plaintext that was written */
    GioTls *prev, *next;  /* in the loop's list of what is unflushed, which owns a reference */
    char *scratch;        /* the loop's, while what has arrived is in it; else NULL */
    GioMarks marks;       /* of the backlog */
    Py_ssize_t conn_lost; /* writes after the end */
    int state;            /* GioTlsState; _tls.py moves it */
    bool unflushed;
    bool reading;     /* what is written meanwhile is flushed afterwards */
    bool closed;      /* by the user, the peer's close_notify, or an error */
    bool read_paused; /* by the user */
    bool stream_full; /* the stream has called pause_writing() */
    bool protocol_paused;
};

#define GIO_TLS_HIGH_WATER (512 * 1024) /* asyncio's */

/* Call a method of _tls.py's. */
int gio_tls_call(GioTls *t, const char *method);
/* The transport that has taken a stream over, borrowed; NULL: none. */
GioTls *gio_tls_of_stream(GioTransport *under);
/* What is raised ends the connection; -1 if it ends the loop's run instead. */
int gio_tls_failed(GioTls *t);
/* The GioRun of a stream that was taken over. */
int gio_tls_readable(GioLoop *loop, PyObject *self);
int gio_tls_setup_transport(PyObject *module, GioState *st);

/* ---- writing (tls_write.c) --------------------------------------------------------------------
 */

/* Encrypt and send what was written, as far as the stream takes it. -1 with an exception, an
 * SSLError perhaps. */
int gio_tls_flush(GioTls *t);
/* Off the list of those that are flushed at the end of the turn. */
void gio_tls_forget_flush(GioTls *t);
/* Encrypt and send what the callbacks of this turn have written. -1 ends the loop's run. */
int gio_tls_flush_all(GioLoop *loop);
/* The loop closes: drop it. */
void gio_tls_forget_all(GioLoop *loop);
extern PyMethodDef gio_tls_write_methods[];

#endif
