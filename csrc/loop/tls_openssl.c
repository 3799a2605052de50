/* Finds the OpenSSL that Python's own _ssl uses, and in Python's objects what belongs to it.
 *
 * Other copies may be loaded as well (in psycopg's wheels, for instance), so the functions are
 * looked up in _ssl's own dependencies. Where the SSL* lies in an _ssl._SSLSocket is asked of
 * OpenSSL: it tells a callback the address of every SSL that is made, one is made through Python,
 * and the place is where that address is found. This proves the library to be the right one as
 * well. Whatever is not as expected means that TLS is left to asyncio; nothing is guessed.
 */
#include "loop/tls.h"

#include <dlfcn.h>
#include <pthread.h>

#define CLASS_SSL 0 /* CRYPTO_EX_INDEX_SSL */

/* ---- the functions -------------------------------------------------------------------------- */

/* _ssl's file; NULL without an exception if there is none, for it is built in. */
static PyObject *
ssl_file(void)
{
    PyObject *module = PyImport_ImportModule("_ssl");
    PyObject *file = module == NULL ? NULL : PyObject_GetAttrString(module, "__file__");
    PyObject *path = file == NULL ? NULL : PyUnicode_EncodeFSDefault(file);
    Py_XDECREF(module);
    Py_XDECREF(file);
    if (path == NULL) {
        PyErr_Clear();
    }
    return path;
}

static bool
find_functions(GioOpenSSL *lib)
{
    PyObject *path = ssl_file();
    void *handle =
        path == NULL ? NULL : dlopen(PyBytes_AS_STRING(path), RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
    Py_XDECREF(path);
    if (handle == NULL) {
        return false;
    }
    bool found = true;
#define FIND(type, name, args)                                                                     \
    if ((*(void **)(&lib->name) = dlsym(handle, #name)) == NULL) {                                 \
        found = false;                                                                             \
    }
    GIO_OPENSSL_FUNCTIONS(FIND)
#undef FIND
    dlclose(handle); /* _ssl itself is never unloaded */
    return found;
}

/* ---- the place of the SSL* --------------------------------------------------------------------
 */

typedef struct {
    pthread_t thread; /* others may make connections at the same moment */
    void *made;
} Probe;

/* Not in the module's state, which may go: OpenSSL may still be about to call for another thread.
 */
static Probe probe;

static void
on_ssl_made(void *parent, void *ptr, void *ad, int index, long argl, void *argp)
{
    (void)ptr, (void)ad, (void)index, (void)argl;
    Probe *p = argp;
    if (pthread_equal(p->thread, pthread_self())) {
        p->made = parent;
    }
}

/* A session that nobody needs, or NULL with an exception. */
static PyObject *
make_sslsocket(PyObject *ssl)
{
    PyObject *protocol = PyObject_GetAttrString(ssl, "PROTOCOL_TLS_SERVER"), *object = NULL;
    PyObject *context =
        protocol == NULL ? NULL : PyObject_CallMethod(ssl, "SSLContext", "O", protocol);
    PyObject *in = context == NULL ? NULL : PyObject_CallMethod(ssl, "MemoryBIO", NULL);
    PyObject *out = in == NULL ? NULL : PyObject_CallMethod(ssl, "MemoryBIO", NULL);
    PyObject *wrapped =
        out == NULL ? NULL : PyObject_CallMethod(context, "wrap_bio", "OOO", in, out, Py_True);
    if (wrapped != NULL) {
        object = PyObject_GetAttrString(wrapped, "_sslobj");
    }
    Py_XDECREF(wrapped);
    Py_XDECREF(out);
    Py_XDECREF(in);
    Py_XDECREF(context);
    Py_XDECREF(protocol);
    return object;
}

static bool
find_offset(GioOpenSSL *lib, PyObject *ssl)
{
    probe.thread = pthread_self();
    probe.made = NULL;
    int index = lib->CRYPTO_get_ex_new_index(CLASS_SSL, 0, &probe, (void *)on_ssl_made, NULL, NULL);
    if (index < 0) {
        return false;
    }
    PyObject *object = make_sslsocket(ssl);
    lib->CRYPTO_free_ex_index(CLASS_SSL, index);
    bool found = false;
    if (object == NULL) {
        PyErr_Clear();
    }
    else if (probe.made != NULL && lib->SSL_get_ex_data(probe.made, 0) == object) {
        Py_ssize_t size = Py_TYPE(object)->tp_basicsize;
        for (Py_ssize_t at = sizeof(PyObject); at + (Py_ssize_t)sizeof(void *) <= size;
             at += sizeof(void *)) {
            if (*(void **)((char *)object + at) == probe.made) {
                lib->offset = at;
                found = !found; /* and nowhere else */
            }
        }
        lib->type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(object));
    }
    Py_XDECREF(object);
    return found;
}

GioSSL *
gio_openssl_of(const GioOpenSSL *lib, PyObject *sslsocket)
{
    if (!Py_IS_TYPE(sslsocket, lib->type)) {
        return NULL;
    }
    GioSSL *ssl = *(GioSSL **)((char *)sslsocket + lib->offset);
    return ssl != NULL && lib->SSL_get_ex_data(ssl, 0) == sslsocket ? ssl : NULL;
}

const GioOpenSSL *
gio_openssl(GioState *st)
{
    if (st->openssl_sought) {
        return st->openssl;
    }
    st->openssl_sought = true;
#ifdef Py_GIL_DISABLED
    return NULL; /* the GIL is what keeps others out of a session */
#endif
    PyObject *ssl = PyImport_ImportModule("ssl");
    GioOpenSSL *lib = ssl == NULL ? NULL : PyMem_Calloc(1, sizeof *lib);
    if (lib != NULL && find_functions(lib) && find_offset(lib, ssl) &&
        gio_tls_make_method(lib) == 0) {
        lib->error = PyObject_GetAttrString(ssl, "SSLError");
    }
    Py_XDECREF(ssl);
    if (lib != NULL && lib->error != NULL) {
        st->openssl = lib;
    }
    else {
        PyMem_Free(lib);
    }
    PyErr_Clear(); /* a Python without ssl, or without memory */
    return st->openssl;
}

/* ---- errors ------------------------------------------------------------------------------------
 */

/* The name that OpenSSL's headers give a reason, as Python has it: in capitals. */
static PyObject *
name_of(const char *text, size_t length)
{
    PyObject *words = PyUnicode_FromStringAndSize(text, (Py_ssize_t)length);
    PyObject *capitals = words == NULL ? NULL : PyObject_CallMethod(words, "upper", NULL);
    PyObject *name =
        capitals == NULL ? NULL : PyObject_CallMethod(capitals, "replace", "ss", " ", "_");
    Py_XDECREF(words);
    Py_XDECREF(capitals);
    return name;
}

void
gio_openssl_raise(const GioOpenSSL *lib)
{
    unsigned long code = lib->ERR_peek_last_error();
    const char *where = code == 0 ? NULL : lib->ERR_lib_error_string(code);
    const char *what = code == 0 ? NULL : lib->ERR_reason_error_string(code);
    where = where == NULL ? "SSL" : where;
    what = what == NULL ? "unknown error" : what;
    const char *space = strchr(where, ' '); /* of "SSL routines" */
    PyObject *library = name_of(where, space == NULL ? strlen(where) : (size_t)(space - where));
    PyObject *reason = library == NULL ? NULL : name_of(what, strlen(what));
    PyObject *text =
        reason == NULL ? NULL : PyUnicode_FromFormat("[%U: %U] %s", library, reason, what);
    PyObject *exc = text == NULL ? NULL : PyObject_CallFunction(lib->error, "iO", 1, text);
    if (exc != NULL && PyObject_SetAttrString(exc, "library", library) == 0 &&
        PyObject_SetAttrString(exc, "reason", reason) == 0) {
        PyErr_SetObject(lib->error, exc);
    }
    Py_XDECREF(exc);
    Py_XDECREF(text);
    Py_XDECREF(reason);
    Py_XDECREF(library);
    lib->ERR_clear_error();
}
