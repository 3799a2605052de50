/* Socket addresses: from the kernel's form to Python's, as the socket module writes them, and back.
 *
 * Back only what is plain: a literal IP address, a path. All else is the socket module's matter.
 */
#include "loop/sock.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/un.h>

static PyObject *
unix_to_python(const struct sockaddr_un *a, socklen_t size)
{
    size_t room = size - offsetof(struct sockaddr_un, sun_path);
    if (size <= offsetof(struct sockaddr_un, sun_path)) { /* has no name */
        return PyUnicode_FromStringAndSize(NULL, 0);
    }
    if (a->sun_path[0] == '\0') { /* Linux's abstract ones */
        return PyBytes_FromStringAndSize(a->sun_path, (Py_ssize_t)room);
    }
    return PyUnicode_DecodeFSDefaultAndSize(a->sun_path, (Py_ssize_t)strnlen(a->sun_path, room));
}

PyObject *
gio_address_to_python(const struct sockaddr_storage *from, socklen_t size)
{
    char host[INET6_ADDRSTRLEN];
    if (size == 0) {
        Py_RETURN_NONE;
    }
    switch (from->ss_family) {
    case AF_INET: {
        const struct sockaddr_in *a = (const struct sockaddr_in *)from;
        const unsigned char *b = (const unsigned char *)&a->sin_addr;
        char *end = host;
        for (int i = 0; i < 4; i++) { /* inet_ntop goes through sprintf */
            if (b[i] >= 100) {
                *end++ = (char)('0' + b[i] / 100);
            }
            if (b[i] >= 10) {
                *end++ = (char)('0' + b[i] / 10 % 10);
            }
            *end++ = (char)('0' + b[i] % 10);
            *end++ = '.';
        }
        PyObject *text = PyUnicode_FromStringAndSize(host, end - 1 - host);
        return text == NULL ? NULL : Py_BuildValue("(Ni)", text, ntohs(a->sin_port));
    }
    case AF_INET6: {
        const struct sockaddr_in6 *a = (const struct sockaddr_in6 *)from;
        if (inet_ntop(AF_INET6, &a->sin6_addr, host, sizeof host) == NULL) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        return Py_BuildValue("(siII)", host, ntohs(a->sin6_port), ntohl(a->sin6_flowinfo),
                             (unsigned)a->sin6_scope_id);
    }
    case AF_UNIX:
        return unix_to_python((const struct sockaddr_un *)from, size);
    default:
        PyErr_Format(PyExc_OSError, "the kernel gave an address of family %d", from->ss_family);
        return NULL;
    }
}

/* An int of at least 0 and at most `max`, else -1. */
static long long
small_int(PyObject *obj, long long max)
{
    if (!PyLong_CheckExact(obj)) {
        return -1;
    }
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(obj, &overflow);
    return overflow != 0 || value < 0 || value > max ? -1 : value;
}

static bool
internet_from_python(int family, PyObject *address, struct sockaddr_storage *to, socklen_t *size)
{
    Py_ssize_t n = PyTuple_CheckExact(address) ? PyTuple_GET_SIZE(address) : 0;
    if (n != 2 && (n != 4 || family != AF_INET6)) {
        return false;
    }
    PyObject *host = PyTuple_GET_ITEM(address, 0);
    long long port = small_int(PyTuple_GET_ITEM(address, 1), 65535);
    if (port < 0 || !PyUnicode_CheckExact(host) || !PyUnicode_IS_COMPACT_ASCII(host)) {
        return false;
    }
    const char *text = (const char *)PyUnicode_1BYTE_DATA(host);
    if (strlen(text) != (size_t)PyUnicode_GET_LENGTH(host)) {
        return false;
    }
    if (family == AF_INET) {
        struct sockaddr_in *a = (struct sockaddr_in *)to;
        *a = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        *size = sizeof *a;
        return inet_pton(AF_INET, text, &a->sin_addr) == 1;
    }
    long long flow = n == 4 ? small_int(PyTuple_GET_ITEM(address, 2), 0xfffff) : 0;
    long long scope = n == 4 ? small_int(PyTuple_GET_ITEM(address, 3), UINT32_MAX) : 0;
    struct sockaddr_in6 *a = (struct sockaddr_in6 *)to;
    *a = (struct sockaddr_in6){.sin6_family = AF_INET6,
                               .sin6_port = htons((uint16_t)port),
                               .sin6_flowinfo = htonl((uint32_t)flow),
                               .sin6_scope_id = (uint32_t)scope};
    *size = sizeof *a;
    return flow >= 0 && scope >= 0 && inet_pton(AF_INET6, text, &a->sin6_addr) == 1;
}

static bool
unix_from_python(PyObject *address, struct sockaddr_storage *to, socklen_t *size)
{
    struct sockaddr_un *a = (struct sockaddr_un *)to;
    const char *path;
    Py_ssize_t n;
    if (PyBytes_CheckExact(address)) {
        path = PyBytes_AS_STRING(address);
        n = PyBytes_GET_SIZE(address);
    }
    else if (PyUnicode_CheckExact(address) && PyUnicode_IS_COMPACT_ASCII(address)) {
        path = (const char *)PyUnicode_1BYTE_DATA(address);
        n = PyUnicode_GET_LENGTH(address);
    }
    else {
        return false;
    }
    if (n == 0 || n >= (Py_ssize_t)sizeof a->sun_path) {
        return false;
    }
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    memcpy(a->sun_path, path, (size_t)n);
    /* An abstract name is as long as it is, a path ends with NUL. */
    *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n + (path[0] != '\0'));
    return true;
}

bool
gio_address_from_python(int family, PyObject *address, struct sockaddr_storage *to, socklen_t *size)
{
    switch (family) {
    case AF_INET:
    case AF_INET6:
        return internet_from_python(family, address, to, size);
    case AF_UNIX:
        return unix_from_python(address, to, size);
    default:
        return false;
    }
}
