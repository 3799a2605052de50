/* The hub: one per event loop, found by the loop's attribute.
 *
 * It joins our waits to a loop of any make by one add_reader(): the epoll of
 * poller.c, in which all fds and the timers are. When that is ready, everything
 * that fired is collected first, in C; only then are waiters woken, each directly
 * in its own context, because a callback of the loop is a safe place for a task's
 * step. The loop's thread alone dispatches; with the GIL any thread may end a waiter.
 *
 * What the loop is given to call is a Watch, which nobody else keeps: when the loop
 * closes it lets go of it, and that is how we learn that calls are stranded.
 */
#include "core.h"

#include "loop/loop.h"

#include <stddef.h>
#include <structmember.h>
#include <unistd.h>

void
gio_hub_push_ready(GioHub *hub, GioWaiter *w)
{
    w->ready_next = NULL;
    *hub->ready_tail = (GioWaiter *)Py_NewRef(w);
    hub->ready_tail = &w->ready_next;
}

void
gio_hub_hold(GioHub *hub, GioWaiter *w)
{
    if (w->held) {
        return;
    }
    w->held = true;
    w->held_prev = NULL;
    w->held_next = hub->held;
    if (hub->held != NULL) {
        hub->held->held_prev = w;
    }
    hub->held = (GioWaiter *)Py_NewRef((PyObject *)w);
}

void
gio_hub_release(GioHub *hub, GioWaiter *w)
{
    if (!w->held) {
        return;
    }
    w->held = false;
    if (w->held_prev != NULL) {
        w->held_prev->held_next = w->held_next;
    }
    else {
        hub->held = w->held_next;
    }
    if (w->held_next != NULL) {
        w->held_next->held_prev = w->held_prev;
    }
    w->held_prev = w->held_next = NULL;
    Py_DECREF(w);
}

/* A task in C takes an exact Future's outcome as it is, where anything else is asked for it by
 * name, at the price of several allocations. It only wants to know that it may go on: one that
 * has ended for good serves all. */
PyObject *
gio_done_argument(GioState *st, PyObject *fn, PyObject *ended)
{
    bool of_task = PyCFunction_CheckExact(fn) && st->done != NULL &&
                   strcmp(((PyCFunctionObject *)fn)->m_ml->ml_name, "task_wakeup") == 0;
    return of_task ? st->done : ended;
}

PyObject *
gio_wake_argument(GioWaiter *w, PyObject *fn)
{
    bool well = w->status == GIO_SET;
    return well ? gio_done_argument(GIO_STATE(w), fn, (PyObject *)w) : (PyObject *)w;
}

static GioWaiter *
pop_ready(GioHub *hub)
{
    GioWaiter *w = hub->ready;
    if (w != NULL) {
        hub->ready = w->ready_next;
        if (hub->ready == NULL) {
            hub->ready_tail = &hub->ready;
        }
        w->ready_next = NULL;
    }
    return w;
}

PyObject *
gio_hub_loop(GioHub *hub)
{
    PyObject *loop = hub->loop == NULL ? NULL : gio_weakref_get(hub->loop);
    if (loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the event loop that was waited under has gone");
    }
    return loop;
}

/* What the loop calls when our epoll is ready. */
static PyObject *
hub_dispatch(GioHub *hub, PyObject *Py_UNUSED(ignored))
{
    Py_INCREF(hub);
    gio_poller_collect(hub);
    GioWaiter *w;
    PyObject *result = Py_None;
    while (result != NULL && (w = pop_ready(hub)) != NULL) {
        if (gio_waiter_wake(w, true) < 0) {
            result = NULL;
        }
        Py_DECREF(w);
    }
    if (result == NULL && hub->ready != NULL) {
        /* KeyboardInterrupt or SystemExit ends the loop's run; those that are left
         * are woken if it runs again. */
        PyObject *exc = gio_err_take();
        PyObject *again = PyObject_GetAttrString((PyObject *)hub, "dispatch");
        PyObject *loop = gio_hub_loop(hub);
        PyObject *r = again == NULL || loop == NULL
                          ? NULL
                          : PyObject_CallMethodOneArg(loop, hub->state->str_call_soon, again);
        if (r == NULL) {
            PyErr_WriteUnraisable((PyObject *)hub);
        }
        Py_XDECREF(r);
        Py_XDECREF(loop);
        Py_XDECREF(again);
        gio_err_give(exc);
    }
    Py_DECREF(hub);
    return Py_XNewRef(result);
}

/* ---- the loop's side of it ------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    GioHub *hub;
} Watch;

static PyObject *
watch_new(GioHub *hub)
{
    Watch *watch = PyObject_GC_New(Watch, hub->state->watch_type);
    if (watch == NULL) {
        return NULL;
    }
    watch->hub = (GioHub *)Py_NewRef((PyObject *)hub);
    PyObject_GC_Track(watch);
    return (PyObject *)watch;
}

static PyObject *
watch_call(Watch *watch, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    return hub_dispatch(watch->hub, NULL);
}

static int
watch_traverse(Watch *watch, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(watch));
    Py_VISIT(watch->hub);
    return 0;
}

/* The loop has closed, or is going. */
static void
watch_finalize(Watch *watch)
{
    GioHub *hub = watch->hub;
    if (gio_is_finalizing() || hub->ident != PyThread_get_thread_ident()) {
        return;
    }
    PyObject *exc = gio_err_take();
    GioThread *t = gio_thread_get(hub->state);
    if (t != NULL) {
        gio_thread_close_calls(t, true);
    }
    PyErr_Clear();
    if (exc != NULL) {
        gio_err_give(exc);
    }
}

static void
watch_dealloc(Watch *watch)
{
    if (PyObject_CallFinalizerFromDealloc((PyObject *)watch) < 0) {
        return;
    }
    PyTypeObject *type = Py_TYPE(watch);
    PyObject_GC_UnTrack(watch);
    Py_CLEAR(watch->hub);
    PyObject_GC_Del(watch);
    Py_DECREF(type);
}

static PyType_Slot watch_slots[] = {
    {Py_tp_doc, "What a loop calls when our epoll is ready."},
    {Py_tp_call, watch_call},
    {Py_tp_traverse, watch_traverse},
    {Py_tp_finalize, watch_finalize},
    {Py_tp_dealloc, watch_dealloc},
    {0, NULL},
};

static PyType_Spec watch_spec = {
    .name = "greenletio._core.Watch",
    .basicsize = sizeof(Watch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = watch_slots,
};

/* ---- finding the hub --------------------------------------------------------- */

static GioHub *
hub_new(GioState *st, PyObject *loop)
{
    PyObject *watch = NULL, *r = NULL;
    GioHub *hub = PyObject_GC_New(GioHub, st->hub_type);
    if (hub == NULL) {
        return NULL;
    }
    memset((char *)hub + sizeof(PyObject), 0, sizeof(*hub) - sizeof(PyObject));
    hub->state = st;
    hub->ident = PyThread_get_thread_ident();
    Py_INCREF(loop); /* its add_reader may be Python, and have the thread drop it */
    hub->poll_fd = hub->timer_fd = -1;
    hub->armed = GIO_NEVER;
    hub->ready_tail = &hub->ready;
    hub->next = st->hubs;
    if (hub->next != NULL) {
        hub->next->prev = hub;
    }
    st->hubs = hub;
    PyObject_GC_Track(hub);
    if ((hub->loop = PyWeakref_NewRef(loop, NULL)) == NULL || gio_poller_open(hub) < 0 ||
        (watch = watch_new(hub)) == NULL) {
        goto error;
    }
    if (PyObject_TypeCheck(loop, st->loop_type)) {
        hub->native = (GioLoop *)loop;
        Py_XSETREF(hub->native->hub, (GioHub *)Py_NewRef((PyObject *)hub));
        Py_XSETREF(hub->native->watch, Py_NewRef(watch));
    }
    /* In an empty context: the loop keeps the one that add_reader is called in. */
    r = PyObject_CallMethod(st->loops, "watch", "OiO", loop, hub->poll_fd, watch);
    if (r == NULL || PyObject_SetAttr(loop, st->str_hub, (PyObject *)hub) < 0) {
        goto error;
    }
    Py_DECREF(r);
    Py_DECREF(watch);
    Py_DECREF(loop);
    return hub;
error: {
    PyObject *exc = gio_err_take();
    if (hub->native != NULL && hub->native->hub == hub) { /* else who waits there waits for ever */
        Py_CLEAR(hub->native->watch);
        Py_CLEAR(hub->native->hub);
    }
    hub->native = NULL;
    Py_XDECREF(r);
    Py_XDECREF(watch);
    Py_DECREF(loop);
    Py_DECREF(hub);
    gio_err_give(exc);
    return NULL;
}
}

GioHub *
gio_hub_of_loop(GioState *st, GioThread *t, PyObject *loop)
{
    GioHub *hub = t->hub;
    if (hub != NULL) {
        PyObject *last = gio_weakref_get(hub->loop);
        Py_XDECREF(last); /* the caller holds the loop that we compare with */
        if (last == loop) {
            hub->ident = t->ident;
            return hub;
        }
    }
    if (PyObject_TypeCheck(loop, st->loop_type) && ((GioLoop *)loop)->hub != NULL) {
        hub = ((GioLoop *)loop)->hub;
        hub->ident = t->ident;
        Py_XSETREF(t->hub, (GioHub *)Py_NewRef((PyObject *)hub));
        return hub;
    }
    hub = (GioHub *)PyObject_GetAttr(loop, st->str_hub);
    if (hub == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return NULL;
        }
        PyErr_Clear();
    }
    if (hub == NULL || !Py_IS_TYPE(hub, st->hub_type)) {
        Py_XDECREF(hub);
        hub = hub_new(st, loop);
        if (hub == NULL) {
            return NULL;
        }
    }
    hub->ident = t->ident; /* a loop may run in one thread now, in another later */
    Py_XSETREF(t->hub, hub);
    return hub;
}

#if PY_VERSION_HEX < 0x030C0000
/* What asyncio keeps in the thread state's dict. */
typedef struct {
    PyObject_HEAD
    PyObject *loop; /* or None */
    int pid;        /* a forked child's loop is not its parent's */
} Holder;

static Holder *
holder_of_thread(GioState *st)
{
    PyObject *dict = PyThreadState_GetDict();
    return dict == NULL ? NULL : (Holder *)PyDict_GetItem(dict, st->str_running_loop);
}

/* Before Python 3.12, each time that asyncio is asked it makes a system call, getpid(). So it is
 * asked until it has said what we see in its holder; then that is looked at. */
PyObject *
gio_running_loop(GioState *st)
{
    Holder *h = holder_of_thread(st);
    if (h != NULL && Py_IS_TYPE(h, st->holder_type) && h->pid == st->holder_pid) {
        return Py_NewRef(h->loop);
    }
    PyObject *loop = PyObject_CallNoArgs(st->get_running_loop);
    if (loop != NULL && loop != Py_None && h != NULL && st->holder_type == NULL &&
        Py_TYPE(h)->tp_basicsize == sizeof(Holder) && h->loop == loop && h->pid == getpid()) {
        st->holder_type = Py_TYPE(h);
        st->holder_pid = h->pid;
    }
    return loop;
}
#else
PyObject *
gio_running_loop(GioState *st)
{
    return PyObject_CallNoArgs(st->get_running_loop);
}
#endif

GioHub *
gio_hub_running(GioState *st, GioThread *t)
{
    PyObject *loop = gio_running_loop(st);
    if (loop == NULL || loop == Py_None) {
        Py_XDECREF(loop);
        return NULL;
    }
    GioHub *hub = gio_hub_of_loop(st, t, loop);
    Py_DECREF(loop);
    return hub;
}

void
gio_hubs_after_fork(GioState *st)
{
    for (GioHub *hub = st->hubs; hub != NULL; hub = hub->next) {
        hub->ident = PyThread_get_thread_ident();
        if (gio_poller_reopen(hub) < 0) {
            PyErr_WriteUnraisable((PyObject *)hub);
        }
    }
}

/* ---- lifetime ------------------------------------------------------------------ */

static int
hub_traverse(GioHub *hub, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(hub));
    Py_VISIT(hub->loop);
    for (GioWaiter *w = hub->ready; w != NULL; w = w->ready_next) {
        Py_VISIT(w);
    }
    for (GioWaiter *w = hub->held; w != NULL; w = w->held_next) {
        Py_VISIT(w);
    }
    return 0;
}

static int
hub_clear(GioHub *hub)
{
    GioWaiter *w;
    while ((w = hub->held) != NULL) {
        Py_INCREF(w);
        gio_waiter_detach(w);
        Py_DECREF(w);
    }
    while ((w = pop_ready(hub)) != NULL) {
        Py_DECREF(w);
    }
    return 0;
}

static void
hub_dealloc(GioHub *hub)
{
    PyTypeObject *type = Py_TYPE(hub);
    PyObject_GC_UnTrack(hub);
    if (hub->prev != NULL) {
        hub->prev->next = hub->next;
    }
    else if (hub->state->hubs == hub) {
        hub->state->hubs = hub->next;
    }
    if (hub->next != NULL) {
        hub->next->prev = hub->prev;
    }
    hub_clear(hub);
    /* Every waiter holds the hub, so none is on its lists now. */
    gio_poller_close(hub);
    gio_poller_free(hub);
    PyMem_Free(hub->timers);
    Py_CLEAR(hub->loop);
    PyObject_GC_Del(hub);
    Py_DECREF(type);
}

static PyMethodDef hub_methods[] = {
    {"dispatch", (PyCFunction)hub_dispatch, METH_NOARGS,
     "dispatch($self, /)\n--\n\nWake whoever waited for what is ready now; the loop calls it."},
    {NULL},
};

static PyMemberDef hub_members[] = {
    {"poll_fd", T_INT, offsetof(GioHub, poll_fd), READONLY, "The epoll that the loop watches."},
    {NULL},
};

static PyType_Slot hub_slots[] = {
    {Py_tp_doc, "What joins greenletio's waits to one event loop."},
    {Py_tp_methods, hub_methods},
    {Py_tp_members, hub_members},
    {Py_tp_traverse, hub_traverse},
    {Py_tp_clear, hub_clear},
    {Py_tp_dealloc, hub_dealloc},
    {0, NULL},
};

static PyType_Spec hub_spec = {
    .name = "greenletio._core.Hub",
    .basicsize = sizeof(GioHub),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = hub_slots,
};

int
gio_hub_setup_types(PyObject *module, GioState *st)
{
    st->hub_type = gio_add_type(module, &hub_spec, NULL, false);
    st->watch_type = gio_add_type(module, &watch_spec, NULL, false);
    return st->hub_type == NULL || st->watch_type == NULL ? -1 : 0;
}
