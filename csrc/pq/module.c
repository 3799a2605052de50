/* greenletio._pq: cooperative psycopg2.
 *
 * Importing it imports psycopg2 and reads its types; nothing is changed until
 * patch() is called. The public face, with the docstrings, is
 * greenletio/_psycopg2.py.
 */
#include "pq/pq.h"

#include <stddef.h>

static GioPqConn *
known(PyObject *module, PyObject *conn)
{
    GioPqState *st = gio_pq_state(module);
    if (!PyObject_TypeCheck(conn, st->connection)) {
        PyErr_Format(PyExc_TypeError, "expected a psycopg2 connection, not %.100s",
                     Py_TYPE(conn)->tp_name);
        return NULL;
    }
    return gio_pq_conn_get(module, conn);
}

static PyObject *
set_blocking(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "set_blocking(conn, blocking)");
        return NULL;
    }
    int blocking = PyObject_IsTrue(args[1]);
    GioPqConn *c = blocking < 0 ? NULL : known(module, args[0]);
    if (c == NULL)
        return NULL;
    c->blocking = blocking != 0;
    Py_DECREF(c);
    Py_RETURN_NONE;
}

static PyObject *
get_blocking(PyObject *module, PyObject *conn)
{
    GioPqConn *c = known(module, conn);
    if (c == NULL)
        return NULL;
    bool blocking = c->blocking;
    Py_DECREF(c);
    return PyBool_FromLong(blocking);
}

/* Raise WouldBlockError where a wait would hold a running loop. */
static PyObject *
check_place(PyObject *module, PyObject *what)
{
    const GioAPI *api = gio_pq_state(module)->api;
    const char *utf8 = PyUnicode_AsUTF8(what);
    if (utf8 == NULL)
        return NULL;
    if (api->place() == GIO_PLACE_FORBIDDEN) {
        api->set_would_block(utf8);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
mark(PyObject *module, PyObject *conn)
{
    GioPqConn *c = known(module, conn);
    if (c == NULL)
        return NULL;
    long value = c->mark;
    Py_DECREF(c);
    return PyLong_FromLong(value);
}

static PyObject *
set_cancel_timeout(PyObject *module, PyObject *seconds)
{
    double value = PyFloat_AsDouble(seconds);
    if (value == -1.0 && PyErr_Occurred())
        return NULL;
    if (!(value > 0.0 && value <= 86400.0)) {
        PyErr_SetString(PyExc_ValueError, "cancel_timeout is in seconds: above 0, up to 86400");
        return NULL;
    }
    gio_pq_state(module)->cancel_time = (int64_t)(value * 1e9);
    Py_RETURN_NONE;
}

static PyObject *
options_to_dict(PQconninfoOption *options)
{
    PyObject *result = PyDict_New();
    for (PQconninfoOption *o = options; result != NULL && o != NULL && o->keyword != NULL; o++) {
        if (o->val == NULL)
            continue;
        PyObject *value = PyUnicode_DecodeFSDefault(o->val);
        if (value == NULL || PyDict_SetItemString(result, o->keyword, value) < 0)
            Py_CLEAR(result);
        Py_XDECREF(value);
    }
    return result;
}

/* libpq itself says what a connection string comes to, with the environment and
 * the service files; a string that it refuses at once never reaches the network. */
static PyObject *
conninfo(PyObject *module, PyObject *dsn)
{
    GioPqState *st = gio_pq_state(module);
    const char *utf8 = PyUnicode_AsUTF8(dsn);
    if (utf8 == NULL)
        return NULL;
    PGconn *pg = st->pq.PQconnectStart(utf8);
    if (pg == NULL)
        return PyErr_NoMemory();
    PQconninfoOption *options = st->pq.PQconninfo(pg);
    PyObject *result = options_to_dict(options);
    st->pq.PQconninfoFree(options);
    st->pq.PQfinish(pg);
    return result;
}

static int
take(const char *module_name, const char *name, PyObject **out)
{
    PyObject *other = PyImport_ImportModule(module_name);
    *out = other ? PyObject_GetAttrString(other, name) : NULL;
    Py_XDECREF(other);
    return *out == NULL ? -1 : 0;
}

static int
pq_exec(PyObject *module)
{
    GioPqState *st = gio_pq_state(module);
    st->cancel_time = 5000000000;
    st->api = gio_api_import();
    st->conns = PyDict_New();
    if (st->api == NULL || st->conns == NULL || gio_pq_conn_setup_types(module) < 0 ||
        gio_pq_guard_setup_types(module) < 0)
        return -1;
    if (take("greenlet", "getcurrent", &st->getcurrent) < 0 ||
        take("greenlet", "GreenletExit", &st->greenlet_exit) < 0 ||
        take("greenletio.errors", "WouldBlockError", &st->would_block) < 0 ||
        take("io", "TextIOBase", &st->text_io) < 0)
        return -1;
    PyObject *psycopg = PyImport_ImportModule("psycopg2._psycopg");
    int rc = psycopg ? gio_pq_bind(module, psycopg) : -1;
    Py_XDECREF(psycopg);
    return rc;
}

static int
pq_traverse(PyObject *module, visitproc visit, void *arg)
{
    GioPqState *st = gio_pq_state(module);
    Py_VISIT(st->conn_type);
    Py_VISIT(st->guard_type);
    Py_VISIT(st->property_type);
    Py_VISIT(st->conns);
    Py_VISIT(st->connection);
    Py_VISIT(st->cursor);
    Py_VISIT(st->execute);
    Py_VISIT(st->pointer);
    Py_VISIT(st->operational_error);
    Py_VISIT(st->programming_error);
    Py_VISIT(st->encodings);
    Py_VISIT(st->getcurrent);
    Py_VISIT(st->greenlet_exit);
    Py_VISIT(st->would_block);
    Py_VISIT(st->text_io);
    Py_VISIT(st->replaced);
    return 0;
}

static int
pq_clear(PyObject *module)
{
    GioPqState *st = gio_pq_state(module);
    st->recent = NULL;
    Py_CLEAR(st->conns);
    Py_CLEAR(st->conn_type);
    Py_CLEAR(st->guard_type);
    Py_CLEAR(st->property_type);
    Py_CLEAR(st->connection);
    Py_CLEAR(st->cursor);
    Py_CLEAR(st->execute);
    Py_CLEAR(st->pointer);
    Py_CLEAR(st->operational_error);
    Py_CLEAR(st->programming_error);
    Py_CLEAR(st->encodings);
    Py_CLEAR(st->getcurrent);
    Py_CLEAR(st->greenlet_exit);
    Py_CLEAR(st->would_block);
    Py_CLEAR(st->text_io);
    Py_CLEAR(st->replaced);
    return 0;
}

static void
pq_free(void *module)
{
    pq_clear(module);
    gio_libpq_unload(&gio_pq_state(module)->pq);
}

static PyMethodDef pq_methods[] = {
    {"wait", gio_pq_wait, METH_O, "wait(conn): the wait callback for psycopg2."},
    {"copy", (PyCFunction)(void (*)(void))gio_pq_guard_copy, METH_FASTCALL,
     "copy(cursor, sql, file, size): run a COPY with a file."},
    {"patch", gio_pq_patch, METH_O, "patch({type: {name: function}}): put the guards in."},
    {"unpatch", gio_pq_unpatch, METH_NOARGS, "unpatch(): put psycopg2's own methods back."},
    {"check_place", check_place, METH_O,
     "check_place(what): raise WouldBlockError where a running loop would be held."},
    {"conninfo", conninfo, METH_O, "conninfo(dsn): every option libpq would connect with."},
    {"mark", mark, METH_O, "mark(conn): how many transactions have ended."},
    {"set_cancel_timeout", set_cancel_timeout, METH_O, "set_cancel_timeout(seconds)"},
    {"set_blocking", (PyCFunction)(void (*)(void))set_blocking, METH_FASTCALL,
     "set_blocking(conn, blocking)"},
    {"get_blocking", get_blocking, METH_O, "get_blocking(conn)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot pq_slots[] = {
    {Py_mod_exec, pq_exec},
    {0, NULL},
};

static PyModuleDef pq_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "greenletio._pq",
    .m_doc = "Cooperative psycopg2, in C.",
    .m_size = sizeof(GioPqState),
    .m_methods = pq_methods,
    .m_slots = pq_slots,
    .m_traverse = pq_traverse,
    .m_clear = pq_clear,
    .m_free = pq_free,
};

PyMODINIT_FUNC
PyInit__pq(void)
{
    return PyModuleDef_Init(&pq_module);
}
