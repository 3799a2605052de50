/* Queue, LifoQueue and PriorityQueue, as queue has them: put() and get().
 *
 * The class in green/ has the standard one for its other base: for isinstance(), for what is not
 * hot, and for the hooks _init, _qsize, _put and _get, which a class made from it may have of its
 * own. `mutex` is a real lock, which no method holds across a wait of its own, so that what does
 * not wait never does, wherever it is called from. Where no Python runs between looking and taking,
 * it is enough that nobody else holds it.
 *
 * Whoever waits stands in the line of one of the conditions, among those that call its wait().
 */
#include "sync/sync.h"

typedef enum { BY_HOOKS, FIFO, LIFO, HEAP } Kind;

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    PyObject *queue; /* the items: a deque or list, unless the hooks say otherwise */
    PyObject *mutex;
    PyObject *not_empty, *not_full, *all_tasks_done;
    PyObject *maxsize;
    Py_ssize_t unfinished;
    int kind;
    bool shut_down;
} Queue;

/* ---- its parts ------------------------------------------------------------------------ */

static int
raise_from_queue(const char *name)
{
    PyObject *module = PyImport_ImportModule("queue");
    PyObject *exc = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    if (exc != NULL) {
        PyErr_SetNone(exc);
    }
    Py_XDECREF(exc);
    Py_XDECREF(module);
    return -1;
}

/* One of its conditions, a new reference; NULL with an exception. */
static GioCondition *
condition_of(PyObject *part, const char *name)
{
    if (part != NULL && PyObject_TypeCheck(part, gio_api_state()->condition_type)) {
        return (GioCondition *)Py_NewRef(part);
    }
    if (part == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Queue.__init__() not called");
    }
    else {
        PyErr_Format(PyExc_TypeError, "%s of a green queue must be a green Condition, not %R", name,
                     part);
    }
    return NULL;
}

/* What was called is done: -1 if it has failed. */
static int
done(PyObject *r)
{
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* Call a method of a part, which Python code that runs meanwhile may replace. */
static PyObject *
call_part(PyObject *part, PyObject *method, PyObject *arg)
{
    Py_INCREF(part);
    PyObject *r = arg == NULL ? PyObject_CallMethodNoArgs(part, method)
                              : PyObject_CallMethodOneArg(part, method, arg);
    Py_DECREF(part);
    return r;
}

/* Take the mutex, which others hold for a few instructions only; but a hook, or a comparison, may
 * wait, and it would be for this thread to go on with that. -1 with an exception. */
static int
acquire_mutex(GioState *st, PyObject *mutex)
{
    GioPlace place = gio_api()->place();
    if (place == GIO_PLACE_PLAIN) {
        return done(PyObject_CallMethodNoArgs(mutex, st->str_acquire));
    }
    for (;;) {
        PyObject *r = PyObject_CallMethodOneArg(mutex, st->str_acquire, Py_False);
        if (r == Py_False && place == GIO_PLACE_FORBIDDEN) {
            Py_DECREF(r);
            r = PyObject_CallMethod(mutex, "acquire", "Oi", Py_True, 1);
        }
        bool taken = r == Py_True;
        if (done(r) < 0) {
            return -1;
        }
        if (taken) {
            return 0;
        }
        if (place == GIO_PLACE_FORBIDDEN) {
            gio_would_block(st, "using a queue whose hooks wait");
            return -1;
        }
        if (gio_sleep_until(st, gio_now() + 500000) < 0) {
            return -1;
        }
    }
}

/* Take the mutex, if that is needed; it is then in *held, owned. */
static int
take_mutex(Queue *q, PyObject **held)
{
    GioState *st = gio_api_state();
    PyObject *mutex = q->mutex;
    if (mutex == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "Queue.__init__() not called");
        return -1;
    }
    Py_INCREF(mutex);
    if (q->kind == FIFO || q->kind == LIFO) {
        PyObject *locked = PyObject_CallMethodNoArgs(mutex, st->str_locked);
        Py_XDECREF(locked);
        if (locked == NULL || locked == Py_False) {
            Py_DECREF(mutex);
            return locked == NULL ? -1 : 0;
        }
    }
    if (acquire_mutex(st, mutex) < 0) {
        Py_DECREF(mutex);
        return -1;
    }
    *held = mutex;
    return 0;
}

/* Keeps the exception that is raised. */
static void
give_mutex(Queue *q, PyObject **held)
{
    PyObject *mutex = *held;
    if (mutex != NULL) {
        PyObject *exc = gio_err_take();
        *held = NULL;
        if (done(PyObject_CallMethodNoArgs(mutex, gio_api_state()->str_release)) < 0) {
            PyErr_WriteUnraisable((PyObject *)q);
        }
        Py_DECREF(mutex);
        if (exc != NULL) {
            gio_err_give(exc);
        }
    }
}

static Py_ssize_t
size_of(Queue *q)
{
    PyObject *items = q->queue;
    Py_ssize_t n;
    if (q->kind != BY_HOOKS && items != NULL) {
        Py_INCREF(items);
        n = PyObject_Size(items);
        Py_DECREF(items);
        return n;
    }
    PyObject *size = PyObject_CallMethod((PyObject *)q, "_qsize", NULL);
    n = size == NULL ? -1 : PyNumber_AsSsize_t(size, PyExc_OverflowError);
    Py_XDECREF(size);
    return n;
}

/* How many fit, said by an int: -1 if it is none. */
static Py_ssize_t
limit_of_int(PyObject *maxsize)
{
    if (maxsize == NULL || !PyLong_CheckExact(maxsize)) {
        return -1;
    }
    int overflow;
    long long n = PyLong_AsLongLongAndOverflow(maxsize, &overflow);
    return overflow > 0 || n > PY_SSIZE_T_MAX ? PY_SSIZE_T_MAX
           : overflow < 0 || n < 0            ? 0
                                              : (Py_ssize_t)n;
}

/* How many fit; 0: any number. -1 with an exception. */
static Py_ssize_t
limit_of(Queue *q)
{
    PyObject *maxsize = q->maxsize;
    Py_ssize_t limit = maxsize == NULL ? 0 : limit_of_int(maxsize);
    if (limit >= 0) {
        return limit;
    }
    Py_INCREF(maxsize);
    double n = PyFloat_AsDouble(maxsize);
    Py_DECREF(maxsize);
    if (n == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    return !(n > 0) ? 0 : n >= 1e18 ? PY_SSIZE_T_MAX : (Py_ssize_t)n + (n > (double)(Py_ssize_t)n);
}

static PyObject *
take_item(Queue *q)
{
    GioState *st = gio_api_state();
    PyObject *items = q->queue, *item;
    switch (items == NULL ? BY_HOOKS : q->kind) {
    case FIFO:
        return call_part(items, st->str_popleft, NULL);
    case LIFO:
        return call_part(items, st->str_pop, NULL);
    case HEAP: /* compares them: runs Python */
        Py_INCREF(items);
        item = PyObject_CallOneArg(st->heappop, items);
        Py_DECREF(items);
        return item;
    default:
        return PyObject_CallMethod((PyObject *)q, "_get", NULL);
    }
}

static int
put_item(Queue *q, PyObject *item)
{
    GioState *st = gio_api_state();
    PyObject *items = q->queue, *r;
    switch (items == NULL ? BY_HOOKS : q->kind) {
    case FIFO:
    case LIFO:
        return done(call_part(items, st->str_append, item));
    case HEAP:
        Py_INCREF(items);
        r = PyObject_CallFunctionObjArgs(st->heappush, items, item, NULL);
        Py_DECREF(items);
        return done(r);
    default:
        return done(PyObject_CallMethod((PyObject *)q, "_put", "(O)", item));
    }
}

/* ---- waiting ----------------------------------------------------------------------------- */

/* What put() and get() wait with. */
typedef struct {
    Queue *q;
    GioCondition *condition;
    int64_t deadline;
    const char *what;
    bool (*blocked)(Queue *q, Py_ssize_t limit, Py_ssize_t size);
    Py_ssize_t limit;
    PyObject *held; /* the mutex, owned, if it was taken */
    bool again;
    bool woken; /* the last turn has come, and is to be passed on if nothing comes of it */
} Waiting;

/* One turn of waiting, without the mutex; it is taken again. 1, 0 at the deadline, -1 with an
 * exception. */
static int
wait_once(Waiting *x)
{
    GioWaiter *w = gio_line_join(gio_api_state(), &x->condition->line, x->again);
    if (w == NULL) {
        return -1;
    }
    Py_ssize_t size = x->held != NULL ? 0 : size_of(x->q); /* that may have run Python */
    if (x->held == NULL && (size < 0 || !x->blocked(x->q, x->limit, size))) {
        x->woken = gio_line_quit(w);
        return size < 0 ? -1 : 1;
    }
    give_mutex(x->q, &x->held);
    GioTurn turn = gio_line_wait(gio_api_state(), w, x->deadline, x->what);
    x->woken = turn == GIO_LINE_WOKEN || turn == GIO_LINE_LOST;
    x->again = true; /* who was woken and finds that another came first keeps his place */
    return turn < 0 || take_mutex(x->q, &x->held) < 0 ? -1 : turn;
}

static bool
is_full(Queue *q, Py_ssize_t limit, Py_ssize_t size)
{
    return size >= limit && !q->shut_down;
}

static bool
is_empty(Queue *q, Py_ssize_t limit, Py_ssize_t size)
{
    return size == 0 && !q->shut_down;
}

/* Until it is not blocked: 1; 0 if it is so at the deadline, or at once if it must not wait; -1
 * with an exception. */
static int
wait_until_free(Waiting *x, bool may_wait)
{
    for (bool late = !may_wait;;) {
        Py_ssize_t size = size_of(x->q);
        if (size < 0) {
            return -1;
        }
        if (!x->blocked(x->q, x->limit, size)) {
            return 1;
        }
        if (late) {
            return 0;
        }
        int r = wait_once(x);
        if (r < 0) {
            return -1;
        }
        late = r == 0;
    }
}

/* put() or get() ends, with an exception if it has `failed`. */
static void
end_waiting(Waiting *x, bool failed)
{
    if (failed && x->woken) {
        PyObject *exc = gio_err_take();
        gio_line_wake(&x->condition->line, NULL);
        gio_err_give(exc);
    }
    give_mutex(x->q, &x->held);
    Py_XDECREF(x->condition);
}

/* ---- where nobody has to wait -----------------------------------------------------------------
 */

/* A method of an object whose type is known, without a search for it, and then the first of those
 * that wait for it to have been done is woken. */
static PyObject *
call_and_wake(PyMethodDef *method, PyObject *self, PyObject *arg, GioCondition *condition)
{
    Py_INCREF(self); /* a deque may be one that drops what it has too much of, and so run Python */
    Py_INCREF(condition);
    PyObject *r = method->ml_meth(self, arg);
    if (r != NULL && condition->line.first != NULL) {
        gio_line_wake(&condition->line, NULL);
    }
    Py_DECREF(condition);
    Py_DECREF(self);
    return r;
}

/* Whether it is a deque whose mutex nobody holds, so that all can be done at once; and nothing is
 * to be said about the arguments. */
static bool
is_simple(Queue *q, PyObject *block, PyObject *timeout)
{
    GioState *st = gio_api_state();
    if (q->kind != FIFO || q->shut_down || timeout != Py_None || !PyBool_Check(block) ||
        q->mutex == NULL || !Py_IS_TYPE(q->mutex, st->real_lock_type) || q->queue == NULL ||
        !Py_IS_TYPE(q->queue, st->deque_type)) {
        return false;
    }
    PyObject *locked = st->real_lock_locked->ml_meth(q->mutex, NULL);
    Py_XDECREF(locked);
    return locked == Py_False;
}

/* One of its conditions, borrowed; NULL without an exception if that is none of ours. */
static GioCondition *
simple_condition(PyObject *part)
{
    return part != NULL && PyObject_TypeCheck(part, gio_api_state()->condition_type)
               ? (GioCondition *)part
               : NULL;
}

/* ---- methods -------------------------------------------------------------------------------- */

static PyObject *
do_put(Queue *q, PyObject *item, PyObject *block, PyObject *timeout)
{
    if (is_simple(q, block, timeout)) {
        GioCondition *full = simple_condition(q->not_full), *empty = simple_condition(q->not_empty);
        Py_ssize_t limit = full == NULL || empty == NULL ? -1 : limit_of_int(q->maxsize);
        if (limit == 0 || Py_SIZE(q->queue) < limit) {
            q->unfinished++; /* memory is all that may be lacking */
            PyObject *r = call_and_wake(gio_api_state()->deque_append, q->queue, item, empty);
            q->unfinished -= r == NULL;
            return r;
        }
    }
    Waiting x = {.q = q, .what = "putting into a full queue", .blocked = is_full};
    GioCondition *not_empty = condition_of(q->not_empty, "not_empty");
    PyObject *result = NULL;
    bool in_vain = false;
    x.condition = not_empty == NULL ? NULL : condition_of(q->not_full, "not_full");
    if (x.condition == NULL || (x.limit = limit_of(q)) < 0) {
        goto done;
    }
    int wait = 0;
    if (x.limit > 0 && (wait = gio_sync_queue_timeout(block, timeout, &x.deadline)) < 0) {
        goto done;
    }
    if (take_mutex(q, &x.held) < 0) {
        goto done;
    }
    int r = x.limit > 0 ? wait_until_free(&x, wait) : 1;
    if (r >= 0 && q->shut_down) {
        r = raise_from_queue("ShutDown");
    }
    in_vain = r == 0 && !wait;
    if (r == 0 && wait) {
        r = raise_from_queue("Full");
    }
    if (r > 0 && put_item(q, item) == 0) {
        q->unfinished++;
        gio_line_wake(&not_empty->line, NULL);
        result = Py_NewRef(Py_None);
    }
done:
    end_waiting(&x, result == NULL);
    Py_XDECREF(not_empty);
    if (in_vain && gio_sync_in_vain(gio_api_state()) == 0) {
        raise_from_queue("Full");
    }
    return result;
}

static PyObject *
do_get(Queue *q, PyObject *block, PyObject *timeout)
{
    if (is_simple(q, block, timeout) && Py_SIZE(q->queue) > 0) {
        GioCondition *full = simple_condition(q->not_full);
        if (full != NULL && simple_condition(q->not_empty) != NULL) {
            return call_and_wake(gio_api_state()->deque_popleft, q->queue, NULL, full);
        }
    }
    Waiting x = {.q = q, .what = "getting from an empty queue", .blocked = is_empty};
    GioCondition *not_full = condition_of(q->not_full, "not_full");
    PyObject *item = NULL;
    bool in_vain = false;
    x.condition = not_full == NULL ? NULL : condition_of(q->not_empty, "not_empty");
    int wait = x.condition == NULL ? -1 : gio_sync_queue_timeout(block, timeout, &x.deadline);
    if (wait < 0 || take_mutex(q, &x.held) < 0) {
        goto done;
    }
    int r = wait_until_free(&x, wait);
    if (r > 0 && q->shut_down) {
        Py_ssize_t size = size_of(q);
        r = size > 0 ? 1 : size < 0 ? -1 : raise_from_queue("ShutDown");
    }
    in_vain = r == 0 && !wait;
    if (r == 0 && wait) {
        PyErr_SetNone(gio_api_state()->queue_empty);
        r = -1;
    }
    if (r > 0 && (item = take_item(q)) != NULL) {
        gio_line_wake(&not_full->line, NULL);
    }
done:
    end_waiting(&x, item == NULL);
    Py_XDECREF(not_full);
    if (in_vain && gio_sync_in_vain(gio_api_state()) == 0) {
        PyErr_SetNone(gio_api_state()->queue_empty);
    }
    return item;
}

static PyObject *
queue_put(Queue *q, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"item", "block", "timeout", NULL};
    PyObject *found[] = {NULL, Py_True, Py_None};
    if (nargs == 1 && kwnames == NULL) { /* as everybody calls it */
        return do_put(q, args[0], Py_True, Py_None);
    }
    if (gio_sync_arguments("put", args, nargs, kwnames, names, found) < 0) {
        return NULL;
    }
    if (found[0] == NULL) {
        PyErr_SetString(PyExc_TypeError, "put() missing required argument 'item' (pos 1)");
        return NULL;
    }
    return do_put(q, found[0], found[1], found[2]);
}

static PyObject *
queue_get(Queue *q, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"block", "timeout", NULL};
    PyObject *found[] = {Py_True, Py_None};
    if (gio_sync_arguments("get", args, nargs, kwnames, names, found) < 0) {
        return NULL;
    }
    return do_get(q, found[0], found[1]);
}

/* ---- lifetime ----------------------------------------------------------------------------------
 */

static int
queue_traverse(Queue *q, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(q));
    Py_VISIT(q->queue);
    Py_VISIT(q->mutex);
    Py_VISIT(q->not_empty);
    Py_VISIT(q->not_full);
    Py_VISIT(q->all_tasks_done);
    Py_VISIT(q->maxsize);
    return 0;
}

static int
queue_clear(Queue *q)
{
    Py_CLEAR(q->queue);
    Py_CLEAR(q->mutex);
    Py_CLEAR(q->not_empty);
    Py_CLEAR(q->not_full);
    Py_CLEAR(q->all_tasks_done);
    Py_CLEAR(q->maxsize);
    return 0;
}

static void
queue_dealloc(Queue *q)
{
    PyObject_GC_UnTrack(q);
    Py_TRASHCAN_BEGIN(q, queue_dealloc); /* a queue of queues, and so on */
    gio_sync_free((PyObject *)q, (inquiry)queue_clear);
    Py_TRASHCAN_END;
}

#define PART(name) {#name, T_OBJECT_EX, offsetof(Queue, name), 0, NULL}

static PyMemberDef queue_members[] = {
    GIO_WEAKLY,
    PART(queue),
    PART(mutex),
    PART(not_empty),
    PART(not_full),
    PART(all_tasks_done),
    PART(maxsize),
    {"unfinished_tasks", T_PYSSIZET, offsetof(Queue, unfinished), 0, NULL},
    {"_kind", T_INT, offsetof(Queue, kind), 0, NULL},
#if PY_VERSION_HEX >= 0x030D0000
    {"is_shutdown", T_BOOL, offsetof(Queue, shut_down), 0, NULL},
#endif
    {NULL},
};

static PyMethodDef queue_methods[] = {
    {"put", GIO_FAST_KEYWORDS(queue_put),
     "put($self, /, item, block=True, timeout=None)\n--\n\n"
     "Put `item` in; Full if there is no room for it, after `timeout` seconds. Can be cancelled."},
    {"get", GIO_FAST_KEYWORDS(queue_get),
     "get($self, /, block=True, timeout=None)\n--\n\n"
     "Take an item out; Empty if there is none, after `timeout` seconds. Can be cancelled."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "Queue[type of the items]"},
    {NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_doc, "The hot methods of ``queue.Queue``."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, queue_methods},
    {Py_tp_members, queue_members},
    {Py_tp_traverse, queue_traverse},
    {Py_tp_clear, queue_clear},
    {Py_tp_dealloc, queue_dealloc},
    {0, NULL},
};

static PyType_Spec queue_spec = {
    .name = "greenletio._core.Queue",
    .basicsize = sizeof(Queue),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = queue_slots,
};

/* What call_and_wake() can call; NULL, without an exception, if it is not as we know it. */
static PyMethodDef *
find_method(PyTypeObject *type, const char *name, int flags)
{
    PyObject *method = PyObject_GetAttrString((PyObject *)type, name);
    PyMethodDef *found = method != NULL && Py_IS_TYPE(method, &PyMethodDescr_Type)
                             ? ((PyMethodDescrObject *)method)->d_method
                             : NULL;
    Py_XDECREF(method); /* the type has it */
    PyErr_Clear();
    return found != NULL && found->ml_flags == flags ? found : NULL;
}

/* The types that is_simple() knows. -1 with an exception. */
static int
find_simple(GioState *st)
{
    PyObject *thread = PyImport_ImportModule("_thread"), *lock = NULL, *deque = NULL;
    PyObject *collections = thread == NULL ? NULL : PyImport_ImportModule("_collections");
    if (collections != NULL) {
        lock = PyObject_CallMethod(thread, "allocate_lock", NULL);
        deque = lock == NULL ? NULL : PyObject_GetAttrString(collections, "deque");
    }
    if (deque != NULL && PyType_Check(deque)) {
        PyTypeObject *type = (PyTypeObject *)deque;
        st->real_lock_locked = find_method(Py_TYPE(lock), "locked", METH_NOARGS);
        st->deque_append = find_method(type, "append", METH_O);
        st->deque_popleft = find_method(type, "popleft", METH_NOARGS);
        if (st->real_lock_locked && st->deque_append && st->deque_popleft) {
            st->real_lock_type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(lock));
            st->deque_type = (PyTypeObject *)Py_NewRef(deque);
        }
    }
    int r = deque == NULL ? -1 : 0;
    Py_XDECREF(deque);
    Py_XDECREF(lock);
    Py_XDECREF(collections);
    Py_XDECREF(thread);
    return r;
}

int
gio_queue_setup_types(PyObject *module, GioState *st)
{
    PyObject *heap = PyImport_ImportModule("_heapq");
    if (heap != NULL) {
        st->heappush = PyObject_GetAttrString(heap, "heappush");
        st->heappop = PyObject_GetAttrString(heap, "heappop");
        Py_DECREF(heap);
    }
    if (st->heappush == NULL || st->heappop == NULL || find_simple(st) < 0) {
        return -1;
    }
    st->queue_type = gio_add_type(module, &queue_spec, NULL, true);
    return st->queue_type == NULL ? -1 : 0;
}
