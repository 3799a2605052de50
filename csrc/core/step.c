/* One step of a call: into its greenlet, and what comes back; and its end.
 *
 * Called by whoever drives the call, in the thread that started it. A call owns its worker
 * from its first step to its last, a portal from step to step only while somebody else knows the
 * worker; both stand in their thread's list meanwhile. Everything here may switch greenlets.
 */
#include "core.h"

#define OTHER_THREAD "an async_ call must be driven by the thread that started it"

/* ---- one step ------------------------------------------------------------ */

static int
call_start(GioState *st, GioCall *c)
{
    GioThread *t = gio_thread_get(st);
    if (t == NULL) {
        return -1;
    }
    if (t->orphans != NULL) {
        gio_thread_reap(t);
    }
    if (c->worker != NULL) { /* a portal's that somebody knows */
        if (c->thread != t) {
            PyErr_SetString(PyExc_RuntimeError, OTHER_THREAD);
            return -1;
        }
        c->worker->call = c;
        return 0;
    }
    GioWorker *w = gio_worker_acquire(t);
    if (w == NULL) {
        return -1;
    }
    if (c->status != GIO_CALL_NEW) { /* what ran meanwhile has started it */
        gio_worker_release(t, w);
        PyErr_SetString(PyExc_ValueError, "async_ call already executing");
        return -1;
    }
    w->call = c;
    c->worker = w;
    c->thread = t;
    c->next = t->calls;
    if (c->next != NULL) {
        c->next->prev = c;
    }
    t->calls = c;
    return 0;
}

/* Forget the worker and leave the thread's list. */
static GioWorker *
call_detach(GioCall *c)
{
    GioWorker *w = c->worker;
    if (c->thread != NULL) {
        if (c->prev != NULL) {
            c->prev->next = c->next;
        }
        else {
            c->thread->calls = c->next;
        }
        if (c->next != NULL) {
            c->next->prev = c->prev;
        }
        c->prev = c->next = NULL;
    }
    c->worker = NULL;
    c->thread = NULL;
    return w;
}

/* The call is over, or given up. */
static GioWorker *
call_end(GioCall *c)
{
    GioWorker *w = call_detach(c);
    Py_CLEAR(c->hub);
    c->status = c->portal ? GIO_CALL_NEW : GIO_CALL_DONE;
    gio_job_clear(&c->job);
    return w;
}

/* A coroutine turns StopIteration into RuntimeError; so does a call, because
 * to whoever drives it StopIteration means "returned". */
static void
guard_stop_iteration(PyObject **exc)
{
    if (!PyErr_GivenExceptionMatches(*exc, PyExc_StopIteration)) {
        return;
    }
    PyErr_SetString(PyExc_RuntimeError, "async_ function raised StopIteration");
    PyObject *replaced = gio_err_take();
    PyException_SetCause(replaced, Py_NewRef(*exc));
    PyException_SetContext(replaced, *exc);
    *exc = replaced;
}

void
gio_trace_resumed_slow(GioCall *c)
{
    PyObject *exc = gio_err_take();
    PyObject *r = PyObject_CallMethod(GIO_STATE(c)->loops, "traced", NULL);
    if (r == NULL) {
        PyErr_WriteUnraisable((PyObject *)c);
    }
    Py_XDECREF(r);
    if (exc != NULL) {
        gio_err_give(exc);
    }
}

/* Switch into the worker and see what comes back. `in` is stolen. */
static PySendResult
call_switch(GioCall *c, GioIn kind, PyObject *in, PyObject **result)
{
    GioWorker *w = c->worker;
    GioThread *t = c->thread;
    PyThreadState *ts = PyThreadState_Get();
    if (w->call == c) {
        if (ts->context == NULL) { /* as contextvars does for the first set() */
            PyObject *fresh = PyContext_New();
            if (fresh == NULL) {
                goto not_entered;
            }
            gio_context_install(ts, fresh);
            Py_DECREF(fresh);
        }
        w->driver = gio_greenlet_current();
        if (w->driver == NULL) {
            goto not_entered;
        }
        Py_XSETREF(w->context, Py_NewRef(ts->context));
        if (c->status == GIO_CALL_NEW) {
            w->handled = gio_handled_get();
        }
        Py_XSETREF(w->in, in);
        w->in_kind = kind;
        w->recursion = gio_recursion_get(ts);
        c->status = GIO_CALL_RUNNING;
        PyObject *target = Py_NewRef(w->inner != NULL ? w->inner : (PyObject *)w);
        int r = gio_worker_enter(w, target);
        Py_DECREF(target);
        gio_trace_resumed(c, ts);
        if (w->out_kind == GIO_OUT_NONE) {
            /* Neither a yield nor an end: somebody switched to the driver, or threw
             * into it, while the function was running. */
            Py_CLEAR(w->driver);
            c->status = GIO_CALL_SUSPENDED;
            if (w->in_kind != GIO_IN_NONE) { /* not even entered */
                w->in_kind = GIO_IN_NONE;
                Py_CLEAR(w->in);
                Py_CLEAR(w->context);
                Py_CLEAR(w->handled);
            }
            if (r < 0 && !gio_greenlet_active((PyObject *)w)) { /* out of stack or memory */
                call_end(c);
                gio_call_drop_job(c);
                w->call = NULL;
                Py_DECREF(w);
                return PYGEN_ERROR;
            }
            if (r == 0) {
                PyErr_SetString(PyExc_RuntimeError,
                                "a greenlet that drives an async_ function was switched to from "
                                "outside greenletio");
            }
            return PYGEN_ERROR;
        }
        if (r < 0) { /* an exception of the switch itself, beside the outcome */
            PyErr_WriteUnraisable((PyObject *)c);
        }
    }
    else { /* it ended out of turn: the outcome waits in the mailbox */
        Py_DECREF(in);
    }

    GioOut out_kind = w->out_kind;
    PyObject *out = w->out;
    w->out = NULL;
    w->out_kind = GIO_OUT_NONE;
    *result = out;
    if (out_kind == GIO_OUT_YIELD) {
        c->status = GIO_CALL_SUSPENDED;
        return PYGEN_NEXT;
    }
    if (out_kind == GIO_OUT_REST) {
        c->status = GIO_CALL_NEW;
        if (gio_worker_is_unknown(w)) { /* else the coroutine goes on where others look for it */
            gio_worker_release(t, call_detach(c));
        }
        return PYGEN_NEXT;
    }
    call_end(c);
    gio_call_drop_job(c);
    gio_worker_release(t, w);
    if (out_kind == GIO_OUT_RETURN) {
        return PYGEN_RETURN;
    }
    *result = NULL;
    guard_stop_iteration(&out);
    gio_err_give(out);
    return PYGEN_ERROR;
not_entered: /* it has its worker: the next step is not the start of another */
    c->status = c->portal ? c->status : GIO_CALL_SUSPENDED;
    Py_DECREF(in);
    return PYGEN_ERROR;
}

/* A step was made before its task was (loop/green.c): what it brought is for the first step of the
 * task. A task that was cancelled meanwhile throws that in, and would have cancelled what is waited
 * for if it had been there. False: it was of no use, and this is a step as any other; else `in` is
 * stolen. */
GIO_COLD static bool
take_ahead(GioCall *c, GioIn kind, PyObject *in, PyObject **result, PySendResult *outcome)
{
    GioState *st = GIO_STATE(c);
    PyObject *ahead = c->ahead;
    GioOut out = c->ahead_kind;
    c->ahead = NULL;
    c->ahead_kind = GIO_OUT_NONE;
    *outcome = PYGEN_ERROR;
    if (out == GIO_OUT_ERROR) {
        Py_DECREF(in);
        gio_err_give(ahead);
        return true;
    }
    if (kind == GIO_IN_THROW && out == GIO_OUT_RETURN) {
        Py_DECREF(ahead);
        gio_err_give(in);
        return true;
    }
    if (kind == GIO_IN_THROW) {
        PyObject *args = NULL, *cancel = NULL, *cancelled = NULL;
        if (ahead != Py_None && PyErr_GivenExceptionMatches(in, st->cancelled_error) &&
            (args = PyObject_GetAttrString(in, "args")) != NULL &&
            (cancel = PyObject_GetAttr(ahead, st->str_cancel)) != NULL) {
            cancelled = PyObject_Call(cancel, args, NULL);
        }
        PyErr_Clear();
        Py_XDECREF(cancel);
        Py_XDECREF(args);
        Py_XDECREF(cancelled);
        if (cancelled != Py_True) {
            Py_DECREF(ahead);
            return false;
        }
    }
    Py_DECREF(in);
    *result = ahead;
    *outcome = out == GIO_OUT_RETURN ? PYGEN_RETURN : PYGEN_NEXT;
    return true;
}

/* Steals `in`: the value to send, or the exception to throw. */
PySendResult
gio_call_step(GioCall *c, GioIn kind, PyObject *in, PyObject **result)
{
    *result = NULL;
    PySendResult before;
    if (c->ahead_kind != GIO_OUT_NONE && take_ahead(c, kind, in, result, &before)) {
        return before;
    }
    switch (c->status) {
    case GIO_CALL_NEW:
        if (c->portal) {
            if (call_start(GIO_STATE(c), c) < 0) {
                Py_DECREF(in);
                return PYGEN_ERROR;
            }
            break;
        }
        if (kind == GIO_IN_THROW) {
            c->status = GIO_CALL_DONE;
            gio_call_drop_job(c);
            gio_err_give(in);
            return PYGEN_ERROR;
        }
        if (in != Py_None) {
            Py_DECREF(in);
            PyErr_SetString(PyExc_TypeError,
                            "can't send a non-None value to a just-started async_ call");
            return PYGEN_ERROR;
        }
        if (call_start(GIO_STATE(c), c) < 0) {
            Py_DECREF(in);
            if (c->status == GIO_CALL_NEW) { /* it was awaited, and is over */
                c->status = GIO_CALL_DONE;
                PyObject *exc = gio_err_take();
                gio_call_drop_job(c);
                gio_err_give(exc);
            }
            return PYGEN_ERROR;
        }
        break;
    case GIO_CALL_RUNNING:
        Py_DECREF(in);
        PyErr_SetString(PyExc_ValueError, "async_ call already executing");
        return PYGEN_ERROR;
    case GIO_CALL_DONE:
        Py_DECREF(in);
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited async_ call");
        return PYGEN_ERROR;
    case GIO_CALL_SUSPENDED:
        if (c->thread == NULL || c->thread->ident != PyThread_get_thread_ident()) {
            Py_DECREF(in);
            PyErr_SetString(PyExc_RuntimeError, OTHER_THREAD);
            return PYGEN_ERROR;
        }
        break;
    }
    Py_INCREF(c);
    PySendResult r = call_switch(c, kind, in, result);
    Py_DECREF(c);
    return r;
}

/* ---- its end ---------------------------------------------------------------- */

/* Its stack ignores GreenletExit: let go of it as it is. Nothing will resume it,
 * and what its frames refer to stays. */
void
gio_call_abandon(GioCall *c)
{
    GioWorker *w = call_end(c);
    w->call = NULL;
    w->thread = NULL;
    /* Kept alive on purpose: dropping it would run the stack once more. So is what the function
     * was called with, which a C function in the stack may have borrowed. */
    Py_XINCREF(c->fn);
    Py_XINCREF(c->kwnames);
    for (Py_ssize_t i = 1; i <= Py_SIZE(c); i++) {
        Py_XINCREF(c->argv[i]);
    }
}

/* A portal's coroutine will not be stepped again: a worker that stayed with it goes. */
void
gio_call_part(GioCall *c)
{
    GioThread *t = c->thread;
    if (t != NULL && t->ident == PyThread_get_thread_ident()) {
        gio_worker_release(t, call_detach(c));
    }
    else if (c->worker != NULL) {
        gio_call_abandon(c);
    }
}

int
gio_call_close(GioCall *c)
{
    if (c->portal && c->status == GIO_CALL_NEW) {
        gio_call_part(c);
        PyObject *closed = PyObject_CallMethodNoArgs(c->fn, GIO_STATE(c)->str_close);
        Py_XDECREF(closed);
        return closed == NULL ? -1 : 0;
    }
    if (c->status == GIO_CALL_NEW) {
        c->status = GIO_CALL_DONE;
        gio_call_drop_job(c);
        return 0;
    }
    if (c->status == GIO_CALL_DONE) {
        return 0;
    }
    PyObject *exit_type = GIO_STATE(c)->greenlet_exit;
    PyObject *exc = PyObject_CallNoArgs(exit_type), *result;
    if (exc == NULL) {
        return -1;
    }
    Py_INCREF(c);
    if (c->status == GIO_CALL_SUSPENDED) {
        c->closing = true;
    }
    int ret = -1;
    switch (gio_call_step(c, GIO_IN_THROW, exc, &result)) {
    case PYGEN_RETURN:
        Py_DECREF(result);
        ret = 0;
        break;
    case PYGEN_NEXT:
        Py_DECREF(result);
        if (c->status == GIO_CALL_SUSPENDED) {
            gio_call_abandon(c);
        }
        PyErr_SetString(PyExc_RuntimeError, "async_ function ignored GreenletExit");
        break;
    case PYGEN_ERROR:
        if (c->worker == NULL && PyErr_ExceptionMatches(exit_type)) {
            PyErr_Clear();
            ret = 0;
        }
        break;
    }
    Py_DECREF(c);
    return ret;
}
