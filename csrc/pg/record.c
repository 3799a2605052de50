/* Record: a row that is read by position, by name, and as a mapping; immutable.
 *
 * There are two types. Rows of plain values (numbers, text, dates) cannot be part of a cycle:
 * they have no header for the garbage collector, which would spend more time on a large result than
 * all the rest takes. Rows that may hold lists, records or what a user's codec makes are of a
 * subclass that has one. A user's subclass of Record always has one, by Python's own doing.
 * RecordDesc has the names, once for all rows of a statement.
 */
#include "pg/pg.h"

#include <stddef.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    GioPgState *st;  /* borrowed from the module, which the type keeps alive */
    PyObject *names; /* tuple of str */
    PyObject *index; /* {name: position}; of equal names the last one */
} Desc;

/* ---- the description ------------------------------------------------------------- */

PyObject *
gio_pg_desc_new(GioPgState *st, PyObject *names)
{
    Desc *d = (Desc *)st->desc_type->tp_alloc(st->desc_type, 0);
    if (d == NULL)
        return NULL;
    d->st = st;
    d->names = Py_NewRef(names);
    d->index = PyDict_New();
    for (Py_ssize_t i = 0; d->index != NULL && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *at = PyLong_FromSsize_t(i);
        if (at == NULL || PyDict_SetItem(d->index, PyTuple_GET_ITEM(names, i), at) < 0)
            Py_CLEAR(d->index);
        Py_XDECREF(at);
    }
    if (d->index == NULL)
        Py_CLEAR(d);
    return (PyObject *)d;
}

Py_ssize_t
gio_pg_desc_find(PyObject *desc, PyObject *name)
{
    PyObject *at = PyDict_GetItemWithError(((Desc *)desc)->index, name);
    if (at == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetObject(PyExc_KeyError, name);
        return -1;
    }
    return PyLong_AsSsize_t(at);
}

static void
desc_dealloc(Desc *d)
{
    PyTypeObject *type = Py_TYPE(d);
    Py_CLEAR(d->names);
    Py_CLEAR(d->index);
    type->tp_free(d);
    Py_DECREF(type);
}

static PyMemberDef desc_members[] = {
    {"names", T_OBJECT_EX, offsetof(Desc, names), READONLY, NULL},
    {NULL},
};

static PyType_Slot desc_slots[] = {
    {Py_tp_dealloc, desc_dealloc},
    {Py_tp_members, desc_members},
    {0, NULL},
};

/* Strings only: it cannot be part of a cycle. */
static PyType_Spec desc_spec = {
    .name = "greenletio._pg.RecordDesc",
    .basicsize = sizeof(Desc),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = desc_slots,
};

/* ---- records ----------------------------------------------------------------------- */

/* As many of one width are kept: a result of that many rows, read again and again, finds its memory
 * ready. */
#define FREE_RECORDS 1000

/* One that was kept: without values, and without a reference to its type. NULL: there is none. */
static GioPgRecord *
take_kept(GioPgState *st, Py_ssize_t n)
{
    GioPgRecord *r = n <= GIO_PG_FREE_WIDTH ? st->free_records[n] : NULL;
    if (r != NULL) {
        st->free_records[n] = (GioPgRecord *)r->desc;
        st->nfree_records[n]--;
    }
    return r;
}

/* One without values; false if it is to be freed. */
static bool
keep(GioPgState *st, GioPgRecord *r)
{
    Py_ssize_t n = Py_SIZE(r);
    if (!Py_IS_TYPE(r, st->record_type) || n > GIO_PG_FREE_WIDTH ||
        st->nfree_records[n] == FREE_RECORDS)
        return false;
    r->desc = (PyObject *)st->free_records[n];
    st->free_records[n] = r;
    st->nfree_records[n]++;
    return true;
}

void
gio_pg_records_free(GioPgState *st)
{
    for (Py_ssize_t n = 0; n <= GIO_PG_FREE_WIDTH; n++)
        for (GioPgRecord *r; (r = take_kept(st, n)) != NULL;)
            PyObject_Free(r);
}

GioPgRecord *
gio_pg_record_new(GioPgState *st, PyTypeObject *type, PyObject *desc, Py_ssize_t n)
{
    GioPgRecord *r;
    if (type != st->record_type) {
        r = (GioPgRecord *)type->tp_alloc(type, n);
        if (r == NULL)
            return NULL;
    }
    else { /* of rows with few columns the general way takes a large part of the time */
        r = take_kept(st, n);
        if (r == NULL) {
            r = PyObject_Calloc(1, offsetof(GioPgRecord, items) + (size_t)n * sizeof(PyObject *));
            if (r == NULL)
                return (GioPgRecord *)PyErr_NoMemory();
        }
        PyObject_InitVar((PyVarObject *)r, type, n);
    }
    r->desc = Py_NewRef(desc);
    return r;
}

PyObject *
gio_pg_hidden(PyObject *container)
{
    if (container != NULL && PyObject_GC_IsTracked(container))
        PyObject_GC_UnTrack(container);
    return container;
}

PyObject *
gio_pg_shown(PyObject *container)
{
    if (container != NULL && !PyObject_GC_IsTracked(container) &&
        (!PyTuple_CheckExact(container) || PyTuple_GET_SIZE(container) > 0)) /* () is everybody's */
        PyObject_GC_Track(container);
    return container;
}

/* A value: borrowed. One whose making has failed has not all of them: a subclass sees it, too. */
static PyObject *
value_of(GioPgRecord *r, Py_ssize_t i)
{
    return r->items[i] == NULL ? Py_None : r->items[i];
}

static Desc *
desc_of(GioPgRecord *r)
{
    return (Desc *)r->desc;
}

static Py_ssize_t
record_length(GioPgRecord *r)
{
    return Py_SIZE(r);
}

static PyObject *
record_item(GioPgRecord *r, Py_ssize_t i)
{
    if (i < 0 || i >= Py_SIZE(r)) {
        PyErr_SetString(PyExc_IndexError, "record index out of range");
        return NULL;
    }
    return Py_NewRef(value_of(r, i));
}

/* A column by name: borrowed; NULL, without an exception if there is none. */
static PyObject *
by_name(GioPgRecord *r, PyObject *name)
{
    PyObject *at = PyDict_GetItemWithError(desc_of(r)->index, name);
    return at == NULL ? NULL : value_of(r, PyLong_AsSsize_t(at));
}

static PyObject *
as_tuple(GioPgRecord *r, Py_ssize_t start, Py_ssize_t step, Py_ssize_t n)
{
    PyObject *tuple = PyTuple_New(n);
    for (Py_ssize_t i = 0; tuple != NULL && i < n; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(value_of(r, start + i * step)));
    return tuple;
}

static PyObject *
all_values(GioPgRecord *r)
{
    return as_tuple(r, 0, 1, Py_SIZE(r));
}

static PyObject *
record_subscript(GioPgRecord *r, PyObject *key)
{
    if (PyUnicode_Check(key)) {
        PyObject *value = by_name(r, key);
        if (value == NULL && !PyErr_Occurred())
            PyErr_SetObject(PyExc_KeyError, key);
        return Py_XNewRef(value);
    }
    if (PySlice_Check(key)) {
        Py_ssize_t start, stop, step;
        if (PySlice_Unpack(key, &start, &stop, &step) < 0)
            return NULL;
        Py_ssize_t n = PySlice_AdjustIndices(Py_SIZE(r), &start, &stop, step);
        return as_tuple(r, start, step, n);
    }
    Py_ssize_t i = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    return record_item(r, i < 0 ? i + Py_SIZE(r) : i);
}

static int
record_contains(GioPgRecord *r, PyObject *key)
{
    return PyDict_Contains(desc_of(r)->index, key);
}

static Py_hash_t
record_hash(GioPgRecord *r)
{
    PyObject *values = all_values(r);
    Py_hash_t hash = values == NULL ? -1 : PyObject_Hash(values);
    Py_XDECREF(values);
    return hash;
}

static PyObject *
record_compare(PyObject *a, PyObject *b, int op)
{
    GioPgState *st = gio_pg_state_of(a);
    if (st == NULL)
        return NULL;
    PyObject *mine = all_values((GioPgRecord *)a), *other = NULL, *result = NULL;
    if (PyObject_TypeCheck(b, st->record_type))
        other = all_values((GioPgRecord *)b);
    else if (PyTuple_Check(b))
        other = Py_NewRef(b);
    else
        result = Py_NewRef(Py_NotImplemented);
    if (mine != NULL && other != NULL)
        result = PyObject_RichCompare(mine, other, op);
    Py_XDECREF(mine);
    Py_XDECREF(other);
    return result;
}

static PyObject *
record_repr(GioPgRecord *r)
{
    PyObject *type_name = PyObject_GetAttrString((PyObject *)Py_TYPE(r), "__name__");
    PyObject *parts = type_name == NULL ? NULL : PyList_New(0), *text = NULL, *space = NULL;
    PyObject *first = parts == NULL ? NULL : PyUnicode_FromFormat("<%S", type_name);
    if (first == NULL || PyList_Append(parts, first) < 0)
        Py_CLEAR(parts);
    for (Py_ssize_t i = 0; parts != NULL && i < Py_SIZE(r); i++) {
        PyObject *part =
            PyUnicode_FromFormat("%U=%R", PyTuple_GET_ITEM(desc_of(r)->names, i), value_of(r, i));
        if (part == NULL || PyList_Append(parts, part) < 0)
            Py_CLEAR(parts);
        Py_XDECREF(part);
    }
    if (parts != NULL && (space = PyUnicode_FromString(" ")) != NULL)
        text = PyUnicode_Join(space, parts);
    PyObject *repr = text == NULL ? NULL : PyUnicode_FromFormat("%U>", text);
    Py_XDECREF(type_name);
    Py_XDECREF(first);
    Py_XDECREF(parts);
    Py_XDECREF(space);
    Py_XDECREF(text);
    return repr;
}

static PyObject *
iterator_of(PyObject *iterable)
{
    PyObject *it = iterable == NULL ? NULL : PyObject_GetIter(iterable);
    Py_XDECREF(iterable);
    return it;
}

static PyObject *
record_keys(GioPgRecord *r, PyObject *Py_UNUSED(ignored))
{
    return PyObject_GetIter(desc_of(r)->names);
}

static PyObject *
record_values(GioPgRecord *r, PyObject *Py_UNUSED(ignored))
{
    return iterator_of(all_values(r));
}

static PyObject *
record_items(GioPgRecord *r, PyObject *Py_UNUSED(ignored))
{
    PyObject *items = gio_pg_hidden(PyTuple_New(Py_SIZE(r)));
    for (Py_ssize_t i = 0; items != NULL && i < Py_SIZE(r); i++) {
        PyObject *pair = PyTuple_Pack(2, PyTuple_GET_ITEM(desc_of(r)->names, i), value_of(r, i));
        if (pair == NULL)
            Py_CLEAR(items);
        else
            PyTuple_SET_ITEM(items, i, pair);
    }
    return iterator_of(gio_pg_shown(items));
}

static PyObject *
record_get(GioPgRecord *r, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1 || nargs > 2) {
        PyErr_SetString(PyExc_TypeError, "get() takes a name and a default");
        return NULL;
    }
    PyObject *value = by_name(r, args[0]);
    if (value == NULL && PyErr_Occurred())
        return NULL;
    return Py_NewRef(value != NULL ? value : nargs == 2 ? args[1] : Py_None);
}

static PyObject *
record_reduce(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    GioPgRecord *r = (GioPgRecord *)self;
    GioPgState *st = gio_pg_state_of(self);
    if (st == NULL)
        return NULL;
    PyTypeObject *type = Py_TYPE(self) == st->gc_record_type ? st->record_type : Py_TYPE(self);
    PyObject *module = PyType_GetModule(st->record_type);
    PyObject *make = module == NULL ? NULL : PyObject_GetAttrString(module, "make_record");
    return make == NULL ? NULL
                        : Py_BuildValue("N(OON)", make, type, desc_of(r)->names, all_values(r));
}

static int
record_traverse(GioPgRecord *r, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(r));
    for (Py_ssize_t i = 0; i < Py_SIZE(r); i++)
        Py_VISIT(r->items[i]);
    return 0;
}

static void
release(GioPgRecord *r)
{
    PyTypeObject *type = Py_TYPE(r);
    PyObject *desc = r->desc;
    for (Py_ssize_t i = Py_SIZE(r); --i >= 0;)
        Py_CLEAR(r->items[i]);
    /* One that the collector frees may be the last of the module's, whose state is gone then. */
    if (PyType_IS_GC(type) || !keep(desc_of(r)->st, r))
        type->tp_free(r);
    Py_DECREF(desc);
    Py_DECREF(type);
}

static void
record_dealloc(GioPgRecord *r)
{
    if (!PyType_IS_GC(Py_TYPE(r))) {
        release(r);
        return;
    }
    PyObject_GC_UnTrack(r);
    Py_TRASHCAN_BEGIN(r, record_dealloc) /* they may be in each other, deeper than the stack */
        release(r);
    Py_TRASHCAN_END
}

#define METHOD(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef record_methods[] = {
    {"keys", METHOD(record_keys), METH_NOARGS, "keys($self, /)\n--\n\nThe columns' names."},
    {"values", METHOD(record_values), METH_NOARGS, "values($self, /)\n--\n\nThe columns' values."},
    {"items", METHOD(record_items), METH_NOARGS, "items($self, /)\n--\n\nPairs of name and value."},
    {"get", METHOD(record_get), METH_FASTCALL,
     "get($self, key, default=None, /)\n--\n\nA column by name, or the default."},
    {"__reduce__", METHOD(record_reduce), METH_NOARGS, NULL},
    {NULL},
};

static PyType_Slot record_slots[] = {
    {Py_tp_doc, "A row: by position, by name, by slice, and as a mapping of its columns."},
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_traverse, record_traverse}, /* for subclasses; this type is not collected */
    {Py_tp_repr, record_repr},
    {Py_tp_hash, record_hash},
    {Py_tp_richcompare, record_compare},
    {Py_tp_iter, PySeqIter_New},
    {Py_tp_methods, record_methods},
    {Py_sq_length, record_length},
    {Py_sq_item, record_item},
    {Py_sq_contains, record_contains},
    {Py_mp_length, record_length},
    {Py_mp_subscript, record_subscript},
    {0, NULL},
};

static PyType_Spec record_spec = {
    .name = "greenletio._pg.Record",
    .basicsize = offsetof(GioPgRecord, items),
    .itemsize = sizeof(PyObject *),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = record_slots,
};

static PyType_Slot gc_record_slots[] = {
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_traverse, record_traverse},
    {Py_tp_free, PyObject_GC_Del},
    {0, NULL},
};

static PyType_Spec gc_record_spec = {
    .name = "greenletio._pg.Record",
    .basicsize = offsetof(GioPgRecord, items),
    .itemsize = sizeof(PyObject *),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gc_record_slots,
};

int
gio_pg_record_setup_types(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->desc_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &desc_spec, NULL);
    st->record_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &record_spec, NULL);
    if (st->desc_type == NULL || st->record_type == NULL ||
        PyModule_AddType(module, st->record_type) < 0)
        return -1;
    st->gc_record_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &gc_record_spec,
                                                                  (PyObject *)st->record_type);
    return st->gc_record_type == NULL ? -1 : 0;
}
