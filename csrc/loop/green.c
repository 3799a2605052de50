/* Green: what spawn returns. On a loop of ours its greenlet is run by the loop itself.
 *
 * The loop's ready queue steps the call, and the Waiter that it waits on brings it back there: no
 * asyncio.Task is made, and nobody is asked for one, until somebody wants to see it: current_task()
 * and all_tasks() (loop_hash and greenletio._green say how they are noticed), `task`, await,
 * cancel(). Nor does this file know of cancellation, failures and foreign futures: they, too, make
 * the task, which goes on from where the greenlet is. What the step has brought by then is left in
 * the call, and is what the task's first step finds (step.c). A loop that stops leaves tasks only.
 *
 * A task steps for the first time when the loop calls the handle that it has given to call_soon;
 * here that handle is kept from the queue, so that it runs where the greenlet's own turn would be.
 *
 * Only the loop's thread makes tasks. Owns the call, its context and its task; whoever will go on
 * with it (the queue, the Waiter) owns the Green.
 */
#include "loop/green.h"

bool
gio_green_in_thread(GioLoop *loop)
{
    return loop->iterating && loop->ident == PyThread_get_thread_ident();
}

void
gio_green_unlink(GioGreen *g)
{
    if (g->prev != NULL) {
        g->prev->next = g->next;
    }
    else if (g->loop != NULL && g->loop->greens == g) {
        g->loop->greens = g->next;
    }
    if (g->next != NULL) {
        g->next->prev = g->prev;
    }
    g->prev = g->next = NULL;
}

void
gio_green_stranded(GioGreen *g)
{
    gio_green_unlink(g);
}

/* ---- its task ------------------------------------------------------------------------ */

static PyObject *
name_task(GioGreen *g, PyObject *task)
{
    PyObject *own = PyObject_CallMethod(task, "get_name", NULL), *full = NULL, *r = NULL;
    PyObject *call =
        own == NULL ? NULL : PyObject_GetAttr((PyObject *)g->call, g->module->str_qualname);
    if (call != NULL) {
        full = PyUnicode_FromFormat("%S-%S", call, own);
    }
    if (full != NULL) {
        r = PyObject_CallMethod(task, "set_name", "O", full);
    }
    Py_XDECREF(full);
    Py_XDECREF(call);
    Py_XDECREF(own);
    return r;
}

/* A new task for the call, whose first step stays with us. */
static PyObject *
new_task(GioGreen *g, PyObject *context, GioHandle **first)
{
    GioLoop *loop = g->loop;
    GioState *st = g->module;
    PyObject *outer_context = loop->take_context;
    GioHandle *outer_taken = loop->taken;
    loop->take_context = context;
    loop->taken = NULL;
    PyObject *all[] = {(PyObject *)g->call, (PyObject *)loop, context};
    PyObject *task = PyObject_Vectorcall(st->task_type, all, 1, st->kw_task[2]);
    *first = loop->taken;
    loop->take_context = outer_context;
    loop->taken = outer_taken;
    PyObject *named = task == NULL ? NULL : name_task(g, task);
    if (named != NULL && *first == NULL) {
        Py_CLEAR(named);
        PyErr_SetString(PyExc_RuntimeError, "the task of a greenlet was not started as expected");
    }
    if (named == NULL) {
        Py_CLEAR(task);
        Py_CLEAR(*first);
        return NULL;
    }
    Py_DECREF(named);
    return task;
}

int
gio_green_hand_over(GioGreen *g, PyObject *task, PyObject *item)
{
    PyObject *r = NULL;
    PyObject *add = PyObject_GetAttr(task, g->module->str_add_done_callback);
    if (add == NULL) {
        return -1;
    }
    if (PyTuple_CheckExact(item)) {
        PyObject *args[] = {PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1)};
        r = PyObject_Vectorcall(add, args, 1, g->module->kw_context);
    }
    else {
        PyObject *wake = PyObject_GetAttrString(item, "_wake");
        r = wake == NULL ? NULL : PyObject_CallOneArg(add, wake);
        Py_XDECREF(wake);
    }
    Py_DECREF(add);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* asyncio's _enter_task or _leave_task. Both look at the loop's hash. */
static int
tell(PyObject *enter_or_leave, GioLoop *loop, PyObject *task)
{
    PyObject *args[] = {(PyObject *)loop, task};
    loop->quiet++;
    PyObject *r = PyObject_Vectorcall(enter_or_leave, args, 2, NULL);
    loop->quiet--;
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* The first step of the task, which only takes what the call has left for it, wherever we are. */
static int
take_first_step(GioGreen *g)
{
    GioLoop *loop = g->loop;
    GioState *st = g->module;
    GioHandle *first = g->first;
    g->first = NULL;
    int r = -1;
    loop->quiet++;
    PyObject *current = PyObject_CallOneArg(st->current_task, (PyObject *)loop);
    if (current != NULL && (current == Py_None || tell(st->leave_task, loop, current) == 0)) {
        r = gio_handle_run(loop, (PyObject *)first);
        PyObject *exc = gio_err_take();
        if (current != Py_None && tell(st->enter_task, loop, current) < 0) {
            PyErr_WriteUnraisable(current);
        }
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
    loop->quiet--;
    Py_XDECREF(current);
    Py_DECREF(first);
    return r;
}

/* Make the task; it goes on from where the greenlet is. Runs Python. */
int
gio_green_make_task(GioGreen *g)
{
    GioLoop *loop = g->loop;
    if (g->task != NULL) {
        return 0;
    }
    /* Where nothing runs, nobody can come in between. */
    bool ours = gio_green_in_thread(loop) || (g->state >= GIO_GREEN_RETURNED && !loop->iterating);
    if (g->making || !ours) {
        PyErr_SetString(PyExc_RuntimeError, g->making ? "the task of this greenlet is being made"
                                                      : "only the thread that spawned a greenlet "
                                                        "can ask for its task or cancel it");
        return -1;
    }
    /* A context that nobody else has tells the handle from others. */
    PyObject *context = g->state < GIO_GREEN_RETURNED ? Py_NewRef(g->context) : PyContext_New();
    if (context == NULL) {
        return -1;
    }
    g->making = true;
    Py_INCREF(g);
    GioHandle *first;
    PyObject *task = new_task(g, context, &first);
    Py_DECREF(context);
    g->making = false;
    if (task == NULL) {
        Py_DECREF(g);
        return -1;
    }
    int r = 0;
    g->task = task;
    g->first = first;
    gio_green_unlink(g);
    PyObject *callbacks = g->callbacks;
    g->callbacks = NULL;
    for (Py_ssize_t i = 0; callbacks != NULL && i < PyList_GET_SIZE(callbacks); i++) {
        if (gio_green_hand_over(g, task, PyList_GET_ITEM(callbacks, i)) < 0) {
            PyErr_WriteUnraisable((PyObject *)g);
        }
    }
    Py_XDECREF(callbacks);
    GioGreenState was = g->state;
    bool lent = false;
    g->state = GIO_GREEN_TASK;
    Py_CLEAR(g->context);
    switch (was) {
    case GIO_GREEN_READY: /* takes the place in the queue */
        break;
    case GIO_GREEN_RUNNING: /* its step ends with the task's first one */
        r = tell(g->module->enter_task, loop, task);
        break;
    case GIO_GREEN_WAITING:
        lent = g->waiter->green == g; /* else the garbage collector has dropped it */
        g->waiter->green = NULL;
        g->waiter->blocking = true;
        g->call->ahead = (PyObject *)g->waiter;
        g->call->ahead_kind = GIO_OUT_YIELD;
        g->waiter = NULL;
        r = take_first_step(g);
        if (lent) {
            Py_DECREF(g);
        }
        break;
    case GIO_GREEN_RETURNED:
    case GIO_GREEN_FAILED:
        g->call->ahead = g->result;
        g->call->ahead_kind = was == GIO_GREEN_RETURNED ? GIO_OUT_RETURN : GIO_OUT_ERROR;
        g->result = NULL;
        r = take_first_step(g);
        break;
    case GIO_GREEN_TASK:
        break;
    }
    Py_DECREF(g);
    return r;
}

Py_hash_t
gio_greens_loop_hash(PyObject *self)
{
    GioLoop *loop = (GioLoop *)self;
    if (loop->green != NULL && loop->quiet == 0 && gio_green_in_thread(loop) &&
        loop->green->task == NULL && !loop->green->making && gio_green_make_task(loop->green) < 0) {
        return -1;
    }
    return PyBaseObject_Type.tp_hash(self);
}

void
gio_greens_make_tasks(GioLoop *loop)
{
    GioGreen *g;
    while ((g = loop->greens) != NULL) {
        if (g->state == GIO_GREEN_WAITING && g->call->status == GIO_CALL_DONE) {
            gio_green_unlink(g); /* garbage that was unwound: not to be brought back to life */
            continue;
        }
        Py_INCREF(g);
        if (gio_green_make_task(g) < 0) {
            PyErr_WriteUnraisable((PyObject *)g);
            gio_green_unlink(g);
        }
        Py_DECREF(g);
    }
}

PyObject *
gio_greens_ask(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    GioState *st = PyModule_GetState(module);
    for (GioLoop *loop = st->event_loops; loop != NULL; loop = loop->next) {
        if (gio_green_in_thread(loop)) { /* so there is no other */
            gio_greens_make_tasks(loop);
            break;
        }
    }
    Py_RETURN_NONE;
}

bool
gio_greens_taskless(GioState *st)
{
    for (GioLoop *loop = st->event_loops; loop != NULL; loop = loop->next) {
        if (loop->green != NULL && loop->green->task == NULL && gio_green_in_thread(loop)) {
            return true;
        }
    }
    return false;
}

/* ---- stepping ---------------------------------------------------------------------------- */

static void
end(GioGreen *g, GioGreenState state, PyObject *result)
{
    g->state = state;
    g->result = result;
    gio_green_unlink(g);
    Py_CLEAR(g->context);
    PyObject *callbacks = g->callbacks;
    g->callbacks = NULL;
    for (Py_ssize_t i = 0; callbacks != NULL && i < PyList_GET_SIZE(callbacks); i++) {
        PyObject *item = PyList_GET_ITEM(callbacks, i);
        if (!PyTuple_CheckExact(item)) {
            gio_waiter_set((GioWaiter *)item, GIO_SET, Py_NewRef(Py_None));
        }
        else if (gio_loop_call_soon(g->loop, PyTuple_GET_ITEM(item, 0), (PyObject *)g,
                                    PyTuple_GET_ITEM(item, 1)) < 0) {
            PyErr_WriteUnraisable((PyObject *)g);
        }
    }
    Py_XDECREF(callbacks);
}

/* Its step has brought what is for a task to see to. Steals `ahead`. */
static int
go_on_as_task(GioGreen *g, GioOut kind, PyObject *ahead)
{
    GioLoop *loop = g->loop;
    bool entered = g->task != NULL;
    if (!entered) {
        g->state = GIO_GREEN_READY;
        if (gio_green_make_task(g) < 0 && g->task == NULL) { /* no memory */
            PyObject *exc = gio_err_take();
            if (kind == GIO_OUT_YIELD && gio_call_close(g->call) < 0) {
                PyErr_WriteUnraisable((PyObject *)g);
            }
            Py_DECREF(kind == GIO_OUT_ERROR ? exc : ahead);
            end(g, GIO_GREEN_FAILED, kind == GIO_OUT_ERROR ? ahead : exc);
            return 0;
        }
    }
    g->call->ahead = ahead;
    g->call->ahead_kind = kind;
    if (entered && tell(g->module->leave_task, loop, g->task) < 0) {
        PyErr_WriteUnraisable((PyObject *)g);
    }
    GioHandle *first = g->first;
    g->first = NULL;
    int r = gio_handle_run(loop, (PyObject *)first);
    Py_DECREF(first);
    return r;
}

/* Whether it is to be left waiting on `y`: one of our own Waiters. */
static bool
park(GioGreen *g, PyObject *y)
{
    GioWaiter *w = (GioWaiter *)y;
    if (!Py_IS_TYPE(y, g->module->waiter_type) || w->status != GIO_PENDING || !w->blocking ||
        w->green != NULL || w->hub == NULL || w->hub->native != g->loop) {
        return false;
    }
    w->blocking = false;
    w->green = (GioGreen *)Py_NewRef((PyObject *)g);
    g->waiter = w;
    g->state = GIO_GREEN_WAITING;
    return true;
}

/* A GioRun: -1 only for KeyboardInterrupt and SystemExit. */
int
gio_green_run(GioLoop *loop, PyObject *self)
{
    GioGreen *g = (GioGreen *)self;
    if (g->first != NULL) { /* it has got a task meanwhile */
        GioHandle *first = g->first;
        g->first = NULL;
        int r = gio_handle_run(loop, (PyObject *)first);
        Py_DECREF(first);
        return r;
    }
    if (g->state != GIO_GREEN_READY) {
        return 0;
    }
    PyObject *context = Py_NewRef(g->context), *out = NULL;
    PySendResult r = PYGEN_ERROR;
    Py_INCREF(g);
    if (PyContext_Enter(context) == 0) {
        g->state = GIO_GREEN_RUNNING;
        loop->green = g;
        r = gio_call_step(g->call, GIO_IN_SEND, Py_NewRef(Py_None), &out);
        loop->green = NULL;
        PyObject *exc = r == PYGEN_ERROR ? gio_err_take() : NULL;
        if (PyContext_Exit(context) < 0) {
            PyErr_WriteUnraisable((PyObject *)g);
        }
        out = r == PYGEN_ERROR ? exc : out;
    }
    else {
        out = gio_err_take();
    }
    Py_DECREF(context);
    int ret = 0;
    if (r == PYGEN_RETURN && g->task == NULL) {
        end(g, GIO_GREEN_RETURNED, out);
    }
    else if (r == PYGEN_NEXT && g->task == NULL && out == Py_None) {
        Py_DECREF(out);
        g->state = GIO_GREEN_READY;
        ret = gio_ready_push(loop, gio_green_run, (PyObject *)g);
    }
    else if (r != PYGEN_NEXT || g->task != NULL || !park(g, out)) {
        ret = go_on_as_task(g,
                            r == PYGEN_NEXT     ? GIO_OUT_YIELD
                            : r == PYGEN_RETURN ? GIO_OUT_RETURN
                                                : GIO_OUT_ERROR,
                            out);
    }
    Py_DECREF(g);
    return ret;
}

int
gio_green_wake(GioWaiter *w, bool direct)
{
    GioGreen *g = w->green;
    GioLoop *loop = g->loop;
    w->green = NULL;
    g->waiter = NULL;
    g->state = GIO_GREEN_READY;
    int r = 0;
    if (direct && loop->green == NULL && gio_green_in_thread(loop)) {
        Py_DECREF(w); /* as the Waiter's, and now nobody's: the caller holds it */
        r = gio_green_run(loop, (PyObject *)g);
    }
    else {
        if (!loop->closed) {
            if (gio_ready_push(loop, gio_green_run, (PyObject *)g) < 0) {
                PyErr_WriteUnraisable((PyObject *)g);
            }
            gio_loop_wake(loop);
        }
        Py_DECREF(w);
    }
    Py_DECREF(g);
    return r;
}
