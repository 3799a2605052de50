/* Watch: what a loop calls for a connection, and what is registered with that loop.
 *
 * A connection has one for the loop that moves it on. Only that loop's own thread touches its fds
 * and timers: another thread asks it, by call_soon_threadsafe(), to look by itself. So a loop that
 * has lost the connection may have a reader of it for a moment; its watch is `former` then, does
 * nothing but take that away, and is the connection's again should the loop be so first.
 */
#include "pg/pg.h"

#include <structmember.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ = GIO_READ, WRITE = GIO_WRITE, REQUEST = 4, TIMER = 8 };

bool
gio_pg_watch_is_here(GioPgWatch *w)
{
    return w->thread == PyThread_get_thread_ident();
}

static bool
ask_loop(PyObject *loop, PyObject *method)
{
    PyObject *answer = PyObject_CallMethodNoArgs(loop, method);
    bool truth = answer == Py_True;
    if (answer == NULL)
        PyErr_Clear();
    Py_XDECREF(answer);
    return truth;
}

bool
gio_pg_watch_is_alive(GioPgWatch *w)
{
    GioPgState *st = gio_pg_state(Py_TYPE(w));
    return !ask_loop(w->loop, st->str_is_closed) && ask_loop(w->loop, st->str_is_running);
}

/* ---- registrations, in the loop's own thread ---------------------------------------------- */

static int
add_fd(GioPgWatch *w, PyObject *method, int fd, int event)
{
    PyObject *number = PyLong_FromLong(fd), *what = PyLong_FromLong(event), *answer = NULL;
    if (number != NULL && what != NULL)
        answer = PyObject_CallMethodObjArgs(w->loop, method, number, (PyObject *)w, what, NULL);
    Py_XDECREF(number);
    Py_XDECREF(what);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

static void
remove_fd(GioPgWatch *w, PyObject *method, int fd)
{
    PyObject *number = PyLong_FromLong(fd), *answer = NULL;
    if (number != NULL)
        answer = PyObject_CallMethodObjArgs(w->loop, method, number, NULL);
    if (answer == NULL)
        PyErr_Clear(); /* the loop is closed */
    Py_XDECREF(answer);
    Py_XDECREF(number);
}

static void
watch_fd(GioPgWatch *w, int fd, int event, PyObject *add, PyObject *remove, int bit, int want,
         int *armed)
{
    if ((want & bit) && !(*armed & bit)) {
        *armed |= bit; /* already: who closes it meanwhile, in another thread, leaves it open */
        if (add_fd(w, add, fd, event) < 0)
            PyErr_WriteUnraisable((PyObject *)w);
    }
    else if (!(want & bit) && (*armed & bit)) {
        remove_fd(w, remove, fd);
        *armed &= ~bit;
    }
}

static void
watch_socket(GioPgWatch *w, int want)
{
    GioPgState *st = gio_pg_state(Py_TYPE(w));
    watch_fd(w, w->fd, READ, st->str_add_reader, st->str_remove_reader, READ, want, &w->armed);
    watch_fd(w, w->fd, WRITE, st->str_add_writer, st->str_remove_writer, WRITE, want, &w->armed);
}

static void
watch_request(GioPgWatch *w, int want)
{
    GioPgState *st = gio_pg_state(Py_TYPE(w));
    watch_fd(w, w->request_fd, REQUEST, st->str_add_reader, st->str_remove_reader, READ, want,
             &w->request_armed);
    watch_fd(w, w->request_fd, REQUEST, st->str_add_writer, st->str_remove_writer, WRITE, want,
             &w->request_armed);
}

static void
stop_timer(GioPgWatch *w)
{
    PyObject *timer = w->timer;
    w->timer = NULL;
    if (timer == NULL)
        return;
    PyObject *answer = PyObject_CallMethodNoArgs(timer, gio_pg_state(Py_TYPE(w))->str_cancel);
    if (answer == NULL)
        PyErr_Clear();
    Py_XDECREF(answer);
    Py_DECREF(timer);
}

static void
disarm(GioPgWatch *w)
{
    if (w->pid != (int)getpid()) { /* a child's: the loop's epoll is the parent's, too */
        w->armed = w->request_armed = 0;
        Py_CLEAR(w->timer);
    }
    if (w->armed != 0)
        watch_socket(w, 0);
    if (w->request_armed != 0)
        watch_request(w, 0);
    w->fd = w->request_fd = -1;
    stop_timer(w);
    Py_CLEAR(w->graves);
}

/* From another thread. False if the loop is closed. */
static bool
poke(GioPgWatch *w)
{
    GioPgState *st = gio_pg_state(Py_TYPE(w));
    PyObject *event = PyLong_FromLong(0), *answer = NULL;
    if (event != NULL)
        answer = PyObject_CallMethodObjArgs(w->loop, st->str_call_soon_threadsafe, (PyObject *)w,
                                            event, NULL);
    bool done = answer != NULL;
    if (!done)
        PyErr_Clear();
    Py_XDECREF(answer);
    Py_XDECREF(event);
    return done;
}

/* ---- what is closed later -------------------------------------------------------------------- */

/* An fd that is closed while a loop of another thread has it registered would be that of something
 * else by the time the loop takes its reader away. So all such loops own what is to be closed. */
typedef struct {
    const GioAPI *api;
    PGconn *pg;
    GioPqRequest *request;
    int pid;
} Grave;

static void
close_grave(PyObject *capsule)
{
    Grave *grave = PyCapsule_GetPointer(capsule, NULL);
    if (grave->pg != NULL && grave->pid == (int)getpid()) {
        grave->api->fd_closing(PQsocket(grave->pg));
        PQfinish(grave->pg);
    }
    if (grave->request != NULL && grave->pid == (int)getpid())
        gio_pq_request_free(grave->api, grave->request);
    PyMem_Free(grave);
}

/* All watches of a connection: a list, which keeps them. */
static PyObject *
all_watches(GioPgConn *c)
{
    PyObject *all = PyList_New(0);
    if (all != NULL && c->watch != NULL && PyList_Append(all, (PyObject *)c->watch) < 0)
        Py_CLEAR(all);
    for (GioPgWatch *w = c->former; all != NULL && w != NULL; w = w->next)
        if (PyList_Append(all, (PyObject *)w) < 0)
            Py_CLEAR(all);
    return all;
}

static PyObject *
new_grave(GioPgConn *c, PGconn *pg, GioPqRequest *request)
{
    Grave *grave = PyMem_Calloc(1, sizeof *grave);
    PyObject *capsule = grave == NULL ? PyErr_NoMemory() : PyCapsule_New(grave, NULL, close_grave);
    if (capsule == NULL)
        PyMem_Free(grave);
    else
        *grave = (Grave){c->st->api, pg, request, (int)getpid()};
    return capsule;
}

/* Have the loops of other threads that have it registered own one of the two: new reference to what
 * closes it when the last one drops it. NULL: there is none, or no memory. */
static PyObject *
bury(GioPgConn *c, PGconn *pg, GioPqRequest *request)
{
    PyObject *exc = gio_err_take(), *grave = NULL, *all = all_watches(c);
    for (Py_ssize_t i = 0; all != NULL && i < PyList_GET_SIZE(all); i++) {
        GioPgWatch *w = (GioPgWatch *)PyList_GET_ITEM(all, i);
        if (gio_pg_watch_is_here(w) || w->pid != (int)getpid() ||
            ask_loop(w->loop, c->st->str_is_closed) ||
            (pg != NULL ? w->armed : w->request_armed) == 0)
            continue;
        if ((grave == NULL && (grave = new_grave(c, pg, request)) == NULL) ||
            (w->graves == NULL && (w->graves = PyList_New(0)) == NULL) ||
            PyList_Append(w->graves, grave) < 0)
            break; /* what is registered there is closed too early */
        poke(w);
    }
    if (PyErr_Occurred())
        PyErr_WriteUnraisable((PyObject *)c);
    if (grave != NULL && pg != NULL)
        shutdown(PQsocket(pg), SHUT_RDWR); /* the loops may be long in coming */
    Py_XDECREF(all);
    if (exc != NULL)
        gio_err_give(exc);
    return grave;
}

bool
gio_pg_watch_bury(GioPgConn *c, GioPqRequest *request)
{
    PyObject *grave = bury(c, NULL, request);
    bool buried = grave != NULL;
    Py_XDECREF(grave);
    return buried;
}

/* ---- what is to be waited for --------------------------------------------------------------- */

/* While something is under way and a loop moves it on, the connection stays. */
static void
hold(GioPgConn *c)
{
    GioPgWatch *w = c->watch;
    if (w == NULL)
        return;
    bool needed = c->phase != GIO_PG_CLOSED && (c->first != NULL || c->cancelling);
    if (needed && !w->held) {
        w->held = true;
        Py_INCREF(c);
    }
    else if (!needed && w->held) {
        w->held = false;
        Py_DECREF(c); /* the caller has a reference, too */
    }
}

static void
unwatch_request(GioPgWatch *w)
{
    watch_request(w, 0);
    w->request_fd = -1;
    Py_CLEAR(w->graves);
}

static void
arm_request(GioPgConn *c, GioPgWatch *w)
{
    int events = 0, fd = gio_pg_cancel_wants(c, &events);
    if (w->request_fd >= 0 && w->request_fd != fd)
        unwatch_request(w);
    w->request_fd = fd;
    if (fd >= 0)
        watch_request(w, events);
    int64_t until = !c->cancelling ? GIO_NEVER
                    : c->cancel_next < c->cancel_deadline && c->request == NULL
                        ? c->cancel_next
                        : c->cancel_deadline;
    if (w->timer != NULL && w->timer_at != until)
        stop_timer(w);
    if (w->timer == NULL && until != GIO_NEVER) {
        double seconds = (double)(until - c->st->api->now()) / 1e9;
        w->timer_at = until;
        PyObject *delay = PyFloat_FromDouble(seconds < 0 ? 0.0 : seconds);
        PyObject *event = PyLong_FromLong(TIMER);
        if (delay != NULL && event != NULL)
            w->timer = PyObject_CallMethodObjArgs(w->loop, c->st->str_call_later, delay,
                                                  (PyObject *)w, event, NULL);
        Py_XDECREF(delay);
        Py_XDECREF(event);
        if (w->timer == NULL)
            PyErr_WriteUnraisable((PyObject *)w);
    }
}

void
gio_pg_rearm_request(GioPgConn *c)
{
    GioPgWatch *w = c->watch;
    if (w == NULL || (!c->cancelling && w->request_fd < 0 && w->timer == NULL))
        return;
    PyObject *exc = gio_err_take();
    Py_INCREF(w);
    if (gio_pg_watch_is_here(w))
        arm_request(c, w);
    else if (c->cancelling)
        poke(w);
    Py_DECREF(w);
    if (exc != NULL)
        gio_err_give(exc);
}

void
gio_pg_disarm_request(GioPgConn *c)
{
    GioPgWatch *w = c->watch;
    if (w == NULL || w->request_armed == 0 || !gio_pg_watch_is_here(w))
        return;
    PyObject *exc = gio_err_take();
    Py_INCREF(w);
    unwatch_request(w);
    Py_DECREF(w);
    if (exc != NULL)
        gio_err_give(exc);
}

void
gio_pg_rearm(GioPgConn *c)
{
    GioPgWatch *w = c->watch;
    if (w != NULL && c->pg != NULL) {
        int fd = PQsocket(c->pg), want = READ | (c->unflushed ? WRITE : 0);
        c->held_back = c->held_back && gio_pg_copy_is_idle(c);
        if (c->held_back)
            want &= ~READ;
        if (c->phase == GIO_PG_CONNECTING)
            want = c->events;
        if (fd < 0) /* closed by libpq: the number may be another's in a moment */
            gio_pg_disarm(c);
        else if (w->armed != want || w->fd != fd) {
            Py_INCREF(w);
            if (!gio_pg_watch_is_here(w)) {
                poke(w);
            }
            else {
                if (w->fd >= 0 && w->fd != fd)
                    disarm(w);
                w->fd = fd;
                watch_socket(w, want);
            }
            Py_DECREF(w);
        }
        gio_pg_rearm_request(c);
    }
    hold(c);
}

void
gio_pg_disarm(GioPgConn *c)
{
    GioPgWatch *w = c->watch;
    if (w == NULL || !gio_pg_watch_is_here(w))
        return;
    PyObject *exc = gio_err_take();
    Py_INCREF(w);
    disarm(w);
    Py_DECREF(w);
    if (exc != NULL)
        gio_err_give(exc);
}

/* ---- which loop it is --------------------------------------------------------------------------
 */

static void
take_off(GioPgConn *c, GioPgWatch *w)
{
    for (GioPgWatch **at = &c->former; *at != NULL; at = &(*at)->next) {
        if (*at == w) {
            *at = w->next;
            w->next = NULL;
            Py_DECREF(w);
            return;
        }
    }
}

int
gio_pg_watch_attach(GioPgConn *c, PyObject *loop)
{
    GioPgState *st = c->st;
    GioPgWatch *w = c->former;
    while (w != NULL && w->loop != loop)
        w = w->next;
    if (w != NULL) {
        Py_INCREF(w);
        take_off(c, w);
    }
    else {
        w = (GioPgWatch *)st->watch_type->tp_alloc(st->watch_type, 0);
        if (w == NULL)
            return -1;
        w->vectorcall = gio_pg_watch_call;
        w->conn = c;
        w->loop = Py_NewRef(loop);
        w->thread = PyThread_get_thread_ident();
        w->pid = (int)getpid();
        w->fd = w->request_fd = -1;
    }
    if (c->watch != NULL) { /* the collector ran, and with it somebody who was first */
        Py_DECREF(w);
        return 0;
    }
    c->watch = w;
    gio_pg_rearm(c);
    return 0;
}

void
gio_pg_watch_detach(GioPgConn *c)
{
    GioPgWatch *w = c->watch;
    if (w == NULL)
        return;
    PyObject *exc = gio_err_take();
    Py_INCREF(c);
    c->watch = NULL;
    c->soon = false;
    if (w->held) {
        w->held = false;
        Py_DECREF(c);
    }
    if (gio_pg_watch_is_here(w) || w->pid != (int)getpid()) {
        disarm(w);
        w->conn = NULL;
        Py_DECREF(w);
    }
    else {
        w->next = c->former;
        c->former = w; /* which has our reference */
        if (!poke(w)) {
            w->conn = NULL;
            take_off(c, w);
        }
    }
    Py_DECREF(c);
    if (exc != NULL)
        gio_err_give(exc);
}

PyObject *
gio_pg_watch_forget(GioPgConn *c, PGconn *pg)
{
    PyObject *exc = gio_err_take();
    GioPgWatch *w;
    PyObject *grave = pg == NULL ? NULL : bury(c, pg, NULL);
    gio_pg_watch_detach(c);
    while ((w = c->former) != NULL) {
        w->conn = NULL;
        take_off(c, w);
    }
    if (exc != NULL)
        gio_err_give(exc);
    return grave;
}

/* What a former watch does when its loop calls. */
void
gio_pg_watch_retire(GioPgWatch *w)
{
    GioPgConn *c = w->conn;
    Py_INCREF(w);
    disarm(w);
    w->conn = NULL;
    if (c != NULL)
        take_off(c, w);
    Py_DECREF(w);
}

/* ---- the type
 * ------------------------------------------------------------------------------------ */

static PyObject *
watch_repr(PyObject *self)
{
    GioPgWatch *w = (GioPgWatch *)self;
    return PyUnicode_FromFormat("<what moves the connection at %p on>", w->conn);
}

static int
watch_traverse(PyObject *self, visitproc visit, void *arg)
{
    GioPgWatch *w = (GioPgWatch *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(w->loop);
    Py_VISIT(w->timer);
    Py_VISIT(w->graves);
    if (w->held)
        Py_VISIT(w->conn);
    return 0;
}

static int
watch_clear(PyObject *self)
{
    GioPgWatch *w = (GioPgWatch *)self;
    GioPgConn *c = w->held ? w->conn : NULL;
    w->held = false;
    Py_CLEAR(w->timer);
    Py_XDECREF(c);
    return 0;
}

static void
watch_dealloc(PyObject *self)
{
    GioPgWatch *w = (GioPgWatch *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(w->timer);
    Py_CLEAR(w->loop);
    Py_CLEAR(w->graves);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef watch_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(GioPgWatch, vectorcall), READONLY, NULL},
    {NULL},
};

static PyType_Slot watch_slots[] = {
    {Py_tp_dealloc, watch_dealloc},
    {Py_tp_traverse, watch_traverse},
    {Py_tp_clear, watch_clear},
    {Py_tp_repr, watch_repr},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_members, watch_members},
    {0, NULL},
};

static PyType_Spec watch_spec = {
    .name = "greenletio._pg.Watch",
    .basicsize = sizeof(GioPgWatch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = watch_slots,
};

int
gio_pg_watch_setup_types(PyObject *module)
{
    GioPgState *st = PyModule_GetState(module);
    st->watch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &watch_spec, NULL);
    return st->watch_type == NULL ? -1 : 0;
}
