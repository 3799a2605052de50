/* Writing to a TLS connection: plaintext is kept until its callback, or the loop's turn, is over.
 *
 * Then all of it is encrypted and sent, so that many small writes make one record and one system
 * call. While the stream below is full, nothing is encrypted: what waits, waits as plaintext, most
 * of it in the bytes objects that were given. The memory for ciphertext is the loop's; it is taken
 * from there while it is in use, and left where it is while something is in it.
 */
#include "loop/tls.h"

#define RECORD (16 * 1024) /* of plaintext, at most */
#define CHUNK (256 * 1024) /* encrypted before it is sent */
#define EAGER (64 * 1024)  /* with so much to be sent nobody waits for the turn's end */
#define LOST_WRITES_LOGGED 5

/* ---- encrypting and sending -------------------------------------------------------------------
 */

/* Hand what OpenSSL has for the peer to the stream. -1 ends the loop's run. */
static int
send_out(GioTls *t)
{
    GioBuffer *out = &t->engine.out, mine = *out;
    GioTransport *under = t->under;
    size_t size = gio_buffer_size(out);
    if (size == 0) {
        return 0;
    }
    if (under == NULL || under->loop == NULL || under->conn_lost > 0) {
        out->start = out->end = 0;
        return 0;
    }
    *out = (GioBuffer){0}; /* the stream may call pause_writing() */
    Py_INCREF(under);
    int r = gio_write(under, Py_None, mine.data + mine.start, size);
    Py_DECREF(under);
    mine.start = mine.end = 0;
    gio_buffer_free(out);
    *out = mine;
    return r;
}

/* Encrypt the front of the backlog, small pieces of it as one record; how much of *asked. */
static Py_ssize_t
encrypt_some(GioTls *t, size_t *asked)
{
    GioQueue *q = &t->backlog;
    GioPiece *piece = &q->pieces[q->head];
    if (piece->size >= RECORD || q->head + 1 == q->end) {
        *asked = piece->size < CHUNK ? piece->size : CHUNK;
        return gio_tls_write(&t->engine, piece->data, *asked);
    }
    char record[RECORD];
    size_t size = 0;
    for (size_t i = q->head; i < q->end && size < RECORD; i++) {
        size_t n = q->pieces[i].size < RECORD - size ? q->pieces[i].size : RECORD - size;
        memcpy(record + size, q->pieces[i].data, n);
        size += n;
    }
    *asked = size;
    return gio_tls_write(&t->engine, record, size);
}

static int
encrypt_and_send(GioTls *t)
{
    while (t->backlog.bytes > 0 && !t->stream_full && t->engine.lib != NULL) {
        size_t asked;
        Py_ssize_t n = encrypt_some(t, &asked);
        if (n < 0) {
            return -1;
        }
        gio_queue_drop(&t->backlog, (size_t)n);
        if ((size_t)n < asked) {
            return 0; /* something has to be received first: what receives it comes here again */
        }
        if (gio_buffer_size(&t->engine.out) >= CHUNK && send_out(t) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
control_writing(GioTls *t)
{
    size_t size = t->backlog.bytes;
    bool pause = !t->protocol_paused && size > (size_t)t->marks.high;
    bool resume = t->protocol_paused && size <= (size_t)t->marks.low;
    if (t->protocol.object == NULL || (!pause && !resume)) {
        return 0;
    }
    t->protocol_paused = pause;
    return gio_tls_call(t, pause ? "_pause_protocol" : "_resume_protocol");
}

int
gio_tls_flush(GioTls *t)
{
    GioLoop *loop = t->loop;
    GioBuffer *out = &t->engine.out;
    if (t->engine.lib == NULL) {
        return 0;
    }
    if (out->data == NULL) {
        *out = loop->ciphertext;
        loop->ciphertext = (GioBuffer){0};
    }
    int r = 0;
    if (t->state == GIO_TLS_WRAPPED || t->state == GIO_TLS_FLUSHING) {
        r = encrypt_and_send(t);
    }
    PyObject *raised = r < 0 ? gio_err_take() : NULL;
    r = send_out(t); /* an alert at least */
    if (gio_buffer_size(out) == 0) {
        if (loop->ciphertext.data == NULL && out->room <= 2 * CHUNK) {
            loop->ciphertext = *out;
            *out = (GioBuffer){0};
        }
        gio_buffer_free(out);
    }
    if (raised != NULL) {
        if (r < 0) {
            Py_DECREF(raised);
        }
        else {
            gio_err_give(raised);
        }
        return -1;
    }
    return r < 0 ? -1 : control_writing(t);
}

/* ---- at the end of the turn ---------------------------------------------------------------------
 */

void
gio_tls_forget_flush(GioTls *t)
{
    if (!t->unflushed) {
        return;
    }
    t->unflushed = false;
    if (t->prev != NULL) {
        t->prev->next = t->next;
    }
    else {
        t->loop->unflushed = t->next;
    }
    if (t->next != NULL) {
        t->next->prev = t->prev;
    }
    t->prev = t->next = NULL;
    Py_DECREF(t);
}

static void
flush_later(GioTls *t)
{
    if (t->unflushed) {
        return;
    }
    t->unflushed = true;
    t->next = t->loop->unflushed;
    if (t->next != NULL) {
        t->next->prev = t;
    }
    t->loop->unflushed = (GioTls *)Py_NewRef((PyObject *)t);
}

int
gio_tls_flush_all(GioLoop *loop)
{
    int r = 0;
    while (r == 0 && loop->unflushed != NULL) {
        GioTls *t = (GioTls *)Py_NewRef((PyObject *)loop->unflushed);
        gio_tls_forget_flush(t);
        r = gio_tls_flush(t) < 0 ? gio_tls_failed(t) : 0;
        Py_DECREF(t);
    }
    return r;
}

int
gio_tls_flush_above(GioTransport *under)
{
    GioTls *t = gio_tls_of_stream(under);
    if (t == NULL || !t->unflushed) {
        return 0;
    }
    Py_INCREF(t);
    gio_tls_forget_flush(t);
    int r = gio_tls_flush(t) < 0 ? gio_tls_failed(t) : 0;
    Py_DECREF(t);
    return r;
}

void
gio_tls_forget_all(GioLoop *loop)
{
    while (loop->unflushed != NULL) {
        gio_tls_forget_flush(loop->unflushed);
    }
    gio_buffer_free(&loop->ciphertext);
}

/* ---- the Python face
 * ------------------------------------------------------------------------------ */

static int
check_thread(GioTls *t)
{
    return t->loop == NULL ? 0 : gio_loop_check_idle(t->loop);
}

/* Whether data would go nowhere: the connection is ending, or has ended. -1 with an exception. */
static int
is_lost(GioTls *t)
{
    if (t->loop != NULL && (t->state == GIO_TLS_HANDSHAKE || t->state == GIO_TLS_WRAPPED)) {
        return 0;
    }
    if (t->conn_lost++ >= LOST_WRITES_LOGGED && gio_tls_call(t, "_log_lost_write") < 0) {
        return -1;
    }
    return 1;
}

static int
queue_one(GioTls *t, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    int r = view.len == 0 ? 0 : gio_queue_data(&t->backlog, data, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return r;
}

static int
written(GioTls *t)
{
    size_t size = t->backlog.bytes;
    if (t->state != GIO_TLS_WRAPPED || t->stream_full || size == 0) {
        return control_writing(t);
    }
    if (size >= EAGER || size > (size_t)t->marks.high) {
        return gio_tls_flush(t) < 0 ? gio_tls_failed(t) : 0;
    }
    if (!t->reading) {
        flush_later(t);
    }
    return 0;
}

static PyObject *
tls_write(GioTls *t, PyObject *data)
{
    if (gio_check_data(data) < 0 || check_thread(t) < 0) {
        return NULL;
    }
    int empty = PyObject_Not(data), lost = empty == 0 ? is_lost(t) : 0;
    if (empty < 0 || lost < 0) {
        return NULL;
    }
    if (!empty && !lost && (queue_one(t, data) < 0 || written(t) < 0)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
tls_writelines(GioTls *t, PyObject *list)
{
    PyObject *items = PySequence_Fast(list, "writelines() takes an iterable of bytes-like objects");
    if (items == NULL) {
        return NULL;
    }
    int lost = check_thread(t) < 0 ? -1 : is_lost(t);
    int r = lost < 0 ? -1 : 0;
    if (lost == 0) {
        r = gio_queue_items(&t->backlog, items) < 0 ? -1 : written(t);
    }
    Py_DECREF(items);
    return r < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
tls_pause_writing(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    t->stream_full = true;
    Py_RETURN_NONE;
}

static PyObject *
tls_resume_writing(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    t->stream_full = false;
    if (gio_tls_flush(t) < 0) {
        return gio_tls_failed(t) < 0 ? NULL : Py_NewRef(Py_None);
    }
    if (t->state == GIO_TLS_FLUSHING && gio_tls_call(t, "_advance") < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
tls__flush(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    return gio_tls_flush(t) < 0 ? NULL : PyBool_FromLong(t->backlog.bytes == 0);
}

static PyObject *
tls_get_write_buffer_size(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(t->backlog.bytes);
}

static PyObject *
tls_get_write_buffer_limits(GioTls *t, PyObject *Py_UNUSED(ignored))
{
    return gio_marks_get(&t->marks);
}

static PyObject *
tls_set_write_buffer_limits(GioTls *t, PyObject *args, PyObject *kwargs)
{
    if (gio_marks_set(&t->marks, GIO_TLS_HIGH_WATER, args, kwargs) < 0 || control_writing(t) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

#define KEYWORDS(fn) ((PyCFunction)(void (*)(void))(fn))

PyMethodDef gio_tls_write_methods[] = {
    {"write", (PyCFunction)tls_write, METH_O,
     "write($self, data, /)\n--\n\n"
     "Send data: it is encrypted and sent when the callback, or the turn of the loop, is over."},
    {"writelines", (PyCFunction)tls_writelines, METH_O,
     "writelines($self, list_of_data, /)\n--\n\nSend several pieces of data."},
    {"get_write_buffer_size", (PyCFunction)tls_get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size($self, /)\n--\n\nHow many bytes wait to be encrypted and sent."},
    {"get_write_buffer_limits", (PyCFunction)tls_get_write_buffer_limits, METH_NOARGS,
     "get_write_buffer_limits($self, /)\n--\n\nThe water marks, (low, high), in bytes."},
    {"set_write_buffer_limits", KEYWORDS(tls_set_write_buffer_limits), METH_VARARGS | METH_KEYWORDS,
     "set_write_buffer_limits($self, high=None, low=None)\n--\n\n"
     "Above how many bytes the protocol's pause_writing() is called, and at how many\n"
     "resume_writing()."},
    {"pause_writing", (PyCFunction)tls_pause_writing, METH_NOARGS,
     "pause_writing($self, /)\n--\n\nThe stream below is full."},
    {"resume_writing", (PyCFunction)tls_resume_writing, METH_NOARGS,
     "resume_writing($self, /)\n--\n\nThe stream below takes more."},
    {"_flush", (PyCFunction)tls__flush, METH_NOARGS,
     "_flush($self, /)\n--\n\nEncrypt and send; whether that was all."},
    {NULL},
};
