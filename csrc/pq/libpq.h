/* The libpq that psycopg2 itself has loaded, reached by name.
 *
 * psycopg2-binary brings a libpq of its own, so nothing here is linked: the
 * functions are looked up on the handle of psycopg2's extension module. Any
 * thread may call through the table; it is written once, by gio_libpq_load().
 */
#ifndef GIO_PQ_LIBPQ_H
#define GIO_PQ_LIBPQ_H

#include <libpq-fe.h>

/* Opaque here: libpq-fe.h declares it since libpq 17 only. */
struct pg_cancel_conn;

#define GIO_LIBPQ_REQUIRED(X)                                                                      \
    X(ConnStatusType, PQstatus, (const PGconn *))                                                  \
    X(PGTransactionStatusType, PQtransactionStatus, (const PGconn *))                              \
    X(char *, PQerrorMessage, (const PGconn *))                                                    \
    X(int, PQsocket, (const PGconn *))                                                             \
    X(int, PQisnonblocking, (const PGconn *))                                                      \
    X(int, PQsetnonblocking, (PGconn *, int))                                                      \
    X(int, PQconsumeInput, (PGconn *))                                                             \
    X(int, PQflush, (PGconn *))                                                                    \
    X(PGresult *, PQgetResult, (PGconn *))                                                         \
    X(ExecStatusType, PQresultStatus, (const PGresult *))                                          \
    X(void, PQclear, (PGresult *))                                                                 \
    X(int, PQputCopyData, (PGconn *, const char *, int))                                           \
    X(int, PQputCopyEnd, (PGconn *, const char *))                                                 \
    X(int, PQgetCopyData, (PGconn *, char **, int))                                                \
    X(void, PQfreemem, (void *))                                                                   \
    X(PGconn *, PQconnectStart, (const char *))                                                    \
    X(void, PQfinish, (PGconn *))                                                                  \
    X(PQconninfoOption *, PQconninfo, (PGconn *))                                                  \
    X(void, PQconninfoFree, (PQconninfoOption *))                                                  \
    X(PGcancel *, PQgetCancel, (PGconn *))                                                         \
    X(int, PQcancel, (PGcancel *, char *, int))                                                    \
    X(void, PQfreeCancel, (PGcancel *))

/* The cancel request that does not block: libpq 17 and later; else all NULL. */
#define GIO_LIBPQ_CANCEL(X)                                                                        \
    X(struct pg_cancel_conn *, PQcancelCreate, (PGconn *))                                         \
    X(int, PQcancelStart, (struct pg_cancel_conn *))                                               \
    X(PostgresPollingStatusType, PQcancelPoll, (struct pg_cancel_conn *))                          \
    X(int, PQcancelSocket, (const struct pg_cancel_conn *))                                        \
    X(char *, PQcancelErrorMessage, (const struct pg_cancel_conn *))                               \
    X(void, PQcancelFinish, (struct pg_cancel_conn *))

#define GIO_LIBPQ_FIELD(type, name, args) type(*name) args;
typedef struct {
    void *handle;
    GIO_LIBPQ_REQUIRED(GIO_LIBPQ_FIELD)
    GIO_LIBPQ_CANCEL(GIO_LIBPQ_FIELD)
} GioLibpq;
#undef GIO_LIBPQ_FIELD

/* Fill the table from the shared object at `path`, which must be loaded
 * already. 0, or -1 with ImportError. Needs the GIL. */
int gio_libpq_load(GioLibpq *pq, const char *path);

/* Give the handle back; the functions stay valid as long as psycopg2 is loaded. */
void gio_libpq_unload(GioLibpq *pq);

#endif
