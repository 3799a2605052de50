/* Workers: greenlets that are used again and again.
 *
 * A fresh greenlet costs CPython a 16 KiB data stack that is mapped and
 * unmapped; a recycled one costs a switch. A worker runs worker_run: take the
 * job, run it, hand the outcome to the driver, sleep in the pool. Values pass in
 * the mailbox (`in`, `out`), never through the switch, so a switch by somebody
 * else can't be mistaken for ours: the mailbox is looked at after every switch.
 *
 * A worker whose identity leaked out of its job (somebody still refers to it, has
 * a weak reference, or wrote attributes) is not used again: what is keyed by
 * greenlet must not pass from one job to the next.
 */
#include "core.h"

/* Idle workers kept per thread: a burst as large as the last one finds them ready. Some 6 KB
 * each, so of those above POOL_KEEP that POOL_TURN jobs in a row did not need, one is let go. */
#define POOL_MAX 16384
#define POOL_KEEP 256
#define POOL_TURN 1024
/* How much deeper than its driver a first-level worker starts: a switch copies
 * the C stack that the two share, which below this depth is none. */
#define STACK_GAP (48 * 1024)
/* Below this much free C stack a new call is refused. */
#define STACK_RESERVE (256 * 1024)

/* ---- inside the worker -------------------------------------------------- */

static void
call_run(GioWorker *w, GioCall *c)
{
    PyObject *result = PyObject_Vectorcall(
        c->fn, c->argv + 1, (size_t)c->nargs | PY_VECTORCALL_ARGUMENTS_OFFSET, c->kwnames);
    if (result != NULL) {
        w->out = result;
        w->out_kind = GIO_OUT_RETURN;
    }
    else {
        w->out = gio_err_take();
        w->out_kind = GIO_OUT_ERROR;
    }
}

static void
job_run(GioWorker *w, PyThreadState *ts)
{
    GioCall *c = w->call;
    GioIn kind = w->in_kind;
    PyObject *in = w->in;
    w->in_kind = GIO_IN_NONE;
    w->in = NULL;
    if (kind == GIO_IN_THROW && !c->portal) { /* its first entry failed, and it was closed since */
        w->out = in;
        w->out_kind = GIO_OUT_ERROR;
        Py_CLEAR(w->context);
        Py_CLEAR(w->handled);
        return;
    }
    gio_recursion_set(ts, w->recursion);
    gio_context_install(ts, w->context);
    PyObject *handled = w->handled;
    bool handling = handled != NULL;
    if (handling) { /* as in any function that is called in an except block */
        w->handled = NULL;
        gio_handled_set(handled);
    }
    if (c->portal) {
        gio_portal_run(w, kind, in);
    }
    else {
        Py_DECREF(in);
        call_run(w, c);
    }
    if (handling) {
        gio_handled_set(NULL);
    }
    gio_context_install(ts, NULL);
    w->in_kind = GIO_IN_NONE;
    Py_CLEAR(w->in); /* of a step that never arrived */
    Py_CLEAR(w->context);
    Py_CLEAR(w->awaiting);
}

/* Run the job, if there is one: a new reference to the greenlet that is to go on. NULL: this
 * worker has nothing left to do. Not inlined: its frame would stay with every idle worker. */
__attribute__((noinline)) static PyObject *
worker_turn(GioWorker *w)
{
    if (w->quit) {
        return NULL;
    }
    if (w->call != NULL && w->in_kind != GIO_IN_NONE) {
        job_run(w, PyThreadState_Get());
        w->call = NULL;
        Py_CLEAR(w->inner); /* it waits still, and its parent is another by now */
        PyObject *driver = w->driver;
        w->driver = NULL;
        if (driver != NULL) {
            return driver;
        }
    }
    /* Somebody else's switch into an idle worker, or one that left the driver behind. */
    return gio_greenlet_parent((PyObject *)w);
}

__attribute__((noinline)) static GioWorker *
worker_begin(void)
{
    GioWorker *w = (GioWorker *)gio_greenlet_current();
    if (w != NULL && w->thread != NULL &&
        gio_greenlet_set_parent((PyObject *)w, w->thread->main) < 0) {
        Py_CLEAR(w);
    }
    if (w != NULL) {
        w->started = true;
        Py_DECREF(w); /* not held: the pool counts references, and greenlet keeps the running one */
    }
    return w;
}

/* What every worker runs, for all of its life. */
static PyObject *
worker_run(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    GioWorker *w = worker_begin();
    PyObject *next;
    if (w == NULL) {
        return NULL;
    }
    while ((next = worker_turn(w)) != NULL) {
        PyObject *got = gio_greenlet_switch_raw(next, NULL, NULL);
        Py_DECREF(next);
        if (got == NULL) {
            w->started = false;
            return NULL; /* killed while idle */
        }
        Py_DECREF(got);
    }
    Py_RETURN_NONE;
}

PyMethodDef gio_worker_run_def = {"run", worker_run, METH_NOARGS, "Run one job after another."};

/* What the step brought: the value sent, or NULL with what was thrown. */
static PyObject *
take_in(GioWorker *w)
{
    PyObject *in = w->in;
    GioIn kind = w->in_kind;
    w->in = NULL;
    w->in_kind = GIO_IN_NONE;
    if (kind != GIO_IN_THROW) {
        return in;
    }
    if (PyErr_GivenExceptionMatches(in, w->thread->state->cancelled_error)) {
        w->call->job.cancels++;
    }
    gio_err_give(in);
    return NULL;
}

/* Its greenlet was resumed by somebody else, so what the task is parked on may never be done:
 * cancelling that has the task come for the outcome. Waiters are seen to by gio_suspend. */
static void
release_task(GioWorker *w)
{
    GioState *st = w->thread->state;
    PyObject *awaiting = w->awaiting, *exc = gio_err_take();
    w->awaiting = NULL;
    if (awaiting != NULL && !Py_IS_TYPE(awaiting, st->waiter_type)) {
        PyObject *r = PyObject_CallMethodNoArgs(awaiting, st->str_cancel);
        PyErr_Clear(); /* no future: nobody is parked on it */
        Py_XDECREF(r);
    }
    Py_XDECREF(awaiting);
    gio_err_give(exc);
}

PyObject *
gio_worker_yield(GioWorker *w, PyObject *current, PyObject *y, bool lend)
{
    GioCall *c = w->call;
    if (c == NULL) { /* given up while it was running */
        Py_DECREF(y);
        PyErr_SetString(PyExc_RuntimeError,
                        "the awaitable of this greenlet has gone: it can't wait");
        return NULL;
    }
    if (w->in_kind != GIO_IN_NONE) { /* the step met the greenlet in a switch of its own */
        PyObject *late = take_in(w);
        if (late == NULL) {
            Py_DECREF(y);
            return NULL;
        }
        Py_DECREF(late);
    }
    if (c->closing) {
        Py_DECREF(y);
        if (++c->refused < 1000) {
            PyErr_SetString(w->thread->state->greenlet_exit,
                            "this call is being closed: it can't wait any more");
            return NULL;
        }
        y = Py_NewRef(Py_None); /* it will not end: let the closer go on */
    }
    else if ((c->portal || w->thread->state->collecting != 0) &&
             gio_portal_may_wait(w->thread->state, c) < 0) {
        Py_DECREF(y);
        return NULL;
    }
    c->job.in_vain = 0;
    PyThreadState *ts = PyThreadState_Get();
    PyObject *driver = w->driver;
    if (driver == NULL) {
        Py_DECREF(y);
        PyErr_SetString(PyExc_RuntimeError,
                        "this greenlet was resumed by a switch that greenletio did not make: "
                        "it can't wait until its awaitable is driven again");
        return NULL;
    }
    bool shared = ts->context == w->context; /* else: inside a Context.run of its own */
    if (shared) {
        gio_context_install(ts, NULL);
    }
    Py_CLEAR(w->context);
    w->out = y;
    w->out_kind = GIO_OUT_YIELD;
    Py_XSETREF(w->awaiting, Py_NewRef(y));
    if (current != (PyObject *)w) {
        Py_XSETREF(w->inner, Py_NewRef(current));
    }
    w->driver = NULL;
    lend = lend && current == (PyObject *)w; /* the worker's own stack can't outlive `awaiting` */
    if (lend) { /* `awaiting` has it meanwhile, where the garbage collector sees it */
        Py_DECREF(y);
    }
    int r = gio_greenlet_switch(driver);
    if (lend) {
        Py_INCREF(y);
    }
    Py_DECREF(driver);
    Py_CLEAR(w->inner);
    gio_trace_resumed(w->call, ts);
    if (w->in_kind == GIO_IN_NONE) {
        if (r == 0) {
            PyErr_SetString(PyExc_RuntimeError,
                            "a waiting greenlet was switched to from outside greenletio");
        }
        if (lend) { /* not left for the next wait, where dropping it could run Python */
            Py_CLEAR(w->awaiting);
        }
        else if (w->call != NULL) {
            release_task(w);
        }
        return NULL;
    }
    if (r < 0) { /* thrown in by somebody while a step was on its way: the step wins */
        PyErr_WriteUnraisable((PyObject *)w);
    }
    if (shared) {
        gio_context_install(ts, w->context);
    }
    PyObject *in = take_in(w);
    Py_CLEAR(w->awaiting); /* last: it may run Python */
    return in;
}

GioWorker *
gio_worker_of(GioState *st, PyObject *current)
{
    GioWorker *found = NULL;
    PyObject *g = Py_NewRef(current);
    while (g != NULL) {
        if (Py_IS_TYPE(g, st->worker_type)) {
            GioWorker *w = (GioWorker *)g;
            if (w->call != NULL && w->driver != NULL) {
                found = (GioWorker *)Py_NewRef(g);
            }
            break;
        }
        Py_SETREF(g, gio_greenlet_parent(g));
    }
    Py_XDECREF(g);
    return found;
}

/* ---- outside: the pool --------------------------------------------------- */

/* The stack grows down on every platform that greenlet supports here. */
__attribute__((noinline)) static int
switch_deep(PyObject *target)
{
    volatile char gap[STACK_GAP];
    gap[0] = 0;
    int r = gio_greenlet_switch(target);
    gap[STACK_GAP - 1] = gap[0];
    return r;
}

/* In units, GIO_DEPTHS for all that is deeper. */
static int
depth_of(GioThread *t, uintptr_t place)
{
    uintptr_t high = (uintptr_t)t->stack_high;
    size_t bytes = place < high ? high - place : 0;
    return bytes < GIO_DEPTHS * t->depth_unit ? (int)(bytes / t->depth_unit) : GIO_DEPTHS;
}

int
gio_worker_enter(GioWorker *w, PyObject *target)
{
    if (w->started || target != (PyObject *)w) {
        return gio_greenlet_switch(target);
    }
    GioThread *t = w->thread;
    char here;
    bool first_level = !Py_IS_TYPE(w->driver, t->state->worker_type);
    if (first_level &&
        (t->stack_low == NULL || &here - t->stack_low > STACK_GAP + 2 * STACK_RESERVE)) {
        w->depth = depth_of(t, (uintptr_t)&here - STACK_GAP);
        return switch_deep(target);
    }
    w->depth = depth_of(t, (uintptr_t)&here);
    return gio_greenlet_switch(target);
}

static GioWorker *
worker_new(GioThread *t)
{
    char here;
    if (t->stack_low != NULL && &here - t->stack_low < STACK_RESERVE) {
        PyErr_SetString(PyExc_RecursionError, "async_ calls are nested too deep for the C stack");
        return NULL;
    }
    /* The type can't be instantiated from Python; greenlet's own tp_new and
     * tp_init make it. */
    PyTypeObject *type = t->state->worker_type;
    PyTypeObject *greenlet = type->tp_base;
    /* Born as the driver's child: should it fail to start, the driver hears of it. */
    PyObject *args = PyTuple_Pack(1, t->state->worker_run);
    if (args == NULL) {
        return NULL;
    }
    GioWorker *w = (GioWorker *)greenlet->tp_new(type, args, NULL);
    if (w != NULL) {
        if (greenlet->tp_init((PyObject *)w, args, NULL) < 0) {
            Py_CLEAR(w);
        }
        else {
            w->thread = t;
        }
    }
    Py_DECREF(args);
    return w;
}

static GioWorker *
take_idle(GioThread *t, uint32_t depths)
{
    depths &= t->idle_depths;
    if (depths == 0) {
        return NULL;
    }
    int depth = 31 - __builtin_clz(depths);
    GioWorker *w = t->idle[depth];
    t->idle[depth] = w->next;
    if (w->next == NULL) {
        t->idle_depths &= ~(UINT32_C(1) << depth);
    }
    w->next = NULL;
    t->idle_count--;
    if (t->idle_unused > t->idle_count) {
        t->idle_unused = t->idle_count;
    }
    return w;
}

GioWorker *
gio_worker_take_idle(GioThread *t)
{
    return take_idle(t, UINT32_MAX);
}

/* None that begins deeper than a new one would: its calls would begin deeper still, and what is
 * made for them be used at the first level in its turn, until the stack is used up. */
GioWorker *
gio_worker_acquire(GioThread *t)
{
    char here;
    int depth = depth_of(t, (uintptr_t)&here - STACK_GAP);
    GioWorker *w = take_idle(t, depth < GIO_DEPTHS ? UINT32_MAX >> (31 - depth) : UINT32_MAX);
    return w != NULL ? w : worker_new(t);
}

void
gio_worker_retire(GioWorker *w)
{
    if (gio_greenlet_active((PyObject *)w)) {
        PyObject *current = gio_greenlet_current();
        w->quit = true;
        w->call = NULL;
        if (current == NULL || gio_greenlet_set_parent((PyObject *)w, current) < 0 ||
            gio_greenlet_switch((PyObject *)w) < 0) {
            PyErr_WriteUnraisable((PyObject *)w);
        }
        Py_XDECREF(current);
    }
    Py_DECREF(w);
}

bool
gio_worker_is_unknown(GioWorker *w)
{
    return w->started && Py_REFCNT(w) == 1 /* its call's */ && w->base.weakreflist == NULL &&
           (w->base.dict == NULL || PyDict_GET_SIZE(w->base.dict) == 0);
}

void
gio_worker_release(GioThread *t, GioWorker *w)
{
    if (t->idle_count < POOL_MAX && w->depth < GIO_DEPTHS && gio_worker_is_unknown(w)) {
        w->next = t->idle[w->depth];
        t->idle[w->depth] = w;
        t->idle_depths |= UINT32_C(1) << w->depth;
        t->idle_count++;
        if (++t->released < POOL_TURN) {
            return;
        }
        bool too_many = t->idle_unused > POOL_KEEP;
        t->released = 0;
        t->idle_unused = t->idle_count;
        if (!too_many) {
            return;
        }
        w = gio_worker_take_idle(t);
    }
    gio_worker_retire(w);
}

void
gio_job_clear(GioJob *job)
{
    for (GioTimeout *s = job->scopes, *outer; s != NULL; s = outer) {
        outer = s->outer;
        s->job = NULL;
        s->outer = NULL;
    }
    job->scopes = NULL;
    if (job->waiting != NULL) { /* suspended for ever: its stack keeps the waiter, not the job */
        job->waiting->shielded = NULL;
        job->waiting = NULL;
    }
    Py_CLEAR(job->kept);
}
