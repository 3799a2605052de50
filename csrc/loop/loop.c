/* Loop: the C half of greenletio.EventLoop; asyncio's own classes are the other half.
 *
 * It has what is hot: the iteration, call_soon and its kin, the fds. The Python class puts it
 * before asyncio.SelectorEventLoop in its bases, so what is defined here hides what is there,
 * attributes that asyncio's code sets (_closed, _debug, _stopping) included. One thread runs a
 * loop; call_soon and its kin may be called from any, since they only need the GIL.
 */
#include "loop/sock.h"
#include "loop/tls.h"

#include <math.h>
#include <sys/socket.h>
#include <time.h>

#define LONGEST_POLL (24 * 3600.0)

double
gio_loop_time(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

int
gio_loop_check_open(GioLoop *loop)
{
    if (loop->closed || loop->base == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
        return -1;
    }
    return 0;
}

int
gio_loop_check_idle(GioLoop *loop)
{
    if (loop->polling) { /* we have the GIL, so it is another thread that polls */
        PyErr_SetString(PyExc_RuntimeError,
                        "Non-thread-safe operation invoked on an event loop that runs in another "
                        "thread: use call_soon_threadsafe()");
        return -1;
    }
    return 0;
}

void
gio_loop_wake(GioLoop *loop)
{
    if (loop->polling && !loop->woken && loop->wake_fd >= 0) {
        /* Full means that it is awake already. */
        loop->woken = send(loop->wake_fd, "\0", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
    }
}

char *
gio_loop_scratch(GioLoop *loop)
{
    if (loop->scratch == NULL) {
        loop->scratch = PyMem_Malloc(GIO_READ_MAX);
        if (loop->scratch == NULL) {
            PyErr_NoMemory();
        }
    }
    return loop->scratch;
}

/* ---- the iteration ------------------------------------------------------------------- */

GIO_COLD static int
run_timed(GioLoop *loop, GioReady entry)
{
    double began = gio_loop_time();
    int r = entry.run(loop, entry.self);
    if (r < 0) {
        return -1;
    }
    PyObject *ok =
        PyObject_CallMethod((PyObject *)loop, "_took", "Od", entry.self, gio_loop_time() - began);
    Py_XDECREF(ok);
    return ok == NULL ? gio_loop_report(loop, "Exception in debug mode", "handle", entry.self) : 0;
}

static int
run_iteration(GioLoop *loop)
{
    double until = -1, when;
    /* Written to while the loop did not run, or in a turn that was cut short. */
    if (loop->unflushed != NULL && gio_tls_flush_all(loop) < 0) {
        return -1;
    }
    bool timed = gio_schedule_next(loop, &when);
    if (loop->ready.count > 0 || loop->stopping) {
        until = 0;
    }
    else if (timed) {
        double now = gio_loop_time();
        until = when <= now ? 0 : when - now > LONGEST_POLL ? now + LONGEST_POLL : when;
    }
    if (gio_polls_run(loop, until) < 0) {
        return -1;
    }
    if (loop->schedule.count > 0 && gio_schedule_fire(loop, gio_loop_time() + 1e-9) < 0) {
        return -1;
    }
    /* What these add is for the next iteration. */
    int r = 0;
    for (size_t todo = loop->ready.count; r == 0 && todo > 0 && loop->ready.count > 0; todo--) {
        GioReady entry = gio_ready_pop(loop);
        r = loop->debug ? run_timed(loop, entry) : entry.run(loop, entry.self);
        Py_DECREF(entry.self);
    }
    PyObject *exc = r < 0 ? gio_err_take() : NULL;
    gio_socks_sweep(loop);
    if (exc != NULL) {
        gio_err_give(exc);
        return r;
    }
    return loop->unflushed == NULL ? 0 : gio_tls_flush_all(loop);
}

/* asyncio's run_forever calls it and looks at _stopping: once is enough. Whoever calls it without
 * the loop running wants one iteration. */
static PyObject *
loop_run_once(GioLoop *loop, PyObject *Py_UNUSED(ignored))
{
    if (loop->iterating) {
        PyErr_SetString(PyExc_RuntimeError, "This event loop is already running");
        return NULL;
    }
    PyObject *running = gio_running_loop(loop->state);
    if (running == NULL) {
        return NULL;
    }
    bool on = running == (PyObject *)loop;
    Py_DECREF(running);
    loop->iterating = true;
    loop->ident = PyThread_get_thread_ident();
    int r;
    do {
        r = gio_loop_check_open(loop) < 0 ? -1 : run_iteration(loop);
    } while (r == 0 && on && !loop->stopping);
    if (loop->greens != NULL) {
        PyObject *exc = gio_err_take();
        gio_greens_make_tasks(loop);
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
    loop->iterating = false;
    if (r < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- call_soon and its kin -------------------------------------------------------------- */

/* Whether the arguments are what they almost always are: `least` or more, and of keywords only
 * the context, which is borrowed, or NULL. All else (mistakes, too) is for asyncio's own method. */
static bool
usual(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, Py_ssize_t least,
      PyObject **context)
{
    Py_ssize_t n = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    *context = n == 0 ? NULL : args[nargs];
    return nargs >= least &&
           (n == 0 || (n == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0),
                                                                  "context") == 0));
}

static PyObject *
call_with(PyObject *fn, PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t n = nargs + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject **all = PyMem_Malloc((size_t)(n + 1) * sizeof *all);
    if (all == NULL) {
        return PyErr_NoMemory();
    }
    all[0] = self;
    memcpy(all + 1, args, (size_t)n * sizeof *all);
    PyObject *r = PyObject_Vectorcall(fn, all, (size_t)nargs + 1, kwnames);
    PyMem_Free(all);
    return r;
}

/* It ends in _call_soon or _add_timer. */
GIO_COLD PyObject *
gio_loop_by_asyncio(GioLoop *loop, const char *method, PyObject *const *args, Py_ssize_t nargs,
                    PyObject *kwnames)
{
    PyObject *cold = PyImport_ImportModule("greenletio._event_loop");
    PyObject *fn = cold == NULL ? NULL : PyObject_GetAttrString(cold, method), *r = NULL;
    if (fn != NULL) {
        r = call_with(fn, (PyObject *)loop, args, nargs, kwnames);
    }
    Py_XDECREF(fn);
    Py_XDECREF(cold);
    return r;
}

static PyObject *
soon(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, const char *method)
{
    if (loop->take_context != NULL && loop->taken == NULL && nargs == 1 && kwnames != NULL &&
        PyTuple_GET_SIZE(kwnames) == 1 && args[1] == loop->take_context) { /* green.c's */
        loop->taken = gio_handle_new(loop, loop->state->handle_type, args[0], NULL, 0, args[1]);
        return Py_XNewRef((PyObject *)loop->taken);
    }
    PyObject *context;
    if (gio_loop_check_open(loop) < 0) {
        return NULL;
    }
    if (loop->debug || !usual(args, nargs, kwnames, 1, &context)) {
        return gio_loop_by_asyncio(loop, method, args, nargs, kwnames);
    }
    GioHandle *h =
        gio_handle_new(loop, loop->state->handle_type, args[0], args + 1, nargs - 1, context);
    if (h != NULL && gio_ready_push(loop, gio_handle_run, (PyObject *)h) < 0) {
        Py_CLEAR(h);
    }
    gio_loop_wake(loop); /* at once if another thread is meant, whichever method it has called */
    return (PyObject *)h;
}

static PyObject *
loop_call_soon(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return soon(loop, args, nargs, kwnames, "call_soon");
}

static PyObject *
loop_call_soon_threadsafe(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return soon(loop, args, nargs, kwnames, "call_soon_threadsafe");
}

static PyObject *
later(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, const char *method,
      const char *what, double from)
{
    PyObject *context;
    if (gio_loop_check_open(loop) < 0) {
        return NULL;
    }
    if (nargs > 0 && args[0] == Py_None) {
        PyErr_Format(PyExc_TypeError, "%s must not be None", what);
        return NULL;
    }
    if (loop->debug || !usual(args, nargs, kwnames, 2, &context)) {
        return gio_loop_by_asyncio(loop, method, args, nargs, kwnames);
    }
    double when = PyFloat_AsDouble(args[0]); /* may run Python */
    if ((when == -1.0 && PyErr_Occurred()) || gio_loop_check_open(loop) < 0) {
        return NULL;
    }
    if (isnan(when)) {
        PyErr_Format(PyExc_ValueError, "%s must not be NaN", what);
        return NULL;
    }
    GioHandle *h =
        gio_handle_new(loop, loop->state->timer_handle_type, args[1], args + 2, nargs - 2, context);
    if (h == NULL) {
        return NULL;
    }
    h->when = from + when;
    if (gio_schedule_add(loop, (PyObject *)h, h->when) < 0) {
        Py_CLEAR(h);
    }
    gio_loop_wake(loop);
    return (PyObject *)h;
}

static PyObject *
loop_call_later(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return later(loop, args, nargs, kwnames, "call_later", "delay", gio_loop_time());
}

static PyObject *
loop_call_at(GioLoop *loop, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    return later(loop, args, nargs, kwnames, "call_at", "when", 0);
}

static PyObject *
loop_time(GioLoop *loop, PyObject *Py_UNUSED(ignored))
{
    return PyFloat_FromDouble(gio_loop_time());
}

int
gio_loop_call_soon(GioLoop *loop, PyObject *fn, PyObject *arg, PyObject *context)
{
    if (gio_loop_check_open(loop) < 0) {
        return -1;
    }
    GioHandle *h = gio_handle_new(loop, loop->state->handle_type, fn, &arg, 1, context);
    if (h == NULL) {
        return -1;
    }
    int r = gio_ready_push(loop, gio_handle_run, (PyObject *)h);
    Py_DECREF(h);
    gio_loop_wake(loop);
    return r;
}

int
gio_waiter_run(GioLoop *Py_UNUSED(loop), PyObject *waiter)
{
    return gio_waiter_wake((GioWaiter *)waiter, true);
}

/* ---- for asyncio's own code ----------------------------------------------------------------- */

static PyObject *
loop_add_callback(GioLoop *loop, PyObject *handle)
{
    if (gio_loop_check_open(loop) < 0 || gio_ready_push(loop, gio_handle_run_foreign, handle) < 0) {
        return NULL;
    }
    gio_loop_wake(loop);
    Py_RETURN_NONE;
}

static PyObject *
loop_add_timer(GioLoop *loop, PyObject *args)
{
    PyObject *handle;
    double when;
    if (!PyArg_ParseTuple(args, "Od:_add_timer", &handle, &when)) {
        return NULL;
    }
    if (isnan(when)) {
        PyErr_SetString(PyExc_ValueError, "when must not be NaN");
        return NULL;
    }
    if (Py_IS_TYPE(handle, loop->state->timer_handle_type)) {
        PyErr_SetString(PyExc_TypeError, "it is scheduled already");
        return NULL;
    }
    if (gio_loop_check_open(loop) < 0 || gio_schedule_add(loop, handle, when) < 0) {
        return NULL;
    }
    gio_loop_wake(loop);
    Py_RETURN_NONE;
}

/* An asyncio.TimerHandle, of debug mode, was cancelled. */
static PyObject *
loop_timer_handle_cancelled(GioLoop *loop, PyObject *handle)
{
    gio_schedule_remove(loop, handle);
    Py_RETURN_NONE;
}

static PyObject *
loop_write_to_self(GioLoop *loop, PyObject *Py_UNUSED(ignored))
{
    gio_loop_wake(loop);
    Py_RETURN_NONE;
}

/* The last act of close(). */
static PyObject *
loop_release(GioLoop *loop, PyObject *Py_UNUSED(ignored))
{
    if (gio_loop_check_idle(loop) < 0) {
        return NULL;
    }
    loop->closed = true;
    gio_ready_clear(loop);
    gio_schedule_clear(loop);
    gio_polls_close(loop);
    gio_tls_forget_all(loop);
    Py_CLEAR(loop->watch); /* unwinds the calls that are stranded now */
    Py_RETURN_NONE;
}

/* ---- attributes -------------------------------------------------------------------------------
 */

static PyObject *
get_flag(GioLoop *loop, void *offset)
{
    return PyBool_FromLong(*(bool *)((char *)loop + (size_t)offset));
}

static int
set_flag(GioLoop *loop, PyObject *value, void *offset)
{
    int on = value == NULL ? 0 : PyObject_IsTrue(value);
    if (on < 0) {
        return -1;
    }
    *(bool *)((char *)loop + (size_t)offset) = on;
    return 0;
}

static PyObject *
get_task_factory(GioLoop *loop, void *Py_UNUSED(closure))
{
    return Py_NewRef(loop->task_factory != NULL ? loop->task_factory : Py_None);
}

static int
set_task_factory(GioLoop *loop, PyObject *value, void *Py_UNUSED(closure))
{
    Py_XSETREF(loop->task_factory, value == Py_None ? NULL : Py_XNewRef(value));
    return 0;
}

static int
set_wake_fd(GioLoop *loop, PyObject *value, void *Py_UNUSED(closure))
{
    long fd = value == NULL ? -1 : PyLong_AsLong(value);
    if (fd == -1 && PyErr_Occurred()) {
        return -1;
    }
    loop->wake_fd = (int)fd;
    return 0;
}

static PyObject *
loop_open_portal(GioLoop *loop, PyObject *Py_UNUSED(ignored))
{
    loop->portals++;
    Py_RETURN_NONE;
}

static PyObject *
loop_close_portal(GioLoop *loop, PyObject *Py_UNUSED(ignored))
{
    loop->portals--;
    Py_RETURN_NONE;
}

static PyObject *
get_wake_fd(GioLoop *loop, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(loop->wake_fd);
}

/* ---- lifetime ---------------------------------------------------------------------------------
 */

static PyObject *loop_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);

/* The state of the module, which a subclass of ours does not know itself. */
static GioState *
state_of(PyTypeObject *type)
{
    while (type->tp_new != loop_new || type->tp_base->tp_new == loop_new) {
        type = type->tp_base;
    }
    return PyType_GetModuleState(type);
}

/* glibc returns what is free at the heap's end to the system, and has every page of it faulted in
 * anew, from a size on that grows with the largest block that it has mapped and seen freed.
 * Where that is none, each message of some 100 KiB may pay three times what it costs. */
static void
raise_trim_threshold(void)
{
    PyMem_RawFree(PyMem_RawMalloc(4 * (size_t)GIO_READ_MAX));
}

static PyObject *
loop_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    GioLoop *loop = (GioLoop *)type->tp_alloc(type, 0);
    if (loop == NULL) {
        return NULL;
    }
    raise_trim_threshold();
    loop->state = state_of(type);
    loop->wake_fd = loop->timer_fd = -1;
    loop->next = loop->state->event_loops;
    if (loop->next != NULL) {
        loop->next->prev = loop;
    }
    loop->state->event_loops = loop;
    if (gio_polls_open(loop) < 0) {
        loop->closed = true; /* else its finalizer warns that it was not */
        Py_CLEAR(loop);
    }
    return (PyObject *)loop;
}

static int
visit_handle(GioHandle *h, visitproc visit, void *arg)
{
    return h == NULL ? 0 : gio_handle_traverse(h, visit, arg);
}

/* Handles have no GC header: what each refers to is visited here, exactly once. One of call_soon
 * is in the ready queue, a timer in the schedule, one of add_reader in the table of fds. */
static int
loop_traverse(GioLoop *loop, visitproc visit, void *arg)
{
    int r = 0;
    Py_VISIT(Py_TYPE(loop));
    Py_VISIT(loop->hub);
    Py_VISIT(loop->watch);
    Py_VISIT(loop->task_factory);
    for (size_t i = 0; r == 0 && i < loop->ready.count; i++) {
        GioReady *e = &loop->ready.slots[(loop->ready.head + i) & (loop->ready.size - 1)];
        Py_VISIT(e->self);
        if (e->run == gio_handle_run) {
            r = visit_handle((GioHandle *)e->self, visit, arg);
        }
    }
    for (Py_ssize_t i = 0; r == 0 && i < loop->schedule.count; i++) {
        PyObject *handle = loop->schedule.timers[i].handle;
        Py_VISIT(handle);
        if (Py_IS_TYPE(handle, loop->state->timer_handle_type)) {
            r = visit_handle((GioHandle *)handle, visit, arg);
        }
    }
    for (int fd = 0; r == 0 && fd < loop->nfds; fd++) {
        GioFdHandlers *f = loop->fds[fd].handlers;
        for (int i = 0; r == 0 && f != NULL && i < 2; i++) {
            r = visit_handle(f->handle[i], visit, arg);
        }
        Py_VISIT(loop->fds[fd].sock);
    }
    for (GioPoll *p = loop->polls; r == 0 && p != NULL; p = p->next) {
        Py_VISIT(p->self);
    }
    for (GioTls *t = loop->unflushed; r == 0 && t != NULL; t = t->next) {
        Py_VISIT(t);
    }
    return r;
}

static int
loop_clear(GioLoop *loop)
{
    if (!loop->polling) { /* it can't be: whoever polls holds it */
        loop->closed = true;
        gio_ready_clear(loop);
        gio_schedule_clear(loop);
        gio_polls_close(loop);
        gio_tls_forget_all(loop);
        Py_CLEAR(loop->watch);
        Py_CLEAR(loop->task_factory);
        if (loop->hub != NULL) {
            loop->hub->native = NULL;
            Py_CLEAR(loop->hub);
        }
    }
    return 0;
}

static void
loop_dealloc(GioLoop *loop)
{
    PyTypeObject *type = Py_TYPE(loop);
    PyObject_GC_UnTrack(loop);
    loop_clear(loop);
    if (loop->prev != NULL) {
        loop->prev->next = loop->next;
    }
    else if (loop->state->event_loops == loop) {
        loop->state->event_loops = loop->next;
    }
    if (loop->next != NULL) {
        loop->next->prev = loop->prev;
    }
    PyMem_Free(loop->scratch);
    type->tp_free(loop);
    Py_DECREF(type);
}

#define FAST_KW(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef loop_methods[] = {
    {"call_soon", FAST_KW(loop_call_soon), METH_FASTCALL | METH_KEYWORDS,
     "call_soon($self, callback, *args, context=None)\n--\n\n"
     "Call callback(*args) at the next turn of the loop, in order; returns a Handle."},
    {"call_soon_threadsafe", FAST_KW(loop_call_soon_threadsafe), METH_FASTCALL | METH_KEYWORDS,
     "call_soon_threadsafe($self, callback, *args, context=None)\n--\n\n"
     "The same from any thread, or from a signal handler."},
    {"call_later", FAST_KW(loop_call_later), METH_FASTCALL | METH_KEYWORDS,
     "call_later($self, delay, callback, *args, context=None)\n--\n\n"
     "Call callback(*args) after delay seconds; returns a TimerHandle."},
    {"call_at", FAST_KW(loop_call_at), METH_FASTCALL | METH_KEYWORDS,
     "call_at($self, when, callback, *args, context=None)\n--\n\n"
     "Call callback(*args) when time() has reached `when`; returns a TimerHandle."},
    {"time", (PyCFunction)loop_time, METH_NOARGS,
     "time($self, /)\n--\n\nThe loop's clock: seconds, monotonic."},
    {"_run_once", (PyCFunction)loop_run_once, METH_NOARGS,
     "Run until _stopping is set: what run_forever calls."},
    {"_add_callback", (PyCFunction)loop_add_callback, METH_O,
     "Have a handle of asyncio's own run at the next turn."},
    {"_add_timer", (PyCFunction)loop_add_timer, METH_VARARGS,
     "Have a handle of asyncio's own run when its time has come."},
    {"_timer_handle_cancelled", (PyCFunction)loop_timer_handle_cancelled, METH_O,
     "A handle given to _add_timer was cancelled."},
    {"_write_to_self", (PyCFunction)loop_write_to_self, METH_NOARGS,
     "Wake the loop up, from any thread."},
    {"_open_portal", (PyCFunction)loop_open_portal, METH_NOARGS,
     "From now on a new task's coroutine is stepped by a portal."},
    {"_close_portal", (PyCFunction)loop_close_portal, METH_NOARGS, "Undo _open_portal()."},
    {"_release", (PyCFunction)loop_release, METH_NOARGS, "Free everything: the end of close()."},
    {NULL},
};

static PyObject *
get_backend(GioLoop *self, void *Py_UNUSED(closure))
{
    return Py_BuildValue("sz", event_get_version(),
                         self->base == NULL ? NULL : event_base_get_method(self->base));
}

#define FLAG(name, field)                                                                          \
    {name, (getter)get_flag, (setter)set_flag, NULL, (void *)offsetof(GioLoop, field)}

static PyGetSetDef loop_getset[] = {
    FLAG("_closed", closed),
    FLAG("_debug", debug),
    FLAG("_stopping", stopping),
    {"_backend", (getter)get_backend, NULL,
     "libevent's version, and how it polls: None once the loop is closed.", NULL},
    {"_task_factory", (getter)get_task_factory, (setter)set_task_factory, NULL, NULL},
    {"_wake_fd", (getter)get_wake_fd, (setter)set_wake_fd, "The self-pipe's writing end.", NULL},
    {NULL},
};

static PyType_Slot loop_slots[] = {
    {Py_tp_doc, "The C half of greenletio.EventLoop."},
    {Py_tp_new, loop_new},
    {Py_tp_methods, loop_methods},
    {Py_tp_getset, loop_getset},
    {Py_tp_hash, gio_greens_loop_hash},
    {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},
    {Py_tp_dealloc, loop_dealloc},
    {0, NULL},
};

static PyType_Spec loop_spec = {
    .name = "greenletio._core.Loop",
    .basicsize = sizeof(GioLoop),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = loop_slots,
};

int
gio_add_methods(PyTypeObject *type, PyMethodDef *methods)
{
    for (PyMethodDef *def = methods; def->ml_name != NULL; def++) {
        PyObject *method = PyDescr_NewMethod(type, def);
        if (method == NULL || PyObject_SetAttrString((PyObject *)type, def->ml_name, method) < 0) {
            Py_XDECREF(method);
            return -1;
        }
        Py_DECREF(method);
    }
    return 0;
}

int
gio_loop_setup_types(PyObject *module, GioState *st)
{
    if (gio_handle_setup_types(module, st) < 0) {
        return -1;
    }
    st->loop_type = gio_add_type(module, &loop_spec, NULL, true);
    if (st->loop_type == NULL || gio_add_methods(st->loop_type, gio_poll_methods) < 0 ||
        gio_add_methods(st->loop_type, gio_stream_loop_methods) < 0 ||
        gio_add_methods(st->loop_type, gio_accept_loop_methods) < 0 ||
        gio_add_methods(st->loop_type, gio_pipe_loop_methods) < 0 ||
        gio_add_methods(st->loop_type, gio_datagram_loop_methods) < 0 ||
        gio_add_methods(st->loop_type, gio_sock_methods) < 0 ||
        gio_add_methods(st->loop_type, gio_factory_methods) < 0 ||
        gio_sock_setup_types(module, st) < 0 || gio_stream_setup_types(module, st) < 0 ||
        gio_pipe_setup_types(module, st) < 0 || gio_datagram_setup_types(module, st) < 0) {
        return -1;
    }
    return gio_tls_setup_types(module, st) < 0 ? -1 : gio_factory_setup(st);
}
