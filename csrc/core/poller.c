/* Which fds a hub waits for: one epoll of our own per loop.
 *
 * The host loop watches a single fd, this epoll's; nothing of ours is ever
 * registered there under the user's fd, so asyncio's own registrations of the same
 * number are never disturbed. Each wait arms its fd one-shot (EPOLLONESHOT): one
 * system call, and an event for which nobody waits can't make the loop spin. A
 * number that was closed and used again shows as ENOENT at the next arming; an
 * event of an earlier use (dup + close keeps it alive in the kernel) carries an old
 * generation and is dropped.
 */
#include "core.h"

#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define TIMER_TAG UINT64_MAX
#define BATCH 64

int
gio_poller_open(GioHub *hub)
{
    struct epoll_event timer = {.events = EPOLLIN | EPOLLET, .data.u64 = TIMER_TAG};
    hub->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    hub->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (hub->poll_fd < 0 || hub->timer_fd < 0 ||
        epoll_ctl(hub->poll_fd, EPOLL_CTL_ADD, hub->timer_fd, &timer) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        gio_poller_close(hub);
        return -1;
    }
    return 0;
}

void
gio_poller_close(GioHub *hub)
{
    if (hub->timer_fd >= 0) {
        close(hub->timer_fd);
    }
    if (hub->poll_fd >= 0) {
        close(hub->poll_fd);
    }
    hub->timer_fd = hub->poll_fd = -1;
}

static GioFd *
fd_entry(GioHub *hub, int fd)
{
    if (fd >= hub->nfds) {
        if (fcntl(fd, F_GETFD) < 0) { /* before there is room made for every number below it */
            PyErr_SetFromErrno(PyExc_OSError);
            return NULL;
        }
        int n = hub->nfds ? hub->nfds : 64;
        while (n <= fd) {
            n = n > INT_MAX / 2 ? INT_MAX : n * 2;
        }
        GioFd *fds = PyMem_Realloc(hub->fds, (size_t)n * sizeof *fds);
        if (fds == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        memset(fds + hub->nfds, 0, (size_t)(n - hub->nfds) * sizeof *fds);
        hub->fds = fds;
        hub->nfds = n;
    }
    return &hub->fds[fd];
}

static int
wanted(const GioFd *e)
{
    int events = 0;
    for (GioFdWait *n = e->waits; n != NULL; n = n->next) {
        events |= n->events;
    }
    return events;
}

/* End the waits on an fd that is closed, or was. They are told by the loop, in its
 * turn, because the closer may be any code. Runs Python: entries move. */
static void
fail_waits(GioHub *hub, int fd)
{
    while (hub->fds[fd].waits != NULL) {
        GioWaiter *w = (GioWaiter *)Py_NewRef((PyObject *)hub->fds[fd].waits->waiter);
        PyObject *exc = PyObject_CallFunction(PyExc_OSError, "is", EBADF,
                                              "the file descriptor was closed while waited on");
        if (exc != NULL) {
            gio_waiter_set(w, GIO_FAILED, exc);
        }
        else {
            PyErr_WriteUnraisable((PyObject *)w);
            gio_waiter_set(w, GIO_CANCELLED, NULL);
        }
        Py_DECREF(w);
    }
}

/* Tell the kernel what is waited for. 0; 1 the fd is always ready; 2 another file has its
 * number now; -1 with errno. */
static int
arm(GioHub *hub, int fd)
{
    GioFd *e = &hub->fds[fd];
    int events = wanted(e);
    struct epoll_event ev = {
        .events = EPOLLONESHOT | EPOLLRDHUP | (events & GIO_READ ? EPOLLIN | EPOLLPRI : 0) |
                  (events & GIO_WRITE ? EPOLLOUT : 0),
    };
    if (!(events & GIO_READ)) {
        ev.events &= ~(uint32_t)EPOLLRDHUP;
    }
    for (int attempt = 0; attempt < 3; attempt++) {
        if (!e->known) {
            e->generation++;
        }
        ev.data.u64 = (uint64_t)e->generation << 32 | (uint32_t)fd;
        if (epoll_ctl(hub->poll_fd, e->known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev) == 0) {
            e->known = true;
            return 0;
        }
        if (errno == ENOENT && e->known) { /* closed, and the number used again */
            e->known = false;
            return 2;
        }
        if (errno == EEXIST && !e->known) {
            e->known = true;
            continue;
        }
        e->known = false;
        return errno == EPERM ? 1 : -1; /* EPERM: a regular file */
    }
    errno = EINVAL;
    return -1;
}

int
gio_poller_reopen(GioHub *hub)
{
    int poll_fd = hub->poll_fd, timer_fd = hub->timer_fd;
    if (gio_poller_open(hub) < 0) {
        return -1;
    }
    /* Under the numbers that the loop knows. */
    int fresh_poll = hub->poll_fd, fresh_timer = hub->timer_fd;
    hub->poll_fd = poll_fd;
    hub->timer_fd = timer_fd;
    if (dup3(fresh_timer, timer_fd, O_CLOEXEC) < 0 || dup3(fresh_poll, poll_fd, O_CLOEXEC) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    close(fresh_timer);
    close(fresh_poll);
    for (int fd = 0; fd < hub->nfds; fd++) {
        hub->fds[fd].known = false;
        if (hub->fds[fd].waits != NULL) {
            arm(hub, fd); /* who waits for one that was closed waits on, as in the parent */
        }
    }
    return gio_timers_reopen(hub);
}

/* ---- registrations that stay ---------------------------------------------------------- */

/* On a loop of our make, a wait with GIO_KEEP registers the fd with the loop itself, and leaves it
 * there: the next wait costs no system call. An event for which nobody waits ends it. */
struct GioKept {
    GioPoll poll[2]; /* reading, writing; each keeps the hub alive while it is started */
    bool stale;      /* the fd was closed while another thread was polling */
};

static void finish_ready(GioHub *hub, int fd, int ready, bool native);

static void
kept_collect(GioPoll *p)
{
    GioHub *hub = (GioHub *)p->self;
    int fd = (int)event_get_fd(&p->event);
    int ready = event_get_events(&p->event) & EV_READ ? GIO_READ : GIO_WRITE;
    if (wanted(&hub->fds[fd]) & ready) {
        finish_ready(hub, fd, ready, true);
    }
    else if (gio_poll_stop(p) < 0) {
        PyErr_Clear();
    }
}

static int
kept_run(GioLoop *Py_UNUSED(loop), PyObject *Py_UNUSED(self))
{
    return 0;
}

/* As arm(), for the events of one wait. May run Python: entries move, the wait may end. */
static int
arm_kept(GioHub *hub, int fd, int events)
{
    struct GioKept *kept = hub->fds[fd].kept;
    if (kept == NULL) {
        kept = hub->fds[fd].kept = PyMem_Calloc(1, sizeof *kept);
        if (kept == NULL) {
            errno = ENOMEM;
            return -1;
        }
    }
    for (int i = 0; i < 2; i++) {
        GioPoll *p = &kept->poll[i];
        if (!(events & (i == 0 ? GIO_READ : GIO_WRITE)) || p->started) {
            continue;
        }
        gio_poll_init(p, hub->native, fd, i == 0 ? EV_READ : EV_WRITE, kept_run, (PyObject *)hub);
        p->collect = kept_collect;
        if (gio_poll_start(p) < 0) {
            int error = errno;
            PyErr_Clear();
            errno = error;
            return error == EPERM ? 1 : -1;
        }
    }
    return 0;
}

static void
drop_kept(GioHub *hub, GioFd *e)
{
    if (e->kept == NULL) {
        return;
    }
    e->kept->stale = false;
    for (int i = 0; i < 2; i++) {
        if (gio_poll_stop(&e->kept->poll[i]) < 0) { /* its loop is polling in another thread */
            PyErr_Clear();
            e->kept->stale = hub->stale = true;
        }
    }
}

void
gio_poller_free(GioHub *hub)
{
    for (int fd = 0; fd < hub->nfds; fd++) {
        PyMem_Free(hub->fds[fd].kept);
    }
    PyMem_Free(hub->fds);
    hub->fds = NULL;
    hub->nfds = 0;
}

/* ---- waits ---------------------------------------------------------------------------------- */

static void
link_node(GioFd *e, GioFdWait *node)
{
    GioFdWait **tail = &e->waits;
    node->prev = NULL;
    while (*tail != NULL) { /* first come, first woken; rarely more than one or two */
        node->prev = *tail;
        tail = &(*tail)->next;
    }
    node->next = NULL;
    *tail = node;
    node->linked = true;
}

void
gio_poller_remove(GioFdWait *node)
{
    GioFd *e = &node->waiter->hub->fds[node->fd];
    if (node->prev != NULL) {
        node->prev->next = node->next;
    }
    else {
        e->waits = node->next;
    }
    if (node->next != NULL) {
        node->next->prev = node->prev;
    }
    node->prev = node->next = NULL;
    node->linked = false;
    /* The kernel's registration stays armed: at worst it fires once for nobody. */
}

int
gio_poller_add(GioHub *hub, GioWaiter *w)
{
    int always = 0;
    for (int i = 0; i < w->nfds; i++) {
        GioFdWait *node = &w->fds[i];
        if (node->fd < 0) {
            errno = EBADF;
            PyErr_SetFromErrno(PyExc_OSError);
            goto error;
        }
        GioFd *e = fd_entry(hub, node->fd);
        if (e == NULL) {
            goto error;
        }
        link_node(e, node);
        int r = node->events & GIO_KEEP && hub->native != NULL
                    ? arm_kept(hub, node->fd, node->events)
                    : arm(hub, node->fd);
        if (r == 2) { /* whoever waited on the file of before waits for ever */
            gio_poller_remove(node);
            fail_waits(hub, node->fd);
            if (w->status != GIO_PENDING) { /* what that ran has closed another fd of ours */
                return 0;
            }
            link_node(&hub->fds[node->fd], node);
            r = arm(hub, node->fd);
        }
        if (w->status != GIO_PENDING) {
            return 0;
        }
        if (r == 1) {
            gio_poller_remove(node);
            node->ready = node->events & (GIO_READ | GIO_WRITE);
            always = 1;
        }
        else if (r != 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            goto error;
        }
    }
    if (always) {
        gio_waiter_detach(w);
    }
    else if (w->nfds > 0) {
        gio_hub_hold(hub, w);
    }
    return always;
error:
    gio_waiter_detach(w);
    return -1;
}

void
gio_poller_fd_closing(GioHub *hub, int fd)
{
    if (fd < 0 || fd >= hub->nfds) {
        return;
    }
    GioFd *e = &hub->fds[fd];
    if (e->known) {
        struct epoll_event none = {0};
        epoll_ctl(hub->poll_fd, EPOLL_CTL_DEL, fd, &none); /* closed already: gone already */
        e->known = false;
    }
    drop_kept(hub, e);
    fail_waits(hub, fd);
}

void
gio_poller_fd_released(GioHub *hub, int fd)
{
    if (fd >= 0 && fd < hub->nfds && hub->fds[fd].waits == NULL) {
        drop_kept(hub, &hub->fds[fd]);
    }
}

void
gio_poller_drop_stale(GioHub *hub)
{
    hub->stale = false;
    for (int fd = 0; fd < hub->nfds; fd++) {
        if (hub->fds[fd].kept != NULL && hub->fds[fd].kept->stale) {
            drop_kept(hub, &hub->fds[fd]);
        }
    }
}

/* End the waits that `ready` concerns; they are woken by the loop or by the hub. */
static void
finish_ready(GioHub *hub, int fd, int ready, bool native)
{
    GioFdWait *n = hub->fds[fd].waits;
    while (n != NULL) {
        if (!(n->events & ready)) {
            n = n->next;
            continue;
        }
        GioWaiter *w = (GioWaiter *)Py_NewRef((PyObject *)n->waiter);
        n->ready = n->events & ready;
        if (gio_waiter_finish(w, GIO_SET, NULL)) { /* takes all its nodes off */
            if (!native) {
                gio_hub_push_ready(hub, w);
            }
            else if (gio_ready_push(hub->native, gio_waiter_run, (PyObject *)w) < 0) {
                PyErr_WriteUnraisable((PyObject *)w);
            }
        }
        Py_DECREF(w);
        n = hub->fds[fd].waits;
    }
}

static void
collect_fd(GioHub *hub, uint64_t data, uint32_t got)
{
    int fd = (int)(uint32_t)data;
    if (fd >= hub->nfds || hub->fds[fd].generation != data >> 32) {
        return; /* of an earlier use of the number */
    }
    int ready = 0;
    if (got & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        ready |= GIO_READ;
    }
    if (got & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
        ready |= GIO_WRITE;
    }
    finish_ready(hub, fd, ready, false);
    if (hub->fds[fd].waits != NULL && arm(hub, fd) != 0) { /* one-shot: the rest needs it again */
        fail_waits(hub, fd);
    }
}

void
gio_poller_collect(GioHub *hub)
{
    struct epoll_event events[BATCH];
    int n, rounds = 0;
    do {
        n = epoll_wait(hub->poll_fd, events, BATCH, 0);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == TIMER_TAG) {
                gio_timers_collect(hub);
            }
            else {
                collect_fd(hub, events[i].data.u64, events[i].events);
            }
        }
    } while (n == BATCH && ++rounds < 64);
}
