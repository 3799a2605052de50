/* What _core offers to the other extension modules, through one capsule.
 *
 * Include it, call gio_api_import() once in module exec and keep the returned
 * pointer in the module's state. Every function needs the GIL and runs on the
 * calling thread; those that may wait may run any Python code and switch
 * greenlets before they return, so borrowed pointers must be re-read after.
 */
#ifndef GIO_API_H
#define GIO_API_H

#include <Python.h>

#include <stdint.h>

#define GIO_API_VERSION 4
#define GIO_API_CAPSULE "greenletio._core._C_API"

/* Events to wait for, and the answer. Errors and hang-ups are reported as the
 * events that were asked for: the next read or write meets them. */
enum { GIO_READ = 1, GIO_WRITE = 2 };

/* With the events: the registration may stay after the wait, since fd_closing will be called in
 * any case before the fd is closed, by whomever. */
enum { GIO_KEEP = 4 };

/* A moment of the monotonic clock in nanoseconds; GIO_NEVER is no deadline. */
#define GIO_NEVER INT64_MAX

/* What a wait would do if it were made here and now. */
typedef enum {
    GIO_PLACE_GREEN = 1,     /* suspend this greenlet; the thread's loop goes on */
    GIO_PLACE_PLAIN = 0,     /* no loop runs in this thread: block it, as poll(2) does */
    GIO_PLACE_FORBIDDEN = -1 /* a running loop would be held: WouldBlockError */
} GioPlace;

typedef struct {
    int version;

    /* The clock that deadlines are measured by. Never fails. */
    int64_t (*now)(void);

    /* Where the caller stands; GIO_PLACE_FORBIDDEN sets no exception. Never fails. */
    GioPlace (*place)(void);

    /* The asyncio loop that runs in this thread, or None: a new reference; NULL with an exception.
     */
    PyObject *(*running_loop)(void);

    /* Set WouldBlockError for `what`, naming the frame that lacks async_. */
    void (*set_would_block)(const char *what);

    /* Wait until `fd` is ready for any of `events`. Returns the ready events,
     * 0 once `deadline` has passed, -1 with an exception (cancellation, an
     * enclosing timeout, WouldBlockError, EBADF). No registration outlives it. */
    int (*wait_fd)(int fd, int events, int64_t deadline);

    /* The same for several at once: ready[i] receives the events of fds[i].
     * Returns how many are ready, 0 at the deadline, -1 with an exception. */
    int (*wait_fds)(const int *fds, const int *events, int *ready, int n, int64_t deadline);

    /* Suspend until `deadline`. 0, or -1 with an exception. */
    int (*sleep_until)(int64_t deadline);

    /* Must be called right before (or right after, if a library did it) an fd
     * that may have been waited on is closed: its waiters wake with EBADF. */
    void (*fd_closing)(int fd);

    /* A one-shot event that any thread may set. new: a new reference or NULL.
     * wait: 1 set, 0 deadline, -1 exception. set: idempotent, never fails. */
    PyObject *(*waiter_new)(void);
    /* The same for whoever waits in `loop`, which runs in this thread: it need not be looked up. */
    PyObject *(*waiter_new_in)(PyObject *loop);
    int (*waiter_wait)(PyObject *waiter, int64_t deadline);
    void (*waiter_set)(PyObject *waiter);

    /* The same, and whoever waits goes on before this returns. Only from a callback of the
     * loop that the waiter is waited on in, with no task or greenlet of it running, and as the
     * last thing that callback does. -1 only for KeyboardInterrupt and SystemExit. */
    int (*waiter_wake)(PyObject *waiter);

    /* While `on`, the current greenlet's waits are not interrupted by
     * cancellation or by enclosing timeouts: a cancellation that arrives is kept and
     * returned by shield(0) as a new reference to the exception (or NULL). It
     * is for short clean-up with a deadline of its own. Calls nest. */
    PyObject *(*shield)(int on);
} GioAPI;

static inline const GioAPI *
gio_api_import(void)
{
    const GioAPI *api = PyCapsule_Import(GIO_API_CAPSULE, 0);
    if (api != NULL && api->version != GIO_API_VERSION) {
        PyErr_SetString(PyExc_ImportError,
                        "greenletio._core and this module were built from different sources: "
                        "rebuild greenletio");
        return NULL;
    }
    return api;
}

#endif
