/* Who waits for which socket: the queues of sock_recv and its kin, and what libevent watches.
 *
 * A registration outlives the operation that it was made for: until the end of the iteration, where
 * the sweep drops what nobody uses. So a task that receives again and again makes no epoll_ctl.
 * Until the sweep it holds the socket object, and serves that object only: another one with the
 * same fd number shows that the first was closed. It is edge-triggered: if a duplicate of an fd
 * that was closed too early stays in the kernel's set, nobody can take it out again, and
 * level-triggered it would be reported for ever. Each attempt therefore goes on until the kernel
 * says that it would block. Only where others watch the same fd, which libevent wants to have the
 * same trigger, and for datagrams, whose writability has no edge, it is level-triggered.
 *
 * Only the loop's own thread comes here.
 */
#include "loop/sock.h"

#include <errno.h>

#define LOOK_AT 4 /* sockets that one sweep looks at whether they were closed */

GioSock *
gio_sock_of(GioSockOp *op)
{
    int fd = GIO_SOCKET(op->sock)->fd;
    GioSock *s = fd >= 0 && fd < op->loop->nfds ? op->loop->fds[fd].sock : NULL;
    return s != NULL && s->sock == op->sock ? s : NULL;
}

bool
gio_sock_must_queue(GioSockOp *op)
{
    GioSock *s = gio_sock_of(op);
    return s != NULL && s->head[op->kind->which] != NULL;
}

/* ---- the queues ---------------------------------------------------------------------- */

static void
queue_append(GioSock *s, GioSockOp *op)
{
    int which = op->kind->which;
    op->queue = s;
    op->status = GIO_OP_WAITING;
    op->next = NULL;
    op->prev = s->tail[which];
    if (op->prev != NULL) {
        op->prev->next = op;
    }
    else {
        s->head[which] = op;
    }
    s->tail[which] = (GioSockOp *)Py_NewRef((PyObject *)op);
}

void
gio_sock_leave(GioSockOp *op)
{
    GioSock *s = op->queue;
    int which = op->kind->which;
    if (s == NULL) {
        return;
    }
    if (op->prev != NULL) {
        op->prev->next = op->next;
    }
    else {
        s->head[which] = op->next;
    }
    if (op->next != NULL) {
        op->next->prev = op->prev;
    }
    else {
        s->tail[which] = op->prev;
    }
    op->prev = op->next = NULL;
    op->queue = NULL;
    if (s->head[which] == NULL && !s->listed) {
        s->listed = true;
        s->idle = s->loop->idle_socks;
        s->loop->idle_socks = s;
    }
    Py_DECREF(op);
}

/* An attempt has ended: its result, or what is raised if that is NULL, is for whoever awaits. */
static void
settle(GioSockOp *op, PyObject *result)
{
    gio_sock_leave(op); /* the caller has a reference */
    op->status = result != NULL ? GIO_OP_READY : GIO_OP_FAILED;
    op->value = result != NULL ? result : gio_err_take();
}

/* ---- what libevent watches -------------------------------------------------------------- */

static int run_queue(GioLoop *loop, GioSock *s, int which);

static int
run_readable(GioLoop *loop, PyObject *self)
{
    return run_queue(loop, (GioSock *)self, 0);
}

static int
run_writable(GioLoop *loop, PyObject *self)
{
    return run_queue(loop, (GioSock *)self, 1);
}

static int
start(GioSock *s, int which)
{
    GioPoll *p = &s->poll[which];
    s->level = s->level || s->loop->fds[s->fd].level > 0;
    int events = (which == 0 ? EV_READ : EV_WRITE) | (s->level ? 0 : EV_ET);
    gio_poll_init(p, s->loop, s->fd, (short)events, which == 0 ? run_readable : run_writable,
                  (PyObject *)s);
    return gio_poll_start(p);
}

/* Stop watching for what nobody waits for; if nobody waits at all, let go of the socket. */
static void
trim(GioSock *s)
{
    for (int which = 0; which < 2; which++) {
        if (s->head[which] == NULL && s->poll[which].started) {
            gio_poll_stop(&s->poll[which]);
        }
    }
    PyObject *sock = s->sock;
    if (sock == NULL || s->head[0] != NULL || s->head[1] != NULL) {
        return;
    }
    GioLoop *loop = s->loop;
    if (s->active == s) {
        loop->active_socks = NULL;
    }
    else {
        s->active->active_prev = s->active_prev;
        s->active_prev->active = s->active;
        if (loop->active_socks == s) {
            loop->active_socks = s->active;
        }
    }
    s->active = s->active_prev = NULL;
    s->sock = NULL;
    Py_DECREF(sock);
}

/* Its socket was closed, or detached from its fd: nothing will ever wake who waits for it. */
static void
evict(GioSock *s)
{
    for (int which = 0; which < 2; which++) {
        while (s->head[which] != NULL) {
            GioSockOp *op = (GioSockOp *)Py_NewRef((PyObject *)s->head[which]);
            errno = EBADF;
            PyErr_SetFromErrno(PyExc_OSError);
            settle(op, NULL);
            gio_sockop_wake(op, false);
            Py_DECREF(op);
        }
    }
    trim(s);
}

static void
own(GioSock *s, PyObject *sock)
{
    GioLoop *loop = s->loop;
    s->sock = Py_NewRef(sock);
    s->level = GIO_SOCKET(sock)->type != SOCK_STREAM;
    s->bulky = false;
    if (loop->active_socks == NULL) {
        loop->active_socks = s->active = s->active_prev = s;
    }
    else {
        s->active = loop->active_socks;
        s->active_prev = s->active->active_prev;
        s->active_prev->active = s->active->active_prev = s;
    }
}

static GioSock *
of_fd(GioLoop *loop, int fd)
{
    GioFdSlot *slot = gio_polls_slot(loop, fd);
    if (slot == NULL || slot->sock != NULL) {
        return slot == NULL ? NULL : slot->sock;
    }
    GioSock *s = PyObject_GC_New(GioSock, loop->state->sock_type);
    if (s == NULL) {
        return NULL;
    }
    memset((char *)s + sizeof(PyObject), 0, sizeof *s - sizeof(PyObject));
    s->loop = loop;
    s->fd = fd;
    PyObject_GC_Track(s);
    /* Before Python 3.12 that may have run Python. */
    slot = gio_loop_check_open(loop) < 0 ? NULL : gio_polls_slot(loop, fd);
    if (slot == NULL || slot->sock != NULL) {
        Py_DECREF(s);
        return slot == NULL ? NULL : slot->sock;
    }
    slot->sock = s;
    return s;
}

/* Refuse a socket that a transport uses, as asyncio does. */
static int
check_no_transport(GioLoop *loop, PyObject *sock)
{
    PyObject *fd = PyLong_FromLong(GIO_SOCKET(sock)->fd), *r = NULL;
    if (fd != NULL) {
        r = PyObject_CallMethodOneArg((PyObject *)loop, loop->state->str_ensure_fd_no_transport,
                                      fd);
        Py_DECREF(fd);
    }
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

int
gio_sock_wait(GioSockOp *op)
{
    GioLoop *loop = op->loop;
    int which = op->kind->which, fd = GIO_SOCKET(op->sock)->fd;
    if (gio_loop_check_open(loop) < 0 || gio_loop_check_idle(loop) < 0) {
        return -1;
    }
    GioSock *s = of_fd(loop, fd);
    if (s == NULL) {
        return -1;
    }
    if (s->sock != op->sock && s->sock != NULL) {
        evict(s); /* we have its number: so it is closed */
    }
    if (s->sock == NULL || !s->poll[which].started) {
        if (check_no_transport(loop, op->sock) < 0) {
            return -1;
        }
        if (GIO_SOCKET(op->sock)->fd != fd || (s->sock != NULL && s->sock != op->sock)) {
            errno = EBADF; /* what ran just now has closed it */
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (s->sock == NULL) {
            own(s, op->sock);
        }
        if (start(s, which) < 0) {
            PyObject *exc = gio_err_take();
            trim(s);
            gio_err_give(exc);
            return -1;
        }
    }
    queue_append(s, op);
    return 0;
}

int
gio_socks_make_way(GioSock *s)
{
    if (s->sock == NULL) {
        return 0;
    }
    if (GIO_SOCKET(s->sock)->fd != s->fd) {
        evict(s);
        return 0;
    }
    trim(s);
    if (s->sock == NULL || s->level) {
        return 0;
    }
    s->level = true;
    for (int which = 0; which < 2; which++) {
        if (s->poll[which].started && gio_poll_stop(&s->poll[which]) < 0) {
            return -1;
        }
    }
    for (int which = 0; which < 2; which++) {
        if (s->head[which] != NULL && start(s, which) < 0) {
            return -1;
        }
    }
    return 0;
}

/* It is readable, or writable: serve who waits, in order. */
static int
run_queue(GioLoop *loop, GioSock *s, int which)
{
    GioSockOp *last = s->tail[which]; /* who comes later has its turn later */
    bool more = last != NULL, blocked = false;
    int ret = 0;
    while (more && ret == 0 && s->head[which] != NULL) {
        GioSockOp *op = (GioSockOp *)Py_NewRef((PyObject *)s->head[which]);
        PyObject *result = NULL;
        blocked = gio_sockop_attempt(op, &result) == 0;
        more = !blocked && op != last;
        if (!blocked && op->status == GIO_OP_WAITING) {
            settle(op, result);
            ret = gio_sockop_wake(op, true);
        }
        else if (!blocked) { /* a finalizer that ran meanwhile has cancelled it */
            Py_XDECREF(result);
            PyErr_Clear();
        }
        Py_DECREF(op);
    }
    /* It may be ready still, and there is no second edge. */
    if (!blocked && s->head[which] != NULL) {
        PyObject *exc = ret < 0 ? gio_err_take() : NULL;
        if (gio_ready_push(loop, which == 0 ? run_readable : run_writable, (PyObject *)s) < 0) {
            PyErr_WriteUnraisable((PyObject *)s);
        }
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
    return ret;
}

void
gio_socks_sweep(GioLoop *loop)
{
    GioSock *s = loop->active_socks;
    for (int i = 0; s != NULL && i < LOOK_AT; i++) {
        GioSock *next = s->active;
        if (GIO_SOCKET(s->sock)->fd != s->fd) {
            evict(s);
            s = loop->active_socks;
            continue;
        }
        s = loop->active_socks = next;
    }
    s = loop->idle_socks;
    loop->idle_socks = NULL;
    while (s != NULL) {
        GioSock *next = s->idle;
        s->idle = NULL;
        s->listed = false;
        trim(s);
        s = next;
    }
}

void
gio_socks_close(GioLoop *loop)
{
    loop->idle_socks = loop->active_socks = NULL;
    for (int fd = 0; fd < loop->nfds; fd++) {
        GioSock *s = loop->fds[fd].sock;
        if (s == NULL) {
            continue;
        }
        s->listed = true; /* no sweep will come */
        for (int which = 0; which < 2; which++) {
            gio_poll_stop(&s->poll[which]);
            while (s->head[which] != NULL) {
                s->head[which]->status = GIO_OP_DONE;
                gio_sock_leave(s->head[which]);
            }
        }
        s->loop = NULL;
        loop->fds[fd].sock = NULL;
        Py_CLEAR(s->sock);
        Py_DECREF(s);
    }
}

/* ---- the type ------------------------------------------------------------------------- */

static int
sock_traverse(GioSock *s, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(s));
    Py_VISIT(s->sock);
    for (int which = 0; which < 2; which++) {
        for (GioSockOp *op = s->head[which]; op != NULL; op = op->next) {
            Py_VISIT(op);
        }
    }
    return 0;
}

/* gio_socks_close has emptied it, or it was never used. */
static void
sock_dealloc(GioSock *s)
{
    PyTypeObject *type = Py_TYPE(s);
    PyObject_GC_UnTrack(s);
    PyObject_GC_Del(s);
    Py_DECREF(type);
}

static PyObject *
sock_repr(GioSock *s)
{
    return PyUnicode_FromFormat("<operations on the socket of fd %d>", s->fd);
}

static PyType_Slot sock_slots[] = {
    {Py_tp_traverse, sock_traverse},
    {Py_tp_dealloc, sock_dealloc},
    {Py_tp_repr, sock_repr},
    {0, NULL},
};

static PyType_Spec sock_spec = {
    .name = "greenletio._core._Sock",
    .basicsize = sizeof(GioSock),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = sock_slots,
};

int
gio_sock_setup_types(PyObject *module, GioState *st)
{
    st->sock_type = gio_add_type(module, &sock_spec, NULL, false);
    return st->sock_type == NULL || gio_sockop_setup_types(module, st) < 0 ||
                   gio_sockcall_setup(st) < 0
               ? -1
               : 0;
}
