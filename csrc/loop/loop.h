/* The event loop's types, and what its files offer each other. core.h has what stands below.
 *
 * Only the thread that runs a loop touches its event_base, and never while that is polled:
 * the poll runs without the GIL, so a function that finds `polling` set while it holds the GIL
 * is in another thread, and refuses.
 */
#ifndef GIO_LOOP_H
#define GIO_LOOP_H

#include "core/core.h"

#include <event2/event.h>
#include <event2/event_struct.h>

typedef struct GioLoop GioLoop;
typedef struct GioHandle GioHandle;
typedef struct GioPoll GioPoll;
typedef struct GioSock GioSock; /* sock.h */

/* ---- what is to be run (ready.c) --------------------------------------------- */

/* Runs one ready entry. -1 with an exception ends the loop's run: KeyboardInterrupt and
 * SystemExit only; the rest is reported to the loop's exception handler. */
typedef int (*GioRun)(GioLoop *loop, PyObject *self);

typedef struct {
    GioRun run;
    PyObject *self; /* owned */
} GioReady;

typedef struct {
    GioReady *slots; /* a ring; size is a power of two */
    size_t size, head, count;
} GioReadyRing;

/* -1 with MemoryError. */
int gio_ready_push(GioLoop *loop, GioRun run, PyObject *self);
/* The oldest one, whose reference is the caller's; the ring must not be empty. */
GioReady gio_ready_pop(GioLoop *loop);
/* Drop everything; handles among it are cancelled. May run Python. */
void gio_ready_clear(GioLoop *loop);

/* ---- timers (schedule.c) ------------------------------------------------------- */

typedef struct {
    double when;
    Py_ssize_t serial; /* equal times keep their order; whose timer it is keeps it, too */
    PyObject *handle;  /* owned: a TimerHandle of ours, a GioWaiter, or one of asyncio's */
} GioTimer;

typedef struct {
    GioTimer *timers; /* a heap */
    Py_ssize_t count, size;
    Py_ssize_t dead; /* how many of them were cancelled */
    Py_ssize_t serial;
} GioSchedule;

int gio_schedule_add(GioLoop *loop, PyObject *handle, double when);
/* Of one of ours that is scheduled. Runs no Python: it is dropped later. */
void gio_schedule_cancel(GioLoop *loop, PyObject *handle);
/* The same for one of asyncio's own, which is found by looking at all: debug mode only. It is
 * dropped at once, but the caller has it. */
void gio_schedule_remove(GioLoop *loop, PyObject *handle);
/* The time of the first timer; false if there is none. Lets go of what was cancelled: may run
 * Python. */
bool gio_schedule_next(GioLoop *loop, double *when);
/* Have everything run that is due before `end`. -1 with MemoryError. */
int gio_schedule_fire(GioLoop *loop, double end);
void gio_schedule_clear(GioLoop *loop);

/* ---- file descriptors (poll.c) --------------------------------------------------- */

/* One fd watched for one kind of event, embedded in whoever wants to know. Started, it keeps
 * `self` alive; `run` is called, in its turn, whenever the fd is ready (level-triggered). */
struct GioPoll {
    struct event event;
    GioLoop *loop; /* borrowed; NULL before init */
    GioRun run;
    PyObject *self; /* borrowed, but owned while started */
    /* If set, called instead, right after the poll, to say what is to be run. Runs no Python. */
    void (*collect)(GioPoll *p);
    GioPoll *prev, *next; /* all that are started */
    bool started;
};

/* What add_reader and add_writer have left for one fd number. */
typedef struct {
    GioPoll poll[2];
    GioHandle *handle[2]; /* owned; NULL: nobody wants to know */
} GioFdHandlers;

/* What the loop knows of one fd number. */
typedef struct {
    GioFdHandlers *handlers; /* owned; NULL: none */
    PyObject *transport;     /* that claims it; borrowed */
    GioSock *sock;           /* owned; NULL: no sock_recv or its kin was ever waited for */
    int level;               /* started polls of others than `sock`: these are level-triggered */
} GioFdSlot;

/* The slot of an fd, good until another number is asked for; NULL with OSError
 * (it is no open file) or MemoryError. */
GioFdSlot *gio_polls_slot(GioLoop *loop, int fd);
/* `events` is EV_READ or EV_WRITE; sock.c alone adds EV_ET. */
void gio_poll_init(GioPoll *p, GioLoop *loop, int fd, short events, GioRun run, PyObject *self);
/* Both are idempotent, and a system call each; -1 with an exception. */
int gio_poll_start(GioPoll *p);
int gio_poll_stop(GioPoll *p);
int gio_polls_open(GioLoop *loop);
/* Stop whatever is started and free the base. */
void gio_polls_close(GioLoop *loop);
/* Wait for events until the loop's time is `until` (0: not at all, < 0: as long as it takes), then
 * put what is ready in the ring. Releases the GIL. -1 with an exception. */
int gio_polls_run(GioLoop *loop, double until);
/* In a forked child, whose epolls are made anew: a list of the loops that are open, new; NULL with
 * MemoryError. */
PyObject *gio_loops_after_fork(GioState *st);
/* The transport that owns an fd is told apart from add_reader's users. */
int gio_polls_claim_fd(GioLoop *loop, int fd, PyObject *transport);
void gio_polls_release_fd(GioLoop *loop, int fd, PyObject *transport);
extern PyMethodDef gio_poll_methods[];

/* ---- sock_recv and its kin, as the rest of the loop sees them (sock.c) ----------- */

/* At the end of an iteration: stop watching what nobody uses. May run Python. */
void gio_socks_sweep(GioLoop *loop);
/* Others are about to watch this fd: be level-triggered, too, or gone. May run Python. */
int gio_socks_make_way(GioSock *s);
/* The loop closes: whoever waits is forgotten. May run Python. */
void gio_socks_close(GioLoop *loop);

/* ---- handles (handle.c) ------------------------------------------------------------ */

#define GIO_HANDLE_INLINE 3

struct GioHandle {
    PyObject_HEAD /* no GC header: see handle.c */
    PyObject *weakrefs;
    GioLoop *loop; /* borrowed; NULL once it is done or cancelled */
    PyObject *callback, *context;
    double when;
    Py_ssize_t timer; /* its serial in the schedule; -1: not there */
    bool own_context; /* its context is our copy, which nobody else has seen: kept untracked */
    bool cancelled;
    bool kept;   /* runs again and again: of add_reader or add_writer */
    bool spread; /* argv[1] is a tuple of the arguments */
    int nargs;
    PyObject *argv[1 + GIO_HANDLE_INLINE]; /* argv[0] is scratch for vectorcall's offset */
};

/* `context` NULL or None: a copy of the current one. */
GioHandle *gio_handle_new(GioLoop *loop, PyTypeObject *type, PyObject *callback,
                          PyObject *const *args, Py_ssize_t nargs, PyObject *context);
int gio_handle_run(GioLoop *loop, PyObject *self);
/* It will not run: lets go of everything. May run Python. */
void gio_handle_cancel(GioHandle *h);
int gio_handle_traverse(GioHandle *h, visitproc visit, void *arg);
int gio_handle_setup_types(PyObject *module, GioState *st);
/* Run a handle of asyncio's own. */
int gio_handle_run_foreign(GioLoop *loop, PyObject *self);
/* Report the exception that is raised to the loop's handler, as asyncio does; -1 if it is
 * one that ends the run, and stays raised. */
int gio_loop_report(GioLoop *loop, const char *message, const char *key, PyObject *value);

/* ---- TLS (tls.h) --------------------------------------------------------------------- */

typedef struct GioTls GioTls;

/* Raw memory: it is used without the GIL, too. */
typedef struct {
    char *data;
    size_t start, end, room; /* what it holds lies from start to end */
} GioBuffer;

/* ---- the loop (loop.c) --------------------------------------------------------------- */

struct GioLoop {
    PyObject_HEAD
    GioState *state;             /* borrowed */
    struct GioLoop *prev, *next; /* all loops */
    PyObject *task_factory;      /* NULL: none */
    int portals;                 /* > 0: new tasks step their coroutines by portals */
    struct event_base *base;     /* NULL once closed */
    struct event timer;          /* ends a poll in time */
    int timer_fd;                /* Linux: the timerfd that it watches; -1 */
    double alarm;                /* when that fires; 0: never */
    bool closed, stopping, debug;
    bool iterating; /* inside _run_once */
    bool polling;   /* the loop's thread is inside the poll, without the GIL */
    bool woken;     /* the self-pipe has been written to since the poll began */
    int wake_fd;    /* the self-pipe's writing end; -1 */
    GioReadyRing ready;
    GioSchedule schedule;
    GioHub *hub;     /* what joins green waits to us; NULL before the first */
    PyObject *watch; /* the hub's: let go of when we close */
    GioPoll *polls;  /* that are started */
    GioPoll **fired; /* by the poll under way */
    size_t nfired, fired_size;
    GioFdSlot *fds; /* by number */
    int nfds;
    GioSock *idle_socks;   /* for the sweep, borrowed */
    GioSock *active_socks; /* a ring, borrowed */
    char *scratch;         /* see gio_loop_scratch; NULL until it is needed, and while it is lent */
    GioBuffer ciphertext;  /* memory for what is about to be sent */
    GioTls *unflushed;     /* to which this turn has written; each is owned */
    unsigned long ident;   /* of the thread that iterates */
    GioGreen *green;       /* the spawned greenlet whose step this is, borrowed */
    GioGreen *greens;      /* those that have no task, linked, borrowed */
    int quiet;             /* > 0: being hashed, the loop makes no task */
    PyObject *take_context; /* what call_soon is to call in it goes to `taken`; borrowed */
    GioHandle *taken;       /* owned */
};

#define GIO_READ_MAX (256 * 1024) /* of one read; asyncio's max_size */

double gio_loop_time(void);
/* -1 with RuntimeError. */
int gio_loop_check_open(GioLoop *loop);
int gio_loop_check_idle(GioLoop *loop);
void gio_loop_wake(GioLoop *loop);
/* call_soon_threadsafe(fn, arg): -1 with an exception. */
int gio_loop_call_soon(GioLoop *loop, PyObject *fn, PyObject *arg, PyObject *context);
/* Wakes a GioWaiter that has ended: a GioRun. */
int gio_waiter_run(GioLoop *loop, PyObject *waiter);
/* Call asyncio's own method of that name: what is out of the ordinary, and debug mode. */
PyObject *gio_loop_by_asyncio(GioLoop *loop, const char *method, PyObject *const *args,
                              Py_ssize_t nargs, PyObject *kwnames);
/* asyncio keeps the current task in a dict whose keys are the loops: to hash one is to ask for it.
 */
Py_hash_t gio_greens_loop_hash(PyObject *loop);
/* The loop stops: whoever runs it looks for tasks. Runs Python; reports failures. */
void gio_greens_make_tasks(GioLoop *loop);
/* create_task and create_future (factory.c) */
extern PyMethodDef gio_factory_methods[];
int gio_factory_setup(GioState *st);
/* Memory for what is received, GIO_READ_MAX of it, that is good until the next who asks; NULL
 * with MemoryError. */
char *gio_loop_scratch(GioLoop *loop);
int gio_loop_setup_types(PyObject *module, GioState *st);
/* -1 with an exception. */
int gio_add_methods(PyTypeObject *type, PyMethodDef *methods);

#endif
