/* Turns: one greenlet or thread at a time on a connection, first come first served.
 *
 * It stands outside psycopg2's mutex, which would hold the whole loop. Needs the
 * GIL; any thread. The turn is handed over, never left to be grabbed: whoever
 * ends it names the next owner, who may have been cancelled meanwhile and then
 * passes it on. Owns the queue's nodes until their waiters return. They live on
 * the heap, because a suspended greenlet's C stack is not in its place.
 */
#include "pq/pq.h"

struct GioPqNode {
    PyObject *greenlet;
    PyObject *waiter;
    GioPqNode *next;
    bool handed; /* taken off the queue: the turn is this one's */
};

static void
append(GioPqConn *c, GioPqNode *node)
{
    if (c->last != NULL)
        c->last->next = node;
    else
        c->first = node;
    c->last = node;
}

static void
unlink_node(GioPqConn *c, GioPqNode *node)
{
    GioPqNode *before = NULL;
    for (GioPqNode *n = c->first; n != node; n = n->next)
        before = n;
    if (before != NULL)
        before->next = node->next;
    else
        c->first = node->next;
    if (c->last == node)
        c->last = before;
}

static void
hand_over(GioPqState *st, GioPqConn *c)
{
    GioPqNode *node = c->first;
    PyObject *before = c->owner;
    c->owner = NULL;
    c->depth = 0;
    if (node != NULL) {
        unlink_node(c, node);
        node->handed = true;
        c->owner = Py_NewRef(node->greenlet);
        c->depth = 1;
        st->api->waiter_set(node->waiter);
    }
    Py_XDECREF(before);
}

/* Queue up and wait. Steals `me`. */
static int
queue_up(GioPqState *st, GioPqConn *c, PyObject *me)
{
    GioPqNode *node = PyMem_Calloc(1, sizeof(*node));
    if (node == NULL) {
        Py_DECREF(me);
        PyErr_NoMemory();
        return -1;
    }
    node->greenlet = me;
    node->waiter = st->api->waiter_new();
    int rc = -1;
    if (node->waiter != NULL) {
        append(c, node);
        rc = st->api->waiter_wait(node->waiter, GIO_NEVER) < 0 ? -1 : 0;
        if (rc == 0 && !node->handed) { /* debuggers are shown the Waiter, and may set it */
            PyErr_SetString(st->programming_error,
                            "the wait for the connection's turn was ended by somebody else");
            rc = -1;
        }
        if (rc < 0 && node->handed)
            hand_over(st, c); /* cancelled with the turn already in hand */
        else if (rc < 0)
            unlink_node(c, node);
    }
    Py_XDECREF(node->waiter);
    Py_DECREF(node->greenlet);
    PyMem_Free(node);
    return rc;
}

int
gio_pq_turn_is_mine(GioPqState *st, GioPqConn *c)
{
    PyObject *me = PyObject_CallNoArgs(st->getcurrent);
    Py_XDECREF(me); /* runs: somebody else holds it */
    return me == NULL ? -1 : c->owner == me;
}

int
gio_pq_turn_take(GioPqState *st, GioPqConn *c)
{
    PyObject *me = PyObject_CallNoArgs(st->getcurrent);
    if (me == NULL)
        return -1;
    if (c->owner == NULL) {
        c->owner = me;
        c->depth = 1;
        return 0;
    }
    if (c->owner != me)
        return queue_up(st, c, me);
    Py_DECREF(me);
    if (c->waiting) {
        PyErr_SetString(st->programming_error,
                        "the connection is in the middle of an operation of this same greenlet "
                        "(a COPY's file, say, that uses the connection it is copied on): "
                        "use another connection");
        return -1;
    }
    c->depth++;
    return 0;
}

void
gio_pq_turn_end(GioPqState *st, GioPqConn *c)
{
    if (--c->depth == 0)
        hand_over(st, c);
}
