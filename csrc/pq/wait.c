/* The wait callback: psycopg2 has sent something and calls it to wait for the answer.
 *
 * Called by psycopg2 with the GIL and the connection's mutex held. The policy is
 * looked up at every wait: suspended in a greenlet, plain poll(2) where no loop
 * runs or the connection is flagged blocking. An exception that leaves this
 * callback makes psycopg2 close the connection, so an interruption (cancellation,
 * timeout, Ctrl-C) is kept in c->pending and raised by the guard.
 */
#include "core/compat.h"
#include "pq/pq.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#define MAX_FDS 2

static int
poll_timeout(int64_t deadline, int64_t now)
{
    if (deadline == GIO_NEVER)
        return -1;
    int64_t left = deadline > now ? (deadline - now + 999999) / 1000000 : 0;
    return left > INT_MAX ? INT_MAX : (int)left;
}

/* Hold the thread, whatever runs in it. */
static int
block(GioPqState *st, const int *fds, const int *events, int *ready, int n, int64_t deadline)
{
    struct pollfd polled[MAX_FDS];
    int count;
    for (int i = 0; i < n; i++) {
        polled[i].fd = fds[i];
        polled[i].events =
            (short)((events[i] & GIO_READ ? POLLIN : 0) | (events[i] & GIO_WRITE ? POLLOUT : 0));
    }
    for (;;) {
        int timeout = poll_timeout(deadline, st->api->now());
        int error;
        Py_BEGIN_ALLOW_THREADS
        count = poll(polled, (nfds_t)n, timeout);
        error = errno;
        Py_END_ALLOW_THREADS
        if (count > 0 || (count == 0 && (timeout == 0 || st->api->now() >= deadline)))
            break;
        if (PyErr_CheckSignals() < 0)
            return -1;
        if (count < 0 && error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    for (int i = 0; i < n; i++) {
        short got = polled[i].revents;
        bool broken = (got & (POLLERR | POLLHUP | POLLNVAL)) != 0;
        ready[i] =
            broken ? events[i] : (got & POLLIN ? GIO_READ : 0) | (got & POLLOUT ? GIO_WRITE : 0);
    }
    return count;
}

int
gio_pq_wait_fds(GioPqState *st, GioPqConn *c, const int *fds, const int *events, int *ready, int n,
                int64_t deadline)
{
    if (c->blocking)
        return block(st, fds, events, ready, n, deadline);
    return st->api->wait_fds(fds, events, ready, n, deadline);
}

int
gio_pq_wait_socket(GioPqState *st, GioPqConn *c, int events, int64_t deadline)
{
    int fd = st->pq.PQsocket(c->pg), ready = 0;
    if (fd < 0)
        return gio_pq_conn_failed(st, c);
    if (c->fd != fd)
        gio_pq_conn_closed_fd(st, c); /* libpq went on to another address */
    c->fd = fd;
    if (!c->blocking)
        return st->api->wait_fd(fd, events, deadline);
    int rc = block(st, &fd, &events, &ready, 1, deadline);
    return rc < 0 ? -1 : ready;
}

int
gio_pq_step(GioPqState *st, GioPqConn *c)
{
    PyObject *answer = st->poll(c->conn, NULL);
    if (answer == NULL)
        return -1;
    long state = PyLong_AsLong(answer);
    Py_DECREF(answer);
    switch (state) {
    case 0:
        return 0;
    case 1:
        return GIO_READ;
    case 2:
        /* While a query is sent, the server may have something to say first. */
        return gio_pq_connecting(st, c->conn) ? GIO_WRITE : GIO_READ | GIO_WRITE;
    default:
        return PyErr_Occurred() ? -1 : gio_pq_conn_failed(st, c);
    }
}

/* One of the options that libpq connects with, wherever it found it: "" if unset.
 * Borrowed from `options`. */
static const char *
option(PQconninfoOption *options, const char *keyword)
{
    for (PQconninfoOption *o = options; o != NULL && o->keyword != NULL; o++) {
        if (strcmp(o->keyword, keyword) == 0)
            return o->val != NULL ? o->val : "";
    }
    return "";
}

/* When a connection attempt must be over: connect_timeout. */
static int64_t
connect_deadline(GioPqState *st, PQconninfoOption *options)
{
    long seconds = strtol(option(options, "connect_timeout"), NULL, 10);
    if (seconds <= 0 || seconds >= INT_MAX)
        return GIO_NEVER;
    return st->api->now() + (int64_t)seconds * 1000000000;
}

/* Say which server it was: psycopg2 loses that part of libpq's message. */
static void
name_the_server(GioPqState *st, PQconninfoOption *options)
{
    if (!PyErr_ExceptionMatches(st->operational_error))
        return;
    PyObject *error = gio_err_take(), *text = PyObject_Str(error);
    const char *message = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    if (message == NULL || strstr(message, "connection to server") != NULL) {
        gio_err_give(error);
    }
    else {
        const char *host = option(options, "host");
        PyErr_Format(st->operational_error, "connection to server at \"%s\", port %s failed: %s",
                     *host ? host : option(options, "hostaddr"), option(options, "port"), message);
        Py_DECREF(error);
    }
    Py_XDECREF(text);
}

/* Poll and wait until psycopg2 has its connection. */
static int
run_connecting(GioPqState *st, GioPqConn *c)
{
    PQconninfoOption *options = st->pq.PQconninfo(c->pg);
    int64_t deadline = connect_deadline(st, options);
    int events, ready, rc = GIO_PQ_DONE;
    while (rc == GIO_PQ_DONE && (events = gio_pq_step(st, c)) != 0) {
        if (events < 0) {
            rc = GIO_PQ_FAILED;
        }
        else if ((ready = gio_pq_wait_socket(st, c, events, deadline)) < 0) {
            rc = GIO_PQ_INTERRUPTED;
        }
        else if (ready == 0) {
            PyErr_SetString(st->operational_error, "timeout expired\n");
            rc = GIO_PQ_FAILED;
        }
    }
    if (rc == GIO_PQ_FAILED)
        name_the_server(st, options);
    st->pq.PQconninfoFree(options);
    return rc;
}

/* Poll and wait until psycopg2 has its result. */
static int
run(GioPqState *st, GioPqConn *c)
{
    for (;;) {
        int events = gio_pq_step(st, c);
        if (events < 0)
            return GIO_PQ_FAILED;
        if (events == 0) {
            if (st->pq.PQtransactionStatus(c->pg) != PQTRANS_ACTIVE)
                return GIO_PQ_DONE;
            int kind = gio_pq_copy_kind(st, c);
            if (kind == 0)
                return GIO_PQ_DONE;
            int rc = gio_pq_copy_run(st, c, kind);
            if (rc != GIO_PQ_DONE)
                return rc;
            continue;
        }
        int ready = gio_pq_wait_socket(st, c, events, GIO_NEVER);
        if (ready < 0)
            return GIO_PQ_INTERRUPTED;
        if ((events & GIO_WRITE) && (ready & GIO_READ))
            st->pq.PQconsumeInput(c->pg); /* its failure shows at the next step */
    }
}

/* After which the greenlet, or the connection, cannot wait for a cancel any more. A wait
 * fails with OSError itself; TimeoutError, say, is what a signal handler raises. */
static bool
is_final(GioPqState *st)
{
    return PyErr_ExceptionMatches(PyExc_GeneratorExit) ||
           PyErr_ExceptionMatches(st->greenlet_exit) || PyErr_Occurred() == PyExc_OSError ||
           PyErr_ExceptionMatches(st->would_block);
}

/* Wait, and if interrupted bring the operation to an end. 0, or -1 with an exception. */
static int
wait_guarded(GioPqState *st, GioPqConn *c, bool guarded)
{
    int rc = GIO_PQ_INTERRUPTED;
    if (c->pending == NULL) {
        bool connecting = gio_pq_connecting(st, c->conn);
        rc = connecting ? run_connecting(st, c) : run(st, c);
        if (rc != GIO_PQ_INTERRUPTED)
            return rc;
        if (!guarded || connecting || is_final(st))
            return -1;
        PyObject *interruption = gio_err_take();
        gio_pq_chain(interruption, c->pending); /* what the file of a COPY raised before */
        c->pending = interruption;
    }
    return gio_pq_drain(st, c);
}

PyObject *
gio_pq_wait(PyObject *module, PyObject *conn)
{
    GioPqState *st = gio_pq_state(module);
    if (!PyObject_TypeCheck(conn, st->connection))
        return PyErr_Format(PyExc_TypeError, "expected a psycopg2 connection, not %.100s",
                            Py_TYPE(conn)->tp_name);
    GioPqConn *c = gio_pq_conn_get(module, conn);
    if (c == NULL)
        return NULL;
    int rc = gio_pq_conn_attach(st, c);
    int guarded = rc < 0 ? -1 : gio_pq_turn_is_mine(st, c);
    if (guarded < 0) {
        Py_DECREF(c);
        return NULL;
    }
    /* Without a guard (while connecting, or by a method looked up before the patch)
     * the turn is taken here, unless somebody has it: psycopg2's mutex is held already. */
    bool taken = !guarded && c->owner == NULL;
    if (taken)
        rc = gio_pq_turn_take(st, c);
    if (rc == 0) {
        c->waiting = true;
        rc = wait_guarded(st, c, guarded);
        c->waiting = false;
        if (!guarded && rc == 0 && c->pending != NULL) { /* nobody else will raise it */
            gio_pq_raise_pending(c);
            rc = -1;
        }
        if (rc < 0)
            gio_pq_conn_gone(st, c);
        if (taken)
            gio_pq_turn_end(st, c);
    }
    Py_DECREF(c);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}
