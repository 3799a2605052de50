/* Condition, as threading has it, over a lock of ours or any other.
 *
 * What is not hot (wait_for, notify_all) is the standard class's, which the class in green/ has for
 * its other base. Queues (queue.c) have three conditions, in whose lines they stand themselves.
 */
#include "sync/sync.h"

/* ---- its lock ---------------------------------------------------------------------- */

static bool
is_rlock(GioState *st, PyObject *lock)
{
    return Py_IS_TYPE(lock, st->rlock_type);
}

static bool
is_lock(GioState *st, PyObject *lock)
{
    return Py_IS_TYPE(lock, st->lock_type);
}

/* What a lock that has the method does, else NULL without an exception. */
static PyObject *
optional_method(PyObject *lock, const char *name)
{
    PyObject *method = PyObject_GetAttrString(lock, name);
    if (method == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
    }
    return method;
}

static int
call_truth(PyObject *r)
{
    int truth = r == NULL ? -1 : PyObject_IsTrue(r);
    Py_XDECREF(r);
    return truth;
}

/* Whether the caller has the lock, as far as it can tell: 1, 0, or -1 with an exception. */
static int
is_owned(GioState *st, PyObject *lock)
{
    if (is_rlock(st, lock)) {
        GioRLock *own = (GioRLock *)lock;
        return own->owner != 0 && own->owner == gio_sync_me(st);
    }
    if (is_lock(st, lock)) {
        return ((GioLock *)lock)->locked;
    }
    PyObject *method = optional_method(lock, "_is_owned");
    if (method != NULL) {
        int owned = call_truth(PyObject_CallNoArgs(method));
        Py_DECREF(method);
        return owned;
    }
    if (PyErr_Occurred()) {
        return -1;
    }
    int taken = call_truth(PyObject_CallMethod(lock, "acquire", "O", Py_False));
    if (taken <= 0) {
        return taken < 0 ? -1 : 1;
    }
    PyObject *r = PyObject_CallMethod(lock, "release", NULL);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* How the lock was held. */
typedef struct {
    PyObject *state; /* of a lock that is not ours, owned */
    unsigned long count;
    uintptr_t owner;
} Held;

/* Give the lock back altogether. */
static int
release_save(GioState *st, PyObject *lock, Held *held)
{
    if (is_lock(st, lock)) {
        gio_lock_release((GioLock *)lock);
        return 0;
    }
    if (is_rlock(st, lock)) {
        GioRLock *own = (GioRLock *)lock;
        held->count = own->count;
        held->owner = own->owner;
        own->count = 0;
        own->owner = 0;
        gio_lock_release(&own->lock);
        return 0;
    }
    PyObject *method = optional_method(lock, "_release_save");
    if (method != NULL) {
        held->state = PyObject_CallNoArgs(method);
        Py_DECREF(method);
    }
    else if (!PyErr_Occurred()) {
        held->state = PyObject_CallMethod(lock, "release", NULL);
    }
    return held->state == NULL ? -1 : 0;
}

static int
acquire_restore(GioState *st, PyObject *lock, const Held *held)
{
    if (is_lock(st, lock)) {
        return gio_lock_acquire(st, (GioLock *)lock, GIO_NEVER) < 0 ? -1 : 0;
    }
    if (is_rlock(st, lock)) {
        GioRLock *own = (GioRLock *)lock;
        if (gio_lock_acquire(st, &own->lock, GIO_NEVER) < 0) {
            return -1;
        }
        own->count = held->count;
        own->owner = held->owner;
        return 0;
    }
    PyObject *method = optional_method(lock, "_acquire_restore"), *r = NULL;
    if (method != NULL) {
        r = PyObject_CallOneArg(method, held->state);
        Py_DECREF(method);
    }
    else if (!PyErr_Occurred()) {
        r = PyObject_CallMethod(lock, "acquire", NULL);
    }
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* The caller is in a `with`: it must have the lock, and hears of a cancellation afterwards. */
static int
retake(GioState *st, PyObject *lock, const Held *held)
{
    PyObject *cancelled = NULL;
    while (acquire_restore(st, lock, held) < 0) {
        if (!PyErr_ExceptionMatches(st->cancelled_error)) {
            Py_XDECREF(cancelled);
            return -1;
        }
        Py_XSETREF(cancelled, gio_err_take());
    }
    if (cancelled != NULL) {
        gio_err_give(cancelled);
        return -1;
    }
    return 0;
}

/* ---- methods --------------------------------------------------------------------------- */

/* Its lock, a new reference; NULL with RuntimeError. */
static PyObject *
get_lock(GioCondition *self)
{
    if (self->lock == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Condition.__init__() not called");
    }
    return Py_XNewRef(self->lock);
}

/* Whether the caller has the lock; -1 with an exception, RuntimeError if not. */
static int
check_owned(GioState *st, PyObject *lock, const char *otherwise)
{
    int owned = is_owned(st, lock);
    if (owned == 0) {
        PyErr_SetString(PyExc_RuntimeError, otherwise);
    }
    return owned > 0 ? 0 : -1;
}

/* 1, 0 at the deadline, -1 with an exception. */
static int
wait_owned(GioState *st, GioCondition *self, PyObject *lock, int64_t deadline)
{
    Held held = {0};
    GioWaiter *w = gio_line_join(st, &self->line, false);
    if (w == NULL) {
        return -1;
    }
    PyObject *exc = NULL;
    GioTurn turn = GIO_LINE_ERROR;
    if (release_save(st, lock, &held) < 0) {
        turn = gio_line_quit(w) ? GIO_LINE_LOST : GIO_LINE_ERROR;
        exc = gio_err_take();
    }
    else {
        turn = gio_line_wait(st, w, deadline, "waiting for a condition");
        exc = turn < 0 ? gio_err_take() : NULL;
        if (retake(st, lock, &held) < 0) {
            PyObject *second = gio_err_take();
            if (exc != NULL) {
                PyException_SetContext(second, exc);
            }
            exc = second;
        }
        Py_XDECREF(held.state);
    }
    if (exc == NULL) {
        return turn == GIO_LINE_WOKEN;
    }
    if (turn == GIO_LINE_LOST || turn == GIO_LINE_WOKEN) { /* who fails has not heard of it */
        gio_line_wake(&self->line, NULL);
    }
    gio_err_give(exc);
    return -1;
}

static PyObject *
condition_wait(GioCondition *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"timeout", NULL};
    GioState *st = gio_api_state();
    PyObject *timeout = Py_None;
    int64_t deadline;
    int r = -1;
    if (gio_sync_arguments("wait", args, nargs, kwnames, names, &timeout) < 0 ||
        gio_deadline(timeout, &deadline) < 0) {
        return NULL;
    }
    PyObject *lock = get_lock(self);
    if (lock == NULL) {
        return NULL;
    }
    if (check_owned(st, lock, "cannot wait on un-acquired lock") == 0) {
        r = wait_owned(st, self, lock, deadline);
    }
    Py_DECREF(lock);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
condition_notify(GioCondition *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"n", NULL};
    PyObject *n = NULL, *lock = NULL;
    Py_ssize_t count = 1;
    if (gio_sync_arguments("notify", args, nargs, kwnames, names, &n) < 0 ||
        (n != NULL && (count = PyNumber_AsSsize_t(n, NULL)) == -1 && PyErr_Occurred()) ||
        (lock = get_lock(self)) == NULL) {
        return NULL;
    }
    int r = check_owned(gio_api_state(), lock, "cannot notify on un-acquired lock");
    Py_DECREF(lock);
    if (r < 0) {
        return NULL;
    }
    while (count-- > 0 && gio_line_wake(&self->line, NULL)) {
    }
    Py_RETURN_NONE;
}

static PyObject *
condition_notify_all(GioCondition *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *lock = get_lock(self);
    int r =
        lock == NULL ? -1 : check_owned(gio_api_state(), lock, "cannot notify on un-acquired lock");
    Py_XDECREF(lock);
    if (r < 0) {
        return NULL;
    }
    gio_line_wake_all(&self->line);
    Py_RETURN_NONE;
}

/* The lock's own method of that name. */
static PyObject *
by_lock(GioCondition *self, const char *name, PyObject *const *args, Py_ssize_t nargs,
        PyObject *kwnames)
{
    PyObject *lock = get_lock(self), *r = NULL;
    PyObject *method = lock == NULL ? NULL : PyObject_GetAttrString(lock, name);
    if (method != NULL) {
        r = PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);
    }
    Py_XDECREF(method);
    Py_XDECREF(lock);
    return r;
}

static PyObject *
condition_acquire(GioCondition *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return by_lock(self, "acquire", args, nargs, kwnames);
}

static PyObject *
condition_release(GioCondition *self, PyObject *Py_UNUSED(ignored))
{
    return by_lock(self, "release", NULL, 0, NULL);
}

static PyObject *
condition_enter(GioCondition *self, PyObject *Py_UNUSED(ignored))
{
    GioState *st = gio_api_state();
    if (self->lock == NULL || !is_rlock(st, self->lock)) {
        return by_lock(self, "__enter__", NULL, 0, NULL);
    }
    PyObject *lock = Py_NewRef(self->lock);
    int r = gio_rlock_acquire(st, (GioRLock *)lock, GIO_NEVER);
    Py_DECREF(lock);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
condition_exit(GioCondition *self, PyObject *const *args, Py_ssize_t nargs)
{
    GioState *st = gio_api_state();
    if (self->lock == NULL || !is_rlock(st, self->lock)) {
        return by_lock(self, "__exit__", args, nargs, NULL);
    }
    PyObject *lock = Py_NewRef(self->lock);
    int r = gio_rlock_release(st, (GioRLock *)lock);
    Py_DECREF(lock);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
condition_is_owned(GioCondition *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *lock = get_lock(self);
    int owned = lock == NULL ? -1 : is_owned(gio_api_state(), lock);
    Py_XDECREF(lock);
    return owned < 0 ? NULL : PyBool_FromLong(owned);
}

static PyObject *
condition_at_fork_reinit(GioCondition *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *r = by_lock(self, "_at_fork_reinit", NULL, 0, NULL);
    if (r != NULL) {
        gio_line_clear(&self->line);
    }
    return r;
}

/* As the standard one has it: a list, here a new one. */
static PyObject *
condition_get_waiters(GioCondition *self, void *Py_UNUSED(closure))
{
    PyObject *list = PyList_New(0); /* before Python 3.12 this may run Python */
    for (GioWaiter *w = self->line.first; list != NULL && w != NULL; w = w->line_next) {
        if (PyList_Append(list, (PyObject *)w) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *
condition_repr(GioCondition *self)
{
    PyObject *waiters = condition_get_waiters(self, NULL), *r = NULL;
    PyObject *lock = waiters == NULL ? NULL : get_lock(self);
    if (lock != NULL) {
        r = PyUnicode_FromFormat("<Condition(%R, %zd)>", lock, PyList_GET_SIZE(waiters));
    }
    Py_XDECREF(lock);
    Py_XDECREF(waiters);
    return r;
}

/* ---- lifetime ---------------------------------------------------------------------------- */

static int
condition_init(GioCondition *self, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"lock", NULL};
    PyObject *lock = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:Condition", keywords, &lock)) {
        return -1;
    }
    lock = lock == Py_None ? PyObject_CallNoArgs((PyObject *)gio_api_state()->rlock_type)
                           : Py_NewRef(lock);
    if (lock == NULL) {
        return -1;
    }
    Py_XSETREF(self->lock, lock);
    return 0;
}

static int
condition_traverse(GioCondition *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->lock);
    return gio_line_traverse(&self->line, visit, arg);
}

static int
condition_clear(GioCondition *self)
{
    gio_line_clear(&self->line);
    Py_CLEAR(self->lock);
    return 0;
}

static void
condition_dealloc(GioCondition *self)
{
    gio_sync_free((PyObject *)self, (inquiry)condition_clear);
}

static PyMemberDef condition_members[] = {
    GIO_WEAKLY,
    {"_lock", T_OBJECT_EX, offsetof(GioCondition, lock), READONLY, NULL},
    {NULL},
};

static PyGetSetDef condition_getset[] = {
    {"_waiters", (getter)condition_get_waiters, NULL, "Those that wait.", NULL},
    {NULL},
};

static PyMethodDef condition_methods[] = {
    {"wait", GIO_FAST_KEYWORDS(condition_wait),
     "wait($self, /, timeout=None)\n--\n\n"
     "Wait for a notification; False after `timeout` seconds. The caller must own the lock, and\n"
     "has it again when this returns or is cancelled."},
    {"notify", GIO_FAST_KEYWORDS(condition_notify),
     "notify($self, /, n=1)\n--\n\nWake the first `n` that wait. The caller must own the lock."},
    {"notify_all", (PyCFunction)condition_notify_all, METH_NOARGS,
     "notify_all($self, /)\n--\n\nWake all that wait. The caller must own the lock."},
    {"acquire", GIO_FAST_KEYWORDS(condition_acquire),
     "acquire($self, /, *args, **kwargs)\n--\n\nAcquire the lock, as its own method does."},
    {"release", (PyCFunction)condition_release, METH_NOARGS,
     "release($self, /)\n--\n\nRelease the lock, as its own method does."},
    {"__enter__", (PyCFunction)condition_enter, METH_NOARGS,
     "__enter__($self, /)\n--\n\nTake the lock."},
    {"__exit__", GIO_FAST(condition_exit), "__exit__($self, /, *args)\n--\n\nGive the lock back."},
    {"_is_owned", (PyCFunction)condition_is_owned, METH_NOARGS,
     "_is_owned($self, /)\n--\n\nWhether the caller owns the lock."},
    {"_at_fork_reinit", (PyCFunction)condition_at_fork_reinit, METH_NOARGS,
     "_at_fork_reinit($self, /)\n--\n\nOpen the lock, and forget who waits."},
    {NULL},
};

static PyType_Slot condition_slots[] = {
    {Py_tp_doc, "Condition(lock=None)\n--\n\nThe hot methods of ``threading.Condition``."},
    {Py_tp_init, condition_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, condition_methods},
    {Py_tp_members, condition_members},
    {Py_tp_getset, condition_getset},
    {Py_tp_repr, condition_repr},
    {Py_tp_traverse, condition_traverse},
    {Py_tp_clear, condition_clear},
    {Py_tp_dealloc, condition_dealloc},
    {0, NULL},
};

static PyType_Spec condition_spec = {
    .name = "greenletio._core.Condition",
    .basicsize = sizeof(GioCondition),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = condition_slots,
};

int
gio_condition_setup_types(PyObject *module, GioState *st)
{
    st->condition_type = gio_add_type(module, &condition_spec, NULL, true);
    return st->condition_type == NULL ? -1 : 0;
}
