/* Event and Semaphore, as threading has them.
 *
 * The classes in green/ have the standard ones for their other base, for isinstance() and what is
 * not hot. set() and release() never wait and may come from anywhere.
 */
#include "sync/sync.h"

/* ---- Event ------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    GioLine line;
    bool flag;
} Event;

static int
event_init(Event *self, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Event", keywords)) {
        return -1;
    }
    self->flag = false;
    return 0;
}

static PyObject *
event_is_set(Event *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->flag);
}

static PyObject *
event_set(Event *self, PyObject *Py_UNUSED(ignored))
{
    self->flag = true;
    gio_line_wake_all(&self->line);
    Py_RETURN_NONE;
}

static PyObject *
event_clear_flag(Event *self, PyObject *Py_UNUSED(ignored))
{
    self->flag = false;
    Py_RETURN_NONE;
}

static PyObject *
event_wait(Event *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"timeout", NULL};
    GioState *st = gio_api_state();
    PyObject *timeout = Py_None;
    int64_t deadline;
    if (gio_sync_arguments("wait", args, nargs, kwnames, names, &timeout) < 0) {
        return NULL;
    }
    if (self->flag) {
        Py_RETURN_TRUE;
    }
    if (gio_deadline(timeout, &deadline) < 0) {
        return NULL;
    }
    /* A look at the flag: greenlets let others run meanwhile, where that can be. */
    if (deadline <= gio_now() && gio_api()->place() == GIO_PLACE_FORBIDDEN) {
        return PyBool_FromLong(self->flag);
    }
    GioWaiter *w = gio_line_join(st, &self->line, false);
    if (w == NULL) {
        return NULL;
    }
    if (self->flag) {
        gio_line_quit(w);
        Py_RETURN_TRUE;
    }
    GioTurn turn = gio_line_wait(st, w, deadline, "waiting for an event");
    return turn < 0 ? NULL : PyBool_FromLong(turn == GIO_LINE_WOKEN);
}

static PyObject *
event_at_fork_reinit(Event *self, PyObject *Py_UNUSED(ignored))
{
    gio_line_clear(&self->line);
    Py_RETURN_NONE;
}

static PyMemberDef event_members[] = {
    GIO_WEAKLY,
    {"_flag", T_BOOL, offsetof(Event, flag), 0, NULL},
    {NULL},
};

static PyMethodDef event_methods[] = {
    {"is_set", (PyCFunction)event_is_set, METH_NOARGS,
     "is_set($self, /)\n--\n\nWhether the flag is up."},
    {"set", (PyCFunction)event_set, METH_NOARGS,
     "set($self, /)\n--\n\nRaise the flag and wake all that wait. Never waits; from any thread."},
    {"clear", (PyCFunction)event_clear_flag, METH_NOARGS, "clear($self, /)\n--\n\nLower the flag."},
    {"wait", GIO_FAST_KEYWORDS(event_wait),
     "wait($self, /, timeout=None)\n--\n\n"
     "Wait for the flag; False after `timeout` seconds. Can be cancelled."},
    {"_at_fork_reinit", (PyCFunction)event_at_fork_reinit, METH_NOARGS,
     "_at_fork_reinit($self, /)\n--\n\nForget who waits."},
    {NULL},
};

static PyType_Slot event_slots[] = {
    {Py_tp_doc, "Event()\n--\n\nThe hot methods of ``threading.Event``."},
    {Py_tp_init, event_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, event_methods},
    {Py_tp_members, event_members},
    {Py_tp_traverse, gio_lined_traverse},
    {Py_tp_clear, gio_lined_clear},
    {Py_tp_dealloc, gio_lined_dealloc},
    {0, NULL},
};

static PyType_Spec event_spec = {
    .name = "greenletio._core.Event",
    .basicsize = sizeof(Event),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = event_slots,
};

/* ---- Semaphore ------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    GioLine line;
    Py_ssize_t value;
} Semaphore;

static int
semaphore_init(Semaphore *self, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"value", NULL};
    Py_ssize_t value = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|n:Semaphore", keywords, &value)) {
        return -1;
    }
    if (value < 0) {
        PyErr_SetString(PyExc_ValueError, "semaphore initial value must be >= 0");
        return -1;
    }
    self->value = value;
    return 0;
}

/* Those that wait come first. */
static void
give_back(Semaphore *self, Py_ssize_t n)
{
    while (n > 0 && gio_line_wake(&self->line, NULL)) {
        n--;
    }
    self->value += n;
}

static int
take(Semaphore *self, int64_t deadline)
{
    GioState *st = gio_api_state();
    if (self->value <= 0) {
        if (deadline == 0) {
            return 0;
        }
        GioWaiter *w = gio_line_join(st, &self->line, false);
        if (w == NULL) {
            return -1;
        }
        if (self->value <= 0) {
            GioTurn turn = gio_line_wait(st, w, deadline, "acquiring a semaphore");
            if (turn == GIO_LINE_LOST) {
                PyObject *exc = gio_err_take();
                give_back(self, 1);
                gio_err_give(exc);
            }
            return turn < 0 ? -1 : turn;
        }
        gio_line_quit(w); /* given back while it was made, with nobody in the line */
    }
    self->value--;
    return 1;
}

static PyObject *
semaphore_acquire(Semaphore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"blocking", "timeout", NULL};
    PyObject *found[] = {Py_True, Py_None};
    int64_t deadline = GIO_NEVER;
    if (gio_sync_arguments("acquire", args, nargs, kwnames, names, found) < 0) {
        return NULL;
    }
    int blocking = PyObject_IsTrue(found[0]);
    if (blocking < 0) {
        return NULL;
    }
    if (!blocking && found[1] != Py_None) {
        PyErr_SetString(PyExc_ValueError, "can't specify timeout for non-blocking acquire");
        return NULL;
    }
    if (!blocking) {
        deadline = 0;
    }
    else if (found[1] != Py_None) {
        double seconds = PyFloat_AsDouble(found[1]);
        if ((seconds == -1 && PyErr_Occurred()) || gio_deadline(found[1], &deadline) < 0) {
            return NULL;
        }
        if (seconds <= 0) {
            deadline = 0;
        }
    }
    int r = take(self, deadline);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
semaphore_release(Semaphore *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"n", NULL};
    PyObject *given = NULL;
    Py_ssize_t n = 1;
    if (gio_sync_arguments("release", args, nargs, kwnames, names, &given) < 0 ||
        (given != NULL && (n = PyNumber_AsSsize_t(given, PyExc_OverflowError)) == -1 &&
         PyErr_Occurred())) {
        return NULL;
    }
    if (n < 1) {
        PyErr_SetString(PyExc_ValueError, "n must be one or more");
        return NULL;
    }
    if (self->value > 0 && n > PY_SSIZE_T_MAX - self->value) {
        PyErr_SetString(PyExc_OverflowError, "the semaphore's value is too large");
        return NULL;
    }
    give_back(self, n);
    Py_RETURN_NONE;
}

static PyObject *
semaphore_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return PyObject_CallMethod(self, "release", NULL); /* a class may have its own */
}

static PyMemberDef semaphore_members[] = {
    GIO_WEAKLY,
    {"_value", T_PYSSIZET, offsetof(Semaphore, value), 0, NULL},
    {NULL},
};

static PyMethodDef semaphore_methods[] = {
    {"acquire", GIO_FAST_KEYWORDS(semaphore_acquire),
     "acquire($self, /, blocking=True, timeout=None)\n--\n\n"
     "Take one; False if there is none, after `timeout` seconds. Can be cancelled."},
    {"release", GIO_FAST_KEYWORDS(semaphore_release),
     "release($self, /, n=1)\n--\n\n"
     "Give `n` back: first to those that wait. Never waits; from any thread."},
    {"__enter__", GIO_FAST_KEYWORDS(semaphore_acquire),
     "__enter__($self, /, blocking=True, timeout=None)\n--\n\nTake one."},
    {"__exit__", GIO_FAST(semaphore_exit), "__exit__($self, /, t, v, tb)\n--\n\nGive one back."},
    {NULL},
};

static PyType_Slot semaphore_slots[] = {
    {Py_tp_doc, "Semaphore(value=1)\n--\n\nThe hot methods of ``threading.Semaphore``; FIFO."},
    {Py_tp_init, semaphore_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, semaphore_methods},
    {Py_tp_members, semaphore_members},
    {Py_tp_traverse, gio_lined_traverse},
    {Py_tp_clear, gio_lined_clear},
    {Py_tp_dealloc, gio_lined_dealloc},
    {0, NULL},
};

static PyType_Spec semaphore_spec = {
    .name = "greenletio._core.Semaphore",
    .basicsize = sizeof(Semaphore),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = semaphore_slots,
};

int
gio_event_setup_types(PyObject *module, GioState *st)
{
    st->event_type = gio_add_type(module, &event_spec, NULL, true);
    st->semaphore_type = gio_add_type(module, &semaphore_spec, NULL, true);
    return st->event_type == NULL || st->semaphore_type == NULL ? -1 : 0;
}
