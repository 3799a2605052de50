/* What a transport knows of whoever it tells what happens: the protocol, and when it is to pause.
 *
 * The methods that are called for every piece of data are looked up once and kept. Each call may
 * run anything: it may close the transport, or set another protocol, while the method runs and
 * already while it is looked up. So whatever is used here is held meanwhile.
 */
#include "loop/transport.h"

int
gio_protocol_set(GioProtocol *p, GioState *st, PyObject *object)
{
    int buffered = PyObject_IsInstance(object, st->buffered_protocol);
    if (buffered < 0) {
        return -1;
    }
    GioProtocol old = *p;
    *p = (GioProtocol){.object = Py_NewRef(object), .buffered = buffered};
    gio_protocol_clear(&old);
    return 0;
}

void
gio_protocol_clear(GioProtocol *p)
{
    Py_CLEAR(p->on_data);
    Py_CLEAR(p->on_filled);
    Py_CLEAR(p->object);
}

int
gio_protocol_traverse(GioProtocol *p, visitproc visit, void *arg)
{
    Py_VISIT(p->object);
    Py_VISIT(p->on_data);
    Py_VISIT(p->on_filled);
    return 0;
}

/* The method, a new reference. */
static PyObject *
method_of(GioProtocol *p, PyObject **place, PyObject *name)
{
    if (*place != NULL) {
        return Py_NewRef(*place);
    }
    PyObject *object = Py_NewRef(p->object);
    PyObject *method = PyObject_GetAttr(object, name);
    if (method != NULL && *place == NULL && p->object == object) { /* else it was replaced */
        *place = Py_NewRef(method);
    }
    Py_DECREF(object);
    return method;
}

PyObject *
gio_protocol_call(GioProtocol *p, PyObject **place, PyObject *name, PyObject *const *args,
                  Py_ssize_t nargs)
{
    PyObject *method = method_of(p, place, name);
    if (method == NULL) {
        return NULL;
    }
    PyObject *r =
        PyObject_Vectorcall(method, args, (size_t)nargs | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_DECREF(method);
    return r;
}

/* With one argument, which is stolen; NULL: it could not be made. */
static PyObject *
call(GioProtocol *p, PyObject **place, PyObject *name, PyObject *arg)
{
    if (arg == NULL) {
        return NULL;
    }
    PyObject *args[] = {NULL, arg};
    PyObject *r = gio_protocol_call(p, place, name, args + 1, 1);
    Py_DECREF(arg);
    return r;
}

int
gio_protocol_data(GioProtocol *p, GioState *st, PyObject *data)
{
    PyObject *r = call(p, &p->on_data, st->str_data_received, data);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

int
gio_protocol_buffer(GioProtocol *p, GioState *st, Py_buffer *view)
{
    PyObject *buf = call(p, &p->on_data, st->str_get_buffer, PyLong_FromLong(-1));
    int r = buf == NULL ? -1 : PyObject_GetBuffer(buf, view, PyBUF_WRITABLE);
    Py_XDECREF(buf);
    if (r == 0 && view->len == 0) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
        r = -1;
    }
    return r;
}

int
gio_protocol_filled(GioProtocol *p, GioState *st, size_t size)
{
    PyObject *r = call(p, &p->on_filled, st->str_buffer_updated, PyLong_FromSize_t(size));
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* ---- water marks ------------------------------------------------------------------------------
 */

PyObject *
gio_marks_get(const GioMarks *marks)
{
    return Py_BuildValue("nn", marks->low, marks->high);
}

int
gio_marks_set(GioMarks *marks, Py_ssize_t otherwise, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"high", "low", NULL};
    PyObject *high_arg = Py_None, *low_arg = Py_None;
    Py_ssize_t high = otherwise, low = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:set_write_buffer_limits", keywords,
                                     &high_arg, &low_arg)) {
        return -1;
    }
    if (low_arg != Py_None) {
        low = PyNumber_AsSsize_t(low_arg, NULL);
        if (low == -1 && PyErr_Occurred()) {
            return -1;
        }
        high = low > PY_SSIZE_T_MAX / 4 ? PY_SSIZE_T_MAX : 4 * low;
    }
    if (high_arg != Py_None) {
        high = PyNumber_AsSsize_t(high_arg, NULL);
        if (high == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    if (low_arg == Py_None) {
        low = high / 4;
    }
    if (low < 0 || high < low) {
        PyErr_Format(PyExc_ValueError, "high (%zd) must be >= low (%zd) must be >= 0", high, low);
        return -1;
    }
    *marks = (GioMarks){high, low};
    return 0;
}
