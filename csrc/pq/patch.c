/* Putting the guards into psycopg2's types, and taking them out again.
 *
 * Needs the GIL. psycopg2's types are static C types: their dictionaries are
 * changed in place, so that subclasses, instances and everything imported before
 * are patched, too. What stood there is kept and put back, object for object.
 */
#include "core/compat.h"
#include "pq/pq.h"

typedef struct {
    const char *name;
    int flags;
} Method;

static const Method cursor_methods[] = {
    {"execute", 0},
    {"executemany", GIO_GUARD_MANY},
    {"callproc", 0},
    {"close", GIO_GUARD_NAMED},
    {"fetchone", GIO_GUARD_NAMED},
    {"fetchmany", GIO_GUARD_NAMED},
    {"fetchall", GIO_GUARD_NAMED},
    {"scroll", GIO_GUARD_NAMED},
    {"__next__", GIO_GUARD_NAMED},
    {NULL, 0},
};

static const Method connection_methods[] = {
    {"commit", GIO_GUARD_TX | GIO_GUARD_MARK},
    {"rollback", GIO_GUARD_TX | GIO_GUARD_MARK},
    {"close", GIO_GUARD_QUIET | GIO_GUARD_CLOSE},
    {"poll", GIO_GUARD_QUIET},
    {"cancel", GIO_GUARD_CANCEL},
    {"reset", GIO_GUARD_MARK},
    {"set_session", 0},
    {"set_isolation_level", GIO_GUARD_MARK},
    {"set_client_encoding", GIO_GUARD_MARK},
    {"tpc_begin", 0},
    {"tpc_prepare", GIO_GUARD_MARK},
    {"tpc_commit", GIO_GUARD_MARK},
    {"tpc_rollback", GIO_GUARD_MARK},
    {"tpc_recover", 0},
    {NULL, 0},
};

static const char *const connection_properties[] = {"autocommit", "isolation_level", "readonly",
                                                    "deferrable", NULL};

/* Put `value` in, noting what stands there. */
static int
replace(GioPqState *st, PyTypeObject *type, const char *name, PyObject *value)
{
    PyObject *original = PyDict_GetItemString(type->tp_dict, name); /* there is one */
    PyObject *note = Py_BuildValue("(OsO)", type, name, original);
    int rc = note == NULL ? -1 : PyList_Append(st->replaced, note);
    Py_XDECREF(note);
    if (rc == 0)
        rc = PyDict_SetItemString(type->tp_dict, name, value);
    PyType_Modified(type);
    return rc;
}

static PyObject *
own_attribute(PyTypeObject *type, const char *name)
{
    PyObject *found = PyDict_GetItemString(type->tp_dict, name);
    if (found == NULL)
        PyErr_Format(PyExc_ImportError, "%s has no %s: greenletio does not know this psycopg2",
                     type->tp_name, name);
    return found;
}

static int
guard_methods(PyObject *module, PyTypeObject *type, const Method *methods)
{
    for (const Method *m = methods; m->name != NULL; m++) {
        PyObject *original = own_attribute(type, m->name);
        PyObject *guard =
            original ? gio_pq_guard_new(module, type, m->name, original, m->flags) : NULL;
        int rc = guard ? replace(gio_pq_state(module), type, m->name, guard) : -1;
        Py_XDECREF(guard);
        if (rc < 0)
            return -1;
    }
    return 0;
}

static int
guard_properties(PyObject *module, PyTypeObject *type)
{
    for (const char *const *name = connection_properties; *name != NULL; name++) {
        PyObject *original = own_attribute(type, *name);
        PyObject *guard = original ? gio_pq_guard_property(module, *name, original) : NULL;
        int rc = guard ? replace(gio_pq_state(module), type, *name, guard) : -1;
        Py_XDECREF(guard);
        if (rc < 0)
            return -1;
    }
    return 0;
}

/* Iteration goes through the slot, which subclasses have copied. */
static int
swap_iternext(PyTypeObject *type, iternextfunc before, iternextfunc after)
{
    if (type->tp_iternext == before)
        type->tp_iternext = after;
    PyObject *subclasses =
        PyObject_CallMethod((PyObject *)&PyType_Type, "__subclasses__", "O", type);
    if (subclasses == NULL)
        return -1;
    int rc = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(subclasses) && rc == 0; i++)
        rc = swap_iternext((PyTypeObject *)PyList_GET_ITEM(subclasses, i), before, after);
    Py_DECREF(subclasses);
    return rc;
}

/* overrides: {type: {name: function}}, what is done in Python. */
static int
replace_overrides(GioPqState *st, PyObject *overrides)
{
    PyObject *type, *names, *name, *value;
    Py_ssize_t i = 0, j;
    while (PyDict_Next(overrides, &i, &type, &names)) {
        for (j = 0; PyDict_Next(names, &j, &name, &value);) {
            const char *utf8 = PyUnicode_AsUTF8(name);
            if (utf8 == NULL || own_attribute((PyTypeObject *)type, utf8) == NULL ||
                replace(st, (PyTypeObject *)type, utf8, value) < 0)
                return -1;
        }
    }
    return 0;
}

PyObject *
gio_pq_patch(PyObject *module, PyObject *overrides)
{
    GioPqState *st = gio_pq_state(module);
    if (st->replaced != NULL)
        Py_RETURN_NONE;
    st->replaced = PyList_New(0);
    if (st->replaced == NULL)
        return NULL;
    st->iternext = st->cursor->tp_iternext;
    if (guard_methods(module, st->cursor, cursor_methods) < 0 ||
        guard_methods(module, st->connection, connection_methods) < 0 ||
        guard_properties(module, st->connection) < 0 || replace_overrides(st, overrides) < 0 ||
        swap_iternext(st->cursor, st->iternext, gio_pq_guard_iternext) < 0) {
        PyObject *exc = gio_err_take();
        Py_XDECREF(gio_pq_unpatch(module, NULL));
        gio_err_give(exc);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Connections made before the patch block in libpq again. */
static void
restore_blocking(GioPqState *st)
{
    PyObject *key, *value;
    Py_ssize_t i = 0;
    while (PyDict_Next(st->conns, &i, &key, &value)) {
        GioPqConn *c = (GioPqConn *)value;
        if (c->owner != NULL)
            continue; /* in the middle of something, which goes on as it began */
        if (c->was_blocking && c->pg != NULL && !gio_pq_is_closed(st, c->conn))
            st->pq.PQsetnonblocking(c->pg, 0);
        c->was_blocking = false;
        c->pg = NULL; /* looked at afresh when patched again */
    }
}

PyObject *
gio_pq_unpatch(PyObject *module, PyObject *unused)
{
    GioPqState *st = gio_pq_state(module);
    PyObject *replaced = st->replaced;
    if (replaced == NULL)
        Py_RETURN_NONE;
    st->replaced = NULL;
    int rc = swap_iternext(st->cursor, gio_pq_guard_iternext, st->iternext);
    for (Py_ssize_t i = PyList_GET_SIZE(replaced) - 1; i >= 0 && rc == 0; i--) {
        PyObject *note = PyList_GET_ITEM(replaced, i);
        PyTypeObject *type = (PyTypeObject *)PyTuple_GET_ITEM(note, 0);
        rc = PyDict_SetItem(type->tp_dict, PyTuple_GET_ITEM(note, 1), PyTuple_GET_ITEM(note, 2));
        PyType_Modified(type);
    }
    Py_DECREF(replaced);
    if (rc < 0)
        return NULL;
    restore_blocking(st);
    Py_RETURN_NONE;
}
