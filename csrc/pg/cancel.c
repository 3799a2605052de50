/* Ending what the server does for an operation that nobody waits for any more.
 *
 * It happens in the background: whoever was cancelled goes on at once, the next operation waits
 * until the old one has ended and no request is on its way, since that would hit it. The request is
 * asked again and again, for the query may come after it. When the server does not answer in time,
 * the connection is dropped.
 */
#include "pg/pg.h"

#define RESEND_NS 250000000

/* libpq's functions, as the request wants them. */
static const GioLibpq linked = {
    .PQgetCancel = PQgetCancel,
    .PQcancel = PQcancel,
    .PQfreeCancel = PQfreeCancel,
#ifdef LIBPQ_HAS_ASYNC_CANCEL
    .PQcancelCreate = (struct pg_cancel_conn * (*)(PGconn *)) PQcancelCreate,
    .PQcancelStart = (int (*)(struct pg_cancel_conn *))PQcancelStart,
    .PQcancelPoll = (PostgresPollingStatusType(*)(struct pg_cancel_conn *))PQcancelPoll,
    .PQcancelSocket = (int (*)(const struct pg_cancel_conn *))PQcancelSocket,
    .PQcancelErrorMessage = (char *(*)(const struct pg_cancel_conn *))PQcancelErrorMessage,
    .PQcancelFinish = (void (*)(struct pg_cancel_conn *))PQcancelFinish,
#endif
};

static void
drop_request(GioPgConn *c)
{
    GioPqRequest *request = c->request;
    c->request = NULL;
    c->request_wait_fd = -1;
    if (request != NULL) {
        gio_pg_rearm_request(c); /* before its fd is closed */
        if (!gio_pg_watch_bury(c, request))
            gio_pq_request_free(c->st->api, request);
    }
}

void
gio_pg_cancel_end(GioPgConn *c)
{
    c->cancelling = false;
    drop_request(c);
    gio_pg_rearm_request(c); /* and its timer */
}

int
gio_pg_cancel_wants(GioPgConn *c, int *events)
{
    *events = c->request_events;
    return c->request == NULL ? -1 : c->request_wait_fd;
}

bool
gio_pg_cancel_is_over(GioPgConn *c)
{
    GioPgOp *first = c->first;
    return first == NULL || first->stage == GIO_PG_QUEUED ||
           (c->mode == GIO_PG_PIPELINE && !first->given_up);
}

bool
gio_pg_cancel_step(GioPgConn *c, bool over)
{
    int64_t now = c->st->api->now();
    if (!c->cancelling)
        return true;
    if (c->watch != NULL && !gio_pg_watch_is_here(c->watch)) {
        gio_pg_rearm_request(c); /* the loop does it */
        return false;
    }
    if (c->request == NULL && !over && now >= c->cancel_next) {
        c->request = gio_pq_request_start(&linked, c->pg);
        c->cancel_next = now + RESEND_NS;
    }
    if (c->request != NULL)
        gio_pg_disarm_request(c); /* libpq may close the socket and open one of the same number */
    if (c->request != NULL) {
        int fd = -1, events = 0;
        if (gio_pq_request_step(c->request, &fd, &events) != 0) {
            drop_request(c);
            c->cancel_next = now + RESEND_NS;
        }
        else {
            c->request_wait_fd = fd;
            c->request_events = events;
        }
    }
    if (over && c->request == NULL) {
        gio_pg_cancel_end(c);
        return true;
    }
    if (now >= c->cancel_deadline)
        c->frozen = true; /* the next step drops the connection */
    return false;
}

void
gio_pg_cancel_begin(GioPgConn *c)
{
    if (c->cancelling || c->dropping || c->phase != GIO_PG_READY)
        return;
    int64_t now = c->st->api->now();
    c->cancelling = true;
    c->cancel_next = now;
    c->cancel_deadline = now + c->cancel_time;
    gio_pg_cancel_step(c, false);
    gio_pg_rearm(c);
}
