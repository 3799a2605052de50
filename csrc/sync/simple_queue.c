/* SimpleQueue, as queue has it: put() never waits, and may come from anywhere, also from a
 * finalizer or signal handler in the middle of a get() or another put().
 *
 * Where somebody waits, an item goes to the first of them without a rest in the queue. One who is
 * cancelled at that moment puts it back to the head. Between two calls of Python all is done.
 */
#include "sync/sync.h"

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    GioLine line;
    PyObject **items; /* a ring; its size is a power of two */
    size_t size, head, count;
} SimpleQueue;

static int
grow(SimpleQueue *q)
{
    size_t size = q->size ? q->size * 2 : 8;
    PyObject **items = PyMem_Malloc(size * sizeof *items);
    if (items == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < q->count; i++) {
        items[i] = q->items[(q->head + i) & (q->size - 1)];
    }
    PyMem_Free(q->items);
    q->items = items;
    q->size = size;
    q->head = 0;
    return 0;
}

/* Steals the result of the ring. */
static PyObject *
pop(SimpleQueue *q)
{
    PyObject *item = q->items[q->head];
    q->head = (q->head + 1) & (q->size - 1);
    q->count--;
    return item;
}

/* To the one who waits, or into the queue. */
static int
push(SimpleQueue *q, PyObject *item, bool at_head)
{
    if (gio_line_wake(&q->line, item)) {
        return 0;
    }
    if (q->count == q->size && grow(q) < 0) {
        return -1;
    }
    if (at_head) {
        q->head = (q->head - 1) & (q->size - 1);
    }
    size_t place = at_head ? q->head : (q->head + q->count) & (q->size - 1);
    q->items[place] = Py_NewRef(item);
    q->count++;
    return 0;
}

static PyObject *
set_empty(GioState *st)
{
    PyErr_SetNone(st->queue_empty);
    return NULL;
}

/* Wait for an item; NULL with an exception. */
static PyObject *
await_item(SimpleQueue *q, int64_t deadline)
{
    GioState *st = gio_api_state();
    GioWaiter *w = gio_line_join(st, &q->line, false);
    if (w == NULL) {
        return NULL;
    }
    if (q->count > 0) { /* put while it was made */
        gio_line_quit(w);
        return pop(q);
    }
    Py_INCREF(w);
    GioTurn turn = gio_line_wait(st, w, deadline, "waiting for an item of a queue");
    PyObject *item = NULL;
    if (turn == GIO_LINE_WOKEN || turn == GIO_LINE_LOST) {
        item = Py_NewRef(w->value != NULL ? w->value : Py_None);
    }
    Py_DECREF(w);
    if (turn == GIO_LINE_LOST) {
        PyObject *exc = gio_err_take();
        if (push(q, item, true) < 0) {
            PyErr_WriteUnraisable((PyObject *)q);
        }
        Py_CLEAR(item);
        gio_err_give(exc);
    }
    else if (turn == GIO_LINE_LATE) {
        return set_empty(st);
    }
    return item;
}

static PyObject *
queue_put(SimpleQueue *q, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"item", "block", "timeout", NULL};
    PyObject *found[3] = {NULL};
    if (gio_sync_arguments("put", args, nargs, kwnames, names, found) < 0) {
        return NULL;
    }
    if (found[0] == NULL) {
        PyErr_SetString(PyExc_TypeError, "put() missing required argument 'item' (pos 1)");
        return NULL;
    }
    return push(q, found[0], false) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
queue_put_nowait(SimpleQueue *q, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"item", NULL};
    PyObject *item = NULL;
    if (gio_sync_arguments("put_nowait", args, nargs, kwnames, names, &item) < 0) {
        return NULL;
    }
    if (item == NULL) {
        PyErr_SetString(PyExc_TypeError, "put_nowait() missing required argument 'item' (pos 1)");
        return NULL;
    }
    return push(q, item, false) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
queue_get_nowait(SimpleQueue *q, PyObject *Py_UNUSED(ignored))
{
    if (q->count > 0) {
        return pop(q);
    }
    GioState *st = gio_api_state();
    return gio_sync_in_vain(st) < 0 ? NULL : set_empty(st);
}

static PyObject *
queue_get(SimpleQueue *q, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"block", "timeout", NULL};
    PyObject *found[] = {Py_True, Py_None};
    int64_t deadline;
    if (gio_sync_arguments("get", args, nargs, kwnames, names, found) < 0) {
        return NULL;
    }
    int wait = gio_sync_queue_timeout(found[0], found[1], &deadline);
    if (wait < 0) {
        return NULL;
    }
    return q->count == 0 && wait ? await_item(q, deadline) : queue_get_nowait(q, NULL);
}

static PyObject *
queue_empty(SimpleQueue *q, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(q->count == 0);
}

static PyObject *
queue_qsize(SimpleQueue *q, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(q->count);
}

static int
queue_traverse(SimpleQueue *q, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(q));
    for (size_t i = 0; i < q->count; i++) {
        Py_VISIT(q->items[(q->head + i) & (q->size - 1)]);
    }
    return gio_line_traverse(&q->line, visit, arg);
}

static int
queue_clear(SimpleQueue *q)
{
    gio_line_clear(&q->line);
    while (q->count > 0) {
        Py_DECREF(pop(q));
    }
    PyMem_Free(q->items);
    q->items = NULL;
    q->size = 0;
    return 0;
}

static void
queue_dealloc(SimpleQueue *q)
{
    PyObject_GC_UnTrack(q);
    Py_TRASHCAN_BEGIN(q, queue_dealloc); /* a queue of queues, and so on */
    gio_sync_free((PyObject *)q, (inquiry)queue_clear);
    Py_TRASHCAN_END;
}

static PyMemberDef queue_members[] = {
    GIO_WEAKLY,
    {NULL},
};

static PyMethodDef queue_methods[] = {
    {"put", GIO_FAST_KEYWORDS(queue_put),
     "put($self, /, item, block=True, timeout=None)\n--\n\n"
     "Hand `item` to the first who waits, or append it. The other arguments are for\n"
     "compatibility: it never waits."},
    {"put_nowait", GIO_FAST_KEYWORDS(queue_put_nowait),
     "put_nowait($self, /, item)\n--\n\nThe same as put(item)."},
    {"get", GIO_FAST_KEYWORDS(queue_get),
     "get($self, /, block=True, timeout=None)\n--\n\n"
     "Take the oldest item; Empty if there is none, after `timeout` seconds. Can be cancelled."},
    {"get_nowait", (PyCFunction)queue_get_nowait, METH_NOARGS,
     "get_nowait($self, /)\n--\n\nTake the oldest item; Empty if there is none."},
    {"empty", (PyCFunction)queue_empty, METH_NOARGS,
     "empty($self, /)\n--\n\nWhether there is nothing in it now."},
    {"qsize", (PyCFunction)queue_qsize, METH_NOARGS,
     "qsize($self, /)\n--\n\nHow many items there are in it now."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "SimpleQueue[type of the items]"},
    {NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_doc, "SimpleQueue()\n--\n\n``queue.SimpleQueue``: ``put`` never waits, from anywhere, "
                "also inside a ``get``."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, queue_methods},
    {Py_tp_members, queue_members},
    {Py_tp_traverse, queue_traverse},
    {Py_tp_clear, queue_clear},
    {Py_tp_dealloc, queue_dealloc},
    {0, NULL},
};

static PyType_Spec queue_spec = {
    .name = "greenletio.green.queue.SimpleQueue",
    .basicsize = sizeof(SimpleQueue),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = queue_slots,
};

int
gio_simple_queue_setup_types(PyObject *module, GioState *st)
{
    PyObject *queue = PyImport_ImportModule("_queue");
    st->queue_empty = queue == NULL ? NULL : PyObject_GetAttrString(queue, "Empty");
    Py_XDECREF(queue);
    if (st->queue_empty == NULL) {
        return -1;
    }
    st->simple_queue_type = gio_add_type(module, &queue_spec, NULL, true);
    return st->simple_queue_type == NULL ? -1 : 0;
}
