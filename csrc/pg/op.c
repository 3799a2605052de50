/* Op: one operation, as whoever waits for it sees it.
 *
 * Awaited by a task it speaks the coroutine protocol and hands up a Waiter; in sync code run()
 * waits. It starts when it is first awaited or run. Given up (cancelled, timed out, closed), it
 * leaves the queue, or is ended in the background, and the connection stays usable.
 */
#include "pg/pg.h"

#include <stddef.h>
#include <structmember.h>

#define TURN_NS 2000000

GioPgOp *
gio_pg_op_new(GioPgConn *c, GioPgKind kind, GioPgWant want, PyObject *sql, PyObject *args,
              double timeout)
{
    GioPgOp *op = (GioPgOp *)c->st->op_type->tp_alloc(c->st->op_type, 0);
    if (op == NULL)
        return NULL;
    op->conn = (GioPgConn *)Py_NewRef((PyObject *)c);
    op->sql = PyUnicode_FromObject(sql); /* no subclass: it is a key */
    op->args = Py_XNewRef(args);
    op->kind = kind;
    op->want = want;
    op->timeout = timeout;
    if (op->sql == NULL)
        Py_CLEAR(op);
    return op;
}

static void
stop_timer(GioPgOp *op, PyObject **field)
{
    PyObject *timer = *field;
    *field = NULL;
    if (timer == NULL)
        return;
    PyObject *exc = gio_err_take();
    PyObject *answer = PyObject_CallMethodNoArgs(timer, op->conn->st->str_cancel);
    if (answer == NULL)
        PyErr_WriteUnraisable(timer);
    Py_XDECREF(answer);
    Py_DECREF(timer);
    if (exc != NULL)
        gio_err_give(exc);
}

/* In the thread of their loop: else whoever awaits the operation does so when it comes back. */
static inline void
stop_timers(GioPgOp *op)
{
    if ((op->timer == NULL && op->look == NULL) || op->thread != PyThread_get_thread_ident())
        return;
    stop_timer(op, &op->timer);
    stop_timer(op, &op->look);
}

void
gio_pg_op_answer(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    op->answered = true;
    stop_timers(op);
    if (op->waiter == NULL)
        return;
    Py_INCREF(op);
    *c->done_tail = op;
    c->done_tail = &op->done;
}

static void
unlink_op(GioPgConn *c, GioPgOp *op)
{
    GioPgOp *before = NULL;
    for (GioPgOp *at = c->first; at != NULL && at != op; at = at->next)
        before = at;
    if (c->unsent == op)
        c->unsent = op->next;
    if (c->learner == op)
        c->learner = NULL;
    if (op->sent)
        c->in_flight--;
    op->sent = false;
    if (before == NULL)
        c->first = op->next;
    else
        before->next = op->next;
    if (c->last == op)
        c->last = before;
    op->next = NULL;
    op->queued = false;
}

/* Somebody has tried to write where that cannot be: a pool may want another server. */
static void
note_refusal(GioPgConn *c, PyObject *error)
{
    PyObject *state = PyObject_GetAttr(error, c->st->str_sqlstate);
    if (state == NULL)
        PyErr_Clear();
    else if (PyUnicode_Check(state) && PyUnicode_CompareWithASCIIString(state, "25006") == 0)
        c->refused_write = true;
    Py_XDECREF(state);
}

void
gio_pg_op_finish(GioPgOp *op, PyObject *result, PyObject *error)
{
    GioPgConn *c = op->conn;
    if (result == NULL && error == NULL) {
        error = gio_err_take();
        if (error != NULL && op->error != NULL)
            Py_CLEAR(error); /* it has failed before */
        if (error == NULL && op->error == NULL && !op->given_up) {
            PyErr_SetString(PyExc_SystemError, "an operation ended without a result");
            error = gio_err_take();
        }
    }
    /* A stream that had to be begun again, and failed: somebody reads. Runs Python. */
    if (op->queued && op->sub != NULL)
        gio_pg_copy_ended(op, error);
    if (!op->queued) { /* ended already: a codec has closed the connection */
        Py_XDECREF(result);
        Py_XDECREF(error);
        return;
    }
    unlink_op(c, op);
    if (error != NULL || op->error != NULL)
        note_refusal(c, error != NULL ? error : op->error);
    op->began = op->stage >= GIO_PG_EXECUTING;
    op->stage = GIO_PG_DONE;
    if (op->trace != NULL)
        op->trace_ended = c->st->api->now();
    bool session = gio_pg_op_is_session(op);
    if (op->answered) {
        Py_XDECREF(result);
        if (session && !op->given_up && op->error == NULL)
            op->error = error; /* for what is asked of it next */
        else
            Py_XDECREF(error);
    }
    else {
        Py_XSETREF(op->result, result);
        if (error != NULL)
            Py_XSETREF(op->error, error);
        gio_pg_op_answer(op);
    }
    Py_DECREF(op); /* the queue's */
}

void
gio_pg_op_give_up(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    PyObject *exc = gio_err_take();
    op->given_up = op->answered = true;
    stop_timers(op);
    Py_CLEAR(op->waiter);
    if (op->stage == GIO_PG_IDLE)
        op->stage = GIO_PG_DONE;
    else if (op->kind == GIO_PG_CONNECT || op->kind == GIO_PG_FINISH)
        gio_pg_conn_drop(c, NULL);
    else if (op->session != NULL) {
        if (exc != NULL) /* why the session is given up, too */
            gio_err_give(Py_NewRef(exc));
        gio_pg_copy_abandon(op);
        PyErr_Clear();
    }
    else if (op->stage == GIO_PG_QUEUED && op->kind != GIO_PG_PIPELINE_END) /* which must come */
        gio_pg_op_finish(op, NULL, NULL);
    else if (c->mode != GIO_PG_SERIAL) {
        /* SHARED: its answer is dropped, since a request could hit a neighbour. PIPELINE: what is
         * before it is the same user's, who has not given that up. */
        if (c->mode == GIO_PG_PIPELINE && c->first == op && op->stage != GIO_PG_DONE)
            gio_pg_cancel_begin(c);
    }
    else if (op->stage != GIO_PG_DONE) {
        gio_pg_cancel_begin(c);
        if (gio_pg_op_is_session(op))
            gio_pg_advance(c); /* it waits for nothing by itself */
    }
    gio_pg_rearm(c);
    if (exc != NULL)
        gio_err_give(exc);
    if (!c->advancing) /* else when its caller hears of it */
        gio_pg_trace_end(op);
}

/* The same, for a reason (borrowed). */
static void
give_up_with(GioPgOp *op, PyObject *error)
{
    gio_err_give(Py_NewRef(error));
    gio_pg_op_give_up(op);
    PyErr_Clear();
}

/* Somebody waits no more for what is there, because of the exception that is set: rows of a COPY or
 * a stream are lost, or nobody knows that they were sent. It cannot go on. */
static void
lose_answer(GioPgOp *op)
{
    /* The COPY itself, which has just begun, or what it is of. */
    GioPgOp *session = op->session == NULL && gio_pg_op_is_session(op) ? op : op->session;
    if (op->given_up || op->told || session == NULL || session->kind == GIO_PG_REPLICATION)
        return;
    gio_pg_op_give_up(session);
}

/* What came of it: a new reference, or NULL with the exception. */
static PyObject *
outcome(GioPgOp *op)
{
    PyObject *result = NULL;
    stop_timers(op);
    op->told = true;
    if (op->error != NULL)
        gio_err_give(Py_NewRef(op->error));
    else if (op->result == NULL)
        gio_pg_error_set("InterfaceError", "this operation was given up");
    else
        result = Py_NewRef(op->result);
    if (op->stage == GIO_PG_DONE) /* of a COPY or a stream it is the beginning */
        gio_pg_trace_end(op);
    if (op->session != NULL && op->session->stage == GIO_PG_DONE)
        gio_pg_trace_end_late(op->session);
    return result;
}

/* Between a server that is fast, or far ahead, and who takes or gives the data of a COPY, nothing
 * has to be waited for: true when others are to have their turn nevertheless. */
static bool
is_others_turn(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    if (op->session == NULL)
        return false;
    int64_t now = c->st->api->now(), since = c->since;
    bool due = !op->waited && since != 0 && now - since >= TURN_NS;
    c->since = op->waited || due ? 0 : since == 0 ? now : since;
    op->waited = true;
    return due;
}

/* Whoever is to be woken is one: a second one would take the first one's waiter. */
static bool
is_awaited(GioPgOp *op)
{
    if (op->answered || op->waiter == NULL)
        return false;
    PyErr_SetString(PyExc_RuntimeError, "this operation is being awaited already");
    return true;
}

static int64_t
deadline_of(GioPgOp *op)
{
    return op->timeout >= 0 && op->timeout < 3.2e9
               ? op->conn->st->api->now() + (int64_t)(op->timeout * 1e9)
               : GIO_NEVER;
}

/* ---- for tasks -------------------------------------------------------------------------- */

static int
call_later(GioPgOp *op, PyObject **field, double seconds, PyObject *method)
{
    GioPgState *st = op->conn->st;
    PyObject *bound = PyObject_GetAttr((PyObject *)op, method), *timer = NULL;
    PyObject *delay = PyFloat_FromDouble(seconds);
    PyObject *loop = bound == NULL || delay == NULL ? NULL : st->api->running_loop();
    if (loop != NULL)
        timer = PyObject_CallMethodObjArgs(loop, st->str_call_later, delay, bound, NULL);
    Py_XSETREF(*field, timer);
    Py_XDECREF(bound);
    Py_XDECREF(delay);
    Py_XDECREF(loop);
    return timer == NULL ? -1 : 0;
}

/* Into the queue, with its timer if a loop runs here. */
static int
begin(GioPgOp *op, int role)
{
    if (gio_pg_start(op) < 0)
        return -1;
    if (op->timeout >= 0 && !op->answered && role != GIO_PG_PUMP && op->loop != NULL &&
        call_later(op, &op->timer, op->timeout, op->conn->st->str_expire) < 0) {
        gio_pg_op_give_up(op);
        return -1;
    }
    gio_pg_wake(op->conn);
    return 0;
}

static PyObject *
op_start(GioPgOp *op, PyObject *Py_UNUSED(ignored))
{
    if (op->stage == GIO_PG_IDLE && !op->answered)
        gio_pg_trace_begin(op);
    if (op->stage == GIO_PG_IDLE && !op->answered) { /* still */
        int role = gio_pg_engage(op);
        if (role < 0 || begin(op, role) < 0) {
            gio_pg_trace_end(op);
            return NULL;
        }
        if (role == GIO_PG_PUMP && gio_pg_pump_out(op, deadline_of(op)) < 0)
            return NULL;
    }
    return Py_NewRef((PyObject *)op);
}

static PySendResult
op_am_send(GioPgOp *op, PyObject *Py_UNUSED(value), PyObject **result)
{
    GioPgConn *c = op->conn;
    const GioAPI *api = c->st->api;
    PyObject *loop = NULL; /* borrowed: it runs while this does */
    *result = NULL;
    if (is_awaited(op))
        return PYGEN_ERROR;
    if (op->stage == GIO_PG_IDLE && !op->answered) {
        gio_pg_trace_begin(op);
        if (is_awaited(op)) /* by now */
            return PYGEN_ERROR;
    }
    if (!op->answered) {
        int role = gio_pg_engage(op);
        if (role == GIO_PG_PUMP)
            PyErr_SetString(PyExc_RuntimeError,
                            "a query is awaited in asyncio's tasks: no loop runs here");
        if (role < 0 || role == GIO_PG_PUMP || (op->stage == GIO_PG_IDLE && begin(op, role) < 0) ||
            is_awaited(op)) {
            gio_pg_trace_end(op);
            return PYGEN_ERROR;
        }
        loop = op->loop;
    }
    if (c->mode == GIO_PG_PIPELINE && !op->answered)
        gio_pg_pipeline_await(c);
    while (!op->answered) {
        PyObject *waiter = api->waiter_new_in(loop);
        if (waiter == NULL)
            return PYGEN_ERROR;
        if (op->answered) { /* by another thread: the loop's first waiter takes Python code */
            Py_DECREF(waiter);
            break;
        }
        Py_XSETREF(op->waiter, Py_NewRef(waiter));
        if (!gio_pg_is_mine(op) && op->look == NULL && !op->answered &&
            call_later(op, &op->look, GIO_PG_LOOK_NS / 1e9, c->st->str_look) < 0) {
            Py_DECREF(waiter);
            return PYGEN_ERROR;
        }
        PySendResult r = PyIter_Send(waiter, Py_None, result); /* hands itself up */
        Py_DECREF(waiter);
        if (r != PYGEN_RETURN) {
            op->waited = true;
            return r;
        }
        Py_CLEAR(*result); /* set meanwhile */
    }
    if (is_others_turn(op)) {
        *result = Py_NewRef(Py_None);
        return PYGEN_NEXT;
    }
    *result = outcome(op);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

static PyObject *
method_result(PySendResult outcome_, PyObject *result)
{
    if (outcome_ != PYGEN_RETURN)
        return result;
    if (result == Py_None)
        PyErr_SetNone(PyExc_StopIteration);
    else {
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
        if (stop != NULL)
            gio_err_give(stop);
    }
    Py_DECREF(result);
    return NULL;
}

static PyObject *
op_send(GioPgOp *op, PyObject *value)
{
    PyObject *result;
    PySendResult r = op_am_send(op, value, &result);
    return method_result(r, result);
}

static PyObject *
op_iternext(GioPgOp *op)
{
    return op_send(op, Py_None);
}

static PyObject *
op_throw(GioPgOp *op, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *exc = NULL;
    if (nargs < 1 || nargs > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception");
        return NULL;
    }
    if (PyExceptionInstance_Check(args[0]))
        exc = Py_NewRef(args[0]);
    else if (nargs > 1 && PyExceptionInstance_Check(args[1]))
        exc = Py_NewRef(args[1]);
    else if (PyExceptionClass_Check(args[0]))
        exc = nargs > 1 && args[1] != Py_None ? PyObject_CallOneArg(args[0], args[1])
                                              : PyObject_CallNoArgs(args[0]);
    else
        PyErr_SetString(PyExc_TypeError, "exceptions must be classes or instances");
    if (exc == NULL)
        return NULL;
    gio_err_give(Py_NewRef(exc));
    if (op->answered)
        lose_answer(op);
    else
        gio_pg_op_give_up(op);
    PyErr_Clear();
    gio_pg_wake(op->conn);
    gio_err_give(exc);
    return NULL;
}

static PyObject *
op_close(GioPgOp *op, PyObject *Py_UNUSED(ignored))
{
    GioPgConn *c = op->conn;
    PyObject *waiter = op->answered ? NULL : Py_XNewRef(op->waiter);
    if (op->stage == GIO_PG_DONE)
        gio_pg_trace_end_late(op);
    /* A COPY has its answer when it begins. */
    bool session = gio_pg_op_is_session(op);
    if (!op->answered || (session && op->stage != GIO_PG_DONE && !op->given_up)) {
        gio_pg_op_give_up(op);
        if (waiter != NULL) /* of another task, maybe, which is told */
            c->st->api->waiter_set(waiter);
        gio_pg_wake(c);
    }
    Py_XDECREF(waiter);
    Py_RETURN_NONE;
}

/* The timer's callback. */
static PyObject *
op_expire(GioPgOp *op, PyObject *Py_UNUSED(ignored))
{
    if (op->answered)
        Py_RETURN_NONE;
    PyObject *waiter = op->waiter;
    GioPgConn *c = op->conn;
    op->waiter = NULL;
    Py_CLEAR(op->timer);
    PyObject *error = PyObject_CallNoArgs(c->st->timeout_error);
    if (error == NULL)
        error = gio_err_take();
    give_up_with(op, error);
    Py_XSETREF(op->error, error);
    if (waiter != NULL)
        c->st->api->waiter_set(waiter);
    Py_XDECREF(waiter);
    gio_pg_wake(c);
    Py_RETURN_NONE;
}

/* A timer's callback, while another thread moves the connection on: it may do so no more. */
static PyObject *
op_look(GioPgOp *op, PyObject *Py_UNUSED(ignored))
{
    PyObject *waiter = op->answered ? NULL : op->waiter;
    Py_CLEAR(op->look);
    if (waiter != NULL) {
        op->waiter = NULL;
        op->conn->st->api->waiter_set(waiter);
        Py_DECREF(waiter);
    }
    Py_RETURN_NONE;
}

/* ---- for sync code ----------------------------------------------------------------------------
 */

static int
wait_for(GioPgOp *op, int64_t deadline)
{
    const GioAPI *api = op->conn->st->api;
    if (op->conn->mode == GIO_PG_PIPELINE && !op->answered)
        gio_pg_pipeline_await(op->conn);
    while (!op->answered) {
        int role = gio_pg_engage(op);
        op->waited = true;
        if (role == GIO_PG_PUMP) {
            if (gio_pg_pump(op, deadline) < 0)
                return -1;
            continue;
        }
        PyObject *waiter = role < 0 ? NULL : api->waiter_new();
        int rc = -1;
        if (waiter != NULL) {
            Py_XSETREF(op->waiter, Py_NewRef(waiter));
            int64_t look = gio_pg_is_mine(op) ? GIO_NEVER : api->now() + GIO_PG_LOOK_NS;
            rc = op->answered ? 1 : api->waiter_wait(waiter, look < deadline ? look : deadline);
            Py_DECREF(waiter);
        }
        if (rc == 0 && (deadline == GIO_NEVER || api->now() < deadline))
            continue;
        if (rc > 0 || (rc == 0 && op->answered))
            continue;
        if (rc == 0)
            PyErr_SetNone(PyExc_TimeoutError);
        gio_pg_op_give_up(op); /* one that has its answer may be a COPY, which goes on */
        return -1;
    }
    return 0;
}

static PyObject *
op_run(GioPgOp *op, PyObject *Py_UNUSED(ignored))
{
    GioPgConn *c = op->conn;
    const GioAPI *api = c->st->api;
    if (!op->answered && api->place() == GIO_PLACE_FORBIDDEN) {
        api->set_would_block("a query of greenletio.pg");
        return NULL;
    }
    if (is_awaited(op))
        return NULL;
    if (op->stage == GIO_PG_IDLE && !op->answered) {
        gio_pg_trace_begin(op);
        if (is_awaited(op)) /* by now */
            return NULL;
    }
    if (op->stage == GIO_PG_IDLE && !op->answered) {
        int role = gio_pg_engage(op); /* a loop's reader is there before anything is sent */
        if (role < 0 || gio_pg_start(op) < 0 || is_awaited(op)) {
            gio_pg_trace_end(op);
            return NULL;
        }
    }
    int rc = wait_for(op, deadline_of(op));
    if (rc == 0 && is_others_turn(op))
        rc = api->sleep_until(api->now());
    if (rc < 0)
        lose_answer(op);
    PyObject *exc = rc < 0 ? gio_err_take() : NULL;
    gio_pg_wake(c);
    if (exc != NULL) {
        gio_err_give(exc);
        return NULL;
    }
    return outcome(op);
}

/* ---- the type
 * ------------------------------------------------------------------------------------- */

static int
op_traverse(GioPgOp *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(op->conn);
    Py_VISIT(op->args);
    Py_VISIT(op->rows);
    Py_VISIT(op->record_class);
    Py_VISIT(op->stmt);
    Py_VISIT(op->session);
    Py_VISIT(op->sub);
    Py_VISIT(op->waiter);
    Py_VISIT(op->result);
    Py_VISIT(op->error);
    Py_VISIT(op->timer);
    Py_VISIT(op->look);
    Py_VISIT(op->trace);
    return 0;
}

static int
op_clear(GioPgOp *op)
{
    Py_CLEAR(op->waiter);
    Py_CLEAR(op->result);
    Py_CLEAR(op->error);
    Py_CLEAR(op->timer);
    Py_CLEAR(op->look);
    Py_CLEAR(op->trace);
    return 0;
}

static void
op_dealloc(GioPgOp *op)
{
    PyTypeObject *type = Py_TYPE(op);
    if (op->trace != NULL && PyObject_CallFinalizerFromDealloc((PyObject *)op) < 0)
        return;
    PyObject_GC_UnTrack(op);
    op_clear(op);
    Py_CLEAR(op->sql);
    Py_CLEAR(op->before);
    Py_CLEAR(op->args);
    Py_CLEAR(op->rows);
    Py_CLEAR(op->oids);
    Py_CLEAR(op->column_name);
    Py_CLEAR(op->record_class);
    Py_CLEAR(op->stmt);
    Py_CLEAR(op->session);
    Py_CLEAR(op->sub);
    Py_CLEAR(op->conn);
    type->tp_free(op);
    Py_DECREF(type);
}

#define METHOD(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef op_methods[] = {
    {"run", METHOD(op_run), METH_NOARGS,
     "run($self, /)\n--\n\nWait for it in sync code, and return what came of it."},
    {"start", METHOD(op_start), METH_NOARGS,
     "start($self, /)\n--\n\n"
     "Begin it without waiting for it, and return it: await or run() it later. Without a loop this\n"
     "waits until the server has taken what was sent."},
    {"put", METHOD(gio_pg_copy_put), METH_O,
     "put($self, data, /)\n--\n\n"
     "Of a replication: send a message to the server at once, without waiting; from any thread."},
    {"send", METHOD(op_send), METH_O, "send($self, value, /)\n--\n\nAs a coroutine's."},
    {"throw", METHOD(op_throw), METH_FASTCALL,
     "throw($self, typ, val=None, tb=None, /)\n--\n\nAs a coroutine's: it is given up."},
    {"close", METHOD(op_close), METH_NOARGS,
     "close($self, /)\n--\n\nAs a coroutine's: it is given up."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS,
     "__class_getitem__($type, item, /)\n--\n\nFor annotations."},
    {"_expire", METHOD(op_expire), METH_NOARGS, NULL},
    {"_look", METHOD(op_look), METH_NOARGS, NULL},
    {NULL},
};

static PyObject *
op_get_untold(GioPgOp *op, void *Py_UNUSED(closure))
{
    return Py_NewRef(op->answered && !op->told && op->error != NULL ? op->error : Py_None);
}

static PyObject *
op_get_succeeded(GioPgOp *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(op->answered && !op->given_up && op->error == NULL);
}

/* What was sent of it, if anything, was to prepare it: another connection may be asked. */
static PyObject *
op_get_untouched(GioPgOp *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(op->stage < GIO_PG_EXECUTING ||
                           (op->stage == GIO_PG_DONE && !op->began));
}

static PyGetSetDef op_getset[] = {
    {"_succeeded", (getter)op_get_succeeded, NULL, "Whether it has ended, and well.", NULL},
    {"_untouched", (getter)op_get_untouched, NULL, "Whether the server cannot have done it.", NULL},
    {"_untold", (getter)op_get_untold, NULL, "What it failed with, if nobody was told yet.", NULL},
    {NULL},
};

static PyType_Slot op_slots[] = {
    {Py_tp_doc, "An operation of a connection: await it, or run() it."},
    {Py_tp_finalize, gio_pg_trace_end_late},
    {Py_tp_dealloc, op_dealloc},
    {Py_tp_traverse, op_traverse},
    {Py_tp_clear, op_clear},
    {Py_tp_methods, op_methods},
    {Py_tp_getset, op_getset},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, op_iternext},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, op_am_send},
    {0, NULL},
};

static PyType_Spec op_spec = {
    .name = "greenletio._pg.Op",
    .basicsize = sizeof(GioPgOp),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = op_slots,
};

int
gio_pg_op_setup_types(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->op_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &op_spec, NULL);
    return st->op_type == NULL || PyModule_AddType(module, st->op_type) < 0 ? -1 : 0;
}
