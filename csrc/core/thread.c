/* What belongs to one OS thread: its pool of idle workers, the calls under way,
 * the loop of its plain code.
 *
 * Kept in the thread state's dict, so it goes when the thread ends; only the
 * owner thread makes or uses it. On the way out it unwinds what is suspended; at
 * interpreter shutdown it leaves suspended stacks alone.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#define DEPTH_UNIT_MAX (64 * 1024)

/* Where the C stack ends, and where it begins; what is not known is taken to be near. */
static void
find_stack(GioThread *t)
{
    char here;
    size_t size = 0;
    t->stack_high = &here;
#if defined(__linux__)
    pthread_attr_t attr;
    void *low = NULL;
    size_t guard = 0;
    if (pthread_getattr_np(pthread_self(), &attr) == 0) {
        if (pthread_attr_getstack(&attr, &low, &size) == 0) {
            pthread_attr_getguardsize(&attr, &guard);
            t->stack_low = (char *)low + guard;
            t->stack_high = (char *)low + size;
        }
        pthread_attr_destroy(&attr);
    }
#elif defined(__APPLE__)
    pthread_t self = pthread_self();
    size = pthread_get_stacksize_np(self);
    t->stack_high = (char *)pthread_get_stackaddr_np(self);
    t->stack_low = t->stack_high - size;
#endif
    /* The pool keeps workers that begin in the first quarter of the stack. */
    size_t unit = size / 4 / GIO_DEPTHS;
    t->depth_unit = unit == 0 || unit > DEPTH_UNIT_MAX ? DEPTH_UNIT_MAX : unit;
}

static PyObject *
find_main_greenlet(void)
{
    PyObject *g = gio_greenlet_current();
    while (g != NULL) {
        PyObject *parent = gio_greenlet_parent(g);
        if (parent == NULL) {
            break;
        }
        Py_SETREF(g, parent);
    }
    return g;
}

GioThread *
gio_thread_get(GioState *st)
{
    uint64_t id = PyThreadState_GetID(PyThreadState_Get());
    if (st->last_thread != NULL && st->last_thread_id == id) {
        return st->last_thread;
    }
    PyObject *dict = PyThreadState_GetDict();
    if (dict == NULL || st->thread_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "greenletio: the interpreter is shutting down");
        return NULL;
    }
    GioThread *t = (GioThread *)PyDict_GetItemWithError(dict, st->thread_key);
    if (t != NULL) {
        st->last_thread = t;
        st->last_thread_id = id;
        return t;
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyTypeObject *type = st->thread_type;
    t = PyObject_GC_New(GioThread, type);
    if (t == NULL) {
        return NULL;
    }
    memset((char *)t + sizeof(PyObject), 0, sizeof(*t) - sizeof(PyObject));
    t->state = st;
    t->ident = PyThread_get_thread_ident();
    t->wake_fd = -1;
    find_stack(t);
    t->next = st->threads;
    if (t->next != NULL) {
        t->next->prev = t;
    }
    st->threads = t;
    PyObject_GC_Track(t);
    t->main = find_main_greenlet();
    /* Making it may have run a finalizer that made one before us. */
    PyObject *kept =
        t->main == NULL ? NULL : PyDict_SetDefault(dict, st->thread_key, (PyObject *)t);
    Py_DECREF(t); /* the dict keeps it until the thread ends */
    return (GioThread *)kept;
}

int
gio_thread_own_wake_fd(GioThread *t)
{
    if (t->wake_fd < 0) {
#ifdef __linux__
        t->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
#else
        errno = ENOSYS;
#endif
        if (t->wake_fd < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    return t->wake_fd;
}

void
gio_thread_reap(GioThread *t)
{
    while (t->orphans != NULL && PyList_GET_SIZE(t->orphans) > 0) {
        Py_ssize_t last = PyList_GET_SIZE(t->orphans) - 1;
        GioCall *c = (GioCall *)Py_NewRef(PyList_GET_ITEM(t->orphans, last));
        if (PyList_SetSlice(t->orphans, last, last + 1, NULL) < 0 || gio_call_close(c) < 0) {
            PyErr_WriteUnraisable((PyObject *)c);
        }
        Py_DECREF(c);
    }
}

/* Whether what the call waits for belongs to a loop that has closed. */
static bool
is_stranded(GioCall *c)
{
    GioState *st = c->thread->state;
    PyObject *awaiting = Py_XNewRef(c->worker->awaiting), *loop = NULL, *closed = NULL;
    if (awaiting != NULL && awaiting != Py_None &&
        (loop = PyObject_CallMethodNoArgs(awaiting, st->str_get_loop)) != NULL) {
        closed = PyObject_CallMethodNoArgs(loop, st->str_is_closed);
    }
    bool stranded = closed == Py_True;
    PyErr_Clear();
    Py_XDECREF(closed);
    Py_XDECREF(loop);
    Py_XDECREF(awaiting);
    return stranded;
}

void
gio_thread_close_calls(GioThread *t, bool stranded_only)
{
    PyObject *exc = gio_err_take();
    gio_thread_reap(t);
    GioCall *c = (GioCall *)Py_XNewRef((PyObject *)t->calls);
    while (c != NULL) {
        if (c->status == GIO_CALL_SUSPENDED && (!stranded_only || is_stranded(c)) &&
            gio_call_close(c) < 0) {
            PyErr_WriteUnraisable((PyObject *)c);
        }
        /* It may have unwound others: start again where it left the list. */
        GioCall *next = c->thread == NULL ? t->calls : c->next;
        Py_XINCREF(next);
        Py_DECREF(c);
        c = next;
    }
    if (exc != NULL) {
        gio_err_give(exc);
    }
}

void
gio_thread_forget_wake_fd(GioThread *t)
{
    if (t->wake_fd >= 0) {
        close(t->wake_fd);
        t->wake_fd = -1;
    }
}

/* Its thread has gone without being unwound, as all but one have in a forked child: what stands in
 * a line there would take a turn with it. */
static void
leave_line(GioJob *job)
{
    GioWaiter *w = job->waiting;
    if (w != NULL) {
        w->plain = NULL;
        if (w->line != NULL) {
            gio_line_leave(w);
        }
    }
}

static int
thread_traverse(GioThread *t, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(t));
    Py_VISIT(t->main);
    Py_VISIT(t->orphans);
    Py_VISIT(t->hub);
    Py_VISIT(t->own_loop);
    Py_VISIT(t->job.kept);
    return 0;
}

static int
thread_clear(GioThread *t)
{
    Py_CLEAR(t->main);
    Py_CLEAR(t->orphans);
    Py_CLEAR(t->hub);
    Py_CLEAR(t->own_loop);
    gio_job_clear(&t->job);
    return 0;
}

static void
thread_dealloc(GioThread *t)
{
    PyTypeObject *type = Py_TYPE(t);
    PyObject_GC_UnTrack(t);
    if (t->state->last_thread == t) {
        t->state->last_thread = NULL;
    }
    if (t->prev != NULL) {
        t->prev->next = t->next;
    }
    else {
        t->state->threads = t->next;
    }
    if (t->next != NULL) {
        t->next->prev = t->prev;
    }
    bool finalizing = gio_is_finalizing();
    bool here = !finalizing && t->ident == PyThread_get_thread_ident();
    if (here) {
        gio_thread_close_calls(t, false);
    }
    else if (!finalizing) {
        leave_line(&t->job);
    }
    for (GioCall *c = t->calls, *next; c != NULL; c = next) {
        next = c->next;
        if (!here && !finalizing) {
            leave_line(&c->job);
        }
        c->thread = NULL;
        c->prev = c->next = NULL;
    }
    for (GioWorker *w; (w = gio_worker_take_idle(t)) != NULL;) {
        w->thread = NULL;
        if (here) {
            gio_worker_retire(w);
        }
        /* otherwise its stack belongs to a thread that has gone: left alone */
    }
    GioThread *outer = t->state->ending;
    t->state->ending = t; /* a finalizer that uses a local must not make another GioThread */
    gio_locals_end(&t->locals);
    t->state->ending = outer;
    thread_clear(t);
    gio_thread_forget_wake_fd(t);
    PyObject_GC_Del(t);
    Py_DECREF(type);
}

static PyType_Slot thread_slots[] = {
    {Py_tp_traverse, thread_traverse},
    {Py_tp_clear, thread_clear},
    {Py_tp_dealloc, thread_dealloc},
    {0, NULL},
};

static PyType_Spec thread_spec = {
    .name = "greenletio._core.Thread",
    .basicsize = sizeof(GioThread),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = thread_slots,
};

int
gio_thread_setup_types(PyObject *module, GioState *st)
{
    st->thread_type = gio_add_type(module, &thread_spec, NULL, false);
    return st->thread_type == NULL ? -1 : 0;
}
