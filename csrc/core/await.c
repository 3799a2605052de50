/* await_: run an awaitable to its end from sync code.
 *
 * In a greenlet the awaitable is stepped right here (PyIter_Send); only when it
 * really yields something to wait for does that travel up to whoever drives the greenlet,
 * so a coroutine that never suspends costs no switch. Where no loop runs, the
 * thread's own loop runs it. Directly in a running loop: WouldBlockError.
 */
#include "core.h"

/* The iterator behind `await x`; a new reference. NULL without an exception: not awaitable. */
static PyObject *
awaitable_iter(PyObject *x)
{
    if (PyCoro_CheckExact(x)) {
        return Py_NewRef(x);
    }
    PyAsyncMethods *am = Py_TYPE(x)->tp_as_async;
    if (am != NULL && am->am_await != NULL) {
        PyObject *it = am->am_await(x);
        if (it != NULL && (!PyIter_Check(it) || PyCoro_CheckExact(it))) {
            PyErr_Format(PyExc_TypeError,
                         "__await__() of %.200s returned a %.200s, not an iterator",
                         Py_TYPE(x)->tp_name, Py_TYPE(it)->tp_name);
            Py_CLEAR(it);
        }
        return it;
    }
    if (PyGen_CheckExact(x)) { /* a generator that types.coroutine made awaitable */
        PyObject *code = PyObject_GetAttrString(x, "gi_code");
        if (code == NULL) {
            return NULL;
        }
        bool awaitable = (((PyCodeObject *)code)->co_flags & CO_ITERABLE_COROUTINE) != 0;
        Py_DECREF(code);
        return awaitable ? Py_NewRef(x) : NULL;
    }
    return NULL;
}

/* Throw the raised exception into the iterator. PYGEN_ERROR with it if it can't take one. */
GIO_COLD static PySendResult
throw_into(GioState *st, PyObject *it, PyObject **result)
{
    PyObject *exc = gio_err_take();
    if (PyErr_GivenExceptionMatches(exc, st->greenlet_exit)) {
        /* The greenlet is being closed; so is what it awaits. */
        PyObject *closed = PyObject_CallMethodNoArgs(it, st->str_close);
        if (closed == NULL) {
            if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
                PyErr_Clear();
            }
            else {
                Py_DECREF(exc);
                return PYGEN_ERROR;
            }
        }
        Py_XDECREF(closed);
        gio_err_give(exc);
        return PYGEN_ERROR;
    }
    PyObject *throw = PyObject_GetAttr(it, st->str_throw);
    if (throw == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear();
            gio_err_give(exc);
        }
        else {
            Py_DECREF(exc);
        }
        return PYGEN_ERROR;
    }
    *result = PyObject_CallOneArg(throw, exc);
    Py_DECREF(throw);
    Py_DECREF(exc);
    if (*result != NULL) {
        return PYGEN_NEXT;
    }
    if (PyErr_ExceptionMatches(PyExc_StopIteration)) {
        PyObject *stop = gio_err_take();
        *result = PyObject_GetAttrString(stop, "value");
        Py_DECREF(stop);
        return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
    }
    return PYGEN_ERROR;
}

static bool
is_done(PyObject *future)
{
    PyObject *r = PyObject_CallMethod(future, "done", NULL);
    bool yes = r != NULL && PyObject_IsTrue(r) == 1;
    PyErr_Clear();
    Py_XDECREF(r);
    return yes;
}

/* Suspend on `y`, which some other code made to be waited for, no longer than the
 * enclosing timeouts allow. When they end or the task is cancelled, `y` is cancelled
 * and waited for until it is done, as asyncio's Task and timeout do; for a timeout by cancelling
 * the task, so that an asyncio.timeout within, which may expire in the same turn, does not
 * take that for its own. Steals `y`.
 * Returns what the driver sent, or NULL. */
GIO_COLD static PyObject *
yield_limited(GioState *st, GioHere *here, PyObject *y)
{
    GioHub *hub = gio_hub_running(st, here->worker->thread);
    if (hub == NULL && PyErr_Occurred()) {
        Py_DECREF(y);
        return NULL;
    }
    if (hub == NULL) { /* trio: its own scope is around us (trio_within) */
        return gio_worker_yield(here->worker, here->current, y, false);
    }
    PyObject *wake = NULL, *added = NULL, *sent = NULL, *exc = NULL, *cancelled = NULL;
    GioTimeout *scope = NULL; /* the one that ended the wait */
    GioWaiter *w = gio_waiter_new(st, hub);
    if (w == NULL || (wake = PyObject_GetAttrString((PyObject *)w, "_wake")) == NULL ||
        PyObject_SetAttr(y, st->str_blocking, Py_False) < 0 ||
        (added = PyObject_CallMethodOneArg(y, st->str_add_done_callback, wake)) == NULL) {
        goto done;
    }
    if (gio_here_lost(here)) {
        goto done;
    }
    here->job->expired = NULL;
    if (gio_suspend(st, here, w, GIO_NEVER, false) == 1) {
        sent = Py_NewRef(Py_None);
        goto done;
    }
    if (here->worker->call == NULL || !PyErr_ExceptionMatches(st->cancelled_error)) {
        goto done; /* thrown in by somebody: it goes into the awaitable as it is */
    }
    scope = (GioTimeout *)Py_XNewRef((PyObject *)here->job->expired);
    exc = gio_err_take();
    PyObject *removed = PyObject_CallMethodOneArg(y, st->str_remove_done_callback, wake);
    Py_XDECREF(removed);
    if (removed == NULL) {
        goto done;
    }
    if (scope != NULL && !is_done(y)) { /* the task does it, and counts: see there */
        cancelled = PyObject_CallMethod(st->loops, "cancel_current", NULL);
        scope->counted = cancelled == Py_True;
    }
    if (cancelled != Py_True) {
        Py_XDECREF(cancelled);
        cancelled = PyObject_CallMethodNoArgs(y, st->str_cancel);
    }
    if (cancelled == NULL) {
        goto done;
    }
    if (PyObject_IsTrue(cancelled) == 1) {
        if (PyObject_SetAttr(y, st->str_blocking, Py_True) == 0) {
            if (scope != NULL) {
                scope->cancels++; /* the CancelledError that comes back is its own */
            }
            sent = gio_worker_yield(here->worker, here->current, Py_NewRef(y), false);
        }
    }
    else if (scope != NULL) { /* done at the same moment: the next wait meets the deadline */
        scope->expired = false;
        sent = Py_NewRef(Py_None);
    }
    else {
        gio_err_give(exc);
        exc = NULL;
    }
done:
    Py_XDECREF(scope);
    Py_XDECREF(cancelled);
    Py_XDECREF(exc);
    Py_XDECREF(added);
    Py_XDECREF(wake);
    Py_XDECREF(w);
    Py_DECREF(y);
    return sent;
}

/* Once a call: make sure that its loop has a hub, which hears of the loop's end. */
GIO_COLD static void
note_loop(GioState *st, GioWorker *w)
{
    GioHub *hub = gio_hub_running(st, w->thread);
    PyErr_Clear(); /* trio, or driven by hand */
    if (w->call == NULL) {
        return;
    }
    w->call->noted = true;
    if (w->call->hub == NULL) {
        w->call->hub = (GioHub *)Py_XNewRef((PyObject *)hub);
    }
}

/* Drive `it` to its end in this greenlet; `stepwise`: or to where it hands something up, unless
 * that is to be waited for no longer than a timeout allows. */
static inline PySendResult
drive(GioState *st, GioHere *here, PyObject *it, PyObject *value, bool stepwise, PyObject **out)
{
    for (;;) {
        PyObject *result;
        PySendResult r;
        if (value != NULL) {
            r = PyIter_Send(it, value, &result);
            Py_DECREF(value);
        }
        else {
            r = throw_into(st, it, &result);
        }
        if (r != PYGEN_NEXT) {
            *out = result;
            return r;
        }
        if (gio_here_lost(here)) {
            Py_DECREF(result);
            return PYGEN_ERROR;
        }
        bool unlimited = (here->job->scopes == NULL && here->job->shield == 0) || result == Py_None;
        if (stepwise && unlimited) {
            *out = result;
            return PYGEN_NEXT;
        }
        if (!here->worker->call->noted) {
            note_loop(st, here->worker);
            if (gio_here_lost(here)) {
                Py_DECREF(result);
                return PYGEN_ERROR;
            }
        }
        here->worker->driven = it;
        if (unlimited) {
            value = gio_worker_yield(here->worker, here->current, result, false);
        }
        else {
            value = yield_limited(st, here, result);
        }
        here->worker->driven = NULL;
        if (value == NULL && here->worker->call == NULL) {
            return PYGEN_ERROR; /* given up: nothing of ours is left to look at */
        }
        if (value == NULL && gio_job_keep(st, here->job)) {
            value = Py_NewRef(Py_None);
        }
    }
}

PySendResult
gio_await_step(GioState *st, GioHere *here, PyObject *it, PyObject *value, PyObject **result)
{
    return drive(st, here, it, value, true, result);
}

/* What to await for `x`: under trio within a cancel scope of its own; elsewhere as it is. */
GIO_COLD static PyObject *
limit_in_trio(GioState *st, GioHere *here, PyObject *x)
{
    GioTimeout *scope;
    int64_t deadline = gio_job_deadline(here->job, &scope);
    if (scope == NULL || gio_hub_running(st, here->worker->thread) != NULL) {
        return Py_NewRef(x);
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    return PyObject_CallMethod(st->loops, "trio_within", "Od", x,
                               (double)(deadline - gio_now()) / 1e9);
}

/* Not run at all: spare the user the second warning, "never awaited". */
GIO_COLD static void
close_unstarted(GioState *st, PyObject *x)
{
    if (PyCoro_CheckExact(x) || Py_IS_TYPE(x, st->call_type)) {
        PyObject *exc = gio_err_take();
        PyObject *r = PyObject_CallMethodNoArgs(x, st->str_close);
        if (r == NULL) {
            PyErr_Clear();
        }
        Py_XDECREF(r);
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
}

/* No loop runs here: the thread's own loop runs it, within the enclosing timeouts. An
 * interrupt or a timeout cancels it and lets it clean up before it is raised. */
GIO_COLD static PyObject *
await_plain(GioState *st, GioHere *here, PyObject *x)
{
    PyObject *loop = NULL, *result = NULL;
    GioHub *hub;
    GioWaiter *w = gio_waiter_new(st, NULL);
    PyObject *future = w == NULL ? NULL : PyObject_CallMethod(st->loops, "start", "OO", x, w);
    if (future == NULL || (loop = PyObject_CallMethod(future, "get_loop", NULL)) == NULL ||
        (hub = gio_hub_of_loop(st, here->thread, loop)) == NULL) {
        goto done;
    }
    w->hub = (GioHub *)Py_NewRef((PyObject *)hub);
    if (gio_run_until(st, here, loop, w, GIO_NEVER) >= 0) {
        result = PyObject_CallMethod(future, "result", NULL);
    }
    else {
        PyObject *exc = gio_err_take();
        PyObject *r = PyObject_CallMethod(st->loops, "give_up", "OO", loop, future);
        if (r == NULL) { /* it failed while it was cleaning up: that is what matters now */
            Py_DECREF(exc);
        }
        else {
            Py_DECREF(r);
            gio_err_give(exc);
        }
    }
done:
    Py_XDECREF(loop);
    Py_XDECREF(future);
    Py_XDECREF(w);
    return result;
}

/* Not in a greenlet that is being driven. */
GIO_COLD static PyObject *
await_elsewhere(GioState *st, PyObject *x)
{
    GioHere here;
    PyObject *result = NULL;
    if (gio_here(st, &here) < 0) {
        return NULL;
    }
    if (here.place == GIO_PLACE_FORBIDDEN) {
        gio_would_block(st, "await_");
        close_unstarted(st, x);
    }
    else {
        result = await_plain(st, &here, x);
    }
    gio_here_clear(&here);
    return result;
}

/* Inlined into both of its callers: every frame here is copied with each suspended greenlet. */
static inline __attribute__((always_inline)) PyObject *
await_object(GioState *st, PyObject *x, bool *handled)
{
    *handled = true;
    GioHere here;
    PyObject *result = NULL;
    /* Being awaitable is asked of the type, so that nothing runs before the place is known. */
    PyAsyncMethods *am = Py_TYPE(x)->tp_as_async;
    if (!PyGen_CheckExact(x) && (am == NULL || am->am_await == NULL)) {
        *handled = false;
        return NULL;
    }
    if (!gio_here_green(st, &here)) {
        gio_here_clear(&here);
        return await_elsewhere(st, x);
    }
    PyObject *it = NULL;
    if (here.job->scopes == NULL) {
        it = PyCoro_CheckExact(x) ? Py_NewRef(x) : awaitable_iter(x);
    }
    else {
        PyObject *limited = limit_in_trio(st, &here, x);
        it = limited == NULL ? NULL : awaitable_iter(limited);
        Py_XDECREF(limited);
    }
    if (it != NULL) {
        if (drive(st, &here, it, Py_NewRef(Py_None), false, &result) != PYGEN_RETURN) {
            result = NULL;
        }
        Py_DECREF(it);
    }
    else if (!PyErr_Occurred()) {
        *handled = false;
    }
    gio_here_clear(&here);
    return result;
}

PyObject *
gio_await_object(GioState *st, PyObject *x, bool *handled)
{
    return await_object(st, x, handled);
}

PyObject *
gio_await(PyObject *module, PyObject *x)
{
    GioState *st = PyModule_GetState(module);
    bool handled;
    PyObject *result = await_object(st, x, &handled);
    return handled ? result : gio_await_function(st, x);
}
