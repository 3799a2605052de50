/* What differs between CPython 3.10 and 3.14, and nothing else.
 *
 * The thread state's context and recursion counters are touched here only:
 * they are public fields without accessors.
 */
#ifndef GIO_COMPAT_H
#define GIO_COMPAT_H

#include <Python.h>

#include <limits.h>
#include <stdbool.h>

/* Out of line, and out of the way: every suspended greenlet keeps a copy of its C stack,
 * so what the frames below a wait hold is paid for by each, and copied at each switch. */
#define GIO_COLD __attribute__((noinline, cold))

/* Take the raised exception as one object, with its traceback; NULL if none. */
static inline PyObject *
gio_err_take(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (type == NULL) {
        return NULL;
    }
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL) {
        PyException_SetTraceback(value, tb);
        Py_DECREF(tb);
    }
    Py_DECREF(type);
    return value;
#endif
}

/* Raise `exc` as it is, its traceback included. Steals the reference. */
static inline void
gio_err_give(PyObject *exc)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(exc);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exc)), exc, PyException_GetTraceback(exc));
#endif
}

/* A Python integer as a C int; -1 with OverflowError or TypeError. */
static inline int
gio_as_int(PyObject *number)
{
    long value = PyLong_AsLong(number);
    if (value < INT_MIN || value > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to C int");
        return -1;
    }
    return (int)value;
}

/* The exception being handled (sys.exc_info), a new reference or NULL; and its setter, which
 * steals. */
static inline PyObject *
gio_handled_get(void)
{
#if PY_VERSION_HEX >= 0x030B0000
    return PyErr_GetHandledException();
#else
    PyObject *type, *value, *tb;
    PyErr_GetExcInfo(&type, &value, &tb);
    Py_XDECREF(type);
    Py_XDECREF(tb);
    if (value == Py_None) {
        Py_CLEAR(value);
    }
    return value;
#endif
}

static inline void
gio_handled_set(PyObject *exc)
{
#if PY_VERSION_HEX >= 0x030B0000
    PyErr_SetHandledException(exc);
    Py_XDECREF(exc);
#else
    if (exc == NULL) {
        PyErr_SetExcInfo(NULL, NULL, NULL);
    }
    else {
        PyErr_SetExcInfo(Py_NewRef((PyObject *)Py_TYPE(exc)), exc, PyException_GetTraceback(exc));
    }
#endif
}

/* The referent of a weak reference as a new reference, NULL when it has gone. */
static inline PyObject *
gio_weakref_get(PyObject *ref)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *obj;
    return PyWeakref_GetRef(ref, &obj) == 1 ? obj : NULL;
#else
    PyObject *obj = PyWeakref_GET_OBJECT(ref);
    return obj == Py_None ? NULL : Py_NewRef(obj);
#endif
}

static inline bool
gio_is_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

/* Make `context` (borrowed, may be NULL) the one that context variables of
 * this thread are looked up in. Unlike Context.run it does not mark the
 * context as entered: a worker shares its driver's. */
static inline void
gio_context_install(PyThreadState *ts, PyObject *context)
{
    PyObject *old = ts->context;
    if (old == context) {
        return;
    }
    Py_XINCREF(context);
    ts->context = context;
    ts->context_ver++;
    Py_XDECREF(old);
}

/* How deep the caller is: a pooled worker goes on counting from there, so that
 * endless recursion through the bridge ends in RecursionError. */
typedef struct {
    int python;
    int c;
} GioRecursion;

static inline GioRecursion
gio_recursion_get(PyThreadState *ts)
{
#if PY_VERSION_HEX >= 0x030E0000
    return (GioRecursion){ts->py_recursion_remaining, 0};
#elif PY_VERSION_HEX >= 0x030C0000
    return (GioRecursion){ts->py_recursion_remaining, ts->c_recursion_remaining};
#elif PY_VERSION_HEX >= 0x030B0000
    return (GioRecursion){ts->recursion_remaining, 0};
#else
    return (GioRecursion){ts->recursion_depth, 0};
#endif
}

static inline void
gio_recursion_set(PyThreadState *ts, GioRecursion depth)
{
#if PY_VERSION_HEX >= 0x030E0000
    ts->py_recursion_remaining = depth.python;
#elif PY_VERSION_HEX >= 0x030C0000
    ts->py_recursion_remaining = depth.python;
    ts->c_recursion_remaining = depth.c;
#elif PY_VERSION_HEX >= 0x030B0000
    ts->recursion_remaining = depth.python;
#else
    ts->recursion_depth = depth.python;
#endif
}

#endif
