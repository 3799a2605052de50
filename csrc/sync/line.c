/* Lines: those that wait for a lock, an item, a notification, in the order in which they came; and
 * what else the classes of this folder have in common.
 *
 * Needs the GIL, any thread. A line owns the waiters that stand in it; whoever ends one's wait (a
 * turn, a timer, a cancellation, the end of its loop) takes it out of its line first
 * (gio_waiter_detach), so that a turn never goes to somebody who has left. As in a line's greens
 * and threads of any loop may stand, a turn is handed over by the Waiter's own means.
 */
#include "sync/sync.h"

void
gio_line_leave(GioWaiter *w)
{
    GioLine *line = w->line;
    if (w->line_prev != NULL) {
        w->line_prev->line_next = w->line_next;
    }
    else {
        line->first = w->line_next;
    }
    if (w->line_next != NULL) {
        w->line_next->line_prev = w->line_prev;
    }
    else {
        line->last = w->line_prev;
    }
    w->line = NULL;
    w->line_prev = w->line_next = NULL;
    Py_DECREF(w);
}

GioWaiter *
gio_line_join(GioState *st, GioLine *line, bool at_head)
{
    GioWaiter *w = gio_waiter_new(st, NULL);
    if (w == NULL) {
        return NULL;
    }
    w->line = line;
    if (at_head) {
        w->line_next = line->first;
    }
    else {
        w->line_prev = line->last;
    }
    if (w->line_prev != NULL) {
        w->line_prev->line_next = w;
    }
    else {
        line->first = w;
    }
    if (w->line_next != NULL) {
        w->line_next->line_prev = w;
    }
    else {
        line->last = w;
    }
    return (GioWaiter *)Py_NewRef((PyObject *)w);
}

bool
gio_line_quit(GioWaiter *w)
{
    gio_waiter_finish(w, GIO_CANCELLED, NULL);
    bool woken = w->status == GIO_SET;
    Py_DECREF(w);
    return woken;
}

GioTurn
gio_line_wait(GioState *st, GioWaiter *w, int64_t deadline, const char *what)
{
    int r = gio_wait_for(st, w, deadline, what);
    gio_waiter_finish(w, GIO_CANCELLED, NULL); /* refused: it has not ended, and stands there */
    bool woken = w->status == GIO_SET;
    Py_DECREF(w);
    if (r < 0) {
        return woken ? GIO_LINE_LOST : GIO_LINE_ERROR;
    }
    return woken ? GIO_LINE_WOKEN : GIO_LINE_LATE;
}

bool
gio_line_wake(GioLine *line, PyObject *value)
{
    GioWaiter *w = line->first;
    if (w == NULL) {
        return false;
    }
    gio_waiter_set(w, GIO_SET, Py_XNewRef(value));
    return true;
}

void
gio_line_wake_all(GioLine *line)
{
    size_t n = 0; /* who comes while they are being woken comes too late */
    for (GioWaiter *w = line->first; w != NULL; w = w->line_next) {
        n++;
    }
    while (n-- > 0 && gio_line_wake(line, NULL)) {
    }
}

void
gio_line_clear(GioLine *line)
{
    while (line->first != NULL) {
        gio_line_leave(line->first);
    }
}

int
gio_line_traverse(GioLine *line, visitproc visit, void *arg)
{
    for (GioWaiter *w = line->first; w != NULL; w = w->line_next) {
        Py_VISIT(w);
    }
    return 0;
}

/* ---- types ------------------------------------------------------------------------- */

void
gio_sync_free(PyObject *self, inquiry clear)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((GioWeakly *)self)->weakrefs != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

int
gio_lined_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return gio_line_traverse(&((GioLined *)self)->line, visit, arg);
}

int
gio_lined_clear(PyObject *self)
{
    gio_line_clear(&((GioLined *)self)->line);
    return 0;
}

void
gio_lined_dealloc(PyObject *self)
{
    gio_sync_free(self, gio_lined_clear);
}

/* ---- who runs here --------------------------------------------------------------- */

uintptr_t
gio_sync_me(GioState *st)
{
    GioHere here;
    uintptr_t me = 0;
    if (gio_here_green(st, &here) && (PyObject *)here.worker->call != st->main_call) {
        me = (uintptr_t)here.worker->call;
    }
    gio_here_clear(&here);
    return me != 0 ? me : (uintptr_t)PyThread_get_thread_ident();
}

PyObject *
gio_sync_get_ident(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLong((unsigned long)gio_sync_me(PyModule_GetState(module)));
}

PyObject *
gio_sync_become_main(PyObject *module, PyObject *call)
{
    GioState *st = PyModule_GetState(module);
    Py_XSETREF(st->main_call, call == Py_None ? NULL : Py_NewRef(call));
    Py_RETURN_NONE;
}

/* ---- who asks on and on ------------------------------------------------------------ */

#define PATIENCE 1000

/* In threads the system would let the others run, who alone can bring what is asked for. Who waits
 * or ends in between never comes near the count, so that nobody else is switched by a call that
 * does not wait. */
int
gio_sync_in_vain(GioState *st)
{
    GioHere here;
    GioThread *t = gio_here_green(st, &here) ? here.worker->thread : gio_thread_get(st);
    GioJob *job = here.job != NULL ? here.job : t != NULL ? &t->job : NULL;
    bool tired = job != NULL && ++job->in_vain >= PATIENCE;
    if (tired) {
        job->in_vain = 0;
    }
    gio_here_clear(&here);
    if (t == NULL) { /* the interpreter is shutting down */
        PyErr_Clear();
    }
    if (!tired || st->collecting == PyThread_get_thread_ident() ||
        gio_api()->place() == GIO_PLACE_FORBIDDEN) {
        return 0;
    }
    return gio_sleep_until(st, 0);
}

/* ---- arguments --------------------------------------------------------------------- */

int
gio_sync_arguments(const char *fn, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                   const char *const *names, PyObject **found)
{
    if (nargs == 0 && kwnames == NULL) {
        return 0;
    }
    Py_ssize_t n = 0, nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    while (names[n] != NULL) {
        n++;
    }
    if (nargs > n) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd argument%s (%zd given)", fn, n,
                     n == 1 ? "" : "s", nargs + nkw);
        return -1;
    }
    for (Py_ssize_t i = 0; i < nargs; i++) {
        found[i] = args[i];
    }
    for (Py_ssize_t k = 0; k < nkw; k++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, k);
        Py_ssize_t i = 0;
        while (i < n && PyUnicode_CompareWithASCIIString(name, names[i]) != 0) {
            i++;
        }
        if (i == n) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", fn, name);
            return -1;
        }
        if (i < nargs) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'", fn, name);
            return -1;
        }
        found[i] = args[nargs + k];
    }
    return 0;
}

int
gio_sync_queue_timeout(PyObject *block, PyObject *timeout, int64_t *deadline)
{
    int wait = block == Py_True ? 1 : PyObject_IsTrue(block);
    *deadline = GIO_NEVER;
    if (wait <= 0 || timeout == Py_None) {
        return wait;
    }
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    if (seconds < 0) {
        PyErr_SetString(PyExc_ValueError, "'timeout' must be a non-negative number");
        return -1;
    }
    if (gio_deadline(timeout, deadline) < 0) {
        return -1;
    }
    return seconds > 0;
}
