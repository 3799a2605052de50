/* Who moves a connection on.
 *
 * Where a loop runs, it has a reader for the socket, which stays: what comes in is taken, fed to
 * the operation, and whoever waits for that is woken, all in one callback. Without a loop (plain
 * code, trio) one of those who wait pumps: it waits for the socket by the capsule's own means and
 * does the same.
 *
 * There is one who does so at a time. The role is handed on when its owner has nothing to wait for
 * any more and others have. A loop may end at any moment without a word, so who waits in another
 * thread looks now and then whether the owner's loop runs still, and else takes the role: nobody
 * who waits depends on another's goodwill.
 */
#include "pg/pg.h"

#include <poll.h>
#include <unistd.h>

enum { READ = GIO_READ, WRITE = GIO_WRITE, REQUEST = 4, TIMER = 8 };

/* ---- the role ---------------------------------------------------------------------------- */

/* Whoever waits for it looks again who moves the connection on. */
static bool
nudge(GioPgOp *op)
{
    PyObject *waiter = op == NULL ? NULL : op->waiter;
    if (waiter == NULL || op->answered)
        return false;
    op->waiter = NULL;
    op->conn->st->api->waiter_set(waiter);
    Py_DECREF(waiter);
    return true;
}

/* Somebody else has to: false if nobody waits. */
static bool
pass_on(GioPgConn *c)
{
    for (GioPgOp *op = c->first; op != NULL; op = op->next)
        if (nudge(op) || nudge(op->sub))
            return true;
    return false;
}

static bool
waits_in(GioPgConn *c, void *loop)
{
    for (GioPgOp *op = c->first; op != NULL; op = op->next)
        if (op->loop == loop || (op->sub != NULL && op->sub->loop == loop))
            return true;
    return false;
}

/* A loop that does not run any more loses the connection; should it run once more, those who wait
 * in it have to look. */
static void
depose(GioPgConn *c)
{
    GioPgWatch *w = c->watch;
    GioPgOp *again;
    Py_INCREF(w);
    gio_pg_watch_detach(c);
    do { /* waking runs Python, which may change the queue */
        again = NULL;
        for (GioPgOp *op = c->first; op != NULL && again == NULL; op = op->next) {
            if (op->loop == w->loop && op->waiter != NULL && !op->answered)
                again = op;
            else if (op->sub != NULL && op->sub->loop == w->loop && op->sub->waiter != NULL &&
                     !op->sub->answered)
                again = op->sub;
        }
    } while (nudge(again));
    Py_DECREF(w);
}

int
gio_pg_engage(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    PyObject *running = c->st->api->running_loop();
    int role = -1;
    if (running == NULL)
        return -1;
    op->loop = running == Py_None ? NULL : running;
    op->thread = PyThread_get_thread_ident();
    while (role < 0) {
        GioPgWatch *w = c->watch;
        if (c->pumping || c->dropping) {
            role = GIO_PG_OTHERS;
        }
        else if (w == NULL && running == Py_None) {
            role = GIO_PG_PUMP;
        }
        else if (w == NULL) {
            if (gio_pg_watch_attach(c, running) < 0)
                break;
            if (c->unsent != NULL && c->phase == GIO_PG_READY)
                gio_pg_step(c, 0); /* somebody else may have meant to send it */
        }
        else if (w->loop == running) {
            role = GIO_PG_MINE;
        }
        else {
            Py_INCREF(w);
            bool alive = gio_pg_watch_is_alive(w);
            bool free = c->first == NULL ||
                        (c->first == op && op->next == NULL && op->stage == GIO_PG_QUEUED);
            if (c->watch == w && !c->pumping) {
                if (alive && !free)
                    role = GIO_PG_OTHERS; /* it will come to us */
                else
                    depose(c);
            }
            Py_DECREF(w);
        }
    }
    Py_DECREF(running);
    return role;
}

bool
gio_pg_is_mine(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    return c->watch != NULL && c->watch->loop == op->loop && !c->pumping;
}

/* ---- connecting ------------------------------------------------------------------------- */

/* libpq calls it while it works on the connection, which nobody may close meanwhile: nor may the
 * collector, by what it finalizes. */
static void
receive_notice(void *arg, const PGresult *res)
{
    GioPgConn *c = arg;
    PyObject *exc = gio_err_take();
    int collects = PyGC_Disable();
    PyObject *fields = gio_pg_error_fields(res);
    if (fields == NULL || (c->notices == NULL && (c->notices = PyList_New(0)) == NULL) ||
        PyList_Append(c->notices, fields) < 0)
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(fields);
    if (collects)
        PyGC_Enable();
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
    c->part_reads = 0;
    c->wide = false;
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
connect_went(GioPgConn *c, PostgresPollingStatusType polled)
{
    switch (polled) {
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
}

static void
connect_step(GioPgConn *c)
{
    int fd = PQsocket(c->pg);
    gio_pg_disarm(c); /* libpq may close the socket and open another of the same number */
    PostgresPollingStatusType polled = PQconnectPoll(c->pg);
    /* libpq returns between the handshake and what it sends then. */
    if (polled != PGRES_POLLING_FAILED && gio_pg_tls_check(c) < 0) {
        PyObject *error = gio_err_take();
        gio_pg_conn_drop(c, error);
        Py_XDECREF(error);
    }
    else if (c->phase == GIO_PG_CONNECTING) /* else what has checked it has closed it */
        connect_went(c, polled);
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

/* Whether the socket has any of `events`, or an error. */
static bool
polls(GioPgConn *c, short events)
{
    struct pollfd asked = {.fd = PQsocket(c->pg), .events = events};
    return asked.fd >= 0 && poll(&asked, 1, 0) > 0;
}

/* What has come, and what it brings about. A socket that was reset may have some more, and its
 * error, after that: libuv, and so uvloop, tells of it this once only. Whoever goes on after this
 * finds out by sending. */
static void
take(GioPgConn *c, bool readable)
{
    bool reset = false, lost = false;
    do {
        GioPgOp *first = c->first;
        if (readable)
            do
                lost = !PQconsumeInput(c->pg);
            while (reset && !lost);
        if (c->frozen || (lost && first == NULL))
            gio_pg_conn_drop(c, NULL);
        else
            gio_pg_advance(c);
        bool partly = readable && !lost && c->phase == GIO_PG_READY && c->first == first;
        if (partly && first != NULL)
            gio_pg_part_read(c);
        reset = partly && polls(c, 0);
    } while (reset);
}

void
gio_pg_step(GioPgConn *c, int events)
{
    if (c->dropping)
        return;
    if (c->phase == GIO_PG_CONNECTING) {
        connect_step(c);
        if (c->phase == GIO_PG_READY)
            gio_pg_advance(c);
    }
    else if (c->phase == GIO_PG_READY) {
        take(c, events & READ);
    }
    tell_news(c);
    gio_pg_rearm(c);
}

/* A server that has gone away may have said so to nobody. Of a shared connection that is looked at
 * before a query is sent: later nobody knows whether that was done. */
static void
look(GioPgConn *c)
{
    while (c->mode == GIO_PG_SHARED && c->phase == GIO_PG_READY && !c->dropping &&
           c->first == NULL && polls(c, POLLIN))
        gio_pg_step(c, READ);
}

int
gio_pg_start(GioPgOp *op)
{
    GioPgConn *c = op->conn;
    look(c);
    if (op->session != NULL && op->session->error != NULL && op->session->stage == GIO_PG_DONE) {
        gio_err_give(Py_NewRef(op->session->error)); /* it has failed between two calls */
        return -1;
    }
    if (op->kind == GIO_PG_CONNECT
            ? c->phase == GIO_PG_CONNECTING || c->phase == GIO_PG_READY
            : c->phase == GIO_PG_NEW || c->phase == GIO_PG_CLOSED || c->dropping) {
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
    if (op->stage != GIO_PG_IDLE || op->answered)
        return 0; /* begun, or given up, by Python that has run since the caller has looked */
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
    else if (c->mode != GIO_PG_SERIAL ? !gio_pg_pipeline_defer(op) : c->first == op)
        gio_pg_advance(c);
    tell_news(c);
    gio_pg_rearm(c);
    return 0;
}

#define AT_ONCE 64

/* Take those that have ended off the list; the waiters of some that may be woken directly. What the
 * woken do must find nothing of ours on the stack that keeps the connection, or the operations. */
static int
collect_done(GioPgConn *c, PyObject **waiters, GioPgWatch *w)
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
        if (waiter != NULL && w != NULL && n < AT_ONCE && op->loop == w->loop) {
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
    collect_done(c, NULL, NULL);
}

/* ---- without a loop -------------------------------------------------------------------------- */

/* Wait for whatever is to be waited for, once, and take it. 0, 1 at the deadline, -1 interrupted.
 */
static int
pump_once(GioPgConn *c, GioPgOp *op, int64_t deadline)
{
    const GioAPI *api = c->st->api;
    int fds[2], events[2], ready[2] = {0, 0}, n = 1, request_events;
    int64_t limit = deadline;
    fds[0] = PQsocket(c->pg);
    events[0] = c->phase == GIO_PG_CONNECTING ? c->events : READ | (c->unflushed ? WRITE : 0);
    int fd = gio_pg_cancel_wants(c, &request_events);
    if (fd >= 0) {
        fds[n] = fd;
        events[n++] = request_events;
    }
    if (c->cancelling) {
        int64_t until = c->request == NULL ? c->cancel_next : c->cancel_deadline;
        limit = until < limit ? until : limit;
    }
    if (c->first != op || op->next != NULL || c->advancing) { /* others may send, or give up */
        int64_t look = api->now() + GIO_PG_LOOK_NS;
        limit = look < limit ? look : limit;
    }
    c->pumping = true;
    int rc = n == 1 ? api->wait_fd(fds[0], events[0], limit)
                    : api->wait_fds(fds, events, ready, n, limit);
    c->pumping = false; /* what is called now may use the connection */
    if (rc < 0)
        return -1;
    if (c->phase == GIO_PG_CLOSED)
        return 0;
    if (c->cancelling)
        gio_pg_cancel_step(c, gio_pg_cancel_is_over(c));
    else if (rc == 0 && api->now() >= deadline)
        return 1;
    gio_pg_step(c, n == 1 ? rc : ready[0]);
    return 0;
}

/* Nobody has the role: the one who had it may have lost it while Python ran. */
static bool
is_vacant(GioPgConn *c)
{
    return c->watch == NULL && !c->pumping;
}

/* What was given up must be over before anybody goes on: nobody would end it in the background. */
static void
pump_cancel(GioPgConn *c, GioPgOp *op)
{
    const GioAPI *api = c->st->api;
    PyObject *exc = gio_err_take();
    api->shield(1);
    while (c->cancelling && c->phase == GIO_PG_READY && is_vacant(c)) {
        if (pump_once(c, op, GIO_NEVER) < 0) {
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

int
gio_pg_pump(GioPgOp *op, int64_t deadline)
{
    GioPgConn *c = op->conn;
    int rc = 0;
    if (c->unsent != NULL && c->phase == GIO_PG_READY)
        gio_pg_step(c, 0); /* somebody else may have meant to send it */
    while (!op->answered && c->phase != GIO_PG_CLOSED && is_vacant(c)) {
        rc = pump_once(c, op, deadline);
        if (rc < 0 && op->answered && c->phase == GIO_PG_CLOSED &&
            PyErr_ExceptionMatches(PyExc_OSError)) {
            PyErr_Clear(); /* closed by another thread: what the operation ended with says so */
            rc = 0;
            break;
        }
        if (rc < 0) {
            gio_pg_op_give_up(op);
            pump_cancel(c, op);
            break;
        }
        if (rc > 0) {
            PyErr_SetNone(PyExc_TimeoutError);
            gio_pg_op_give_up(op);
            pump_cancel(c, op);
            rc = -1;
            break;
        }
        gio_pg_wake(c);
    }
    PyObject *exc = gio_err_take();
    gio_pg_wake(c);
    if (is_vacant(c))
        pass_on(c);
    if (exc != NULL)
        gio_err_give(exc);
    return rc;
}

int
gio_pg_pump_out(GioPgOp *op, int64_t deadline)
{
    GioPgConn *c = op->conn;
    int rc = 0;
    while (rc == 0 && c->unflushed && c->phase == GIO_PG_READY && is_vacant(c)) {
        rc = pump_once(c, op, deadline);
        gio_pg_wake(c);
    }
    if (rc != 0) {
        if (rc > 0)
            PyErr_SetNone(PyExc_TimeoutError);
        gio_pg_op_give_up(op);
        rc = -1;
    }
    PyObject *exc = gio_err_take();
    if (is_vacant(c))
        pass_on(c);
    if (exc != NULL)
        gio_err_give(exc);
    return rc;
}

/* ---- in a loop ---------------------------------------------------------------------------------
 */

/* Others wait, and nobody in this loop, which may be about to end. */
static void
hand_over(GioPgConn *c, GioPgWatch *w)
{
    if (c->first != NULL && c->first->loop != w->loop && c->watch == w && !waits_in(c, w->loop) &&
        pass_on(c) && c->watch == w)
        gio_pg_watch_detach(c);
}

/* What those who were woken have asked for. */
static void
send_batch(GioPgConn *c)
{
    PyObject *exc = gio_err_take();
    c->batching = false;
    if (c->unsent != NULL && c->phase == GIO_PG_READY)
        gio_pg_step(c, 0);
    gio_pg_wake(c);
    if (exc != NULL)
        gio_err_give(exc);
}

PyObject *
gio_pg_watch_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames)
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
    if (c == NULL || c->watch != w) {
        gio_pg_watch_retire(w);
        Py_XDECREF(c);
        Py_RETURN_NONE;
    }
    if (event == TIMER)
        Py_CLEAR(w->timer);
    if (event == 0)
        c->soon = false;
    if ((event >= REQUEST || event == 0) && c->cancelling)
        gio_pg_cancel_step(c, gio_pg_cancel_is_over(c));
    if (event == READ && gio_pg_copy_is_idle(c)) {
        /* Only now, since who takes rows mostly comes for more before the next are there. */
        c->held_back = true;
        event = 0;
    }
    if (event != 0 || c->phase == GIO_PG_READY)
        gio_pg_step(c, event < REQUEST ? (int)event : 0);
    const GioAPI *api = c->st->api;
    PyObject *waiters[AT_ONCE];
    /* Of a connection that is closed: who listens for that comes first. */
    int n = collect_done(c, waiters, c->phase == GIO_PG_CLOSED ? NULL : w), rc = 0;
    hand_over(c, w);
    bool batch = n > 0 && c->mode == GIO_PG_SHARED;
    c->batching = batch;
    if (!batch)
        Py_CLEAR(c);
    for (int i = 0; i < n; i++) {
        if (rc == 0)
            rc = api->waiter_wake(waiters[i]);
        else
            api->waiter_set(waiters[i]); /* keeps the exception */
        Py_DECREF(waiters[i]);
    }
    if (batch)
        send_batch(c);
    Py_XDECREF(c);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}
