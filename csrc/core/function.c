/* async_ and await_ as callables: wrappers that keep the look of what they wrap.
 *
 * AsyncFunction(fn)(...) makes an AsyncCall; AwaitFunction(fn)(...) awaits what
 * fn(...) returns. Attributes that a wrapper has not of its own are fn's, so
 * name, doc, module, annotations and (by __wrapped__) the signature are right, and both bind as
 * methods as fn would.
 */
#include "core.h"

#include <stddef.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *fn;
    PyObject *dict;
    PyObject *weakrefs;
} GioFunction;

static PyMemberDef function_members[] = {
    {"__wrapped__", T_OBJECT_EX, offsetof(GioFunction, fn), READONLY, "What was wrapped."},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(GioFunction, vectorcall), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(GioFunction, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(GioFunction, weakrefs), READONLY, NULL},
    {NULL},
};

static PyObject *
async_function_call(GioFunction *f, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    return gio_call_new(GIO_STATE(f)->call_type, f->fn, args, nargsf, kwnames);
}

static PyObject *
await_function_call(GioFunction *f, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    GioState *st = GIO_STATE(f);
    if (Py_EnterRecursiveCall(" while calling an await_ function")) {
        return NULL;
    }
    PyObject *x = PyObject_Vectorcall(f->fn, args, nargsf, kwnames);
    Py_LeaveRecursiveCall();
    if (x == NULL) {
        return NULL;
    }
    bool handled;
    PyObject *result = gio_await_object(st, x, &handled);
    if (!handled) {
        PyErr_Format(PyExc_TypeError, "await_: %R returned a %.200s, which can't be awaited", f->fn,
                     Py_TYPE(x)->tp_name);
    }
    Py_DECREF(x);
    return result;
}

static PyObject *
function_make(GioState *st, PyTypeObject *type, PyObject *fn)
{
    GioFunction *f = PyObject_GC_New(GioFunction, type);
    if (f == NULL) {
        return NULL;
    }
    f->vectorcall = type == st->async_function_type ? (vectorcallfunc)async_function_call
                                                    : (vectorcallfunc)await_function_call;
    f->fn = Py_NewRef(fn);
    f->dict = NULL;
    f->weakrefs = NULL;
    PyObject_GC_Track(f);
    return (PyObject *)f;
}

static PyObject *
function_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *fn;
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_Format(PyExc_TypeError, "%s takes no keyword arguments", type->tp_name);
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O", &fn)) {
        return NULL;
    }
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "%R is not callable", fn);
        return NULL;
    }
    return function_make(PyType_GetModuleState(type), type, fn);
}

/* Bind as the wrapped function would: a plain function takes the instance, a
 * builtin or a partial does not, a classmethod takes the class. */
static PyObject *
function_descr_get(GioFunction *f, PyObject *obj, PyObject *type)
{
    descrgetfunc get = Py_TYPE(f->fn)->tp_descr_get;
    if (get == NULL) {
        return Py_NewRef(f);
    }
    if (Py_EnterRecursiveCall(" while binding a wrapped function")) {
        return NULL;
    }
    PyObject *bound = get(f->fn, obj, type);
    Py_LeaveRecursiveCall();
    if (bound == NULL) {
        return NULL;
    }
    PyObject *result =
        bound == f->fn ? Py_NewRef(f) : function_make(GIO_STATE(f), Py_TYPE(f), bound);
    Py_DECREF(bound);
    return result;
}

/* fn may be a wrapper as well, and so on. */
static PyObject *
wrapped_attribute(GioFunction *f, PyObject *name)
{
    if (Py_EnterRecursiveCall(" while looking up an attribute of a wrapped function")) {
        return NULL;
    }
    PyObject *value = PyObject_GetAttr(f->fn, name);
    Py_LeaveRecursiveCall();
    return value;
}

/* fn's code, flagged as the wrapper is to be called: inspect.iscoroutinefunction looks at
 * the flags of whatever looks like a function, and frameworks ask it. */
static PyObject *
flagged_code(GioFunction *f, PyObject *name)
{
    PyObject *code = wrapped_attribute(f, name);
    if (code == NULL || !PyCode_Check(code)) {
        return code;
    }
    int flags = ((PyCodeObject *)code)->co_flags;
    int wanted = Py_IS_TYPE(f, GIO_STATE(f)->async_function_type) ? flags | CO_COROUTINE
                                                                  : flags & ~CO_COROUTINE;
    if (flags == wanted) {
        return code;
    }
    PyObject *replaced = NULL, *replace = PyObject_GetAttrString(code, "replace");
    PyObject *kwargs = replace == NULL ? NULL : Py_BuildValue("{si}", "co_flags", wanted);
    PyObject *none = kwargs == NULL ? NULL : PyTuple_New(0);
    if (none != NULL) {
        replaced = PyObject_Call(replace, none, kwargs);
    }
    Py_XDECREF(none);
    Py_XDECREF(kwargs);
    Py_XDECREF(replace);
    Py_DECREF(code);
    return replaced;
}

/* The wrapper's own attributes come first, then those of fn. */
static PyObject *
function_getattro(GioFunction *f, PyObject *name)
{
    PyObject *value = NULL;
    /* __doc__ and __module__ would be found on the type: fn's come first. */
    if (!PyUnicode_Check(name) || (PyUnicode_CompareWithASCIIString(name, "__doc__") != 0 &&
                                   PyUnicode_CompareWithASCIIString(name, "__module__") != 0)) {
        value = PyObject_GenericGetAttr((PyObject *)f, name);
        if (value != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return value;
        }
        PyErr_Clear();
    }
    else if (f->dict != NULL) {
        value = PyDict_GetItemWithError(f->dict, name);
        if (value != NULL || PyErr_Occurred()) {
            return Py_XNewRef(value);
        }
    }
    if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "__code__") == 0) {
        return flagged_code(f, name);
    }
    return wrapped_attribute(f, name);
}

static PyObject *
function_repr(GioFunction *f)
{
    GioState *st = GIO_STATE(f);
    return PyUnicode_FromFormat(
        "<%s %R>", Py_IS_TYPE(f, st->async_function_type) ? "async_" : "await_", f->fn);
}

static int
function_traverse(GioFunction *f, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(f));
    Py_VISIT(f->fn);
    Py_VISIT(f->dict);
    return 0;
}

static int
function_clear(GioFunction *f)
{
    /* fn stays: it never changes, so a cycle has another member to clear, and a wrapper that can
     * still be reached meanwhile can still be called. */
    Py_CLEAR(f->dict);
    return 0;
}

static void
function_dealloc(GioFunction *f)
{
    PyTypeObject *type = Py_TYPE(f);
    PyObject_GC_UnTrack(f);
    Py_TRASHCAN_BEGIN(f, function_dealloc);
    if (f->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)f);
    }
    function_clear(f);
    Py_CLEAR(f->fn);
    PyObject_GC_Del(f);
    Py_DECREF(type);
    Py_TRASHCAN_END;
}

/* ---- async_(...) and await_(...) -------------------------------------------- */

PyObject *
gio_async(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    GioState *st = PyModule_GetState(module);
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    PyObject *fn = nargs > 0 ? args[0] : Py_None;
    if (nargs > 1) {
        PyErr_SetString(PyExc_TypeError,
                        "async_ takes one function: call the result, async_(fn)(arguments)");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < nkw; i++) {
        PyObject *kw = PyTuple_GET_ITEM(kwnames, i);
        if ((PyUnicode_CompareWithASCIIString(kw, "fn") == 0) && nargs == 0) {
            fn = args[nargs + i];
        }
        else if (PyUnicode_CompareWithASCIIString(kw, "with_context") != 0) {
            PyErr_Format(PyExc_TypeError, "async_ got an unexpected keyword argument %R", kw);
            return NULL;
        }
    }
    if (fn == Py_None) { /* @async_() or @async_(with_context=True) */
        return PyObject_GetAttrString(module, "async_");
    }
    if (!PyCallable_Check(fn) && Py_TYPE(fn)->tp_descr_get == NULL) {
        PyErr_Format(PyExc_TypeError,
                     "async_ takes a function, not %.200s: write async_(fn)(arguments)",
                     Py_TYPE(fn)->tp_name);
        return NULL;
    }
    return function_make(st, st->async_function_type, fn);
}

PyObject *
gio_await_function(GioState *st, PyObject *x)
{
    if (!PyCallable_Check(x) && Py_TYPE(x)->tp_descr_get == NULL) {
        PyErr_Format(PyExc_TypeError, "await_ takes an awaitable or an async function, not %.200s",
                     Py_TYPE(x)->tp_name);
        return NULL;
    }
    return function_make(st, st->await_function_type, x);
}

#define FUNCTION_SLOTS(doc)                                                                        \
    {                                                                                              \
        {Py_tp_doc, doc},                                                                          \
        {Py_tp_new, function_new},                                                                 \
        {Py_tp_members, function_members},                                                         \
        {Py_tp_call, PyVectorcall_Call},                                                           \
        {Py_tp_descr_get, function_descr_get},                                                     \
        {Py_tp_getattro, function_getattro},                                                       \
        {Py_tp_repr, function_repr},                                                               \
        {Py_tp_traverse, function_traverse},                                                       \
        {Py_tp_clear, function_clear},                                                             \
        {Py_tp_dealloc, function_dealloc},                                                         \
        {0, NULL},                                                                                 \
    }

static PyType_Slot async_function_slots[] =
    FUNCTION_SLOTS("AsyncFunction(fn, /)\n--\n\nWhat async_(fn) returns: calling it makes an "
                   "awaitable that runs fn in a greenlet.");
static PyType_Slot await_function_slots[] =
    FUNCTION_SLOTS("AwaitFunction(fn, /)\n--\n\nWhat await_(fn) returns: calling it awaits what "
                   "the async function fn returns.");

#define FUNCTION_FLAGS                                                                             \
    (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |                        \
     Py_TPFLAGS_IMMUTABLETYPE)

static PyType_Spec async_function_spec = {
    .name = "greenletio._core.AsyncFunction",
    .basicsize = sizeof(GioFunction),
    .flags = FUNCTION_FLAGS,
    .slots = async_function_slots,
};

static PyType_Spec await_function_spec = {
    .name = "greenletio._core.AwaitFunction",
    .basicsize = sizeof(GioFunction),
    .flags = FUNCTION_FLAGS,
    .slots = await_function_slots,
};

static int
mark_type(GioState *st, const char *module_name, const char *attr)
{
    int ret = -1;
    PyObject *mark = NULL, *module = PyImport_ImportModule(module_name);
    if (module == NULL) {
        return -1;
    }
    mark = PyObject_GetAttrString(module, attr);
    Py_DECREF(module);
    if (mark == NULL) {
        PyErr_Clear(); /* not in this version of Python */
        return 0;
    }
    if (PyDict_SetItemString(st->async_function_type->tp_dict, attr, mark) == 0 &&
        PyDict_SetItemString(st->await_function_type->tp_dict, attr, Py_None) == 0) {
        PyType_Modified(st->async_function_type);
        PyType_Modified(st->await_function_type);
        ret = 0;
    }
    Py_DECREF(mark);
    return ret;
}

int
gio_function_setup_types(PyObject *module, GioState *st)
{
    st->async_function_type = gio_add_type(module, &async_function_spec, NULL, true);
    st->await_function_type = gio_add_type(module, &await_function_spec, NULL, true);
    if (st->async_function_type == NULL || st->await_function_type == NULL) {
        return -1;
    }
    /* What asyncio.iscoroutinefunction and, from 3.12 on, inspect's look for. An
     * await_ function must not take them over from what it wraps. */
    return mark_type(st, "asyncio.coroutines", "_is_coroutine") < 0 ||
                   mark_type(st, "inspect", "_is_coroutine_mark") < 0
               ? -1
               : 0;
}
