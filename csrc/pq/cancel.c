/* Cancelling: bring an interrupted operation to an end and keep the connection.
 *
 * Runs in the wait callback (gio_pq_drain) or alone (gio_pq_cancel), with the
 * GIL. Asks the server to cancel, again and again, and polls until the operation
 * is over and no request is on its way any more: one that is late would hit the
 * next query. Never waits longer than the state's cancel_time in all.
 */
#include "core/compat.h"
#include "pq/pq.h"

/* A request may come before the query does: repeat it. */
#define RESEND_NS 250000000

/* Chains that are longer, or bite their tail, are left alone. */
#define LONGEST_CHAIN 100

/* Whether `wanted` is `exc` or one of its contexts. */
static bool
leads_to(PyObject *exc, PyObject *wanted)
{
    PyObject *at = Py_NewRef(exc);
    for (int length = 0; at != NULL && at != wanted && length < LONGEST_CHAIN; length++)
        Py_SETREF(at, PyException_GetContext(at));
    Py_XDECREF(at);
    return at != NULL;
}

void
gio_pq_chain(PyObject *exc, PyObject *context)
{
    if (context == NULL)
        return;
    PyObject *oldest = Py_NewRef(exc);
    int length = 0;
    for (; length < LONGEST_CHAIN; length++) {
        PyObject *next = PyException_GetContext(oldest);
        if (next == NULL || leads_to(context, next)) { /* shared: what was being handled, say */
            Py_XDECREF(next);
            break;
        }
        Py_SETREF(oldest, next);
    }
    if (length < LONGEST_CHAIN && !leads_to(context, oldest))
        PyException_SetContext(oldest, context);
    else
        Py_DECREF(context);
    Py_DECREF(oldest);
}

void
gio_pq_raise_pending(GioPqConn *c)
{
    PyObject *exc = c->pending;
    c->pending = NULL;
    gio_pq_chain(exc, gio_err_take());
    gio_err_give(exc);
}

/* Poll the operation, dropping what it brings: events, 0 when over, -1 with an exception. */
static int
step(GioPqState *st, GioPqConn *c)
{
    for (;;) {
        int unsent = st->pq.PQflush(c->pg) > 0 ? GIO_READ | GIO_WRITE : 0;
        int events = gio_pq_step(st, c);
        if (events == 0) {
            if (st->pq.PQtransactionStatus(c->pg) != PQTRANS_ACTIVE)
                return 0;
            int kind = gio_pq_copy_kind(st, c);
            if (kind == 0)
                return 0;
            events = gio_pq_copy_discard(st, c, kind);
            if (events == 0)
                continue;
        }
        return events < 0 ? -1 : events | unsent;
    }
}

typedef struct {
    GioPqState *st;
    GioPqConn *c;
    GioPqRequest *request;
    int64_t deadline;
    int64_t next; /* when to send another request */
} Cancel;

/* Move the request on: its fd and events, *fd < 0 when none is under way. */
static void
step_request(Cancel *x, bool over, int *fd, int *events)
{
    int64_t now = x->st->api->now();
    *fd = -1;
    if (x->request == NULL && !over && now >= x->next) {
        x->request = gio_pq_request_start(&x->st->pq, x->c->pg);
        x->next = now + RESEND_NS;
    }
    if (x->request != NULL && gio_pq_request_step(x->request, fd, events) != 0) {
        gio_pq_request_free(x->st->api, x->request);
        x->request = NULL;
        x->next = now + RESEND_NS;
        *fd = -1;
    }
}

static int
wait_for_both(Cancel *x, int events, int fd, int request_events)
{
    int fds[2], wanted[2], ready[2], n = 0;
    int64_t until = x->request == NULL && x->next < x->deadline ? x->next : x->deadline;
    if (events != 0) {
        fds[n] = x->c->fd = x->st->pq.PQsocket(x->c->pg);
        wanted[n++] = events;
    }
    if (fd >= 0) {
        fds[n] = fd;
        wanted[n++] = request_events;
    }
    return gio_pq_wait_fds(x->st, x->c, fds, wanted, ready, n, until) < 0 ? -1 : 0;
}

/* 0 when the operation is over, -1 with an exception when it cannot be ended. */
static int
drain(Cancel *x)
{
    for (;;) {
        int fd, request_events = 0;
        int events = step(x->st, x->c);
        if (events < 0)
            return -1;
        step_request(x, events == 0, &fd, &request_events);
        if (events == 0 && x->request == NULL)
            return 0;
        if (x->st->api->now() >= x->deadline) {
            PyErr_Format(x->st->operational_error,
                         "the server did not end the cancelled query within %d ms: "
                         "the connection was closed, and whether the query was done is unknown",
                         (int)(x->st->cancel_time / 1000000));
            return -1;
        }
        if (wait_for_both(x, events, fd, request_events) < 0)
            return -1;
    }
}

int
gio_pq_drain(GioPqState *st, GioPqConn *c)
{
    int64_t now = st->api->now();
    Cancel x = {.st = st, .c = c, .deadline = now + st->cancel_time, .next = now};
    st->api->shield(1);
    int rc = drain(&x);
    if (x.request != NULL)
        gio_pq_request_free(st->api, x.request);
    PyObject *failure = rc < 0 ? gio_err_take() : NULL;
    PyObject *later = st->api->shield(0);
    if (later != NULL) {
        /* The task was cancelled (again) meanwhile: that must not be lost. */
        gio_pq_chain(later, c->pending);
        c->pending = later;
    }
    if (rc < 0) {
        gio_pq_chain(c->pending, failure);
        gio_pq_raise_pending(c);
    }
    return rc;
}

int
gio_pq_cancel(GioPqState *st, GioPqConn *c)
{
    int64_t deadline = st->api->now() + st->cancel_time;
    GioPqRequest *request = gio_pq_request_start(&st->pq, c->pg);
    int rc = request == NULL ? -1 : 0;
    if (request == NULL)
        PyErr_SetString(st->operational_error, "a cancel request cannot be made: out of resources");
    while (rc == 0) {
        int fd, events, ready;
        int state = gio_pq_request_step(request, &fd, &events);
        if (state > 0)
            break;
        if (state < 0) {
            PyErr_SetString(st->operational_error, gio_pq_request_error(request));
            rc = -1;
        }
        else if (st->api->now() >= deadline) {
            PyErr_SetString(st->operational_error, "the server did not take the cancel request");
            rc = -1;
        }
        else if (gio_pq_wait_fds(st, c, &fd, &events, &ready, 1, deadline) < 0) {
            rc = -1;
        }
    }
    if (request != NULL)
        gio_pq_request_free(st->api, request);
    return rc;
}
