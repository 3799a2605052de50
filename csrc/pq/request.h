/* One cancel request, on a connection of its own. It knows neither psycopg2 nor Python's
 * connections: greenletio._pg is built with it, too. Needs the GIL.
 */
#ifndef GIO_PQ_REQUEST_H
#define GIO_PQ_REQUEST_H

#include "core/api.h"
#include "pq/libpq.h"

typedef struct GioPqRequest GioPqRequest;
/* NULL if it cannot be made now; no exception is set. */
GioPqRequest *gio_pq_request_start(const GioLibpq *pq, PGconn *pg);
/* 1 delivered, 0 not yet (then wait for *events on *fd), -1 failed (see error). */
int gio_pq_request_step(GioPqRequest *req, int *fd, int *events);
const char *gio_pq_request_error(GioPqRequest *req);
/* Give it up, finished or not. */
void gio_pq_request_free(const GioAPI *api, GioPqRequest *req);

#endif
