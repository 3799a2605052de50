/* What OpenSSL knows of a connection: its session, and the certificate that the server has shown.
 *
 * libpq hands out its SSL*, which is of use with the very OpenSSL that libpq uses only; others may
 * be loaded, by Python's ssl or a wheel. So the functions are looked up in libpq's own
 * dependencies, and what they say is compared with what libpq says. No header of OpenSSL's is
 * needed, and no version of it assumed (1.1.1 or newer). Where it cannot be found, or not be
 * verified, an exception says so; nothing is guessed.
 */
#include "pg/pg.h"

#include <dlfcn.h>
#include <string.h>
#include <time.h>

#define NID_SUBJECT_ALT_NAME 85
#define NAME_FLAGS 0x01110313 /* XN_FLAG_RFC2253, but letters beyond ASCII stay as they are */

typedef struct ssl_st SSL;
typedef struct x509_st X509;
typedef struct bio_st BIO;

#define FUNCTIONS(F)                                                                               \
    F(int, SSL_is_init_finished, (const SSL *))                                                    \
    F(const char *, SSL_get_version, (const SSL *))                                                \
    F(const void *, SSL_get_current_cipher, (const SSL *))                                         \
    F(const char *, SSL_CIPHER_get_name, (const void *))                                           \
    F(void, SSL_get0_alpn_selected, (const SSL *, const unsigned char **, unsigned *))             \
    F(void, X509_free, (X509 *))                                                                   \
    F(int, i2d_X509, (const X509 *, unsigned char **))                                             \
    F(void *, X509_get_X509_PUBKEY, (const X509 *))                                                \
    F(int, i2d_X509_PUBKEY, (const void *, unsigned char **))                                      \
    F(const void *, X509_get_subject_name, (const X509 *))                                         \
    F(const void *, X509_get_issuer_name, (const X509 *))                                          \
    F(const void *, X509_get0_notBefore, (const X509 *))                                           \
    F(const void *, X509_get0_notAfter, (const X509 *))                                            \
    F(int, ASN1_TIME_to_tm, (const void *, struct tm *))                                           \
    F(int, X509_NAME_print_ex, (BIO *, const void *, int, unsigned long))                          \
    F(void *, X509_get_ext_d2i, (const X509 *, int, int *, int *))                                 \
    F(void, GENERAL_NAMES_free, (void *))                                                          \
    F(void *, GENERAL_NAME_get0_value, (const void *, int *))                                      \
    F(int, OPENSSL_sk_num, (const void *))                                                         \
    F(void *, OPENSSL_sk_value, (const void *, int))                                               \
    F(const unsigned char *, ASN1_STRING_get0_data, (const void *))                                \
    F(int, ASN1_STRING_length, (const void *))                                                     \
    F(const void *, BIO_s_mem, (void))                                                             \
    F(BIO *, BIO_new, (const void *))                                                              \
    F(int, BIO_read, (BIO *, void *, int))                                                         \
    F(int, BIO_free, (BIO *))                                                                      \
    F(void, ERR_clear_error, (void))

typedef struct {
#define DECLARE(type, name, args) type(*name) args;
    FUNCTIONS(DECLARE)
#undef DECLARE
    X509 *(*peer_certificate)(const SSL *); /* with a reference; its name depends on the version */
} OpenSSL;

/* ---- the functions --------------------------------------------------------------------------- */

static bool
look_up(OpenSSL *lib, void *handle)
{
    bool found = true;
#define FIND(type, name, args)                                                                     \
    found = (*(void **)(&lib->name) = dlsym(handle, #name)) != NULL && found;
    FUNCTIONS(FIND)
#undef FIND
    *(void **)(&lib->peer_certificate) = dlsym(handle, "SSL_get1_peer_certificate");
    if (lib->peer_certificate == NULL)
        *(void **)(&lib->peer_certificate) = dlsym(handle, "SSL_get_peer_certificate");
    return found && lib->peer_certificate != NULL;
}

/* libpq's OpenSSL, proved on this session: 0, or -1 with an exception. */
static int
find(OpenSSL *lib, PGconn *pg, SSL *ssl)
{
    Dl_info place;
    void *libpq = NULL, *global = dlsym(RTLD_DEFAULT, "SSL_get_version");
    const char *why = "libpq's own file is not found";
    if (dladdr((void *)(uintptr_t)&PQsslStruct, &place) != 0 && place.dli_fname != NULL)
        libpq = dlopen(place.dli_fname, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
    if (libpq == NULL)
        goto error;
    bool found = look_up(lib, libpq);
    dlclose(libpq); /* which stays: we are linked with it */
    why = "libpq's dependencies have not all functions of it";
    if (!found)
        goto error;
    why = "another one is loaded for the whole process";
    if (global != NULL && global != *(void **)(&lib->SSL_get_version))
        goto error;
    /* Both give the address of a text of their own. */
    why = "it is not the one that libpq uses";
    if (lib->SSL_get_version(ssl) != PQsslAttribute(pg, "protocol"))
        goto error;
    return 0;

error:
    gio_pg_error_set("NotSupportedError",
                     "what TLS has agreed on cannot be read, for libpq's OpenSSL is not usable "
                     "here: %s",
                     why);
    return -1;
}

/* ---- what is in a certificate ------------------------------------------------------------------
 */

/* What a function of OpenSSL's writes: bytes, NULL with an exception. */
static PyObject *
der_of(int (*write)(const void *, unsigned char **), const void *object)
{
    int size = object == NULL ? -1 : write(object, NULL);
    PyObject *bytes = size < 0 ? NULL : PyBytes_FromStringAndSize(NULL, size);
    if (size < 0)
        gio_pg_error_set("OperationalError", "OpenSSL cannot read the server's certificate");
    if (bytes != NULL) {
        unsigned char *at = (unsigned char *)PyBytes_AS_STRING(bytes);
        write(object, &at);
    }
    return bytes;
}

static PyObject *
name_of(const OpenSSL *lib, const void *name)
{
    PyObject *text = NULL, *bytes = NULL;
    BIO *bio = lib->BIO_new(lib->BIO_s_mem());
    int size = bio == NULL ? -1 : lib->X509_NAME_print_ex(bio, name, 0, NAME_FLAGS);
    if (bio == NULL)
        PyErr_NoMemory();
    else if (size < 0)
        gio_pg_error_set("OperationalError", "the server's certificate has a malformed name");
    else
        bytes = PyBytes_FromStringAndSize(NULL, size);
    if (bytes != NULL) {
        int got = size == 0 ? 0 : lib->BIO_read(bio, PyBytes_AS_STRING(bytes), size);
        text = PyUnicode_DecodeUTF8(PyBytes_AS_STRING(bytes), got < 0 ? 0 : got, "replace");
    }
    Py_XDECREF(bytes);
    if (bio != NULL)
        lib->BIO_free(bio);
    return text;
}

/* (year, month, day, hour, minute, second), UTC */
static PyObject *
time_of(const OpenSSL *lib, const void *time)
{
    struct tm tm;
    if (!lib->ASN1_TIME_to_tm(time, &tm))
        Py_RETURN_NONE;
    return Py_BuildValue("(iiiiii)", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour,
                         tm.tm_min, tm.tm_sec);
}

/* A list of (type, bytes), by X.509's numbers, of those that are text or an address. */
static PyObject *
alternatives_of(const OpenSSL *lib, const X509 *certificate)
{
    PyObject *list = PyList_New(0);
    void *names = lib->X509_get_ext_d2i(certificate, NID_SUBJECT_ALT_NAME, NULL, NULL);
    int count = names == NULL ? 0 : lib->OPENSSL_sk_num(names);
    for (int i = 0; list != NULL && i < count; i++) {
        int type = -1;
        const void *value = lib->GENERAL_NAME_get0_value(lib->OPENSSL_sk_value(names, i), &type);
        if (value == NULL || (type != 1 && type != 2 && type != 6 && type != 7))
            continue;
        PyObject *pair = Py_BuildValue("(iy#)", type, lib->ASN1_STRING_get0_data(value),
                                       (Py_ssize_t)lib->ASN1_STRING_length(value));
        if (pair == NULL || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    if (names != NULL)
        lib->GENERAL_NAMES_free(names);
    return list;
}

static int
put(PyObject *dict, const char *key, PyObject *value) /* stolen */
{
    int rc = value == NULL ? -1 : PyDict_SetItemString(dict, key, value);
    Py_XDECREF(value);
    return rc;
}

typedef int (*Write)(const void *, unsigned char **);

static int
add_certificate(const OpenSSL *lib, PyObject *dict, const X509 *certificate)
{
    return put(dict, "der", der_of((Write)lib->i2d_X509, certificate)) < 0 ||
                   put(dict, "key",
                       der_of(lib->i2d_X509_PUBKEY, lib->X509_get_X509_PUBKEY(certificate))) < 0 ||
                   put(dict, "subject", name_of(lib, lib->X509_get_subject_name(certificate))) <
                       0 ||
                   put(dict, "issuer", name_of(lib, lib->X509_get_issuer_name(certificate))) < 0 ||
                   put(dict, "not_before", time_of(lib, lib->X509_get0_notBefore(certificate))) <
                       0 ||
                   put(dict, "not_after", time_of(lib, lib->X509_get0_notAfter(certificate))) < 0 ||
                   put(dict, "names", alternatives_of(lib, certificate)) < 0
               ? -1
               : 0;
}

/* ---- what is asked ------------------------------------------------------------------------------
 */

PyObject *
gio_pg_tls_facts(GioPgConn *c, PyObject *Py_UNUSED(ignored))
{
    OpenSSL lib;
    if (c->pg == NULL || !PQsslInUse(c->pg))
        Py_RETURN_NONE;
    SSL *ssl = PQsslStruct(c->pg, "OpenSSL");
    if (ssl == NULL)
        return gio_pg_error_set("NotSupportedError", "libpq's TLS is not OpenSSL's");
    if (find(&lib, c->pg, ssl) < 0)
        return NULL;
    const void *cipher = lib.SSL_get_current_cipher(ssl);
    const unsigned char *protocol = NULL;
    unsigned size = 0;
    lib.SSL_get0_alpn_selected(ssl, &protocol, &size);
    X509 *certificate = lib.peer_certificate(ssl);
    PyObject *dict = PyDict_New();
    if (dict != NULL &&
        (put(dict, "version", PyUnicode_FromString(lib.SSL_get_version(ssl))) < 0 ||
         put(dict, "cipher",
             PyUnicode_FromString(cipher == NULL ? "" : lib.SSL_CIPHER_get_name(cipher))) < 0 ||
         put(dict, "alpn",
             protocol == NULL ? Py_NewRef(Py_None)
                              : PyUnicode_DecodeLatin1((const char *)protocol, size, NULL)) < 0 ||
         (certificate != NULL && add_certificate(&lib, dict, certificate) < 0)))
        Py_CLEAR(dict);
    if (certificate != NULL)
        lib.X509_free(certificate);
    lib.ERR_clear_error(); /* libpq takes what it finds there for its own */
    return dict;
}

/* Whether libpq has not yet sent more than the wish for TLS, and what belongs to that. */
static bool
is_before_startup(PGconn *pg)
{
    switch (PQstatus(pg)) {
    case CONNECTION_STARTED:
    case CONNECTION_MADE:
    case CONNECTION_NEEDED:
    case CONNECTION_SSL_STARTUP:
    case CONNECTION_GSS_STARTUP:
        return true;
    default:
        return false;
    }
}

/* The server's public key, as DER; None: it has shown no certificate. */
static PyObject *
key_of(const OpenSSL *lib, const SSL *ssl)
{
    X509 *certificate = lib->peer_certificate(ssl);
    if (certificate == NULL)
        Py_RETURN_NONE;
    PyObject *key = der_of(lib->i2d_X509_PUBKEY, lib->X509_get_X509_PUBKEY(certificate));
    lib->X509_free(certificate);
    lib->ERR_clear_error();
    return key;
}

int
gio_pg_tls_check(GioPgConn *c)
{
    OpenSSL lib;
    if (c->tls_check == NULL || c->tls_check == Py_None)
        return 0;
    SSL *ssl = PQsslStruct(c->pg, "OpenSSL");
    if (ssl != NULL && find(&lib, c->pg, ssl) < 0)
        return -1;
    bool agreed = ssl != NULL && lib.SSL_is_init_finished(ssl);
    if (!agreed && is_before_startup(c->pg))
        return 0;
    PyObject *key = agreed ? key_of(&lib, ssl) : Py_NewRef(Py_None);
    PyObject *check = Py_NewRef(c->tls_check);
    PyObject *answer = key == NULL ? NULL : PyObject_CallOneArg(check, key);
    Py_DECREF(check);
    Py_XDECREF(key);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}
