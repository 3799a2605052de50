/* What the files of _pg share: the types, who owns what, and the functions that one file
 * offers to the others. Everything here needs the GIL, libpq's functions included: with it
 * they are never called on one PGconn from two threads at once.
 *
 * A connection has a queue of operations. The first one is at the server; what comes in is fed to
 * it until it is done, then the next one is sent. Who moves the queue on is said in drive.c.
 */
#ifndef GIO_PG_H
#define GIO_PG_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/api.h"
#include "core/compat.h"
#include "pg/buf.h"
#include "pq/request.h"

typedef struct GioPgState GioPgState;
typedef struct GioPgConn GioPgConn;
typedef struct GioPgOp GioPgOp;
typedef struct GioPgStatement GioPgStatement;
typedef struct GioPgCodec GioPgCodec;
typedef struct GioPgWatch GioPgWatch;
typedef struct GioPgRecord GioPgRecord;

/* ---- module state (module.c) ------------------------------------------- */

#define GIO_PG_SMALL 257
#define GIO_PG_FREE_WIDTH 16

struct GioPgState {
    const GioAPI *api;
    PyObject *core; /* the module that api is of: it must outlive our connections */
    PyTypeObject *conn_type;
    PyTypeObject *op_type;
    PyTypeObject *statement_type;
    PyTypeObject *codec_type;
    PyTypeObject *desc_type;
    PyTypeObject *record_type;    /* without GC header: rows of plain values */
    PyTypeObject *gc_record_type; /* a subclass of it, for rows that may be in cycles */
    PyTypeObject *watch_type;
    PyTypeObject *batch_type, *buffer_type;
    PyObject *builtin;  /* {oid: Codec} that every connection starts with */
    PyObject *observer; /* of operations (trace.c); or NULL */
    PyObject *current_task;
    PyObject *timeout_error; /* asyncio.TimeoutError */
    PyObject *decimal;
    PyObject *decimal_nan, *decimal_inf, *decimal_ninf;
    PyObject *uuid;
    PyObject *uuid_safe;           /* uuid.SafeUUID.unknown */
    PyObject *small[GIO_PG_SMALL]; /* the integers from 0 on: most values are among them */
    PyObject *empty_tuple;
    /* Of record_type, to be used again, by how many columns they have; linked by their desc. */
    GioPgRecord *free_records[GIO_PG_FREE_WIDTH + 1];
    int nfree_records[GIO_PG_FREE_WIDTH + 1];
    PyObject *str_add_reader, *str_add_writer, *str_remove_reader, *str_remove_writer;
    PyObject *str_call_soon, *str_call_soon_threadsafe, *str_cancel;
    PyObject *str_is_closed, *str_is_running, *str_int, *str_is_safe, *str_bytes;
    PyObject *str_call_later, *str_expire, *str_look, *str_adjusted, *str_utcoffset;
    PyObject *str_astimezone, *str_sqlstate;
};

static inline GioPgState *
gio_pg_state(PyTypeObject *type) /* of a type that this module made */
{
    return (GioPgState *)PyType_GetModuleState(type);
}

/* Our module's state, from an object whose type may be a subclass made in Python. */
GioPgState *gio_pg_state_of(PyObject *object);

/* ---- connections (conn.c) ------------------------------------------------ */

typedef enum {
    GIO_PG_NEW,        /* not connected yet */
    GIO_PG_CONNECTING, /* the first operation polls libpq's attempt */
    GIO_PG_READY,
    GIO_PG_CLOSED
} GioPgPhase;

typedef enum {
    GIO_PG_SERIAL,   /* one operation at a time is at the server */
    GIO_PG_PIPELINE, /* what one user sends without waiting; what follows an error is skipped */
    GIO_PG_SHARED    /* queries of many, each one by itself, on their way at the same time */
} GioPgMode;

struct GioPgConn {
    PyObject_HEAD
    PyObject *weakrefs;
    GioPgState *st; /* borrowed from the module, which the type keeps alive */
    PGconn *pg;
    GioPgPhase phase;
    GioPgOp *first, *last; /* the queue; each entry is owned */
    GioPgMode mode;
    bool advancing; /* in gio_pg_advance(): it is not entered again */
    bool unflushed; /* libpq has more to send than the socket took */
    bool lost;      /* the server went away: to be closed when nothing is being moved */
    bool dropping;  /* in gio_pg_conn_drop(): it is not entered again */
    int pid;        /* the process that opened it */
    int part_reads; /* how often a read did not bring the whole answer, up to GIO_PG_MANY_PARTS */
    bool wide;      /* libpq has room for larger reads, or was to get it */
    char refused_write;  /* an operation has failed, for a transaction was read-only */
    bool discard_copy;   /* rows of a COPY come in that nobody wants */
    bool held_back;      /* more rows came than anybody has asked for: the server shall wait */
    int64_t since;       /* what is asked of a COPY is answered at once since then; or 0 */
    unsigned long mover; /* the thread that does so */

    PyObject *cache; /* {key: GioPgStatement} */
    Py_ssize_t cache_size, cacheable_size;
    double cache_lifetime; /* seconds that a statement may stay in it; 0: for ever */
    int expired;           /* statements in it that nobody finds any more */
    uint64_t clock;        /* grows with every use of a statement */
    uint64_t changes;      /* of the schema, made by this connection or undone */
    bool changed_in_tx;    /* by the transaction that is open */
    /* The session may be another's after each round trip: each is complete by itself. */
    char pooler;
    unsigned long serial;
    PyObject *codecs;       /* {oid: Codec}: what differs from the built-in ones */
    PyObject *introspect;   /* callable: rows of the catalogue -> {oid: Codec} */
    PyObject *record_class; /* rows are of it unless the call says otherwise; or NULL */
    PyObject *timeout;      /* seconds of each operation whose call names none; or NULL */
    PyObject
        *tls_check; /* callable(the server's key as DER, or None), before it goes on; or NULL */
    GioBuf out;     /* the parameters of the query that is being sent */

    PyObject *notices;  /* list of (fields), not delivered yet, or NULL */
    PyObject *on_event; /* callable(kind, value): notices, notifications, the end; or NULL */

    /* drive.c */
    GioPgWatch *watch;          /* of the loop that moves it on, or NULL; owned */
    GioPgWatch *former;         /* of loops that did so, and have not looked since; each is owned */
    int events;                 /* while connecting: what libpq wants to wait for */
    bool pumping;               /* a thread without a loop waits for the socket */
    GioPgOp *done, **done_tail; /* ended, to be woken; each is owned */

    /* pipeline.c: what is before `unsent` in the queue is at the server */
    GioPgOp *unsent;       /* in the queue, or NULL */
    GioPgOp *learner;      /* PIPELINE: what it answers is needed before more is sent; or NULL */
    int in_flight, window; /* how many are at the server, and may be */
    bool full;             /* the window has kept some from being sent */
    bool ending;           /* PIPELINE: its end is at the server */
    bool awaited;          /* PIPELINE: somebody waits before a sync */
    bool unanswered;       /* PIPELINE: the server may keep answers to itself */
    bool soon;             /* the loop will call for what was not sent yet */
    bool batching;         /* whoever is woken adds to what is sent then */

    /* cancel.c */
    bool cancelling;       /* the first operation was given up: it is being ended */
    GioPqRequest *request; /* on its way, or NULL */
    int request_wait_fd;   /* what it waits for */
    int request_events;
    bool frozen; /* the server did not answer in time */
    int64_t cancel_deadline, cancel_next;
    int64_t cancel_time; /* ns that it may take */
};

int gio_pg_conn_setup_types(PyObject *module);
/* Tell the user's callback, if there is one; what it raises is reported. Runs Python. */
void gio_pg_conn_tell(GioPgConn *c, const char *kind, PyObject *value);
/* Drop the server connection at once; every operation ends with `error` (borrowed), or with what
 * libpq says if NULL. Keeps the exception that is set. Wakes nobody yet. */
void gio_pg_conn_drop(GioPgConn *c, PyObject *error);

/* ---- operations (op.c) ---------------------------------------------------- */

typedef enum {
    GIO_PG_CONNECT,
    GIO_PG_QUERY,   /* prepared and executed */
    GIO_PG_SCRIPT,  /* by the simple protocol */
    GIO_PG_PREPARE, /* for its Statement */
    GIO_PG_MANY,    /* one statement, many times, all or nothing */
    GIO_PG_COPY,    /* a COPY, which goes on with the next ones */
    GIO_PG_COPY_READ,
    GIO_PG_COPY_WRITE,
    GIO_PG_COPY_END,
    GIO_PG_FINISH, /* closes the connection in its turn */
    GIO_PG_PIPELINE_BEGIN,
    GIO_PG_PIPELINE_SYNC,
    GIO_PG_PIPELINE_END,
    GIO_PG_STREAM,     /* a query whose rows are read by GIO_PG_COPY_READ */
    GIO_PG_REPLICATION /* a START_REPLICATION whose messages are read so; op.put() answers them */
} GioPgKind;

typedef enum {
    GIO_PG_STATUS,    /* the command tag */
    GIO_PG_RECORDS,   /* list of Record */
    GIO_PG_RECORD,    /* the first, or None */
    GIO_PG_VALUE,     /* a column of the first, or None */
    GIO_PG_TUPLES,    /* (list of tuples or None, description or None, tag) per result */
    GIO_PG_STATEMENT, /* the Statement */
    GIO_PG_NOTHING,
    GIO_PG_COLUMNS /* STREAM: each read brings the batch that is filled */
} GioPgWant;

typedef enum {
    GIO_PG_IDLE,      /* not started */
    GIO_PG_QUEUED,    /* in the queue */
    GIO_PG_BEGINNING, /* BEGIN is at the server, by itself */
    GIO_PG_PARSING,   /* PREPARE and DESCRIBE are at the server */
    GIO_PG_LEARNING,  /* its types are looked up */
    GIO_PG_WIDENING,  /* libpq is made to have room for larger reads */
    GIO_PG_EXECUTING,
    GIO_PG_COPYING, /* COPY: data may go in or out */
    GIO_PG_DONE
} GioPgStage;

struct GioPgOp {
    PyObject_HEAD
    GioPgConn *conn;  /* owned */
    GioPgOp *next;    /* in the queue */
    GioPgOp *done;    /* in the list of those to be woken: a COPY is in both */
    PyObject *sql;    /* str; the conninfo of a CONNECT */
    PyObject *before; /* str: the BEGIN, where it is the first of a transaction; or NULL */
    PyObject *args;   /* tuple, or NULL; MANY: an iterable of sequences */
    PyObject *rows;   /* MANY: the iterator */
    int64_t count;    /* MANY: rows that were changed */
    int64_t taken;    /* MANY: arguments that were taken */
    PyObject *oids;   /* bytes: the parameters' types as uint32_t; or NULL: the server infers */
    PyObject *record_class; /* or NULL */
    Py_ssize_t column;      /* of GIO_PG_VALUE; of GIO_PG_COLUMNS: rows of a batch */
    PyObject *column_name;  /* str, in its place; or NULL */
    GioPgStatement *stmt;
    GioPgOp *session; /* COPY_READ and the like: the COPY, owned */
    GioPgOp *sub;     /* COPY: what is asked of it just now, owned */
    PyObject *waiter;
    PyObject *result, *error;
    PyObject *owner; /* STREAM, COPY: the task that it is for; borrowed, only compared */
    PyObject *timer; /* loop.call_later()'s */
    PyObject *look;  /* the same, to look whether somebody moves the connection on */
    PyObject *trace; /* to be called when it has ended (trace.c); or NULL */
    int64_t trace_began, trace_ended; /* ns; 0: not yet */
    double timeout;                   /* seconds; < 0: none */
    void *loop;                       /* in which it is awaited, or NULL: only compared */
    unsigned long thread;
    GioPgKind kind;
    GioPgWant want;
    GioPgStage stage;
    int pending;   /* ends of results, and syncs, to come; MANY: executions that have not ended */
    bool queued;   /* in the queue, which owns it */
    bool sent;     /* not SERIAL: it is among those at the server */
    bool given_up; /* nobody waits for it any more */
    bool copy_in;  /* COPY: the server takes data */
    bool all_sent; /* MANY: and the sync, too */
    bool told;     /* somebody was given what came of it */
    bool answered; /* whoever waits has the result, or the error */
    bool retry;    /* its plan is stale: once more when the error has ended */
    bool retried;  /* that was so once */
    bool in_tx;    /* a transaction was open when it was sent */
    bool began;    /* it has ended, and the server may have begun to execute it */
    bool waited;   /* others had their turn meanwhile */
    bool plain;    /* a query of ours: the user's codecs do not concern it */
};

/* It stands at the head of the queue while operations of their own refer to it. */
static inline bool
gio_pg_op_is_session(const GioPgOp *op)
{
    return op->kind == GIO_PG_COPY || op->kind == GIO_PG_STREAM || op->kind == GIO_PG_REPLICATION;
}

int gio_pg_op_setup_types(PyObject *module);
/* A new operation, not started. Everything is borrowed. */
GioPgOp *gio_pg_op_new(GioPgConn *c, GioPgKind kind, GioPgWant want, PyObject *sql, PyObject *args,
                       double timeout);
/* End it once: steals both; with neither, the exception that is set is its error. It is taken
 * off the queue and put to those that gio_pg_wake() wakes. */
void gio_pg_op_finish(GioPgOp *op, PyObject *result, PyObject *error);
/* Nobody waits for it any more: drop it from the queue, or cancel what the server does. */
void gio_pg_op_give_up(GioPgOp *op);
/* Whoever waits for it may go on: with op->result or op->error. */
void gio_pg_op_answer(GioPgOp *op);

/* ---- the observer (trace.c) -------------------------------------------------- */

/* _op()'s word for it. */
const char *gio_pg_kind_name(GioPgKind kind);
/* It is about to be started. Runs Python. */
void gio_pg_trace_begin(GioPgOp *op);
/* The caller has what came of it, which is the exception that is set and stays set, or none. Runs
 * Python. */
void gio_pg_trace_end(GioPgOp *op);
/* It has ended, with its own error or none, and nobody has asked: a COPY, or one that goes away. */
void gio_pg_trace_end_late(GioPgOp *op);
PyObject *gio_pg_set_observer(PyObject *module, PyObject *observer);

/* ---- a loop's part (watch.c) ------------------------------------------------ */

struct GioPgWatch {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    GioPgConn *conn; /* borrowed, or owned if held; NULL: it is of no use any more */
    bool held;       /* while something is under way, since nobody else may have it */
    GioPgWatch *next;
    PyObject *loop;
    unsigned long thread; /* the loop's */
    int pid;              /* the process in which it was made */
    int fd, armed;        /* the socket that is registered, or -1; for which events */
    int request_fd, request_armed;
    PyObject *timer; /* call_later()'s, for a cancel request */
    int64_t timer_at;
    PyObject *graves; /* list of what is to be closed when it is registered here no more; or NULL */
};

int gio_pg_watch_setup_types(PyObject *module);
bool gio_pg_watch_is_here(GioPgWatch *w);
/* Its loop runs. Runs Python. */
bool gio_pg_watch_is_alive(GioPgWatch *w);
/* The loop, which runs in this thread, moves the connection on, unless another one came first. 0,
 * or -1 with an exception. Runs Python, as all of these. */
int gio_pg_watch_attach(GioPgConn *c, PyObject *loop);
/* It does so no more. */
void gio_pg_watch_detach(GioPgConn *c);
/* The connection goes away: no loop is to call for it. Where its socket is registered with loops of
 * other threads, a new reference to what closes `pg` when they and the caller have dropped it; else
 * NULL. */
PyObject *gio_pg_watch_forget(GioPgConn *c, PGconn *pg);
/* A cancel request is over: true if such loops will free it. */
bool gio_pg_watch_bury(GioPgConn *c, GioPqRequest *request);
/* A loop has called a watch that is not, or no more, its connection's. */
void gio_pg_watch_retire(GioPgWatch *w);
/* Register with the loop what is to be waited for now. */
void gio_pg_rearm(GioPgConn *c);
/* The same, for the cancel request alone. */
void gio_pg_rearm_request(GioPgConn *c);
/* Not registered any more, until it is rearmed: libpq may be about to close its socket. */
void gio_pg_disarm_request(GioPgConn *c);
/* Nothing is registered any more; the socket may be about to be closed. */
void gio_pg_disarm(GioPgConn *c);

/* ---- moving on (drive.c) --------------------------------------------------- */

/* Those who do not move the connection on look so often whether somebody does. */
#define GIO_PG_LOOK_NS 50000000

typedef enum {
    GIO_PG_MINE,  /* the loop that runs here does: suspend */
    GIO_PG_PUMP,  /* the caller must gio_pg_pump() */
    GIO_PG_OTHERS /* another thread does: wait, but look again */
} GioPgRole;

/* After so many, libpq is given room for larger reads. */
#define GIO_PG_MANY_PARTS 100
static inline void
gio_pg_part_read(GioPgConn *c)
{
    c->part_reads += c->part_reads < GIO_PG_MANY_PARTS;
}

/* What a loop calls. */
PyObject *gio_pg_watch_call(PyObject *self, PyObject *const *args, size_t nargsf,
                            PyObject *kwnames);
/* Start a new operation from here. 0, or -1 with an exception (then it is done). */
int gio_pg_start(GioPgOp *op);
/* See that somebody moves the connection on: a GioPgRole, or -1 with an exception. */
int gio_pg_engage(GioPgOp *op);
/* The operation's own loop does. */
bool gio_pg_is_mine(GioPgOp *op);
/* Move the connection on from a thread without a loop until the operation has ended. 0, or -1 with
 * the exception that interrupted it. Switches. */
int gio_pg_pump(GioPgOp *op, int64_t deadline);
/* The same until what it sends has been taken by the socket. */
int gio_pg_pump_out(GioPgOp *op, int64_t deadline);
/* The socket is ready for `events`: read, write, go on. Runs Python. */
void gio_pg_step(GioPgConn *c, int events);
/* Have their loops wake those that have ended. */
void gio_pg_wake(GioPgConn *c);

/* ---- several operations at the server (pipeline.c) --------------------------- */

/* Send what may be, feed those at the server with what has come. Part of gio_pg_advance(). */
void gio_pg_pipeline_advance(GioPgConn *c);
/* It is in the queue: true if it is to be sent in a moment, together with others. Runs Python. */
bool gio_pg_pipeline_defer(GioPgOp *op);
/* The first operation has something else to send before others that were not sent. */
void gio_pg_pipeline_again(GioPgOp *op);
/* It may not be sent in this mode: -1 with an exception; else 0. */
int gio_pg_pipeline_admit(GioPgOp *op);
/* Set the exception for it. */
void gio_pg_pipeline_refuse(GioPgConn *c, const char *what);
/* Send what begins, divides or ends a pipeline: false when that was all of it. */
bool gio_pg_pipeline_command(GioPgOp *op);
/* The end of a pipeline has come. */
void gio_pg_pipeline_ended(GioPgConn *c);
/* After what was sent last: the server's answers shall come. 1, or 0 on failure, as libpq's. */
int gio_pg_pipeline_sync(GioPgConn *c);
/* Somebody waits for an operation: its answer shall come without a sync. */
void gio_pg_pipeline_await(GioPgConn *c);

/* ---- what an operation does (query.c, result.c) ----------------------------- */

/* Send the first thing of it. False when that ended it. */
bool gio_pg_query_begin(GioPgOp *op);
/* A result of it (stolen), or NULL for the end of those of one thing that was sent. Runs Python. */
void gio_pg_query_feed(GioPgOp *op, PGresult *res);
/* The error is that of a plan that a change of the schema has made useless, or of a statement that
 * somebody has dropped: it leaves the cache. True if it is worth another try. */
bool gio_pg_query_is_stale(GioPgOp *op, const PGresult *res);
/* Whether a result has the columns that were described: 0, or -1 with an exception; then the
 * statement leaves the cache. */
int gio_pg_query_check(GioPgOp *op, const PGresult *res);
/* begin.c: `before` goes with the query, in one round trip, or by itself: false when that ended it.
 * Runs no Python. */
bool gio_pg_begin_joins(const GioPgOp *op);
bool gio_pg_begin_alone(GioPgOp *op);
/* With both, so many ends of results and syncs come. */
#define GIO_PG_WITH_BEGIN 3
/* The result that comes is that of BEGIN: -1 with an exception if it failed, else 0. */
bool gio_pg_begin_is_next(const GioPgOp *op);
int gio_pg_begin_answered(GioPgOp *op, const PGresult *res);
/* All answers have come: false if the connection is lost. */
bool gio_pg_begin_ended(GioPgOp *op);
/* copy.c: what is asked of a COPY. start: 0, or -1 with an exception. */
int gio_pg_copy_start(GioPgOp *sub);
/* Rows may come, of a COPY or a stream, that nobody asks for just now. */
bool gio_pg_copy_is_idle(GioPgConn *c);
/* Nobody waits for the answer any more. */
void gio_pg_copy_abandon(GioPgOp *sub);
/* The COPY is over, with `error` (borrowed), or as its own result says. */
void gio_pg_copy_ended(GioPgOp *session, PyObject *error);
/* End the one that the server has begun: its rows are thrown away, or it is refused with `why`. */
void gio_pg_copy_stop(GioPgConn *c, bool copy_in, const char *why);
/* op.put(): send a message to the server at once, without waiting. None, or NULL. */
PyObject *gio_pg_copy_put(GioPgOp *session, PyObject *data);
/* Why, where a COPY comes that nobody is ready for. */
#define GIO_PG_COPY_NEEDS "a COPY needs one of the copy methods"
/* Move it on; true when there is more to do at once. Runs Python. */
bool gio_pg_copy_advance(GioPgOp *session);
/* Answer what is asked of a COPY or a stream: steals the result; NULL: the exception that is set.
 */
void gio_pg_copy_answer(GioPgOp *sub, PyObject *result);
/* stream.c: the query has just been sent. False when that ended it. */
bool gio_pg_stream_begin(GioPgOp *op);
/* Whether an operation may be started: 0, -1 with an exception when its task would wait for itself.
 */
int gio_pg_stream_check(GioPgOp *op);
/* Some of the rows of a stream. */
bool gio_pg_stream_is_part(const PGresult *res);
/* Move a stream on, of which the caller holds what is asked; true when there is more to do at once.
 * Runs Python. */
bool gio_pg_stream_advance(GioPgOp *session);
/* batch.c: whether results like this one of the statement can be taken: 0, or -1 with an exception.
 */
int gio_pg_batch_expect(PyObject *batch, GioPgStatement *s, const PGresult *res);
/* Append the rows of such a result: 0, or -1 with an exception. */
int gio_pg_batch_take(PyObject *batch, const PGresult *res);
Py_ssize_t gio_pg_batch_rows(PyObject *batch);
bool gio_pg_batch_is_full(PyObject *batch);
/* A capsule of Arrow's for a tuple of batches. */
PyObject *gio_pg_batch_stream(PyObject *module, PyObject *batches);
int gio_pg_batch_setup_types(PyObject *module);
int gio_pg_source_setup_types(PyObject *module);     /* source.c */
int gio_pg_row_reader_setup_types(PyObject *module); /* rowreader.c */
/* many.c: begin, send some more, take an answer. Run Python. */
bool gio_pg_many_begin(GioPgOp *op);
void gio_pg_many_send(GioPgOp *op);
void gio_pg_many_feed(GioPgOp *op, const PGresult *res);
/* Feed the first operation with what has come, begin the next ones. Runs Python. */
void gio_pg_advance(GioPgConn *c);
/* What the operation answers, made of one result: new reference or NULL. */
PyObject *gio_pg_result_value(GioPgOp *op, const PGresult *res);
/* The server has ended its answer: 0, or -1 with an exception if that does not say how it went. */
int gio_pg_result_check(const GioPgOp *op);
/* The command's tag: new reference or NULL. */
PyObject *gio_pg_result_tag(const PGresult *res);
/* (rows or None, description or None, tag) */
PyObject *gio_pg_result_tuples(GioPgConn *c, GioPgStatement *stmt, const PGresult *res);

/* ---- TLS (tls.c) -------------------------------------------------------------- */

/* {fact: value}; None: there is no TLS. */
PyObject *gio_pg_tls_facts(GioPgConn *c, PyObject *ignored);
/* While connecting, after each of libpq's steps: 0, or -1 with an exception: it must not go on.
 * Runs Python. */
int gio_pg_tls_check(GioPgConn *c);

/* ---- errors (error.c) ------------------------------------------------------- */

/* The exception that an error of the server is: new reference; NULL with another one. */
PyObject *gio_pg_error_of(const PGresult *res);
PyObject *gio_pg_error_lost(GioPgConn *c);
/* Raise one of greenletio.pg.errors by name; returns NULL. */
PyObject *gio_pg_error_set(const char *name, const char *format, ...);
/* The same with the exception that is set as its cause. */
PyObject *gio_pg_error_wrap(const char *name, const char *format, ...);
/* Whether the exception that is set is of one of them, by name. */
bool gio_pg_error_is(const char *name);
/* {field: text} of a notice. */
PyObject *gio_pg_error_fields(const PGresult *res);

/* ---- statements (statement.c) ------------------------------------------------ */

typedef enum {
    GIO_PG_PLAIN,
    GIO_PG_OF_SESSION, /* it concerns those who use the connection after it */
    GIO_PG_OF_COPY,
    GIO_PG_OF_CURSOR, /* of the session, with the name of a cursor in it: of use only once */
    GIO_PG_OF_FETCH   /* the same, of use as long as that cursor is */
} GioPgCommand;

/* By its first word. What a function does to the session cannot be seen. */
GioPgCommand gio_pg_command_of(PyObject *sql);

struct GioPgStatement {
    PyObject_HEAD
    GioPgConn *conn; /* borrowed: only compared */
    PyObject *key, *sql;
    PyObject *desc;              /* RecordDesc, or NULL: it is not described */
    PyObject *description;       /* what results of tuples say of the columns; NULL: not made yet */
    GioPgCodec **params, **cols; /* owned, each */
    Oid *param_oids, *col_oids;
    int *col_mods; /* the types' modifiers */
    int nparams, ncols;
    uint64_t used;
    int64_t born;    /* when it was cached */
    int64_t element; /* executemany(): which one is being sent, from 1; else 0 */
    char name[64];   /* "": the unnamed one, of which a pooler's next round trip knows nothing */
    char tag[64];    /* of the command that it was last */
    bool prepared;   /* the server has it */
    bool described;  /* params and cols are known */
    bool resolved;   /* and so are their codecs */
    bool text;       /* its results are asked for as text */
    bool atomic;     /* its rows cannot be part of a cycle */
    bool cached;
    bool preparing; /* SHARED: that is on its way, for one of those who want it */
    GioPgCommand command;
    bool plain;        /* as the operation that it is for */
    bool outdated;     /* its codecs are to be looked for anew before it is sent again */
    uint64_t changes;  /* the connection's, when its plan was right last */
    char replaces[64]; /* one that leaves the server when this comes there, or "" */
};

int gio_pg_statement_setup_types(PyObject *module);
/* The statement for an operation: from the cache, or new. New reference. */
GioPgStatement *gio_pg_statement_get(GioPgOp *op);
/* A str as the server can have it, UTF-8 that ends with NUL: borrowed; NULL with an exception. */
const char *gio_pg_statement_text(PyObject *sql);
void gio_pg_statement_forget(GioPgConn *c, GioPgStatement *s);
/* The server has none of them any more. */
void gio_pg_statements_gone(GioPgConn *c);
/* Codecs were changed: nobody finds the statements of the cache any more; who has one goes on with
 * its codecs. 0, -1 with an exception. */
int gio_pg_statement_renew(GioPgConn *c);
/* A value of its result could not be read. If the exception that is set says that the types are not
 * what they were, all that is known of types is looked up anew. Keeps the exception. Runs Python.
 */
void gio_pg_statement_failed(GioPgStatement *s, GioPgConn *c);
/* One that should leave the cache for a new one, or NULL. Borrowed. */
GioPgStatement *gio_pg_statement_oldest(GioPgConn *c, GioPgStatement *fresh);
/* Read what DESCRIBE said: 0, or -1 with an exception. */
int gio_pg_statement_described(GioPgStatement *s, const PGresult *res);
/* Find the codecs. 1, 0 if `unknown` (a list) has got oids to be looked up, -1 with an exception.
 */
int gio_pg_statement_resolve(GioPgStatement *s, GioPgConn *c, PyObject *unknown);
/* It is executed as the server has prepared it: what has no name may be another statement by now,
 * where others use the connection, too. */
bool gio_pg_statement_by_name(const GioPgStatement *s, const GioPgConn *c);
/* Send it with parameters. 0, -1 with an exception: nothing was sent. `lenient`: a str is taken
 * for any type, as the literal that it would be in SQL. `text`: its result comes as text. `before`
 * (str, or NULL) goes first, both in libpq's pipeline mode, without the sync. Runs Python. */
int gio_pg_statement_send(GioPgStatement *s, GioPgConn *c, PyObject *args, PyObject *before,
                          bool lenient, bool text);

/* ---- cancelling (cancel.c) ---------------------------------------------------- */

/* The first operation was given up: begin to end it. */
void gio_pg_cancel_begin(GioPgConn *c);
/* Move the request on. `over`: the operation has ended. True when nothing is left to wait for. */
bool gio_pg_cancel_step(GioPgConn *c, bool over);
/* What was given up is at the server no more. */
bool gio_pg_cancel_is_over(GioPgConn *c);
/* Forget it all. */
void gio_pg_cancel_end(GioPgConn *c);
/* The fd and events of the request under way; -1 if there is none. */
int gio_pg_cancel_wants(GioPgConn *c, int *events);

/* ---- codecs ------------------------------------------------------------------- */

/* An integer: new reference. */
static inline PyObject *
gio_pg_integer(GioPgState *st, int64_t value)
{
    return (uint64_t)value < GIO_PG_SMALL ? Py_NewRef(st->small[value])
                                          : PyLong_FromLongLong(value);
}

typedef PyObject *(*GioPgDecode)(GioPgState *st, GioPgCodec *codec, const char *data,
                                 Py_ssize_t len);
/* Append the value to `out`: 0, or -1 with an exception. */
typedef int (*GioPgEncode)(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);

struct GioPgCodec {
    PyObject_HEAD
    Oid oid;
    bool text;      /* travels as text, both ways */
    bool atomic;    /* its values are never part of a cycle */
    bool tuples;    /* a tuple is a value, and no level of an array of them */
    char delimiter; /* of arrays of it, in text */
    PyObject *name, *schema;
    const char *form; /* one of codec.c's, or NULL: built in */
    GioPgDecode decode;
    GioPgEncode encode;
    GioPgCodec *element; /* of arrays, ranges, domains; the codec that a custom one is built on */
    PyObject *fields;    /* tuple of Codec, of composites */
    PyObject *desc;      /* RecordDesc, of composites */
    PyObject *decoder, *encoder; /* Python's */
};

int gio_pg_codec_setup_types(PyObject *module);
/* The codec for a type on a connection: borrowed; NULL: it is not known. `plain`: the module's own
 * comes before the connection's. */
GioPgCodec *gio_pg_codec_find(GioPgConn *c, Oid oid, bool plain);
GioPgCodec *gio_pg_codec_new(GioPgState *st, Oid oid, const char *name, GioPgDecode decode,
                             GioPgEncode encode, bool atomic);
int gio_pg_codec_add(GioPgState *st, Oid oid, Oid array, const char *name, GioPgDecode decode,
                     GioPgEncode encode, bool atomic);
/* What its values are made of, whatever the user makes of them: borrowed; NULL with an exception.
 */
GioPgCodec *gio_pg_codec_plain(GioPgState *st, GioPgCodec *codec);
/* A value that the server sent is not what its type says; returns NULL. */
PyObject *gio_pg_malformed(GioPgCodec *codec);
int gio_pg_basic_add(GioPgState *st);   /* codec_basic.c */
int gio_pg_numeric_add(GioPgState *st); /* codec_numeric.c */
int gio_pg_time_add(GioPgState *st);    /* codec_time.c */
/* A numeric as text without its NUL, for which there is room: its length; -1: it is malformed; -2
 * with MemoryError. *text is where there is room for GIO_PG_NUMERIC_SMALL bytes; if it is not that
 * any more, the caller frees it (PyMem_Free), whatever came. */
#define GIO_PG_NUMERIC_SMALL 160
Py_ssize_t gio_pg_numeric_text(const char *data, Py_ssize_t len, char **text);
PyObject *gio_pg_text_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len);
int gio_pg_text_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);
PyObject *gio_pg_int4_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len);
PyObject *gio_pg_array_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len);
int gio_pg_array_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);
PyObject *gio_pg_composite_decode(GioPgState *st, GioPgCodec *codec, const char *data,
                                  Py_ssize_t len);
PyObject *gio_pg_row_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len);
int gio_pg_row_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);
int gio_pg_composite_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);
PyObject *gio_pg_range_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len);
int gio_pg_range_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);
PyObject *gio_pg_multirange_decode(GioPgState *st, GioPgCodec *codec, const char *data,
                                   Py_ssize_t len);
int gio_pg_multirange_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);
/* One part of a larger value, its length before it: a new reference (None for NULL), *data moves
 * on; NULL with an exception when it does not fit before `end`, too. */
PyObject *gio_pg_part_decode(GioPgState *st, GioPgCodec *codec, GioPgCodec *part, const char **data,
                             const char *end);
int gio_pg_part_encode(GioPgState *st, GioPgCodec *part, PyObject *value, GioBuf *out);

/* ---- records (record.c) --------------------------------------------------------- */

struct GioPgRecord {
    PyObject_VAR_HEAD
    PyObject *desc;
    PyObject *items[1];
};

int gio_pg_record_setup_types(PyObject *module);
/* RecordDesc of a tuple of names (borrowed). */
PyObject *gio_pg_desc_new(GioPgState *st, PyObject *names);
/* Where a name is: of equal ones the last. -1 with KeyError. */
Py_ssize_t gio_pg_desc_find(PyObject *desc, PyObject *name);
/* An empty record with room for `n`; the caller fills the items, with references that it owns. */
GioPgRecord *gio_pg_record_new(GioPgState *st, PyTypeObject *type, PyObject *desc, Py_ssize_t n);
/* Give back the memory of those that are kept for another use. */
void gio_pg_records_free(GioPgState *st);
/* Nobody but whoever fills it sees it in between (as a tuple or list would be seen by what walks
 * the collector's objects, with NULL in it). Takes NULL, too, and gives it back. */
PyObject *gio_pg_hidden(PyObject *container);
PyObject *gio_pg_shown(PyObject *container);

#endif
