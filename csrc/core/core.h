/* Internal header of _core: the types, who owns what, and the functions that
 * one file offers to the others. api.h is what other extensions may use.
 *
 * Everything here needs the GIL. "Borrowed" fields name who keeps the object
 * alive. A function that may run Python code or switch greenlets says so; the
 * caller holds its own references across it.
 */
#ifndef GIO_CORE_H
#define GIO_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "api.h"
#include "compat.h"

typedef struct GioState GioState;
typedef struct GioThread GioThread;
typedef struct GioWorker GioWorker;
typedef struct GioCall GioCall;
typedef struct GioHub GioHub;
typedef struct GioWaiter GioWaiter;
typedef struct GioTimeout GioTimeout;
typedef struct GioHere GioHere;
typedef struct GioGreen GioGreen; /* csrc/loop/green.c */

/* ---- module state (module.c) ------------------------------------------- */

struct GioState {
    PyTypeObject *call_type;
    PyTypeObject *portal_type;
    PyTypeObject *async_function_type;
    PyTypeObject *await_function_type;
    PyTypeObject *waiter_type;
    PyTypeObject *hub_type;
    PyTypeObject *watch_type;
    PyTypeObject *thread_type;
    PyTypeObject *timeout_type;
    PyTypeObject *worker_type;
    PyTypeObject *green_socket_type; /* csrc/sync */
    PyTypeObject *tls_session_type;
    PyTypeObject *lock_type;
    PyTypeObject *rlock_type;
    PyTypeObject *condition_type;
    PyTypeObject *event_type;
    PyTypeObject *semaphore_type;
    PyTypeObject *simple_queue_type;
    PyTypeObject *queue_type;
    PyTypeObject *local_type;
    PyTypeObject *loop_type; /* from here: csrc/loop */
    PyTypeObject *green_type;
    PyTypeObject *public_green; /* greenletio.Green; NULL before the first spawn() */
    PyTypeObject *handle_type;
    PyTypeObject *timer_handle_type;
    PyTypeObject *stream_type;
    PyTypeObject *read_pipe_type;
    PyTypeObject *write_pipe_type;
    PyTypeObject *datagram_type;
    PyTypeObject *tls_type;
    PyTypeObject *sock_type;
    PyTypeObject *sock_op_type;
    PyTypeObject *socket_type; /* socket.socket */
    int socket_layout;       /* its fields are where we look for them: 1 yes, -1 no, 0 not known */
    PyObject *greenlet_exit; /* greenlet.GreenletExit */
    PyObject *cancelled_error;   /* asyncio.CancelledError */
    PyObject *get_running_loop;  /* asyncio._get_running_loop; ask gio_running_loop() */
    PyTypeObject *holder_type;   /* what that looks at is of it, borrowed; NULL: not known yet */
    int holder_pid;              /* the process in which that was found out */
    PyObject *buffered_protocol; /* asyncio.BufferedProtocol */
    PyObject *transport_socket;  /* asyncio.trsock.TransportSocket */
    PyObject *set_result;        /* asyncio.futures._set_result_unless_cancelled */
    PyObject *current_task;      /* asyncio.current_task */
    PyObject *enter_task;        /* asyncio.tasks._enter_task */
    PyObject *leave_task;        /* asyncio.tasks._leave_task */
    PyObject *spawn_task;        /* greenletio._green.spawn_task; NULL before the first spawn() */
    PyObject *on_spawn;          /* callable(green) of whoever wants to hear of each; or NULL */
    PyObject *done;              /* greenletio._loops.done */
    PyObject *loops;             /* module greenletio._loops: the cold paths */
    PyObject *worker_run;        /* what every worker greenlet runs */
    PyObject *thread_key;        /* of the GioThread in the thread state's dict */
    GioThread *threads;          /* all of them, linked, borrowed */
    GioThread *last_thread;      /* the one that was asked for last, borrowed, */
    uint64_t last_thread_id;     /* and its thread state's id, which is never used again */
    GioThread *ending;           /* is letting go of its locals, borrowed; or NULL */
    unsigned long collecting;    /* the thread in which the garbage collector is at work, or 0 */
    PyObject *str_add_done_callback;
    PyObject *str_blocking; /* "_asyncio_future_blocking" */
    PyObject *str_call_soon;
    PyObject *str_call_soon_threadsafe;
    PyObject *str_buffer_updated;
    PyObject *str_cancel;
    PyObject *str_close;
    PyObject *str_context;
    PyObject *str_connection_lost;
    PyObject *str_connection_made;
    PyObject *str_data_received;
    PyObject *str_datagram_received;
    PyObject *str_eof_received;
    PyObject *str_error_received;
    PyObject *str_get_buffer;
    PyObject *str_running_loop;
    PyObject *str_hub; /* the attribute of a loop that holds its hub */
    PyObject *str_remove_done_callback;
    PyObject *str_throw;
    PyObject *str_timeout; /* "_timeout", of green sockets */
    PyObject *str_fileno;
    PyObject *str_connect_ex;
    PyObject *str_ensure_fd_no_transport;
    PyObject *str_gettimeout;
    PyObject *str_setblocking;
    PyObject *str_get_loop;
    PyObject *str_is_closed;
    PyObject *str_name;
    PyObject *str_qualname;
    PyObject *kw_context;           /* ("context",) */
    GioHub *hubs;                   /* all hubs, linked, borrowed */
    struct GioLoop *event_loops;    /* all event loops of ours, linked, borrowed */
    struct GioHandle *free_handles; /* for reuse */
    int nfree_handles;
    PyObject *task_type, *future_type; /* asyncio's */
    PyObject *kw_task[4];              /* ("loop",), with "name" (1) and "context" (2) */
    char *receive_buffer; /* of green sockets: used between two calls of Python, NULL at first */
    bool much_received;   /* by the last of them that asked for much */
    char *spare_out; /* memory for ciphertext, that no green TLS session uses now; NULL: none */
    size_t spare_room;
    PyObject *str_tls; /* "_tls", of green TLS sockets */
    PyObject *str_acquire;
    PyObject *str_append;
    PyObject *str_locked;
    PyObject *str_pop;
    PyObject *str_popleft;
    PyObject *str_release;
    PyObject *heappush, *heappop; /* heapq's */
    PyObject *queue_empty;        /* queue.Empty */
    PyTypeObject *real_lock_type; /* _thread's, */
    PyTypeObject *deque_type;     /* and collections.deque, with methods of theirs */
    PyMethodDef *real_lock_locked, *deque_append, *deque_popleft;
    PyObject *main_call;              /* counts as the code of the main thread; NULL: none does */
    const struct GioOpenSSL *openssl; /* _ssl's, once it was asked for; NULL: not usable */
    bool openssl_sought;
};

/* What a threading.local has for one call or thread (csrc/sync/local.c): a list, NULL if nothing.
 */
typedef struct GioLocalValues GioLocalValues;
/* It is over: let go of them. Runs Python; keeps the exception that is raised. */
void gio_locals_end(GioLocalValues **head);

/* What belongs to one line of sync execution: a call of an async_ function, or
 * a thread's plain code. */
typedef struct {
    GioTimeout *scopes;  /* innermost `with timeout`, borrowed: the with holds it */
    uint64_t cancels;    /* cancellations that were thrown in so far */
    int shield;          /* > 0: cancellation is kept, scopes are not looked at */
    unsigned in_vain;    /* how often it has asked a queue in vain since it last waited */
    PyObject *kept;      /* the exception kept by the shield */
    GioTimeout *expired; /* the scope that ended the last wait, borrowed; only valid then */
    GioWaiter *waiting;  /* what it is suspended on, borrowed ... */
    int64_t deadline;    /* ... and that wait's own deadline, without the scopes' */
} GioJob;

/* ---- per thread (thread.c) ---------------------------------------------- */

#define GIO_DEPTHS 32 /* bits of a uint32_t */

struct GioThread {
    PyObject_HEAD
    GioState *state;     /* borrowed: the module outlives its threads' use */
    unsigned long ident; /* PyThread_get_thread_ident() of the owner */
    GioThread *prev, *next;
    PyObject *main; /* the thread's main greenlet */
    /* The pool, by how deep in the C stack its workers begin; links, each owning its worker. */
    GioWorker *idle[GIO_DEPTHS];
    uint32_t idle_depths; /* a bit for each depth that has some */
    int idle_count;
    int idle_unused;    /* of the idle, how many no job has needed lately */
    int released;       /* jobs ended since that count began */
    GioCall *calls;     /* started, unfinished calls; linked, borrowed */
    PyObject *orphans;  /* list: calls dropped elsewhere, to be unwound here */
    GioHub *hub;        /* the last one used, a cache */
    PyObject *own_loop; /* for plain code that spawned something */
    GioJob job;         /* the thread's plain code */
    GioLocalValues *locals;
    int wake_fd;       /* eventfd that plain waits on a Waiter poll; -1 */
    char *stack_low;   /* lowest usable address of the C stack, or NULL */
    char *stack_high;  /* its other end, where depths are counted from */
    size_t depth_unit; /* bytes of C stack */
};

/* The calling thread's, made on first use; borrowed, NULL with an exception. */
GioThread *gio_thread_get(GioState *st);
int gio_thread_own_wake_fd(GioThread *t);
/* Unwind calls that other threads dropped. May switch. */
void gio_thread_reap(GioThread *t);
/* Unwind every call that is suspended, or only those whose loop has closed. Switches;
 * reports what is raised. */
void gio_thread_close_calls(GioThread *t, bool stranded_only);
/* In a forked child: the wake fd is the parent's. */
void gio_thread_forget_wake_fd(GioThread *t);
int gio_thread_setup_types(PyObject *module, GioState *st);

/* ---- greenlets (greenlet.c: the one file that includes greenlet.h) ------ */

/* The layout of greenlet's object; greenlet.c asserts it. */
typedef struct {
    PyObject_HEAD
    PyObject *weakreflist;
    PyObject *dict;
    void *impl;
} GioGreenlet;

/* YIELD: suspended until the next step; REST: a portal's coroutine handed something up itself,
 * and the worker is free. */
typedef enum { GIO_OUT_NONE, GIO_OUT_YIELD, GIO_OUT_REST, GIO_OUT_RETURN, GIO_OUT_ERROR } GioOut;
typedef enum { GIO_IN_NONE, GIO_IN_SEND, GIO_IN_THROW } GioIn;

/* A greenlet that runs one call after another. Values pass through `in` and
 * `out`, never through the switch. */
struct GioWorker {
    GioGreenlet base;
    GioThread *thread;  /* borrowed; NULL once the thread has gone */
    GioWorker *next;    /* in the pool; owned */
    GioCall *call;      /* the job, borrowed: the call owns the worker; NULL when idle */
    PyObject *driver;   /* the greenlet inside call_step; set exactly while it is there */
    PyObject *inner;    /* the greenlet that waits, if not the worker itself */
    PyObject *context;  /* the driver's, shared while the worker runs */
    PyObject *handled;  /* what the driver is handling as the job starts: sys.exc_info() there */
    PyObject *awaiting; /* what it is suspended on: the garbage collector and debuggers look */
    PyObject *driven;   /* borrowed from await_: the awaitable that yielded it, else NULL */
    PyObject *in, *out;
    GioIn in_kind;
    GioOut out_kind;
    int depth;    /* how deep in the C stack it began: 0 .. GIO_DEPTHS; set as it starts */
    bool started; /* inside the trampoline, until it quits */
    bool quit;    /* leave the trampoline */
    GioRecursion recursion;
};

int gio_greenlet_import(GioState *st);
PyObject *gio_greenlet_current(void);       /* new reference */
PyObject *gio_greenlet_parent(PyObject *g); /* new reference, NULL at the top */
int gio_greenlet_set_parent(PyObject *g, PyObject *p);
bool gio_greenlet_active(PyObject *g);
/* greenlet's own switch, from its API table: called without a frame between, since each
 * suspended greenlet keeps a copy of its C stack. */
extern PyObject *(*gio_greenlet_switch_raw)(PyObject *g, PyObject *args, PyObject *kwargs);
/* Switch to g. 0 when somebody switches back, -1 when something is thrown. */
static inline int
gio_greenlet_switch(PyObject *g)
{
    PyObject *got = gio_greenlet_switch_raw(g, NULL, NULL);
    Py_XDECREF(got); /* values travel in the worker's mailbox */
    return got == NULL ? -1 : 0;
}
int gio_worker_setup_types(PyObject *module, GioState *st);

/* ---- workers (worker.c) ------------------------------------------------- */

/* A worker ready to be switched to from here for the first step of a job; a new reference. */
GioWorker *gio_worker_acquire(GioThread *t);
/* Take an idle worker out of the pool, of the deepest; a new reference, NULL if there is none. */
GioWorker *gio_worker_take_idle(GioThread *t);
/* Give it back after its job. Steals; may switch when the worker can't be reused. */
void gio_worker_release(GioThread *t, GioWorker *w);
/* Whether nobody but its call knows the worker, so that another may have it. */
bool gio_worker_is_unknown(GioWorker *w);
/* End an idle worker's greenlet and drop it. Steals; switches. */
void gio_worker_retire(GioWorker *w);
/* The first entry of a fresh worker: start it deep in the C stack. */
int gio_worker_enter(GioWorker *w, PyObject *target);
/* Hand `y` (stolen) up to the driver; suspended until the next step. Returns
 * what was sent, NULL with what was thrown. `current` is the running greenlet. With
 * `lend` the caller's stack owns another reference to y, and no one else but us knows of it:
 * so that a suspended stack does not keep itself alive, it is given up meanwhile. */
PyObject *gio_worker_yield(GioWorker *w, PyObject *current, PyObject *y, bool lend);
/* The nearest worker at or above `current` that is being driven; a new reference or NULL. */
GioWorker *gio_worker_of(GioState *st, PyObject *current);
extern PyMethodDef gio_worker_run_def;
/* Forget the scopes of a job that goes away with its stack still suspended. */
void gio_job_clear(GioJob *job);

/* ---- calls (call.c) ------------------------------------------------------ */

typedef enum { GIO_CALL_NEW, GIO_CALL_RUNNING, GIO_CALL_SUSPENDED, GIO_CALL_DONE } GioCallStatus;

/* The awaitable of one call. argv[0] is scratch for vectorcall's offset. A portal (portal.c) is a
 * call whose fn is a coroutine, driven by a worker for the length of a step: it is NEW between two
 * steps, when the coroutine itself knows how far it is. */
struct GioCall {
    PyObject_VAR_HEAD
    PyObject *fn;
    PyObject *kwnames;
    PyObject *name; /* set on demand */
    PyObject *weakrefs;
    GioWorker *worker; /* owned from the first step to the last; a portal's: during a step */
    GioThread *thread; /* borrowed; NULL where worker is */
    GioHub *hub;       /* of the loop that drives it, once it has waited there */
    GioCall *prev, *next;
    GioJob job;
    GioLocalValues *locals;
    GioCallStatus status;
    bool closing; /* every wait is refused with GreenletExit */
    bool noted;   /* its hub was looked for, so that it is unwound when the loop closes */
    bool portal;
    int refused;
    GioOut ahead_kind; /* of a step that was made before its task was: what it brought is in
                          `ahead`, */
    PyObject *ahead;   /* owned, for the task's first step */
    Py_ssize_t nargs;
    PyObject *argv[1];
};

/* `type`: call_type or portal_type. */
PyObject *gio_call_new(PyTypeObject *type, PyObject *fn, PyObject *const *args, size_t nargsf,
                       PyObject *kwnames);
/* Throw GreenletExit into a suspended call and finish it. -1 with an exception. Switches. */
int gio_call_close(GioCall *c);
int gio_call_setup_types(PyObject *module, GioState *st);
/* One step (step.c): steals `in`, the value to send or the exception to throw. Switches. */
PySendResult gio_call_step(GioCall *c, GioIn kind, PyObject *in, PyObject **result);
/* Its stack ignores GreenletExit, or can't be resumed: let go of it as it is. */
void gio_call_abandon(GioCall *c);
/* A portal's coroutine will not be stepped again: let go of the worker that stayed with it. */
void gio_call_part(GioCall *c);
void gio_call_drop_job(GioCall *c);
/* What portals have in common with other calls. */
extern PyMethodDef gio_call_methods[];
PySendResult gio_call_am_send(GioCall *c, PyObject *value, PyObject **result);
PyObject *gio_call_iternext(GioCall *c);
PyObject *gio_call_get_driver(GioCall *c, void *closure);
PyObject *gio_call_get_greenlet(GioCall *c, void *closure);
PyObject *gio_call_get_await(GioCall *c, void *closure);
int gio_call_traverse(GioCall *c, visitproc visit, void *arg);
void gio_call_finalize(GioCall *c);
void gio_call_dealloc(GioCall *c);

/* ---- portals (portal.c) ---------------------------------------------------- */

int gio_portal_setup_types(PyObject *module, GioState *st);
/* In the worker: one step of the coroutine. Steals `in`. Fills the mailbox. Switches. */
void gio_portal_run(GioWorker *w, GioIn kind, PyObject *in);
/* A wait is about to suspend the call: 0, or -1 with WouldBlockError where nothing may. */
int gio_portal_may_wait(GioState *st, GioCall *c);
PyObject *gio_portal(PyObject *module, PyObject *coro);
/* What a task is to step instead of the coroutine; a new reference. */
PyObject *gio_portal_of(GioState *st, PyObject *coro);
PyObject *gio_portal_adopt(PyObject *module, PyObject *args);
PyObject *gio_gc_phase(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* ---- async_ and await_ as callables (function.c), awaiting (await.c) ----- */

int gio_function_setup_types(PyObject *module, GioState *st);
PyObject *gio_async(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
/* await_ of what is not awaitable: a function that awaits what x returns. */
PyObject *gio_await_function(GioState *st, PyObject *x);
PyObject *gio_await(PyObject *module, PyObject *x);
/* Run the awaitable `x` to its end; 1 in *handled if it is one. Switches. */
PyObject *gio_await_object(GioState *st, PyObject *x, bool *handled);
/* Send `value` (stolen) into `it`, or throw the raised exception if it is NULL, and go on until it
 * returns or fails; while no timeout or shield is to be heeded, only until it hands something up:
 * PYGEN_NEXT. Switches. */
PySendResult gio_await_step(GioState *st, GioHere *here, PyObject *it, PyObject *value,
                            PyObject **result);

/* ---- waiters (waiter.c) --------------------------------------------------- */

typedef enum { GIO_PENDING, GIO_SET, GIO_FAILED, GIO_CANCELLED, GIO_TIMED_OUT } GioWaiterStatus;

/* One fd of a wait: a node in the list of that fd in the hub. */
typedef struct GioFdWait {
    GioWaiter *waiter; /* borrowed: the waiter owns its nodes */
    struct GioFdWait *prev, *next;
    int fd;
    int events;
    int ready;
    bool linked;
} GioFdWait;

/* Those that wait for the same thing, in their order (csrc/sync/line.c). Each is owned. */
typedef struct {
    GioWaiter *first, *last;
} GioLine;

/* Its time has come, but not its turn in the loop: in place of the place among the timers. */
#define GIO_DUE (-2)

struct GioWaiter {
    PyObject_HEAD
    PyObject *weakrefs;
    GioHub *hub;                  /* owned; NULL until it is waited on under a loop */
    PyObject *value;              /* result, exception, or the cancel message */
    PyObject *callback, *context; /* the first done callback: almost always the only one */
    PyObject *more;               /* list of (callback, context) */
    GioGreen *green;              /* is parked here; owned */
    GioJob *shielded;             /* set while the job that waits keeps cancellation; borrowed */
    GioThread *plain;             /* the thread that polls for it, borrowed */
    GioFdWait *fds;               /* &one, or an array of nfds */
    int nfds;
    GioFdWait one;
    int64_t deadline;
    Py_ssize_t heap; /* place in the hub's timers (its serial in a loop's of ours), -1, GIO_DUE */
    bool waited;     /* sync code waits on it: it has one deadline, so no other may */
    GioWaiter *held_prev, *held_next; /* in the hub's list of what it keeps, if `held` */
    bool held;
    GioWaiter *ready_next; /* in the hub's ready list, which owns a reference */
    GioLine *line;         /* that it stands in, borrowed; NULL: none */
    GioWaiter *line_prev, *line_next;
    GioWaiterStatus status;
    bool blocking;
};

GioWaiter *gio_waiter_new(GioState *st, GioHub *hub);
/* Off every list of the hub and out of its line, which may have owned it: the caller has a
 * reference. Never runs Python. */
void gio_waiter_detach(GioWaiter *w);
void gio_line_leave(GioWaiter *w);
/* End it once: false if it had ended. `value` is stolen. Takes it off all lists.
 * The wake-up itself is gio_waiter_wake. */
bool gio_waiter_finish(GioWaiter *w, GioWaiterStatus status, PyObject *value);
/* Tell the callbacks of a finished waiter: at once, in their contexts, if
 * `direct` (only from a callback of its loop), else by the loop's call_soon.
 * -1 only for KeyboardInterrupt and SystemExit. */
int gio_waiter_wake(GioWaiter *w, bool direct);
/* finish + wake, from any thread; exceptions are reported, not raised. */
bool gio_waiter_set(GioWaiter *w, GioWaiterStatus status, PyObject *value);
/* fn(arg) in a context (NULL: the current one). What it raises is reported; -1 with what is not:
 * KeyboardInterrupt and SystemExit. */
int gio_call_in_context(PyObject *fn, PyObject *context, PyObject *arg);
/* What to call a done callback of w with, now that it has ended; borrowed (hub.c). */
PyObject *gio_wake_argument(GioWaiter *w, PyObject *fn);
/* The same of anything with a future's protocol, which was not cancelled. */
PyObject *gio_done_argument(GioState *st, PyObject *fn, PyObject *ended);
/* An attribute of what tasks wait for. They ask for these two at each wait, which are the first of
 * its methods: they need not be sought along the type. */
static inline PyObject *
gio_awaited_getattro(GioState *st, PyObject *self, PyObject *name, PyMethodDef *methods)
{
    if (name == st->str_add_done_callback || name == st->str_get_loop) {
        return PyCFunction_New(&methods[name == st->str_get_loop], self);
    }
    return PyObject_GenericGetAttr(self, name);
}
int gio_waiter_bind(GioState *st, GioWaiter *w);
int gio_waiter_setup_types(PyObject *module, GioState *st);

/* ---- hubs (hub.c), their fds (poller.c) and timers (timers.c) ------------ */

typedef struct {
    GioFdWait *waits;
    uint32_t generation;
    bool known;           /* the kernel may have a registration under this number */
    struct GioKept *kept; /* registrations with a loop of ours that stay between waits */
} GioFd;

struct GioHub {
    PyObject_HEAD
    GioState *state;        /* borrowed */
    PyObject *loop;         /* weak reference */
    struct GioLoop *native; /* the same, borrowed, if it is of our make; it clears this */
    GioHub *prev, *next;
    unsigned long ident; /* the thread that its loop was last seen in */
    int poll_fd, timer_fd;
    bool stale; /* some GioKept is */
    GioFd *fds;
    int nfds;
    GioWaiter **timers; /* binary heap by deadline, borrowed */
    Py_ssize_t ntimers, timers_size;
    int64_t armed;   /* what timer_fd is set to */
    GioWaiter *held; /* the waiters with a timer or an fd: each is owned, as what will wake it */
    GioWaiter *ready, **ready_tail;
};

/* The asyncio loop that runs in this thread, or None: a new reference; NULL with an exception. */
PyObject *gio_running_loop(GioState *st);
/* The hub of the loop that runs in this thread, borrowed. NULL without an
 * exception: no asyncio loop runs here. NULL with one: failure. */
GioHub *gio_hub_running(GioState *st, GioThread *t);
GioHub *gio_hub_of_loop(GioState *st, GioThread *t, PyObject *loop); /* borrowed */
PyObject *gio_hub_loop(GioHub *hub); /* new reference; NULL with an exception when gone */
void gio_hub_push_ready(GioHub *hub, GioWaiter *w);
/* Keep w until gio_hub_release: it has a timer or an fd. */
void gio_hub_hold(GioHub *hub, GioWaiter *w);
void gio_hub_release(GioHub *hub, GioWaiter *w);
/* In a forked child: the parent keeps its epolls for itself. */
void gio_hubs_after_fork(GioState *st);
int gio_hub_setup_types(PyObject *module, GioState *st);

int gio_poller_open(GioHub *hub);
void gio_poller_close(GioHub *hub);
int gio_poller_reopen(GioHub *hub);
/* Register the waiter's nodes. 0; 1 if one is ready at once; -1 with OSError. */
int gio_poller_add(GioHub *hub, GioWaiter *w);
void gio_poller_remove(GioFdWait *node);
void gio_poller_fd_closing(GioHub *hub, int fd);
/* An fd goes to somebody who will not call fd_closing: keep nothing registered for it. */
void gio_poller_fd_released(GioHub *hub, int fd);
/* The poll is over: drop the registrations of fds that were closed meanwhile. */
void gio_poller_drop_stale(GioHub *hub);
/* Free what gio_poller_add has left; nothing is registered any more. */
void gio_poller_free(GioHub *hub);
/* Collect what fired into the ready list; wakes nobody. */
void gio_poller_collect(GioHub *hub);

int gio_timers_add(GioHub *hub, GioWaiter *w, int64_t deadline);
void gio_timers_remove(GioHub *hub, GioWaiter *w);
void gio_timers_collect(GioHub *hub);
/* Its timer_fd is a new one. -1 with OSError. */
int gio_timers_reopen(GioHub *hub);

/* ---- waiting (wait.c), from where (place.c) --------------------------------- */

int64_t gio_now(void);
/* Seconds (None: never) as a deadline; -1 with an exception. */
int gio_deadline(PyObject *seconds, int64_t *deadline);

struct GioHere {
    GioPlace place;
    GioThread *thread; /* borrowed */
    GioHub *hub;       /* of the running loop, borrowed; NULL in plain code and under trio */
    GioWorker *worker; /* set if green, owned: it runs us, and runs nothing else meanwhile */
    PyObject *current; /* the running greenlet, owned */
    GioJob *job;       /* borrowed; gone when gio_here_lost */
};

/* Are we in a greenlet that is being driven? Fills worker, current and job if so:
 * enough to hand something up. Release with gio_here_clear in any case. */
bool gio_here_green(GioState *st, GioHere *here);
/* Where are we? 0, or -1 with an exception. Release with gio_here_clear. */
int gio_here(GioState *st, GioHere *here);
/* The same for those that wait: a call that is being closed is refused with GreenletExit. */
int gio_here_to_wait(GioState *st, GioHere *here);
static inline void
gio_here_clear(GioHere *here)
{
    Py_CLEAR(here->current);
    Py_CLEAR(here->worker);
}
/* Green, and Python code that ran since has given the call up: RuntimeError is set then. */
bool gio_here_lost(const GioHere *here);
void gio_would_block(GioState *st, const char *what);
/* Suspend the greenlet on w until it ends or the deadline passes: 1 ended,
 * 0 deadline, -1 exception. Only where here->place is green. `ours`: the caller made w, and
 * nobody else has it. Switches. */
int gio_suspend(GioState *st, GioHere *here, GioWaiter *w, int64_t deadline, bool ours);
int gio_wait_fd(GioState *st, int fd, int events, int64_t deadline);
int gio_wait_fds(GioState *st, const int *fds, const int *events, int *ready, int n,
                 int64_t deadline);
int gio_sleep_until(GioState *st, int64_t deadline);
int gio_wait_waiter(GioState *st, GioWaiter *w, int64_t deadline);
/* The same; where it would hold a running loop, WouldBlockError names `what`. */
int gio_wait_for(GioState *st, GioWaiter *w, int64_t deadline, const char *what);
/* Plain code: run `loop`, the thread's own, until w (bound to it) ends. As gio_suspend. */
int gio_run_until(GioState *st, GioHere *here, PyObject *loop, GioWaiter *w, int64_t deadline);
/* Under a shield, the CancelledError that is raised is kept for its end: true, none is raised. */
bool gio_job_keep(GioState *st, GioJob *job);
/* The scopes of a job have changed: so does the end of the wait it is in. */
int gio_job_rearm(GioJob *job);
/* The earliest deadline of the scopes, and whose it is; GIO_NEVER if none. */
int64_t gio_job_deadline(GioJob *job, GioTimeout **scope);

/* ---- timeout scopes (timeout.c) ------------------------------------------- */

struct GioTimeout {
    PyObject_HEAD
    GioTimeout *outer; /* the enclosing scope, borrowed */
    GioJob *job;       /* set inside the block, borrowed: NULL once the job has gone */
    int64_t deadline;
    uint64_t cancels; /* job->cancels when it was entered, then when it expired ... */
    long cancelling;  /* ... and the task's count of cancel requests then */
    bool entered;
    bool left;
    bool expired;
    bool counted; /* it cancelled the task: to be taken back when it is left */
};

/* Mark it and raise CancelledError; __exit__ makes TimeoutError of it. */
void gio_timeout_expire(GioState *st, GioTimeout *scope);
int gio_timeout_setup_types(PyObject *module, GioState *st);

/* ---- greenlets without a task (loop/green.c, loop/spawn.c) --------------------------- */

PyObject *gio_spawn(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *gio_spawn_tell(PyObject *module, PyObject *function);
/* Make the tasks of all greenlets of the loop that runs here. */
PyObject *gio_greens_ask(PyObject *module, PyObject *ignored);
/* Whether what runs here is one that has no task. */
bool gio_greens_taskless(GioState *st);
/* Wake the one that is parked on w, which has ended: at once if `direct`. -1 only for
 * KeyboardInterrupt and SystemExit. */
int gio_green_wake(GioWaiter *w, bool direct);
/* The garbage collector takes it, or what it waits on, apart. */
void gio_green_stranded(GioGreen *g);
int gio_green_setup_types(PyObject *module, GioState *st);

/* ---- the capsule (api.c) --------------------------------------------------- */

const GioAPI *gio_api(void);
/* Of the one module there is: for objects whose type may be made in Python from one of ours. */
GioState *gio_api_state(void);
int gio_api_export(PyObject *module, GioState *st);

/* A step's outcome as the value of send(), throw() and next(): returning is StopIteration. */
PyObject *gio_method_result(PySendResult r, PyObject *result);
/* throw()'s one to three arguments as one exception; NULL with TypeError. */
PyObject *gio_exception_from_throw(PyObject *const *args, Py_ssize_t nargs);
/* The context that add_done_callback() is given, or a copy of the current one: a new reference. */
PyObject *gio_callback_context(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
/* What cancel() is given, or None: borrowed; NULL with TypeError. */
PyObject *gio_cancel_message(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
/* CancelledError with that message, or without one if it is NULL or None: a new reference. */
PyObject *gio_cancelled(GioState *st, PyObject *msg);

/* A tracer that keeps its state by greenlet (coverage) notices a switch at the next call or
 * return: make one, where tracing is on. */
void gio_trace_resumed_slow(GioCall *c);
static inline void
gio_trace_resumed(GioCall *c, PyThreadState *ts)
{
    if (ts->c_tracefunc != NULL && c != NULL) {
        gio_trace_resumed_slow(c);
    }
}

/* Add a type made from `spec` to the module's state, and to the module if public. */
PyTypeObject *gio_add_type(PyObject *module, PyType_Spec *spec, PyObject *bases, bool public_);

#define GIO_STATE(self) ((GioState *)PyType_GetModuleState(Py_TYPE(self)))

#endif
