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

/* ---- module state (module.c) ------------------------------------------- */

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
    PyObject *builtin; /* {oid: Codec} that every connection starts with */
    PyObject *get_running_loop;
    PyObject *timeout_error; /* asyncio.TimeoutError */
    PyObject *decimal;
    PyObject *decimal_nan, *decimal_inf, *decimal_ninf;
    PyObject *uuid;
    PyObject *uuid_safe; /* uuid.SafeUUID.unknown */
    PyObject *empty_tuple;
    PyObject *str_add_reader, *str_add_writer, *str_remove_reader, *str_remove_writer;
    PyObject *str_call_soon_threadsafe, *str_cancel;
    PyObject *str_is_closed, *str_is_running, *str_int, *str_is_safe, *str_bytes;
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

struct GioPgConn {
    PyObject_HEAD
    PyObject *weakrefs;
    GioPgState *st; /* borrowed from the module, which the type keeps alive */
    PGconn *pg;
    GioPgPhase phase;
    GioPgOp *first, *last; /* the queue; each entry is owned */
    bool advancing;        /* in gio_pg_advance(): it is not entered again */
    bool unflushed;        /* libpq has more to send than the socket took */
    bool lost;             /* the server went away: to be closed when nothing is being moved */
    bool dropping;         /* in gio_pg_conn_drop(): it is not entered again */
    int pid;               /* the process that opened it */
    bool discard_copy;     /* rows of a COPY come in that nobody wants */
    unsigned long mover;   /* the thread that does so */

    PyObject *cache; /* {key: GioPgStatement} */
    Py_ssize_t cache_size, cacheable_size;
    char
        pooler; /* the session may be another's after each round trip: each is complete by itself */
    uint64_t clock; /* grows with every use of a statement */
    unsigned long serial;
    PyObject *codecs;       /* {oid: Codec}: what differs from the built-in ones */
    PyObject *introspect;   /* callable: rows of the catalogue -> {oid: Codec} */
    PyObject *record_class; /* rows are of it unless the call says otherwise; or NULL */
    PyObject *timeout;      /* seconds, where the call names none; or NULL */
    GioBuf out;             /* the parameters of the query that is being sent */

    PyObject *notices;  /* list of (fields), not delivered yet, or NULL */
    PyObject *on_event; /* callable(kind, value): notices, notifications, the end; or NULL */

    /* drive.c */
    PyObject *loop;             /* the loop that has a reader of ours; or NULL */
    unsigned long loop_thread;  /* its thread */
    GioPgWatch *watch;          /* what the loop calls */
    int fd;                     /* the socket that is registered, or -1 */
    int armed;                  /* for which events */
    int events;                 /* while connecting: what libpq wants to wait for */
    bool pumping;               /* a thread without a loop waits for the socket */
    GioPgOp *done, **done_tail; /* ended, to be woken; each is owned */

    /* cancel.c */
    bool cancelling;       /* the first operation was given up: it is being ended */
    GioPqRequest *request; /* on its way, or NULL */
    int request_wait_fd;   /* what it waits for */
    int request_events;
    int request_fd; /* registered with the loop, or -1 */
    int request_armed;
    bool frozen; /* the server did not answer in time */
    int64_t cancel_deadline, cancel_next;
    PyObject *cancel_timer; /* loop.call_later()'s */
    int64_t cancel_time;    /* ns that it may take */
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
    GIO_PG_FINISH /* closes the connection in its turn */
} GioPgKind;

typedef enum {
    GIO_PG_STATUS,    /* the command tag */
    GIO_PG_RECORDS,   /* list of Record */
    GIO_PG_RECORD,    /* the first, or None */
    GIO_PG_VALUE,     /* a column of the first, or None */
    GIO_PG_TUPLES,    /* (list of tuples or None, description or None, tag) per result */
    GIO_PG_STATEMENT, /* the Statement */
    GIO_PG_NOTHING
} GioPgWant;

typedef enum {
    GIO_PG_IDLE,     /* not started */
    GIO_PG_QUEUED,   /* in the queue */
    GIO_PG_PARSING,  /* PREPARE and DESCRIBE are at the server */
    GIO_PG_LEARNING, /* its types are looked up */
    GIO_PG_EXECUTING,
    GIO_PG_COPYING, /* COPY: data may go in or out */
    GIO_PG_DONE
} GioPgStage;

struct GioPgOp {
    PyObject_HEAD
    GioPgConn *conn; /* owned */
    GioPgOp *next;   /* in the queue */
    GioPgOp *done;   /* in the list of those to be woken: a COPY is in both */
    PyObject *sql;   /* str; the conninfo of a CONNECT */
    PyObject *args;  /* tuple, or NULL; MANY: an iterable of sequences */
    PyObject *rows;  /* MANY: the iterator */
    int64_t count;   /* MANY: rows that were changed */
    PyObject *oids;  /* bytes: the parameters' types as uint32_t; or NULL: the server infers */
    PyObject *record_class; /* or NULL */
    Py_ssize_t column;      /* of GIO_PG_VALUE */
    GioPgStatement *stmt;
    GioPgOp *session; /* COPY_READ and the like: the COPY, owned */
    GioPgOp *sub;     /* COPY: what is asked of it just now, owned */
    PyObject *waiter;
    PyObject *result, *error;
    PyObject *timer; /* loop.call_later()'s */
    double timeout;  /* seconds; < 0: none */
    unsigned long thread;
    GioPgKind kind;
    GioPgWant want;
    GioPgStage stage;
    int pending;   /* PARSING: syncs to come; MANY: executions that have not ended */
    bool queued;   /* in the queue, which owns it */
    bool given_up; /* nobody waits for it any more */
    bool copy_in;  /* COPY: the server takes data */
    bool all_sent; /* MANY: and the sync, too */
    bool answered; /* whoever waits has the result, or the error */
    bool retry;    /* its plan is stale: once more when the error has ended */
    bool retried;  /* that was so once */
    bool in_tx;    /* a transaction was open when it was sent */
};

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

/* ---- moving on (drive.c) --------------------------------------------------- */

int gio_pg_watch_setup_types(PyObject *module);
GioPgWatch *gio_pg_watch_new(GioPgConn *c);
/* The connection goes away. */
void gio_pg_watch_forget(GioPgWatch *w);
/* As gio_pg_rearm, for the cancel request alone. */
void gio_pg_rearm_request(GioPgConn *c);
/* Start a new operation from here. 0, or -1 with an exception (then it is done). */
int gio_pg_start(GioPgOp *op);
/* It has not ended and somebody waits: see that somebody moves the connection on. 1: the
 * caller must gio_pg_pump(); 0: it may suspend; -1 with an exception. */
int gio_pg_engage(GioPgOp *op);
/* Move the connection on from a thread without a loop until the operation has ended. 0, or -1 with
 * the exception that interrupted it. Switches. */
int gio_pg_pump(GioPgOp *op, int64_t deadline);
/* The socket is ready for `events`: read, write, go on. Runs Python. */
void gio_pg_step(GioPgConn *c, int events);
/* Register with the loop what is to be waited for now. */
void gio_pg_rearm(GioPgConn *c);
/* Nothing is registered any more; the socket is about to be closed. */
void gio_pg_disarm(GioPgConn *c);
/* Have their loops wake those that have ended. */
void gio_pg_wake(GioPgConn *c);

/* ---- what an operation does (query.c, result.c) ----------------------------- */

/* Send the first thing of it. False when that ended it. */
bool gio_pg_query_begin(GioPgOp *op);
/* The error is that of a plan that a change of the schema has made useless, or of a statement that
 * somebody has dropped: it leaves the cache. True if it is worth another try. */
bool gio_pg_query_is_stale(GioPgOp *op, const PGresult *res);
/* copy.c: what is asked of a COPY. start: 0, or -1 with an exception. */
int gio_pg_copy_start(GioPgOp *sub);
/* Nobody waits for the answer any more. */
void gio_pg_copy_abandon(GioPgOp *sub);
/* The COPY is over, with `error` (borrowed), or as its own result says. */
void gio_pg_copy_ended(GioPgOp *session, PyObject *error);
/* Move it on; true when there is more to do at once. */
bool gio_pg_copy_advance(GioPgOp *session);
/* many.c: begin, send some more, take an answer. Run Python. */
bool gio_pg_many_begin(GioPgOp *op);
void gio_pg_many_send(GioPgOp *op);
void gio_pg_many_feed(GioPgOp *op, const PGresult *res);
/* Feed the first operation with what has come, begin the next ones. Runs Python. */
void gio_pg_advance(GioPgConn *c);
/* What the operation answers, made of one result: new reference or NULL. */
PyObject *gio_pg_result_value(GioPgOp *op, const PGresult *res);
/* (rows or None, description or None, tag) */
PyObject *gio_pg_result_tuples(GioPgConn *c, GioPgStatement *stmt, const PGresult *res);

/* ---- errors (error.c) ------------------------------------------------------- */

/* The exception that an error of the server is: new reference; NULL with another one. */
PyObject *gio_pg_error_of(const PGresult *res);
PyObject *gio_pg_error_lost(GioPgConn *c);
/* Raise one of greenletio.pg.errors by name; returns NULL. */
PyObject *gio_pg_error_set(const char *name, const char *format, ...);
/* The same with the exception that is set as its cause. */
PyObject *gio_pg_error_wrap(const char *name, const char *format, ...);
/* {field: text} of a notice. */
PyObject *gio_pg_error_fields(const PGresult *res);

/* ---- statements (statement.c) ------------------------------------------------ */

struct GioPgStatement {
    PyObject_HEAD
    GioPgConn *conn; /* borrowed: only compared */
    PyObject *key, *sql;
    PyObject *desc;              /* RecordDesc, or NULL when there are no columns */
    GioPgCodec **params, **cols; /* owned, each */
    Oid *param_oids, *col_oids;
    int nparams, ncols;
    uint64_t used;
    char name[24];  /* "": the unnamed one, of which a pooler's next round trip knows nothing */
    bool prepared;  /* the server has it */
    bool described; /* params and cols are known */
    bool text;      /* its results are asked for as text */
    bool atomic;    /* its rows cannot be part of a cycle */
    bool cached;
    bool outdated; /* its codecs are to be looked for anew before it is sent again */
};

int gio_pg_statement_setup_types(PyObject *module);
/* The statement for an operation: from the cache, or new. New reference. */
GioPgStatement *gio_pg_statement_get(GioPgOp *op);
/* A str as the server can have it, UTF-8 that ends with NUL: borrowed; NULL with an exception. */
const char *gio_pg_statement_text(PyObject *sql);
void gio_pg_statement_forget(GioPgConn *c, GioPgStatement *s);
/* One that should leave the cache for a new one, or NULL. Borrowed. */
GioPgStatement *gio_pg_statement_oldest(GioPgConn *c);
/* Read what DESCRIBE said: 0, or -1 with an exception. */
int gio_pg_statement_described(GioPgStatement *s, const PGresult *res);
/* Find the codecs. 1, 0 if `unknown` (a list) has got oids to be looked up, -1 with an exception.
 */
int gio_pg_statement_resolve(GioPgStatement *s, GioPgConn *c, PyObject *unknown);
/* Send it with parameters. 0, -1 with an exception: nothing was sent. `lenient`: a str is taken
 * for any type, as the literal that it would be in SQL. Runs Python. */
int gio_pg_statement_send(GioPgStatement *s, GioPgConn *c, PyObject *args, bool lenient);

/* ---- cancelling (cancel.c) ---------------------------------------------------- */

/* The first operation was given up: begin to end it. */
void gio_pg_cancel_begin(GioPgConn *c);
/* Move the request on. `over`: the operation has ended. True when nothing is left to wait for. */
bool gio_pg_cancel_step(GioPgConn *c, bool over);
/* Forget it all. */
void gio_pg_cancel_end(GioPgConn *c);
/* The fd and events of the request under way; -1 if there is none. */
int gio_pg_cancel_wants(GioPgConn *c, int *events);

/* ---- codecs ------------------------------------------------------------------- */

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
    PyObject *name;
    const char *form; /* one of codec.c's, or NULL: built in */
    GioPgDecode decode;
    GioPgEncode encode;
    GioPgCodec *element; /* of arrays, ranges, domains; the codec that a custom one is built on */
    PyObject *fields;    /* tuple of Codec, of composites */
    PyObject *desc;      /* RecordDesc, of composites */
    PyObject *decoder, *encoder; /* Python's */
};

int gio_pg_codec_setup_types(PyObject *module);
/* The codec for a type on a connection: borrowed; NULL: it is not known. */
GioPgCodec *gio_pg_codec_find(GioPgConn *c, Oid oid);
GioPgCodec *gio_pg_codec_new(GioPgState *st, Oid oid, const char *name, GioPgDecode decode,
                             GioPgEncode encode, bool atomic);
int gio_pg_codec_add(GioPgState *st, Oid oid, Oid array, const char *name, GioPgDecode decode,
                     GioPgEncode encode, bool atomic);
/* A value that the server sent is not what its type says; returns NULL. */
PyObject *gio_pg_malformed(GioPgCodec *codec);
int gio_pg_basic_add(GioPgState *st);   /* codec_basic.c */
int gio_pg_numeric_add(GioPgState *st); /* codec_numeric.c */
int gio_pg_time_add(GioPgState *st);    /* codec_time.c */
PyObject *gio_pg_text_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len);
int gio_pg_text_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);
PyObject *gio_pg_array_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len);
int gio_pg_array_encode(GioPgState *st, GioPgCodec *codec, PyObject *value, GioBuf *out);
PyObject *gio_pg_composite_decode(GioPgState *st, GioPgCodec *codec, const char *data,
                                  Py_ssize_t len);
PyObject *gio_pg_row_decode(GioPgState *st, GioPgCodec *codec, const char *data, Py_ssize_t len);
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

typedef struct {
    PyObject_VAR_HEAD
    PyObject *desc;
    PyObject *items[1];
} GioPgRecord;

int gio_pg_record_setup_types(PyObject *module);
/* RecordDesc of a tuple of names (borrowed). */
PyObject *gio_pg_desc_new(GioPgState *st, PyObject *names);
/* An empty record with room for `n`; the caller fills the items, with references that it owns. */
GioPgRecord *gio_pg_record_new(PyTypeObject *type, PyObject *desc, Py_ssize_t n);
/* Nobody but whoever fills it sees it in between (as a tuple or list would be seen by what walks
 * the collector's objects, with NULL in it). Takes NULL, too, and gives it back. */
PyObject *gio_pg_hidden(PyObject *container);
PyObject *gio_pg_shown(PyObject *container);

#endif
