/* Lock and RLock, as threading has them, for greenlets and threads alike.
 *
 * A lock that is released while others wait is handed to the first of them and stays taken, so it
 * is fair, and nobody can come in between. All that happens between two calls of Python happens at
 * once, as far as any other user can tell: signal handlers, finalizers and other threads may
 * use the same lock.
 */
#include "sync/sync.h"

#include <math.h>

/* ---- from C ---------------------------------------------------------------------- */

int
gio_lock_acquire(GioState *st, GioLock *lock, int64_t deadline)
{
    while (lock->locked) {
        if (deadline == 0) {
            return 0;
        }
        GioWaiter *w = gio_line_join(st, &lock->line, false);
        if (w == NULL) {
            return -1;
        }
        if (!lock->locked) { /* released while it was made, with nobody in the line */
            gio_line_quit(w);
            break;
        }
        switch (gio_line_wait(st, w, deadline, "acquiring a lock")) {
        case GIO_LINE_WOKEN:
            return 1; /* it was handed to us as it was: taken */
        case GIO_LINE_LATE:
            return 0;
        case GIO_LINE_LOST: {
            PyObject *exc = gio_err_take();
            gio_lock_release(lock);
            gio_err_give(exc);
            return -1;
        }
        case GIO_LINE_ERROR:
            return -1;
        }
    }
    lock->locked = true;
    return 1;
}

void
gio_lock_release(GioLock *lock)
{
    if (!gio_line_wake(&lock->line, NULL)) {
        lock->locked = false;
    }
}

int
gio_rlock_acquire(GioState *st, GioRLock *lock, int64_t deadline)
{
    uintptr_t me = gio_sync_me(st);
    if (lock->owner == me) {
        if (lock->count == ULONG_MAX) {
            PyErr_SetString(PyExc_OverflowError, "Internal lock count overflowed");
            return -1;
        }
        lock->count++;
        return 1;
    }
    int r = gio_lock_acquire(st, &lock->lock, deadline);
    if (r > 0) {
        lock->owner = me;
        lock->count = 1;
    }
    return r;
}

int
gio_rlock_release(GioState *st, GioRLock *lock)
{
    if (lock->owner == 0 || lock->owner != gio_sync_me(st)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
        return -1;
    }
    if (--lock->count == 0) {
        lock->owner = 0;
        gio_lock_release(&lock->lock);
    }
    return 0;
}

/* ---- Lock --------------------------------------------------------------------------- */

/* acquire()'s arguments: -1 with an exception. The deadline 0 is not to wait. */
static int
acquire_arguments(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, int64_t *deadline)
{
    static const char *const names[] = {"blocking", "timeout", NULL};
    PyObject *found[] = {Py_True, NULL};
    *deadline = GIO_NEVER;
    if (nargs == 0 && kwnames == NULL) {
        return 0;
    }
    if (gio_sync_arguments("acquire", args, nargs, kwnames, names, found) < 0) {
        return -1;
    }
    int blocking = PyObject_IsTrue(found[0]);
    if (blocking < 0) {
        return -1;
    }
    double timeout = found[1] == NULL ? -1 : PyFloat_AsDouble(found[1]);
    if (timeout == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (!blocking && timeout != -1) {
        PyErr_SetString(PyExc_ValueError, "can't specify a timeout for a non-blocking call");
        return -1;
    }
    if (isnan(timeout)) {
        PyErr_SetString(PyExc_ValueError, "Invalid value NaN (not a number)");
        return -1;
    }
    if (timeout < 0 && timeout != -1) {
        PyErr_SetString(PyExc_ValueError, "timeout value must be a non-negative number");
        return -1;
    }
    if (timeout > (double)PY_TIMEOUT_MAX * 1e-6) {
        PyErr_SetString(PyExc_OverflowError, "timeout value is too large");
        return -1;
    }
    if (!blocking || timeout == 0) {
        *deadline = 0;
    }
    else if (timeout > 0) {
        return gio_deadline(found[1], deadline);
    }
    return 0;
}

static PyObject *
lock_acquire(GioLock *lock, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    int64_t deadline;
    if (acquire_arguments(args, nargs, kwnames, &deadline) < 0) {
        return NULL;
    }
    int r = gio_lock_acquire(gio_api_state(), lock, deadline);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
lock_enter(GioLock *lock, PyObject *Py_UNUSED(ignored))
{
    int r = gio_lock_acquire(gio_api_state(), lock, GIO_NEVER);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
lock_release(GioLock *lock, PyObject *Py_UNUSED(ignored))
{
    if (!lock->locked) {
        PyErr_SetString(PyExc_RuntimeError, "release unlocked lock");
        return NULL;
    }
    gio_lock_release(lock);
    Py_RETURN_NONE;
}

static PyObject *
lock_exit(GioLock *lock, PyObject *const *args, Py_ssize_t nargs)
{
    return lock_release(lock, NULL);
}

static PyObject *
lock_locked(GioLock *lock, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(lock->locked);
}

static PyObject *
lock_at_fork_reinit(GioLock *lock, PyObject *Py_UNUSED(ignored))
{
    gio_line_clear(&lock->line);
    lock->locked = false;
    Py_RETURN_NONE;
}

static PyObject *
type_name(PyObject *self)
{
    PyObject *type = (PyObject *)Py_TYPE(self), *full = NULL;
    PyObject *module = PyObject_GetAttrString(type, "__module__");
    PyObject *name = module == NULL ? NULL : PyObject_GetAttrString(type, "__qualname__");
    if (name != NULL) {
        full = PyUnicode_FromFormat("%S.%S", module, name);
    }
    Py_XDECREF(name);
    Py_XDECREF(module);
    return full;
}

static PyObject *
lock_repr(GioLock *lock)
{
    PyObject *name = type_name((PyObject *)lock);
    PyObject *r = name == NULL
                      ? NULL
                      : PyUnicode_FromFormat("<%s %U object at %p>",
                                             lock->locked ? "locked" : "unlocked", name, lock);
    Py_XDECREF(name);
    return r;
}

static PyObject *
lock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {NULL};
    return PyArg_ParseTupleAndKeywords(args, kwargs, ":Lock", keywords) ? type->tp_alloc(type, 0)
                                                                        : NULL;
}

static PyMemberDef lock_members[] = {
    GIO_WEAKLY,
    {NULL},
};

#define ACQUIRE(name)                                                                              \
    name "($self, /, blocking=True, timeout=-1)\n--\n\n"                                           \
         "Take the lock; False if another has it, after `timeout` seconds. Can be cancelled."
#define RELEASE(name)                                                                              \
    name "($self, /)\n--\n\n"                                                                      \
         "Hand the lock to the first who waits, or open it. Never waits; from any thread."
#define LOCKED(name) name "($self, /)\n--\n\nWhether it is taken."

static PyMethodDef lock_methods[] = {
    {"acquire", GIO_FAST_KEYWORDS(lock_acquire), ACQUIRE("acquire")},
    {"release", (PyCFunction)lock_release, METH_NOARGS, RELEASE("release")},
    {"locked", (PyCFunction)lock_locked, METH_NOARGS, LOCKED("locked")},
    {"acquire_lock", GIO_FAST_KEYWORDS(lock_acquire), ACQUIRE("acquire_lock")},
    {"release_lock", (PyCFunction)lock_release, METH_NOARGS, RELEASE("release_lock")},
    {"locked_lock", (PyCFunction)lock_locked, METH_NOARGS, LOCKED("locked_lock")},
    {"__enter__", (PyCFunction)lock_enter, METH_NOARGS,
     "__enter__($self, /)\n--\n\nTake the lock."},
    {"__exit__", GIO_FAST(lock_exit), "__exit__($self, /, *exc_info)\n--\n\nRelease the lock."},
    {"_at_fork_reinit", (PyCFunction)lock_at_fork_reinit, METH_NOARGS,
     "_at_fork_reinit($self, /)\n--\n\nOpen it, and forget who waits."},
    {NULL},
};

static PyType_Slot lock_slots[] = {
    {Py_tp_doc, "Lock()\n--\n\n``threading.Lock``: FIFO; whoever likes may release it, also "
                "from another thread."},
    {Py_tp_new, lock_new},
    {Py_tp_methods, lock_methods},
    {Py_tp_members, lock_members},
    {Py_tp_repr, lock_repr},
    {Py_tp_traverse, gio_lined_traverse},
    {Py_tp_clear, gio_lined_clear},
    {Py_tp_dealloc, gio_lined_dealloc},
    {0, NULL},
};

static PyType_Spec lock_spec = {
    .name = "greenletio.green._thread.Lock",
    .basicsize = sizeof(GioLock),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = lock_slots,
};

/* ---- RLock -------------------------------------------------------------------------- */

static PyObject *
rlock_acquire(GioRLock *lock, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    int64_t deadline;
    if (acquire_arguments(args, nargs, kwnames, &deadline) < 0) {
        return NULL;
    }
    int r = gio_rlock_acquire(gio_api_state(), lock, deadline);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
rlock_enter(GioRLock *lock, PyObject *Py_UNUSED(ignored))
{
    int r = gio_rlock_acquire(gio_api_state(), lock, GIO_NEVER);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

static PyObject *
rlock_release(GioRLock *lock, PyObject *Py_UNUSED(ignored))
{
    if (gio_rlock_release(gio_api_state(), lock) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
rlock_exit(GioRLock *lock, PyObject *const *args, Py_ssize_t nargs)
{
    return rlock_release(lock, NULL);
}

static PyObject *
rlock_at_fork_reinit(GioRLock *lock, PyObject *Py_UNUSED(ignored))
{
    lock->owner = 0;
    lock->count = 0;
    return lock_at_fork_reinit(&lock->lock, NULL);
}

static PyObject *
rlock_is_owned(GioRLock *lock, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(lock->owner != 0 && lock->owner == gio_sync_me(gio_api_state()));
}

static PyObject *
rlock_recursion_count(GioRLock *lock, PyObject *Py_UNUSED(ignored))
{
    bool owned = lock->owner != 0 && lock->owner == gio_sync_me(gio_api_state());
    return PyLong_FromUnsignedLong(owned ? lock->count : 0);
}

static PyObject *
rlock_release_save(GioRLock *lock, PyObject *Py_UNUSED(ignored))
{
    if (lock->count == 0) {
        PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
        return NULL;
    }
    PyObject *state = Py_BuildValue("(kk)", lock->count, (unsigned long)lock->owner);
    if (state != NULL) {
        lock->owner = 0;
        lock->count = 0;
        gio_lock_release(&lock->lock);
    }
    return state;
}

static PyObject *
rlock_acquire_restore(GioRLock *lock, PyObject *state)
{
    unsigned long count, owner;
    if (!PyTuple_Check(state) || !PyArg_ParseTuple(state, "kk:_acquire_restore", &count, &owner)) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "_acquire_restore() takes what _release_save() gave");
        }
        return NULL;
    }
    if (gio_lock_acquire(gio_api_state(), &lock->lock, GIO_NEVER) < 0) {
        return NULL;
    }
    lock->owner = owner;
    lock->count = count;
    Py_RETURN_NONE;
}

static PyObject *
rlock_repr(GioRLock *lock)
{
    PyObject *name = type_name((PyObject *)lock);
    PyObject *r = name == NULL
                      ? NULL
                      : PyUnicode_FromFormat("<%s %U object owner=%lu count=%lu at %p>",
                                             lock->lock.locked ? "locked" : "unlocked", name,
                                             (unsigned long)lock->owner, lock->count, lock);
    Py_XDECREF(name);
    return r;
}

/* The standard one takes any arguments, and ignores them. */
static PyObject *
rlock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return type->tp_alloc(type, 0);
}

static PyMethodDef rlock_methods[] = {
    {"acquire", GIO_FAST_KEYWORDS(rlock_acquire), ACQUIRE("acquire")},
    {"release", (PyCFunction)rlock_release, METH_NOARGS,
     "release($self, /)\n--\n\nGive it back once; RuntimeError unless the caller owns it. Never "
     "waits."},
    {"locked", (PyCFunction)lock_locked, METH_NOARGS, LOCKED("locked")},
    {"__enter__", (PyCFunction)rlock_enter, METH_NOARGS,
     "__enter__($self, /)\n--\n\nTake the lock."},
    {"__exit__", GIO_FAST(rlock_exit), "__exit__($self, /, *exc_info)\n--\n\nGive it back once."},
    {"_at_fork_reinit", (PyCFunction)rlock_at_fork_reinit, METH_NOARGS,
     "_at_fork_reinit($self, /)\n--\n\nOpen it, and forget who waits."},
    {"_is_owned", (PyCFunction)rlock_is_owned, METH_NOARGS,
     "_is_owned($self, /)\n--\n\nWhether the caller owns it."},
    {"_recursion_count", (PyCFunction)rlock_recursion_count, METH_NOARGS,
     "_recursion_count($self, /)\n--\n\nHow often the caller has taken it."},
    {"_release_save", (PyCFunction)rlock_release_save, METH_NOARGS,
     "_release_save($self, /)\n--\n\nGive it back altogether; returns what _acquire_restore takes."},
    {"_acquire_restore", (PyCFunction)rlock_acquire_restore, METH_O,
     "_acquire_restore($self, state, /)\n--\n\nTake it as often as before _release_save."},
    {NULL},
};

static PyType_Slot rlock_slots[] = {
    {Py_tp_doc,
     "RLock(*args, **kwargs)\n--\n\n``threading.RLock``: its owner, a greenlet's call or a thread, may "
     "take it again."},
    {Py_tp_new, rlock_new},
    {Py_tp_methods, rlock_methods},
    {Py_tp_members, lock_members},
    {Py_tp_repr, rlock_repr},
    {Py_tp_traverse, gio_lined_traverse},
    {Py_tp_clear, gio_lined_clear},
    {Py_tp_dealloc, gio_lined_dealloc},
    {0, NULL},
};

static PyType_Spec rlock_spec = {
    .name = "greenletio.green._thread.RLock",
    .basicsize = sizeof(GioRLock),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = rlock_slots,
};

int
gio_lock_setup_types(PyObject *module, GioState *st)
{
    st->lock_type = gio_add_type(module, &lock_spec, NULL, true);
    st->rlock_type = gio_add_type(module, &rlock_spec, NULL, true);
    return st->lock_type == NULL || st->rlock_type == NULL ? -1 : 0;
}
