/* local, as threading has it: each call of async_ or spawn, and each thread of the system, has
 * attributes of its own in it.
 *
 * Keyed by the call, for the greenlet that runs it will run others later. The values of one pair
 * stand in two lists: that of the local, which owns them, so that a cycle through them is garbage
 * like any other; and that of the call or thread, for which they are looked up, and with which they
 * go. A call uses few locals, so its list is short, and the last one used comes first.
 */
#include "sync/sync.h"

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    PyObject *args, *kwargs; /* for __init__, in each call anew */
    GioLocalValues *values;
} Local;

struct GioLocalValues {
    PyObject *dict;
    Local *local;          /* borrowed */
    GioLocalValues **head; /* the list of the call or thread */
    GioLocalValues *prev, *next;
    GioLocalValues *local_prev, *local_next; /* the list of the local */
};

/* ---- the two lists ---------------------------------------------------------------------- */

static void
unlink_from_head(GioLocalValues *v)
{
    if (v->prev != NULL) {
        v->prev->next = v->next;
    }
    else {
        *v->head = v->next;
    }
    if (v->next != NULL) {
        v->next->prev = v->prev;
    }
}

static void
link_to_head(GioLocalValues *v)
{
    v->prev = NULL;
    v->next = *v->head;
    if (v->next != NULL) {
        v->next->prev = v;
    }
    *v->head = v;
}

/* Off both lists and freed; may run Python. */
static void
drop(GioLocalValues *v)
{
    unlink_from_head(v);
    if (v->local_prev != NULL) {
        v->local_prev->local_next = v->local_next;
    }
    else {
        v->local->values = v->local_next;
    }
    if (v->local_next != NULL) {
        v->local_next->local_prev = v->local_prev;
    }
    PyObject *dict = v->dict;
    PyMem_Free(v);
    Py_DECREF(dict);
}

void
gio_locals_end(GioLocalValues **head)
{
    if (*head == NULL) {
        return;
    }
    PyObject *exc = gio_err_take();
    while (*head != NULL) { /* a finalizer may have used one of them again */
        drop(*head);
    }
    if (exc != NULL) {
        gio_err_give(exc);
    }
}

static GioLocalValues *
find(GioLocalValues **head, Local *self)
{
    GioLocalValues *v = *head;
    while (v != NULL && v->local != self) {
        v = v->next;
    }
    if (v != NULL && v != *head) {
        unlink_from_head(v);
        link_to_head(v);
    }
    return v;
}

/* The list of what runs here; NULL with an exception. It is there as long as that runs. */
static GioLocalValues **
current_head(GioState *st)
{
    GioHere here;
    GioLocalValues **head = NULL;
    if (gio_here_green(st, &here) && (PyObject *)here.worker->call != st->main_call) {
        head = &here.worker->call->locals;
    }
    gio_here_clear(&here);
    if (head == NULL) {
        GioThread *t = st->ending;
        if (t == NULL || t->ident != PyThread_get_thread_ident()) {
            t = gio_thread_get(st);
        }
        head = t == NULL ? NULL : &t->locals;
    }
    return head;
}

/* New values, in both lists; the dict, a new reference. */
static PyObject *
add(Local *self)
{
    PyObject *dict = PyDict_New(); /* before Python 3.12 this may run Python */
    GioLocalValues **head = dict == NULL ? NULL : current_head(gio_api_state());
    if (head == NULL) {
        Py_XDECREF(dict);
        return NULL;
    }
    GioLocalValues *v = find(head, self);
    if (v != NULL) {
        Py_DECREF(dict);
        return Py_NewRef(v->dict);
    }
    v = PyMem_Malloc(sizeof *v);
    if (v == NULL) {
        Py_DECREF(dict);
        return PyErr_NoMemory();
    }
    v->dict = Py_NewRef(dict);
    v->local = self;
    v->head = head;
    link_to_head(v);
    v->local_prev = NULL;
    v->local_next = self->values;
    if (v->local_next != NULL) {
        v->local_next->local_prev = v;
    }
    self->values = v;
    return dict;
}

static bool
has_init(PyTypeObject *type)
{
    return type->tp_init != PyBaseObject_Type.tp_init;
}

/* The attributes that self has here, a new reference; made and initialised at the first use. */
static PyObject *
values_of(Local *self)
{
    GioLocalValues **head = current_head(gio_api_state());
    if (head == NULL) {
        return NULL;
    }
    GioLocalValues *v = find(head, self);
    if (v != NULL) {
        return Py_NewRef(v->dict);
    }
    PyTypeObject *type = Py_TYPE(self);
    if (self->args == NULL) { /* a finalizer has come upon it */
        PyErr_SetString(PyExc_ReferenceError, "this local is being collected");
        return NULL;
    }
    PyObject *dict = add(self);
    if (dict != NULL && has_init(type) &&
        type->tp_init((PyObject *)self, self->args, self->kwargs) < 0) {
        v = self->values; /* by way of the call they may be gone, with the call */
        while (v != NULL && v->dict != dict) {
            v = v->local_next;
        }
        if (v != NULL) {
            PyObject *exc = gio_err_take();
            drop(v);
            gio_err_give(exc);
        }
        Py_CLEAR(dict);
    }
    return dict;
}

/* ---- attributes ------------------------------------------------------------------------------ */

static bool
is_dict_name(PyObject *name)
{
    return PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "__dict__") == 0;
}

static PyObject *
no_attribute(Local *self, PyObject *name)
{
    PyErr_Format(PyExc_AttributeError, "'%.50s' object has no attribute '%S'",
                 Py_TYPE(self)->tp_name, name);
    return NULL;
}

static PyObject *
local_getattro(Local *self, PyObject *name)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject *found = NULL;
    PyObject *values = values_of(self);
    if (values == NULL || is_dict_name(name)) {
        return values;
    }
    PyObject *descr = Py_XNewRef(_PyType_Lookup(type, name));
    descrgetfunc get = descr == NULL ? NULL : Py_TYPE(descr)->tp_descr_get;
    if (get != NULL && PyDescr_IsData(descr)) {
        found = get(descr, (PyObject *)self, (PyObject *)type);
    }
    else {
        found = Py_XNewRef(PyDict_GetItemWithError(values, name));
        if (found == NULL && !PyErr_Occurred()) {
            found = get != NULL     ? get(descr, (PyObject *)self, (PyObject *)type)
                    : descr != NULL ? Py_NewRef(descr)
                                    : no_attribute(self, name);
        }
    }
    Py_XDECREF(descr);
    Py_DECREF(values);
    return found;
}

static int
local_setattro(Local *self, PyObject *name, PyObject *value)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject *values = values_of(self);
    if (values == NULL) {
        return -1;
    }
    int r = -1;
    PyObject *descr = Py_XNewRef(_PyType_Lookup(type, name));
    descrsetfunc set = descr == NULL ? NULL : Py_TYPE(descr)->tp_descr_set;
    if (is_dict_name(name)) {
        PyErr_Format(PyExc_AttributeError, "'%.100s' object attribute '%U' is read-only",
                     type->tp_name, name);
    }
    else if (set != NULL) {
        r = set(descr, (PyObject *)self, value);
    }
    else if (value != NULL) {
        r = PyDict_SetItem(values, name, value);
    }
    else {
        r = PyDict_DelItem(values, name);
        if (r < 0 && PyErr_ExceptionMatches(PyExc_KeyError)) {
            PyErr_Clear();
            no_attribute(self, name);
        }
    }
    Py_XDECREF(descr);
    Py_DECREF(values);
    return r;
}

/* ---- lifetime ----------------------------------------------------------------------------------
 */

static PyObject *
local_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    bool given = PyTuple_GET_SIZE(args) > 0 || (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0);
    if (given && !has_init(type)) {
        PyErr_SetString(PyExc_TypeError, "Initialization arguments are not supported");
        return NULL;
    }
    Local *self = (Local *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->args = Py_NewRef(args);
    self->kwargs = Py_XNewRef(kwargs);
    /* __init__ runs here right after: no second time for us. */
    PyObject *dict = add(self);
    if (dict == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    Py_DECREF(dict);
    return (PyObject *)self;
}

static int
local_traverse(Local *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->args);
    Py_VISIT(self->kwargs);
    for (GioLocalValues *v = self->values; v != NULL; v = v->local_next) {
        Py_VISIT(v->dict);
    }
    return 0;
}

static int
local_clear(Local *self)
{
    Py_CLEAR(self->args);
    Py_CLEAR(self->kwargs);
    while (self->values != NULL) {
        drop(self->values);
    }
    return 0;
}

static void
local_dealloc(Local *self)
{
    gio_sync_free((PyObject *)self, (inquiry)local_clear);
}

static PyMemberDef local_members[] = {
    GIO_WEAKLY,
    {NULL},
};

static PyType_Slot local_slots[] = {
    {Py_tp_doc, "_local(*args, **kwargs)\n--\n\n``threading.local``: what is set in one green call "
                "or thread is not seen in another."},
    {Py_tp_new, local_new},
    {Py_tp_members, local_members},
    {Py_tp_getattro, local_getattro},
    {Py_tp_setattro, local_setattro},
    {Py_tp_traverse, local_traverse},
    {Py_tp_clear, local_clear},
    {Py_tp_dealloc, local_dealloc},
    {0, NULL},
};

static PyType_Spec local_spec = {
    .name = "greenletio.green._thread._local",
    .basicsize = sizeof(Local),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = local_slots,
};

int
gio_local_setup_types(PyObject *module, GioState *st)
{
    st->local_type = gio_add_type(module, &local_spec, NULL, true);
    return st->local_type == NULL ? -1 : 0;
}
