/* Guards: what stands in psycopg2's types in place of its waiting methods.
 *
 * A guard refuses to block a running loop before anything is sent, waits for the
 * connection's turn, calls psycopg2's method, and raises what interrupted it.
 * Needs the GIL; any thread. Owns a reference to psycopg2's method. Asynchronous
 * connections (async_=True) pass untouched.
 */
#include "pq/pq.h"

#include <stddef.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *module;
    PyObject *original;
    PyObject *what; /* for messages: "psycopg2's cursor.execute()" */
    PyTypeObject *type;
    int flags;
    bool is_autocommit; /* properties */
    vectorcallfunc vectorcall;
} Guard;

static bool
attribute_is_none(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name);
    bool none = value == Py_None;
    if (value == NULL)
        PyErr_Clear();
    Py_XDECREF(value);
    return none;
}

static bool
is_default_session(PyObject *conn)
{
    return attribute_is_none(conn, "isolation_level") && attribute_is_none(conn, "readonly") &&
           attribute_is_none(conn, "deferrable");
}

/* Take the turn on `conn`: a new reference to what is known of it; NULL with an
 * exception, or without when psycopg2's method is to be called as it is. */
static GioPqConn *
enter(Guard *g, PyObject *conn, bool waits)
{
    GioPqState *st = gio_pq_state(g->module);
    if (conn == NULL || !PyObject_TypeCheck(conn, st->connection) ||
        GIO_PQ_MEMBER(long, conn, st->connection_async) || gio_pq_is_closed(st, conn))
        return NULL;
    GioPqConn *c = gio_pq_conn_get(g->module, conn);
    if (c == NULL)
        return NULL;
    if (waits && !c->blocking && st->api->place() == GIO_PLACE_FORBIDDEN) {
        st->api->set_would_block(PyUnicode_AsUTF8(g->what));
        goto error;
    }
    if (gio_pq_turn_take(st, c) < 0)
        goto error;
    if (c->pg == NULL && gio_pq_conn_attach(st, c) < 0) {
        gio_pq_turn_end(st, c);
        goto error;
    }
    return c;

error:
    Py_DECREF(c);
    return NULL;
}

/* End the turn and give the method's answer on, or raise what interrupted it. Steals c, answer. */
static PyObject *
leave(Guard *g, GioPqConn *c, PyObject *answer)
{
    if (g->flags & GIO_GUARD_MARK)
        c->mark++;
    if (c->pending != NULL) {
        if (answer != NULL && (g->flags & GIO_GUARD_MARK)) /* a commit must not look undone */
            PyErr_Format(gio_pq_state(g->module)->operational_error,
                         "%U was done before it could be interrupted", g->what);
        Py_CLEAR(answer);
        gio_pq_raise_pending(c);
    }
    gio_pq_turn_end(gio_pq_state(g->module), c);
    Py_DECREF(c);
    return answer;
}

static bool
method_waits(Guard *g, PyObject *conn)
{
    if (g->flags & GIO_GUARD_QUIET)
        return false;
    if (g->flags & GIO_GUARD_TX)
        return GIO_PQ_MEMBER(int, conn, gio_pq_state(g->module)->connection_status) ==
               GIO_STATUS_BEGIN;
    return true;
}

/* The connection a call is about, or NULL when the call does not concern one. Borrowed. */
static PyObject *
connection_of(Guard *g, PyObject *self)
{
    GioPqState *st = gio_pq_state(g->module);
    if (self == NULL || !PyObject_TypeCheck(self, g->type))
        return NULL;
    if (g->type == st->connection)
        return self;
    if ((g->flags & GIO_GUARD_NAMED) && GIO_PQ_MEMBER(char *, self, st->cursor_name) == NULL)
        return NULL;
    return GIO_PQ_MEMBER(PyObject *, self, st->cursor_connection);
}

/* connection.cancel(), without holding the thread. */
static PyObject *
cancel(Guard *g, PyObject *conn)
{
    GioPqState *st = gio_pq_state(g->module);
    GioPqConn *c = gio_pq_conn_get(g->module, conn);
    if (c == NULL)
        return NULL;
    int rc = gio_pq_conn_attach(st, c);
    if (rc == 0 && !c->blocking && st->api->place() == GIO_PLACE_FORBIDDEN) {
        st->api->set_would_block(PyUnicode_AsUTF8(g->what));
        rc = -1;
    }
    if (rc == 0)
        rc = gio_pq_cancel(st, c);
    Py_DECREF(c);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
pass_item(PyObject *self, PyObject *item)
{
    GioPqConn *c = (GioPqConn *)self;
    if (c->pending == NULL)
        return Py_NewRef(item);
    gio_pq_raise_pending(c);
    return NULL;
}

static PyMethodDef pass_item_def = {"pass_item", pass_item, METH_O, NULL};

/* executemany(query, vars_list): no item is sent after one that was interrupted, even
 * if the server was done with that before the cancel came. */
static PyObject *
call_many(Guard *g, GioPqConn *c, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    PyObject *own[3]; /* self, query, vars_list; psycopg2 refuses any other number */
    Py_ssize_t given = PyVectorcall_NARGS(nargsf), all = given, at = 2;
    if (kwnames != NULL)
        all += PyTuple_GET_SIZE(kwnames);
    for (Py_ssize_t i = given; i < all; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i - given);
        if (PyUnicode_CompareWithASCIIString(name, "vars_list") == 0)
            at = i;
    }
    if (all != 3)
        return PyObject_Vectorcall(g->original, args, nargsf, kwnames);
    memcpy(own, args, sizeof(own));
    PyObject *pass = PyCFunction_New(&pass_item_def, (PyObject *)c), *answer = NULL;
    if (pass != NULL)
        own[at] = PyObject_CallFunctionObjArgs((PyObject *)&PyMap_Type, pass, args[at], NULL);
    if (pass != NULL && own[at] != NULL) {
        answer = PyObject_Vectorcall(g->original, own, (size_t)given, kwnames);
        Py_DECREF(own[at]);
    }
    Py_XDECREF(pass);
    return answer;
}

static PyObject *
guard_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    Guard *g = (Guard *)callable;
    GioPqState *st = gio_pq_state(g->module);
    PyObject *conn = connection_of(g, PyVectorcall_NARGS(nargsf) > 0 ? args[0] : NULL);
    if (conn == NULL)
        return PyObject_Vectorcall(g->original, args, nargsf, kwnames);
    if (g->flags & GIO_GUARD_CANCEL) {
        int status = GIO_PQ_MEMBER(int, conn, st->connection_status);
        if (PyVectorcall_NARGS(nargsf) == 1 && kwnames == NULL &&
            !GIO_PQ_MEMBER(long, conn, st->connection_async) &&
            !GIO_PQ_MEMBER(long, conn, st->connection_closed) &&
            (status == GIO_STATUS_READY || status == GIO_STATUS_BEGIN))
            return cancel(g, conn);
        return PyObject_Vectorcall(g->original, args, nargsf, kwnames); /* or refuses */
    }

    GioPqConn *c = enter(g, conn, method_waits(g, conn));
    if (c == NULL)
        return PyErr_Occurred() ? NULL : PyObject_Vectorcall(g->original, args, nargsf, kwnames);
    if (g->flags & GIO_GUARD_CLOSE)
        gio_pq_conn_gone(st, c);
    if (g->flags & GIO_GUARD_MANY)
        return leave(g, c, call_many(g, c, args, nargsf, kwnames));
    return leave(g, c, PyObject_Vectorcall(g->original, args, nargsf, kwnames));
}

static PyObject *
guard_get(PyObject *self, PyObject *object, PyObject *type)
{
    if (object == NULL || object == Py_None)
        return Py_NewRef(self);
    return PyMethod_New(self, object);
}

/* Name, docstring, signature and the rest are psycopg2's. */
static PyObject *
guard_getattro(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError))
        return value;
    PyErr_Clear();
    return PyObject_GetAttr(((Guard *)self)->original, name);
}

static PyObject *
guard_doc(PyObject *self, void *closure)
{
    return PyObject_GetAttrString(((Guard *)self)->original, "__doc__");
}

static PyObject *
guard_repr(PyObject *self)
{
    return PyUnicode_FromFormat("<greenletio guard of %U>", ((Guard *)self)->what);
}

static int
guard_traverse(PyObject *self, visitproc visit, void *arg)
{
    Guard *g = (Guard *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(g->module);
    Py_VISIT(g->original);
    Py_VISIT(g->type);
    return 0;
}

static void
guard_dealloc(PyObject *self)
{
    Guard *g = (Guard *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(g->module);
    Py_CLEAR(g->original);
    Py_CLEAR(g->what);
    Py_CLEAR(g->type);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
property_set(PyObject *self, PyObject *conn, PyObject *value)
{
    Guard *g = (Guard *)self;
    descrsetfunc set = Py_TYPE(g->original)->tp_descr_set;
    bool waits = true;
    if (value != NULL && PyObject_TypeCheck(conn, g->type)) {
        /* Only what makes psycopg2 send something, see its own conn_set_session(). */
        PyObject *autocommit = PyObject_GetAttrString(conn, "autocommit");
        waits = autocommit != NULL && PyObject_IsTrue(autocommit) > 0;
        Py_XDECREF(autocommit);
        if (waits && g->is_autocommit)
            waits = PyObject_IsTrue(value) == 0 && !is_default_session(conn);
        PyErr_Clear();
    }
    GioPqConn *c = enter(g, conn, waits);
    if (c == NULL)
        return PyErr_Occurred() ? -1 : set(g->original, conn, value);
    int rc = set(g->original, conn, value);
    PyObject *answer = leave(g, c, rc < 0 ? NULL : Py_NewRef(Py_None));
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

static PyObject *
property_get(PyObject *self, PyObject *conn, PyObject *type)
{
    PyObject *original = ((Guard *)self)->original;
    return Py_TYPE(original)->tp_descr_get(original, conn, type);
}

PyObject *
gio_pq_guard_iternext(PyObject *cursor)
{
    Guard *g = NULL;
    for (PyTypeObject *type = Py_TYPE(cursor); type != NULL; type = type->tp_base) {
        PyObject *found = type->tp_dict ? PyDict_GetItemString(type->tp_dict, "__next__") : NULL;
        if (found != NULL && Py_TYPE(found)->tp_dealloc == guard_dealloc) {
            g = (Guard *)found;
            break;
        }
    }
    if (g == NULL) {
        PyErr_SetString(PyExc_SystemError, "this cursor type is not guarded any more");
        return NULL;
    }
    iternextfunc iternext = gio_pq_state(g->module)->iternext;
    PyObject *conn = connection_of(g, cursor);
    if (conn == NULL)
        return iternext(cursor);
    Py_INCREF(g);
    GioPqConn *c = enter(g, conn, true);
    PyObject *row = NULL;
    if (c != NULL)
        row = leave(g, c, iternext(cursor));
    else if (!PyErr_Occurred())
        row = iternext(cursor);
    Py_DECREF(g);
    return row;
}

PyObject *
gio_pq_guard_copy(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    GioPqState *st = gio_pq_state(module);
    if (nargs != 4 || !PyObject_TypeCheck(args[0], st->cursor)) {
        PyErr_SetString(PyExc_TypeError, "copy(cursor, sql, file, size)");
        return NULL;
    }
    Py_ssize_t size = PyLong_AsSsize_t(args[3]);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    PyObject *found = PyDict_GetItemString(st->cursor->tp_dict, "execute");
    if (found == NULL || Py_TYPE(found)->tp_dealloc != guard_dealloc)
        return PyErr_Format(PyExc_RuntimeError, "psycopg2 is not patched any more");

    Guard *g = (Guard *)Py_NewRef(found);
    PyObject *answer = NULL;
    GioPqConn *c = enter(g, connection_of(g, args[0]), true);
    if (c != NULL) {
        PyObject *outer = c->copy_file; /* NULL: only executemany() nests, and has none */
        c->copy_file = Py_NewRef(args[2]);
        c->copy_size = size;
        answer = PyObject_Vectorcall(st->execute, args, 2, NULL);
        Py_XSETREF(c->copy_file, outer);
        answer = leave(g, c, answer);
    }
    else if (!PyErr_Occurred()) {
        answer = PyObject_Vectorcall(st->execute, args, 2, NULL);
    }
    Py_DECREF(g);
    return answer;
}

static PyObject *
guard_make(PyObject *module, PyTypeObject *kind, PyTypeObject *type, const char *name,
           const char *format, PyObject *original, int flags)
{
    Guard *g = (Guard *)kind->tp_alloc(kind, 0);
    if (g == NULL)
        return NULL;
    g->module = Py_NewRef(module);
    g->original = Py_NewRef(original);
    g->type = (PyTypeObject *)Py_NewRef(type);
    g->flags = flags;
    g->vectorcall = guard_call;
    g->is_autocommit = strcmp(name, "autocommit") == 0;
    const char *owner = type == gio_pq_state(module)->cursor ? "cursor" : "connection";
    g->what = PyUnicode_FromFormat(format, owner, name);
    if (g->what == NULL)
        Py_CLEAR(g);
    return (PyObject *)g;
}

PyObject *
gio_pq_guard_new(PyObject *module, PyTypeObject *type, const char *name, PyObject *original,
                 int flags)
{
    return guard_make(module, gio_pq_state(module)->guard_type, type, name, "psycopg2's %s.%s()",
                      original, flags);
}

PyObject *
gio_pq_guard_property(PyObject *module, const char *name, PyObject *original)
{
    GioPqState *st = gio_pq_state(module);
    return guard_make(module, st->property_type, st->connection, name, "setting psycopg2's %s.%s",
                      original, 0);
}

static PyMemberDef property_members[] = {
    {"__wrapped__", T_OBJECT, offsetof(Guard, original), READONLY, "psycopg2's own"},
    {NULL, 0, 0, 0, NULL},
};

static PyMemberDef guard_members[] = {
    {"__wrapped__", T_OBJECT, offsetof(Guard, original), READONLY, "psycopg2's own"},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Guard, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef guard_getset[] = {
    {"__doc__", guard_doc, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot guard_slots[] = {
    {Py_tp_dealloc, guard_dealloc},
    {Py_tp_traverse, guard_traverse},
    {Py_tp_repr, guard_repr},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, guard_get},
    {Py_tp_getattro, guard_getattro},
    {Py_tp_members, guard_members},
    {Py_tp_getset, guard_getset},
    {0, NULL},
};

static PyType_Spec guard_spec = {
    .name = "greenletio._pq.Guard",
    .basicsize = sizeof(Guard),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_METHOD_DESCRIPTOR | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = guard_slots,
};

static PyType_Slot property_slots[] = {
    {Py_tp_dealloc, guard_dealloc},
    {Py_tp_traverse, guard_traverse},
    {Py_tp_repr, guard_repr},
    {Py_tp_descr_get, property_get},
    {Py_tp_descr_set, property_set},
    {Py_tp_getattro, guard_getattro},
    {Py_tp_members, property_members},
    {Py_tp_getset, guard_getset},
    {0, NULL},
};

static PyType_Spec property_spec = {
    .name = "greenletio._pq.GuardProperty",
    .basicsize = sizeof(Guard),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = property_slots,
};

int
gio_pq_guard_setup_types(PyObject *module)
{
    GioPqState *st = gio_pq_state(module);
    st->guard_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &guard_spec, NULL);
    st->property_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &property_spec, NULL);
    return st->guard_type == NULL || st->property_type == NULL ? -1 : 0;
}
