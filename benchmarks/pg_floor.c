/* What libpq itself costs: the queries of benchmarks/pg.py by a C program that makes no Python
 * object.
 *
 *     pg_floor fetch|many|copy-in|copy-out CONNINFO TASKS COUNT SQL PARAMETER... -- SETUP...
 *
 * It makes TASKS connections, runs SETUP on each, does COUNT rounds in all, and prints the CPU time
 * and the wall time of the last COUNT in nanoseconds, and the rows (bytes, of a copy) of one round.
 * A failure ends it with a message.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <libpq-fe.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#define WARM_UP 50
#define MANY 1000
#define COPIED 10000

typedef struct {
    PGconn *pg;
    long left;
} Task;

static char **params;
static int nparams;
static const char *sql;
static long rows;
static volatile uint64_t seen; /* so that no value goes unread */

static void
die(const char *what, PGconn *pg)
{
    fprintf(stderr, "pg_floor: %s: %s", what, pg != NULL ? PQerrorMessage(pg) : strerror(errno));
    exit(1);
}

static void
run(PGconn *pg, const char *command)
{
    PGresult *res = PQexec(pg, command);
    if (PQresultStatus(res) != PGRES_COMMAND_OK && PQresultStatus(res) != PGRES_TUPLES_OK)
        die(command, pg);
    PQclear(res);
}

static uint64_t
now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- fetch ------------------------------------------------------------------------------- */

/* Look at every value, as a driver has to. */
static void
walk(const PGresult *res)
{
    int n = PQntuples(res), columns = PQnfields(res);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < columns; j++)
            if (!PQgetisnull(res, i, j))
                seen += (unsigned char)*PQgetvalue(res, i, j) + (unsigned)PQgetlength(res, i, j);
    rows = n;
}

static void
ask(Task *task)
{
    task->left--;
    if (!PQsendQueryPrepared(task->pg, "q", nparams, (const char *const *)params, NULL, NULL, 1))
        die("send", task->pg);
    while (PQflush(task->pg) == 1)
        poll(&(struct pollfd){PQsocket(task->pg), POLLOUT, 0}, 1, -1);
}

/* What has come of one task's query; whether it has none left. */
static int
hear(Task *task)
{
    PGresult *res;
    if (!PQconsumeInput(task->pg))
        die("receive", task->pg);
    while (!PQisBusy(task->pg)) {
        if ((res = PQgetResult(task->pg)) == NULL) {
            if (task->left == 0)
                return 1;
            ask(task);
            return 0;
        }
        if (PQresultStatus(res) != PGRES_TUPLES_OK)
            die(sql, task->pg);
        walk(res);
        PQclear(res);
    }
    return 0;
}

static void
fetch(Task *tasks, int n, long count)
{
    struct epoll_event events[64];
    int epoll = epoll_create1(EPOLL_CLOEXEC), busy = n;
    for (int i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &tasks[i]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, PQsocket(tasks[i].pg), &event) < 0)
            die("epoll", NULL);
        tasks[i].left = count / n > 0 ? count / n : 1;
        ask(&tasks[i]);
    }
    while (busy > 0) {
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++)
            busy -= hear(events[i].data.ptr);
    }
    for (int i = 0; i < n; i++)
        epoll_ctl(epoll, EPOLL_CTL_DEL, PQsocket(tasks[i].pg), NULL);
}

/* ---- executemany --------------------------------------------------------------------------- */

static void
many(PGconn *pg)
{
    char text[32];
    uint32_t number;
    const char *values[2] = {(const char *)&number, text};
    const int formats[2] = {1, 1};
    int synced = 0;
    if (!PQenterPipelineMode(pg))
        die("pipeline", pg);
    for (int i = 0; i < MANY; i++) {
        number = __builtin_bswap32((uint32_t)i);
        int lengths[2] = {4, snprintf(text, sizeof(text), "text %d", i)};
        if (!PQsendQueryPrepared(pg, "q", 2, values, lengths, formats, 1))
            die("send", pg);
    }
    if (!PQpipelineSync(pg))
        die("sync", pg);
    while (!synced) {
        int pending = PQflush(pg);
        struct pollfd wait = {PQsocket(pg), (short)(POLLIN | (pending ? POLLOUT : 0)), 0};
        poll(&wait, 1, -1);
        if (!PQconsumeInput(pg))
            die("receive", pg);
        while (!synced && !PQisBusy(pg)) {
            PGresult *res = PQgetResult(pg);
            synced = res != NULL && PQresultStatus(res) == PGRES_PIPELINE_SYNC;
            if (res != NULL && !synced && PQresultStatus(res) != PGRES_COMMAND_OK)
                die(sql, pg);
            PQclear(res);
        }
    }
    if (!PQexitPipelineMode(pg))
        die("pipeline", pg);
    rows = MANY;
}

/* ---- COPY ------------------------------------------------------------------------------------ */

static char *
put(char *at, const void *data, uint32_t length)
{
    uint32_t size = __builtin_bswap32(length);
    memcpy(at, &size, 4);
    memcpy(at + 4, data, length);
    return at + 4 + length;
}

static void
copy_in(PGconn *pg)
{
    static const char head[] = "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0";
    char buffer[65536], text[32], *at = buffer;
    PGresult *res = PQexec(pg, sql);
    if (PQresultStatus(res) != PGRES_COPY_IN)
        die(sql, pg);
    PQclear(res);
    memcpy(at, head, 19);
    at += 19;
    for (int i = 0; i < COPIED; i++) {
        uint32_t number = __builtin_bswap32((uint32_t)i);
        double third = i / 3.0;
        uint64_t bits;
        memcpy(&bits, &third, 8);
        bits = __builtin_bswap64(bits);
        memcpy(at, "\0\3", 2);
        at = put(at + 2, &number, 4);
        at = put(at, text, (uint32_t)snprintf(text, sizeof(text), "text %d", i));
        at = put(at, &bits, 8);
        if (at > buffer + sizeof(buffer) - 128 || i == COPIED - 1) {
            if (i == COPIED - 1) {
                memcpy(at, "\377\377", 2);
                at += 2;
            }
            if (PQputCopyData(pg, buffer, (int)(at - buffer)) != 1)
                die("copy", pg);
            at = buffer;
        }
    }
    if (PQputCopyEnd(pg, NULL) != 1)
        die("copy", pg);
    while ((res = PQgetResult(pg)) != NULL) {
        if (PQresultStatus(res) != PGRES_COMMAND_OK)
            die(sql, pg);
        PQclear(res);
    }
    rows = COPIED;
}

static void
copy_out(PGconn *pg)
{
    char *row;
    int length;
    PGresult *res = PQexec(pg, sql);
    if (PQresultStatus(res) != PGRES_COPY_OUT)
        die(sql, pg);
    PQclear(res);
    rows = 0;
    while ((length = PQgetCopyData(pg, &row, 0)) > 0) {
        rows += length;
        PQfreemem(row);
    }
    while ((res = PQgetResult(pg)) != NULL) {
        if (PQresultStatus(res) != PGRES_COMMAND_OK)
            die(sql, pg);
        PQclear(res);
    }
}

int
main(int argc, char **argv)
{
    if (argc < 6) {
        fputs("usage: see the head of pg_floor.c\n", stderr);
        return 2;
    }
    const char *mode = argv[1];
    int n = atoi(argv[3]), is_fetch = strcmp(mode, "fetch") == 0, setup = 6;
    long count = atol(argv[4]);
    Task *tasks = calloc((size_t)n, sizeof(*tasks));
    uint64_t cpu = 0, wall = 0;
    if (tasks == NULL)
        die("memory", NULL);
    sql = argv[5];
    params = argv + 6;
    while (setup < argc && strcmp(argv[setup], "--") != 0)
        setup++;
    nparams = setup - 6;
    for (int i = 0; i < n; i++) {
        PGconn *pg = tasks[i].pg = PQconnectdb(argv[2]);
        if (PQstatus(pg) != CONNECTION_OK)
            die("connect", pg);
        for (int j = setup + 1; j < argc; j++)
            run(pg, argv[j]);
        if (is_fetch || strcmp(mode, "many") == 0) {
            PQclear(PQprepare(pg, "q", sql, 0, NULL));
            PQsetnonblocking(pg, 1);
        }
    }
    for (int phase = 0; phase < 2; phase++) {
        long turns = phase == 0 && count > WARM_UP ? WARM_UP : count;
        wall = now(CLOCK_MONOTONIC);
        cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        if (is_fetch)
            fetch(tasks, n, turns);
        for (long i = 0; !is_fetch && i < turns; i++)
            (strcmp(mode, "many") == 0      ? many
             : strcmp(mode, "copy-in") == 0 ? copy_in
                                            : copy_out)(tasks[0].pg);
        cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        wall = now(CLOCK_MONOTONIC) - wall;
    }
    printf("%llu %llu %ld\n", (unsigned long long)cpu, (unsigned long long)wall, rows);
    for (int i = 0; i < n; i++)
        PQfinish(tasks[i].pg);
    free(tasks);
    return 0;
}
