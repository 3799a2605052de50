/* One cancel request, made without blocking: libpq 17's own way where the loaded
 * libpq has it, else PQcancel() in a plain C thread that reports through a pipe.
 *
 * Needs the GIL, except the thread, which touches no Python object. A thread
 * that hangs (its server is frozen) can be left behind: the job is freed by
 * whoever of the two drops it last, and so the pipe stays open until then.
 */
#include "pq/request.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#define STACK_SIZE (256 * 1024)

typedef struct {
    atomic_int holders;
    int (*cancel)(PGcancel *, char *, int);
    void (*free_key)(PGcancel *);
    PGcancel *key;
    int pipe[2];
    bool delivered;
    char error[256];
} Job;

struct GioPqRequest {
    const GioLibpq *pq;
    struct pg_cancel_conn *conn; /* libpq >= 17 */
    bool polled;
    Job *job; /* before */
};

static void
job_drop(Job *job)
{
    if (atomic_fetch_sub(&job->holders, 1) > 1)
        return;
    job->free_key(job->key);
    close(job->pipe[0]);
    close(job->pipe[1]);
    free(job);
}

static void *
job_run(void *arg)
{
    Job *job = arg;
    ssize_t written;
    job->delivered = job->cancel(job->key, job->error, sizeof(job->error)) != 0;
    written = write(job->pipe[1], "", 1); /* one byte into an empty pipe: cannot fail */
    (void)written;
    job_drop(job);
    return NULL;
}

/* A detached thread that receives no signals. */
static int
thread_start(Job *job)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    if (pthread_attr_init(&attr) != 0)
        return -1;
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, &attr, job_run, job);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return rc == 0 ? 0 : -1;
}

static Job *
job_start(const GioLibpq *pq, PGconn *pg)
{
    Job *job = calloc(1, sizeof(*job));
    if (job == NULL)
        return NULL;
    job->cancel = pq->PQcancel;
    job->free_key = pq->PQfreeCancel;
    job->key = pq->PQgetCancel(pg);
    if (job->key == NULL || pipe(job->pipe) < 0) {
        pq->PQfreeCancel(job->key);
        free(job);
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        fcntl(job->pipe[i], F_SETFD, FD_CLOEXEC);
        fcntl(job->pipe[i], F_SETFL, O_NONBLOCK);
    }
    atomic_init(&job->holders, 2);
    if (thread_start(job) < 0) {
        atomic_store(&job->holders, 1);
        job_drop(job);
        return NULL;
    }
    return job;
}

GioPqRequest *
gio_pq_request_start(const GioLibpq *pq, PGconn *pg)
{
    GioPqRequest *req = PyMem_Calloc(1, sizeof(*req));
    if (req == NULL)
        return NULL;
    req->pq = pq;
    if (pq->PQcancelCreate != NULL) {
        req->conn = pq->PQcancelCreate(pg);
        if (req->conn != NULL)
            pq->PQcancelStart(req->conn); /* a failure shows at the first poll */
    }
    else {
        req->job = job_start(pq, pg);
    }
    if (req->conn == NULL && req->job == NULL) {
        PyMem_Free(req);
        return NULL;
    }
    return req;
}

static int
step_conn(GioPqRequest *req, int *fd, int *events)
{
    *fd = req->pq->PQcancelSocket(req->conn);
    if (!req->polled && *fd >= 0) {
        /* As after PQconnectStart: wait until it can be written to, then poll. */
        req->polled = true;
        *events = GIO_WRITE;
        return 0;
    }
    switch (req->pq->PQcancelPoll(req->conn)) {
    case PGRES_POLLING_OK:
        return 1;
    case PGRES_POLLING_READING:
        *events = GIO_READ;
        break;
    case PGRES_POLLING_WRITING:
        *events = GIO_WRITE;
        break;
    default:
        return -1;
    }
    *fd = req->pq->PQcancelSocket(req->conn);
    return 0;
}

int
gio_pq_request_step(GioPqRequest *req, int *fd, int *events)
{
    char byte;
    if (req->conn != NULL)
        return step_conn(req, fd, events);
    *fd = req->job->pipe[0];
    *events = GIO_READ;
    if (read(*fd, &byte, 1) != 1)
        return 0;
    return req->job->delivered ? 1 : -1;
}

const char *
gio_pq_request_error(GioPqRequest *req)
{
    return req->conn != NULL ? req->pq->PQcancelErrorMessage(req->conn) : req->job->error;
}

void
gio_pq_request_free(const GioAPI *api, GioPqRequest *req)
{
    if (req->conn != NULL) {
        int fd = req->pq->PQcancelSocket(req->conn);
        if (fd >= 0)
            api->fd_closing(fd);
        req->pq->PQcancelFinish(req->conn);
    }
    else {
        api->fd_closing(req->job->pipe[0]);
        job_drop(req->job);
    }
    PyMem_Free(req);
}
