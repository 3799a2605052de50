/* Who moves a connection on.
 *
 * Where a loop runs, it has a reader for the socket, which stays: what comes in is taken, fed to
 * the operation, and whoever waits for that is woken, all in one callback. Without a loop (plain
 * code, trio) one of those who wait pumps: it waits for the socket by the capsule's own means and
 * does the same; when its operation is done, the next one in the queue has the role. A loop that
 * has the reader keeps it while it runs and the connection is in use; then another loop or thread
 * may have it.
 */
#include "pg/pg.h"

#include <structmember.h>
#include <unistd.h>

enum { READ = GIO_READ, WRITE = GIO_WRITE, REQUEST = 4, TIMER = 8 };

/* What a loop calls. The connection clears it when it goes away; while something is under way the
 * watch keeps the connection alive, since nobody else may. */
struct GioPgWatch {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    GioPgConn *conn; /* borrowed, or owned if held */
    bool held;
};

/* ---- the loop -------------------------------------------------------------------------- */

static bool
ask_loop(PyObject *loop, PyObject *method)
{
    PyObject *answer = PyObject_CallMethodNoArgs(loop, method);
    bool truth = answer == Py_True;
    if (answer == NULL)
        PyErr_Clear();
    Py_XDECREF(answer);
    return truth;
}

static int
add_fd(GioPgConn *c, PyObject *method, int fd, int event)
{
    PyObject *number = PyLong_FromLong(fd), *what = PyLong_FromLong(event), *answer = NULL;
    if (number != NULL && what != NULL)
        answer =
            PyObject_CallMethodObjArgs(c->loop, method, number, (PyObject *)c->watch, what, NULL);
    Py_XDECREF(number);
    Py_XDECREF(what);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

static void
remove_fd(GioPgConn *c, PyObject *method, int fd)
{
    PyObject *number = PyLong_FromLong(fd), *answer = NULL;
    if (number != NULL && c->loop_thread == PyThread_get_thread_ident()) {
        answer = PyObject_CallMethodObjArgs(c->loop, method, number, NULL);
    }
    else if (number != NULL) {
        PyObject *remove = PyObject_GetAttr(c->loop, method);
        if (remove != NULL)
            answer = PyObject_CallMethodObjArgs(c->loop, c->st->str_call_soon_threadsafe, remove,
                                                number, NULL);
        Py_XDECREF(remove);
    }
    if (answer == NULL)
        PyErr_Clear(); /* the loop is closed */
    Py_XDECREF(answer);
    Py_XDECREF(number);
}

static void
watch_fd(GioPgConn *c, int fd, int event, PyObject *add, PyObject *remove, int want, int *armed)
{
    int bit = add == c->st->str_add_reader ? READ : WRITE;
    if ((want & bit) && !(*armed & bit)) {
        if (add_fd(c, add, fd, event) < 0)
            PyErr_WriteUnraisable((PyObject *)c);
        *armed |= bit;
    }
    else if (!(want & bit) && (*armed & bit)) {
        remove_fd(c, remove, fd);
        *armed &= ~bit;
    }
}

/* While something is under way and a loop moves it on, the connection stays. */
static void
hold(GioPgConn *c)
{
    bool needed =
        c->loop != NULL && c->phase != GIO_PG_CLOSED && (c->first != NULL || c->cancelling);
    if (needed && !c->watch->held) {
        c->watch->held = true;
        Py_INCREF(c);
    }
    else if (!needed && c->watch->held) {
        c->watch->held = false;
        Py_DECREF(c); /* the caller has a reference, too */
    }
}

void
gio_pg_disarm(GioPgConn *c)
{
    GioPgState *st = c->st;
    PyObject *exc = gio_err_take();
    if (c->pid != (int)getpid()) { /* a child's: the loop's epoll is the parent's, too */
        c->fd = c->request_fd = -1;
        c->request_armed = 0;
        Py_CLEAR(c->cancel_timer);
    }
    if (c->loop != NULL && c->fd >= 0) {
        watch_fd(c, c->fd, READ, st->str_add_reader, st->str_remove_reader, 0, &c->armed);
        watch_fd(c, c->fd, WRITE, st->str_add_writer, st->str_remove_writer, 0, &c->armed);
    }
    if (c->loop != NULL && c->request_fd >= 0) {
        watch_fd(c, c->request_fd, REQUEST, st->str_add_reader, st->str_remove_reader, 0,
                 &c->request_armed);
        watch_fd(c, c->request_fd, REQUEST, st->str_add_writer, st->str_remove_writer, 0,
                 &c->request_armed);
        c->request_fd = -1;
    }
    if (c->cancel_timer != NULL) {
        PyObject *answer = PyObject_CallMethodNoArgs(c->cancel_timer, st->str_cancel);
        if (answer == NULL)
            PyErr_Clear();
        Py_XDECREF(answer);
        Py_CLEAR(c->cancel_timer);
    }
    c->armed = 0;
    c->fd = -1;
    if (exc != NULL)
        gio_err_give(exc);
}

/* A loop is not told of fds and timers from another thread: it is asked to look by itself. */
static bool
in_its_thread(GioPgConn *c)
{
    return c->loop_thread == PyThread_get_thread_ident();
}

static void
poke_loop(GioPgConn *c)
{
    PyObject *event = PyLong_FromLong(0), *answer = NULL;
    if (event != NULL)
        answer = PyObject_CallMethodObjArgs(c->loop, c->st->str_call_soon_threadsafe,
                                            (PyObject *)c->watch, event, NULL);
    if (answer == NULL)
        PyErr_Clear(); /* the loop is closed */
    Py_XDECREF(answer);
    Py_XDECREF(event);
}

static void
arm_request(GioPgConn *c)
{
    GioPgState *st = c->st;
    int events = 0, fd = gio_pg_cancel_wants(c, &events);
    if (c->request_fd >= 0 && c->request_fd != fd) {
        watch_fd(c, c->request_fd, REQUEST, st->str_add_reader, st->str_remove_reader, 0,
                 &c->request_armed);
        watch_fd(c, c->request_fd, REQUEST, st->str_add_writer, st->str_remove_writer, 0,
                 &c->request_armed);
        c->request_fd = -1;
    }
    if (!in_its_thread(c)) {
        if (c->cancelling)
            poke_loop(c);
        return;
    }
    c->request_fd = fd;
    if (fd >= 0) {
        watch_fd(c, fd, REQUEST, st->str_add_reader, st->str_remove_reader, events,
                 &c->request_armed);
        watch_fd(c, fd, REQUEST, st->str_add_writer, st->str_remove_writer, events,
                 &c->request_armed);
    }
    if (c->cancelling && c->cancel_timer == NULL) {
        int64_t until = c->cancel_next < c->cancel_deadline && c->request == NULL
                            ? c->cancel_next
                            : c->cancel_deadline;
        double seconds = (double)(until - st->api->now()) / 1e9;
        c->cancel_timer = PyObject_CallMethod(
            c->loop, "call_later", "dOi", seconds < 0 ? 0.0 : seconds, (PyObject *)c->watch, TIMER);
        if (c->cancel_timer == NULL)
            PyErr_WriteUnraisable((PyObject *)c);
    }
}

void
gio_pg_rearm_request(GioPgConn *c)
{
    PyObject *exc = gio_err_take();
    if (c->loop != NULL && (c->cancelling || c->request_fd >= 0))
        arm_request(c);
    if (exc != NULL)
        gio_err_give(exc);
}

void
gio_pg_rearm(GioPgConn *c)
{
    GioPgState *st = c->st;
    if (c->loop != NULL && c->pg != NULL) {
        int fd = PQsocket(c->pg), want = READ | (c->unflushed ? WRITE : 0);
        GioPgOp *first = c->first;
        if (first != NULL && first->stage == GIO_PG_COPYING && !first->copy_in &&
            first->sub == NULL && !first->given_up)
            want &= ~READ; /* nobody takes the rows: the server shall wait */
        if (c->phase == GIO_PG_CONNECTING)
            want = c->events;
        if (fd >= 0 && (c->armed != want || c->fd != fd) && !in_its_thread(c)) {
            poke_loop(c);
        }
        else if (fd >= 0 && (c->armed != want || c->fd != fd)) {
            if (c->fd >= 0 && c->fd != fd)
                gio_pg_disarm(c);
            c->fd = fd;
            watch_fd(c, fd, READ, st->str_add_reader, st->str_remove_reader, want, &c->armed);
            watch_fd(c, fd, WRITE, st->str_add_writer, st->str_remove_writer, want, &c->armed);
        }
        gio_pg_rearm_request(c);
    }
    hold(c);
}

static void
detach(GioPgConn *c)
{
    gio_pg_disarm(c);
    Py_CLEAR(c->loop);
    hold(c);
}

int
gio_pg_engage(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    GioPgState *st = c->st;
    PyObject *running = PyObject_CallNoArgs(st->get_running_loop);
    if (running == NULL)
        return -1;
    op->thread = PyThread_get_thread_ident();
    if (c->loop != NULL && c->loop != running) {
        bool alive = !ask_loop(c->loop, st->str_is_closed) && ask_loop(c->loop, st->str_is_running);
        if (alive && c->first != NULL && (c->first != op || op->stage != GIO_PG_QUEUED)) {
            Py_DECREF(running);
            return 0; /* it will come to us */
        }
        detach(c);
    }
    if (running == Py_None || c->pumping) {
        Py_DECREF(running);
        return !c->pumping;
    }
    if (c->loop == NULL) {
        c->loop = Py_NewRef(running);
        c->loop_thread = op->thread;
        gio_pg_rearm(c);
    }
    Py_DECREF(running);
    return 0;
}

/* ---- connecting ------------------------------------------------------------------------- */

static void
receive_notice(void *arg, const PGresult *res)
{
    GioPgConn *c = arg;
    PyObject *exc = gio_err_take();
    PyObject *fields = gio_pg_error_fields(res);
    if (fields == NULL || (c->notices == NULL && (c->notices = PyList_New(0)) == NULL) ||
        PyList_Append(c->notices, fields) < 0)
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(fields);
    if (exc != NULL)
        gio_err_give(exc);
}

static void
connect_failed(GioPgConn *c)
{
    PyObject *error = gio_pg_error_lost(c);
    if (error == NULL)
        error = gio_err_take();
    gio_pg_conn_drop(c, error);
    Py_XDECREF(error);
}

static void
connect_begin(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    const char *conninfo = gio_pg_statement_text(op->sql);
    if (conninfo == NULL) {
        gio_pg_op_finish(op, NULL, NULL);
        return;
    }
    c->phase = GIO_PG_CONNECTING;
    c->events = WRITE;
    c->lost = false;
    c->pid = (int)getpid();
    c->pg = PQconnectStart(conninfo);
    if (c->pg == NULL) {
        PyErr_NoMemory();
        gio_pg_op_finish(op, NULL, NULL);
        c->phase = GIO_PG_CLOSED;
        return;
    }
    PQsetNoticeReceiver(c->pg, receive_notice, c);
    PQsetErrorVerbosity(c->pg, PQERRORS_VERBOSE); /* for the SQLSTATE of what the server says */
    if (PQstatus(c->pg) == CONNECTION_BAD)
        connect_failed(c);
}

static void
connect_step(GioPgConn *c)
{
    int fd = PQsocket(c->pg);
    gio_pg_disarm(c); /* libpq may close the socket and open another of the same number */
    switch (PQconnectPoll(c->pg)) {
    case PGRES_POLLING_OK:
        c->phase = GIO_PG_READY;
        PQsetnonblocking(c->pg, 1);
        PQsetErrorVerbosity(c->pg, PQERRORS_DEFAULT);
        gio_pg_op_finish(c->first, Py_NewRef(Py_None), NULL);
        break;
    case PGRES_POLLING_READING:
        c->events = READ;
        break;
    case PGRES_POLLING_WRITING:
        c->events = WRITE;
        break;
    default:
        connect_failed(c);
    }
    if (fd >= 0 && (c->pg == NULL || PQsocket(c->pg) != fd))
        c->st->api->fd_closing(fd);
}

/* ---- moving on ---------------------------------------------------------------------------- */

static void
tell_news(GioPgConn *c)
{
    PGnotify *n;
    while (c->notices != NULL && PyList_GET_SIZE(c->notices) > 0) {
        PyObject *fields = Py_NewRef(PyList_GET_ITEM(c->notices, 0));
        if (PyList_SetSlice(c->notices, 0, 1, NULL) < 0)
            PyErr_Clear();
        gio_pg_conn_tell(c, "notice", fields);
        Py_DECREF(fields);
    }
    while (c->pg != NULL && (n = PQnotifies(c->pg)) != NULL) {
        PyObject *value = Py_BuildValue("(iss)", n->be_pid, n->relname, n->extra);
        PQfreemem(n);
        if (value == NULL)
            PyErr_WriteUnraisable((PyObject *)c);
        else
            gio_pg_conn_tell(c, "notification", value);
        Py_XDECREF(value);
    }
}

void
gio_pg_step(GioPgConn *c, int events)
{
    if (c->phase == GIO_PG_CONNECTING) {
        connect_step(c);
        if (c->phase == GIO_PG_READY)
            gio_pg_advance(c);
    }
    else if (c->phase == GIO_PG_READY) {
        bool lost = (events & READ) && !PQconsumeInput(c->pg);
        if (c->frozen || (lost && c->first == NULL))
            gio_pg_conn_drop(c, NULL);
        else
            gio_pg_advance(c);
    }
    tell_news(c);
    gio_pg_rearm(c);
}

int
gio_pg_start(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    if (op->kind == GIO_PG_CONNECT ? c->phase == GIO_PG_CONNECTING || c->phase == GIO_PG_READY
                                   : c->phase == GIO_PG_NEW || c->phase == GIO_PG_CLOSED) {
        gio_pg_error_set("ConnectionClosed", op->kind == GIO_PG_CONNECT
                                                 ? "the connection is open already"
                                                 : "the connection is closed");
        return -1;
    }
    if (c->advancing && c->mover == PyThread_get_thread_ident()) { /* it would wait for itself */
        gio_pg_error_set("InterfaceError", "a codec must not use the connection that calls it");
        return -1;
    }
    if (gio_pg_stream_check(op) < 0)
        return -1;
    if (op->session != NULL) {
        if (gio_pg_copy_start(op) < 0)
            return -1;
        gio_pg_advance(c);
        gio_pg_rearm(c);
        return 0;
    }
    op->stage = GIO_PG_QUEUED;
    op->queued = true;
    Py_INCREF(op);
    if (c->last != NULL)
        c->last->next = op;
    else
        c->first = op;
    c->last = op;
    if (op->kind == GIO_PG_CONNECT)
        connect_begin(op);
    else if (c->first == op)
        gio_pg_advance(c);
    tell_news(c);
    gio_pg_rearm(c);
    return 0;
}

#define AT_ONCE 8

/* Take those that have ended off the list; the waiters of some that may be woken directly. What the
 * woken do must find nothing of ours on the stack that keeps the connection, or the operations. */
static int
collect_done(GioPgConn *c, PyObject **waiters, bool direct)
{
    GioPgOp *op;
    int n = 0;
    Py_INCREF(c);
    while ((op = c->done) != NULL) {
        PyObject *waiter = op->waiter;
        c->done = op->done;
        if (c->done == NULL)
            c->done_tail = &c->done;
        op->done = NULL;
        op->waiter = NULL;
        if (waiter != NULL && direct && n < AT_ONCE && op->thread == c->loop_thread) {
            waiters[n++] = waiter;
        }
        else if (waiter != NULL) {
            c->st->api->waiter_set(waiter);
            Py_DECREF(waiter);
        }
        Py_DECREF(op);
    }
    Py_DECREF(c);
    return n;
}

void
gio_pg_wake(GioPgConn *c)
{
    collect_done(c, NULL, false);
}

/* ---- without a loop -------------------------------------------------------------------------- */

/* Wait for whatever is to be waited for, once, and take it. 0, 1 at the deadline, -1 interrupted.
 */
static int
pump_once(GioPgConn *c, int64_t deadline)
{
    const GioAPI *api = c->st->api;
    int fds[2], events[2], ready[2] = {0, 0}, n = 1, request_events;
    fds[0] = PQsocket(c->pg);
    events[0] = c->phase == GIO_PG_CONNECTING ? c->events : READ | (c->unflushed ? WRITE : 0);
    int fd = gio_pg_cancel_wants(c, &request_events);
    if (fd >= 0) {
        fds[n] = fd;
        events[n++] = request_events;
    }
    if (c->cancelling) {
        int64_t until = c->request == NULL ? c->cancel_next : c->cancel_deadline;
        deadline = until < deadline ? until : deadline;
    }
    c->pumping = true;
    int rc = n == 1 ? api->wait_fd(fds[0], events[0], deadline)
                    : api->wait_fds(fds, events, ready, n, deadline);
    c->pumping = false;
    if (rc < 0)
        return -1;
    if (c->phase == GIO_PG_CLOSED)
        return 0;
    if (c->cancelling) {
        gio_pg_cancel_step(c, c->first == NULL || c->first->stage == GIO_PG_QUEUED);
        gio_pg_step(c, ready[0] | (n == 1 ? rc : 0));
        return 0;
    }
    if (rc == 0)
        return 1;
    gio_pg_step(c, n == 1 ? rc : ready[0]);
    return 0;
}

/* What was given up must be over before anybody goes on: nobody would end it in the background. */
static void
pump_cancel(GioPgConn *c)
{
    const GioAPI *api = c->st->api;
    PyObject *exc = gio_err_take();
    api->shield(1);
    while (c->cancelling && c->phase == GIO_PG_READY && c->loop == NULL) {
        if (pump_once(c, GIO_NEVER) < 0) {
            PyErr_Clear(); /* this greenlet may not wait any more */
            gio_pg_conn_drop(c, NULL);
        }
    }
    PyObject *later = api->shield(0);
    if (exc == NULL || later == NULL) {
        Py_XDECREF(exc != NULL ? later : NULL);
        gio_err_give(exc != NULL ? exc : later);
        return;
    }
    PyException_SetContext(later, exc);
    gio_err_give(later);
}

/* Somebody else has to move the connection on. */
static void
pass_on(GioPgConn *c)
{
    GioPgOp *next = c->first;
    if (next == NULL || c->loop != NULL || next->waiter == NULL)
        return;
    PyObject *waiter = next->waiter;
    next->waiter = NULL;
    c->st->api->waiter_set(waiter); /* it sees that it is not done, and engages */
    Py_DECREF(waiter);
}

int
gio_pg_pump(GioPgOp *op, int64_t deadline)
{
    GioPgConn *c = op->conn;
    int rc = 0;
    while (!op->answered && c->loop == NULL && c->phase != GIO_PG_CLOSED) {
        rc = pump_once(c, deadline);
        if (rc < 0 && op->answered && c->phase == GIO_PG_CLOSED &&
            PyErr_ExceptionMatches(PyExc_OSError)) {
            PyErr_Clear(); /* closed by another thread: what the operation ended with says so */
            rc = 0;
            break;
        }
        if (rc < 0) {
            gio_pg_op_give_up(op);
            pump_cancel(c);
            break;
        }
        if (rc > 0) {
            gio_pg_op_give_up(op);
            PyErr_SetNone(PyExc_TimeoutError);
            pump_cancel(c);
            rc = -1;
            break;
        }
        gio_pg_wake(c);
    }
    PyObject *exc = gio_err_take();
    gio_pg_wake(c);
    pass_on(c);
    if (exc != NULL)
        gio_err_give(exc);
    return rc;
}

/* ---- the watch ---------------------------------------------------------------------------- */

static PyObject *
watch_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    GioPgWatch *w = (GioPgWatch *)self;
    if (PyVectorcall_NARGS(nargsf) != 1 || kwnames != NULL || !PyLong_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "a loop calls this with the event that it was given");
        return NULL;
    }
    long event = PyLong_AsLong(args[0]);
    if (event == -1 && PyErr_Occurred())
        return NULL;
    GioPgConn *c = (GioPgConn *)Py_XNewRef((PyObject *)w->conn);
    if (c == NULL)
        Py_RETURN_NONE;
    if (event == TIMER)
        Py_CLEAR(c->cancel_timer);
    if (event >= REQUEST && c->cancelling)
        gio_pg_cancel_step(c, c->first == NULL || c->first->stage == GIO_PG_QUEUED);
    if (event != 0 || c->phase == GIO_PG_READY)
        gio_pg_step(c, event < REQUEST ? (int)event : 0);
    const GioAPI *api = c->st->api;
    PyObject *waiters[AT_ONCE];
    /* A reader that is about to be removed, in the thread of a loop that has lost the connection,
     * may fire once more: then whoever waits is in another one. */
    bool direct = c->loop != NULL && c->loop_thread == PyThread_get_thread_ident() &&
                  c->phase != GIO_PG_CLOSED; /* who listens for that comes first */
    int n = collect_done(c, waiters, direct), rc = 0;
    Py_DECREF(c);
    for (int i = 0; i < n; i++) {
        if (rc == 0)
            rc = api->waiter_wake(waiters[i]);
        else
            api->waiter_set(waiters[i]); /* keeps the exception */
        Py_DECREF(waiters[i]);
    }
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
watch_repr(PyObject *self)
{
    GioPgWatch *w = (GioPgWatch *)self;
    return PyUnicode_FromFormat("<what moves the connection at %p on>", w->conn);
}

static int
watch_traverse(PyObject *self, visitproc visit, void *arg)
{
    GioPgWatch *w = (GioPgWatch *)self;
    Py_VISIT(Py_TYPE(self));
    if (w->held)
        Py_VISIT(w->conn);
    return 0;
}

static int
watch_clear(PyObject *self)
{
    GioPgWatch *w = (GioPgWatch *)self;
    GioPgConn *c = w->held ? w->conn : NULL;
    w->held = false;
    Py_XDECREF(c);
    return 0;
}

static void
watch_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef watch_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(GioPgWatch, vectorcall), READONLY, NULL},
    {NULL},
};

static PyType_Slot watch_slots[] = {
    {Py_tp_dealloc, watch_dealloc},
    {Py_tp_traverse, watch_traverse},
    {Py_tp_clear, watch_clear},
    {Py_tp_repr, watch_repr},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_members, watch_members},
    {0, NULL},
};

static PyType_Spec watch_spec = {
    .name = "greenletio._pg.Watch",
    .basicsize = sizeof(GioPgWatch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = watch_slots,
};

GioPgWatch *
gio_pg_watch_new(GioPgConn *c)
{
    GioPgWatch *w = (GioPgWatch *)c->st->watch_type->tp_alloc(c->st->watch_type, 0);
    if (w != NULL) {
        w->conn = c;
        w->vectorcall = watch_call;
    }
    return w;
}

void
gio_pg_watch_forget(GioPgWatch *w)
{
    w->conn = NULL;
    w->held = false;
}

int
gio_pg_watch_setup_types(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->watch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &watch_spec, NULL);
    return st->watch_type == NULL ? -1 : 0;
}
