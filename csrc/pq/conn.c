/* What is known of each psycopg2 connection, and psycopg2's own parts.
 *
 * Needs the GIL. Owns the registry of connections: an entry is made at the first
 * guard or wait and removed by the weak reference's callback. Never keeps a
 * connection alive, and never touches a PGconn that psycopg2 has finished with.
 */
#include "core/compat.h"
#include "pq/pq.h"

#include <errno.h>
#include <fcntl.h>
#include <structmember.h>

static int
conn_traverse(PyObject *self, visitproc visit, void *arg)
{
    GioPqConn *c = (GioPqConn *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(c->module);
    Py_VISIT(c->weak);
    Py_VISIT(c->pending);
    Py_VISIT(c->copy_file);
    Py_VISIT(c->owner);
    return 0;
}

static int
conn_clear(PyObject *self)
{
    GioPqConn *c = (GioPqConn *)self;
    c->conn = NULL;
    c->pg = NULL;
    Py_CLEAR(c->weak);
    Py_CLEAR(c->pending);
    Py_CLEAR(c->copy_file);
    Py_CLEAR(c->owner);
    return 0;
}

static void
conn_dealloc(PyObject *self)
{
    GioPqConn *c = (GioPqConn *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    conn_clear(self);
    Py_CLEAR(c->key);
    Py_CLEAR(c->module);
    type->tp_free(self);
    Py_DECREF(type);
}

void
gio_pq_conn_closed_fd(GioPqState *st, GioPqConn *c)
{
    /* The number may belong to a new file by now: then it is not ours to announce. */
    if (c->fd >= 0 && fcntl(c->fd, F_GETFD) < 0 && errno == EBADF)
        st->api->fd_closing(c->fd);
    c->fd = -1;
}

/* The weak reference's callback: psycopg2's connection is being deallocated,
 * its socket is closed. */
static PyObject *
conn_forget(PyObject *self, PyObject *args, PyObject *kwargs)
{
    GioPqConn *c = (GioPqConn *)self;
    GioPqState *st = gio_pq_state(c->module);
    PyObject *alive = c->weak == NULL ? NULL : gio_weakref_get(c->weak);
    if (alive != NULL) { /* weakref.getweakrefs() shows us to everybody */
        Py_DECREF(alive);
        Py_RETURN_NONE;
    }
    Py_INCREF(self);
    c->conn = NULL;
    c->pg = NULL;
    if (st->recent == c)
        st->recent = NULL;
    if (st->api != NULL)
        gio_pq_conn_closed_fd(st, c);
    Py_CLEAR(c->weak);
    if (st->conns != NULL && PyDict_DelItem(st->conns, c->key) < 0)
        PyErr_Clear();
    Py_DECREF(self);
    Py_RETURN_NONE;
}

static GioPqConn *
conn_new(PyObject *module, PyObject *key, PyObject *conn)
{
    GioPqState *st = gio_pq_state(module);
    GioPqConn *c = (GioPqConn *)st->conn_type->tp_alloc(st->conn_type, 0);
    if (c == NULL)
        return NULL;
    c->module = Py_NewRef(module);
    c->key = Py_NewRef(key);
    c->conn = conn;
    c->fd = -1;
    c->weak = PyWeakref_NewRef(conn, (PyObject *)c);
    if (c->weak == NULL || PyDict_SetItem(st->conns, key, (PyObject *)c) < 0) {
        Py_DECREF(c);
        return NULL;
    }
    return c;
}

GioPqConn *
gio_pq_conn_get(PyObject *module, PyObject *conn)
{
    GioPqState *st = gio_pq_state(module);
    GioPqConn *c = st->recent;
    if (c != NULL && c->conn == conn)
        return (GioPqConn *)Py_NewRef(c);

    PyObject *key = PyLong_FromVoidPtr(conn);
    if (key == NULL)
        return NULL;
    c = (GioPqConn *)PyDict_GetItemWithError(st->conns, key);
    if (c != NULL)
        Py_INCREF(c);
    else if (!PyErr_Occurred())
        c = conn_new(module, key, conn);
    Py_DECREF(key);
    st->recent = c;
    return c;
}

int
gio_pq_conn_attach(GioPqState *st, GioPqConn *c)
{
    if (c->pg != NULL || gio_pq_is_closed(st, c->conn))
        return 0;
    PyObject *address = Py_TYPE(st->pointer)->tp_descr_get(st->pointer, c->conn, NULL);
    if (address == NULL)
        return -1;
    if (address != Py_None) {
        c->pg = PyLong_AsVoidPtr(address);
        if (!st->pq.PQisnonblocking(c->pg)) {
            c->was_blocking = true;
            st->pq.PQsetnonblocking(c->pg, 1);
        }
    }
    Py_DECREF(address);
    return PyErr_Occurred() ? -1 : 0;
}

int
gio_pq_conn_failed(GioPqState *st, GioPqConn *c)
{
    const char *message = c->pg != NULL ? st->pq.PQerrorMessage(c->pg) : "";
    if (*message == '\0')
        message = "the connection to the server was lost";
    PyErr_SetString(st->operational_error, message);
    return -1;
}

void
gio_pq_conn_gone(GioPqState *st, GioPqConn *c)
{
    int fd = c->fd;
    if (c->pg != NULL && !gio_pq_is_closed(st, c->conn))
        fd = st->pq.PQsocket(c->pg);
    c->fd = -1;
    c->pg = NULL;
    if (fd < 0)
        return;
    PyObject *exc = gio_err_take();
    st->api->fd_closing(fd);
    if (exc != NULL)
        gio_err_give(exc);
}

/* The offset of a C member of psycopg2's types, or -1 with an exception. */
static Py_ssize_t
member_offset(PyTypeObject *type, const char *name, int kind)
{
    Py_ssize_t offset = -1;
    PyObject *descr = PyObject_GetAttrString((PyObject *)type, name);
    if (descr != NULL && Py_IS_TYPE(descr, &PyMemberDescr_Type) &&
        ((PyMemberDescrObject *)descr)->d_member->type == kind)
        offset = ((PyMemberDescrObject *)descr)->d_member->offset;
    else
        PyErr_Format(PyExc_ImportError,
                     "%s.%s is not what psycopg2 2.9 has: greenletio does not know this psycopg2",
                     type->tp_name, name);
    Py_XDECREF(descr);
    return offset;
}

static int
find_type(PyObject *psycopg, const char *name, PyTypeObject **out)
{
    PyObject *type = PyObject_GetAttrString(psycopg, name);
    if (type != NULL && !PyType_Check(type)) {
        Py_CLEAR(type);
        PyErr_Format(PyExc_ImportError, "psycopg2._psycopg.%s is not a type", name);
    }
    *out = (PyTypeObject *)type;
    return type == NULL ? -1 : 0;
}

/* cursor.execute, connection.pgconn_ptr and connection.poll, as psycopg2 made them. */
static int
find_methods(GioPqState *st)
{
    st->execute = PyObject_GetAttrString((PyObject *)st->cursor, "execute");
    st->pointer = PyObject_GetAttrString((PyObject *)st->connection, "pgconn_ptr");
    if (st->execute == NULL || st->pointer == NULL)
        return -1;
    if (!Py_IS_TYPE(st->pointer, &PyGetSetDescr_Type)) {
        PyErr_SetString(PyExc_ImportError, "connection.pgconn_ptr is not psycopg2's own");
        return -1;
    }
    PyObject *poll = PyObject_GetAttrString((PyObject *)st->connection, "poll");
    if (poll == NULL)
        return -1;
    if (Py_IS_TYPE(poll, &PyMethodDescr_Type) &&
        ((PyMethodDescrObject *)poll)->d_method->ml_flags == METH_NOARGS)
        st->poll = ((PyMethodDescrObject *)poll)->d_method->ml_meth;
    else
        PyErr_SetString(PyExc_ImportError, "connection.poll is not psycopg2's own");
    Py_DECREF(poll);
    return st->poll == NULL ? -1 : 0;
}

int
gio_pq_bind(PyObject *module, PyObject *psycopg)
{
    GioPqState *st = gio_pq_state(module);
    PyObject *path = NULL, *bytes = NULL;
    int rc = -1;

    if (find_type(psycopg, "connection", &st->connection) < 0 ||
        find_type(psycopg, "cursor", &st->cursor) < 0 || find_methods(st) < 0)
        return -1;
    st->operational_error = PyObject_GetAttrString(psycopg, "OperationalError");
    st->programming_error = PyObject_GetAttrString(psycopg, "ProgrammingError");
    st->encodings = PyObject_GetAttrString(psycopg, "encodings");
    if (st->operational_error == NULL || st->programming_error == NULL || st->encodings == NULL)
        return -1;

    st->cursor_connection = member_offset(st->cursor, "connection", T_OBJECT);
    st->cursor_name = member_offset(st->cursor, "name", T_STRING);
    st->connection_closed = member_offset(st->connection, "closed", T_LONG);
    st->connection_async = member_offset(st->connection, "async_", T_LONG);
    st->connection_status = member_offset(st->connection, "status", T_INT);
    if (PyErr_Occurred())
        return -1;

    path = PyModule_GetFilenameObject(psycopg);
    if (path != NULL && PyUnicode_FSConverter(path, &bytes))
        rc = gio_libpq_load(&st->pq, PyBytes_AS_STRING(bytes));
    Py_XDECREF(bytes);
    Py_XDECREF(path);
    return rc;
}

static PyType_Slot conn_slots[] = {
    {Py_tp_doc, "What greenletio knows of one psycopg2 connection."},
    {Py_tp_dealloc, conn_dealloc},
    {Py_tp_traverse, conn_traverse},
    {Py_tp_clear, conn_clear},
    {Py_tp_call, conn_forget},
    {0, NULL},
};

static PyType_Spec conn_spec = {
    .name = "greenletio._pq.Connection",
    .basicsize = sizeof(GioPqConn),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = conn_slots,
};

int
gio_pq_conn_setup_types(PyObject *module)
{
    GioPqState *st = gio_pq_state(module);
    st->conn_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &conn_spec, NULL);
    return st->conn_type == NULL ? -1 : 0;
}
