/* Green: what green.c (its steps, its task) and spawn.c (its Python face) share. core.h has what
 * others may call. */
#ifndef GIO_GREEN_H
#define GIO_GREEN_H

#include "loop/loop.h"

/* How a task is noticed to be wanted depends on how asyncio keeps the current one. Before 3.11 a
 * task can't be given its context. */
#define GIO_TASKLESS (PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030E0000)

typedef enum {
    GIO_GREEN_READY,   /* in the loop's queue */
    GIO_GREEN_RUNNING, /* loop->green */
    GIO_GREEN_WAITING, /* on `waiter` */
    GIO_GREEN_RETURNED,
    GIO_GREEN_FAILED, /* and no task could be made: no memory */
    GIO_GREEN_TASK,   /* its task does everything */
} GioGreenState;

struct GioGreen {
    PyObject_HEAD
    PyObject *weakrefs;
    GioState *module;      /* borrowed */
    GioLoop *loop;         /* NULL, as is `call`: it was a task from the beginning */
    GioGreen *prev, *next; /* in loop->greens, which borrows, until it has ended or has a task */
    GioCall *call;
    PyObject *context;   /* until it ends */
    GioWaiter *waiter;   /* while it is waiting */
    PyObject *result;    /* or the exception */
    PyObject *task;      /* NULL: not asked for */
    GioHandle *first;    /* of the task's first step, while that is for us to run */
    PyObject *callbacks; /* list, or NULL: of Waiters to set, and of (function, context) */
    GioGreenState state;
    bool making; /* its task */
};

/* Whether the loop runs, and in this thread. */
bool gio_green_in_thread(GioLoop *loop);
/* Off the loop's list of those that have no task. */
void gio_green_unlink(GioGreen *g);
/* Make the task, if it has none; it goes on from where the greenlet is. -1 with an exception. Runs
 * Python. */
int gio_green_make_task(GioGreen *g);
/* Have `task` call a callback, or set a Waiter, when it is done. */
int gio_green_hand_over(GioGreen *g, PyObject *task, PyObject *item);
/* Its turn: a GioRun. */
int gio_green_run(GioLoop *loop, PyObject *self);

#endif
