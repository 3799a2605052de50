/* greenletio._core: the module, its state, and its functions' Python faces. */
#include "core.h"

#include "loop/loop.h"
#include "sync/sync.h"

PyTypeObject *
gio_add_type(PyObject *module, PyType_Spec *spec, PyObject *base, bool public_)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, base);
    if (type != NULL && public_ && PyModule_AddType(module, type) < 0) {
        Py_CLEAR(type);
    }
    return type;
}

static PyObject *
ready_to_python(int r)
{
    return r < 0 ? NULL : PyLong_FromLong(r);
}

static bool
valid_events(int events)
{
    if (events & (GIO_READ | GIO_WRITE) && !(events & ~(GIO_READ | GIO_WRITE | GIO_KEEP))) {
        return true;
    }
    PyErr_SetString(PyExc_ValueError, "events must be READ, WRITE, or READ | WRITE");
    return false;
}

static PyObject *
core_wait_fd(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"fd", "events", "timeout", NULL};
    int fd, events;
    PyObject *seconds = Py_None;
    int64_t deadline;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ii|O:wait_fd", keywords, &fd, &events,
                                     &seconds) ||
        !valid_events(events) || gio_deadline(seconds, &deadline) < 0) {
        return NULL;
    }
    return ready_to_python(gio_wait_fd(PyModule_GetState(module), fd, events, deadline));
}

/* The same fd twice is one registration with both events. */
static int
merge_fd(int *fds, int *events, int n, int fd, int wanted)
{
    for (int i = 0; i < n; i++) {
        if (fds[i] == fd) {
            events[i] |= wanted;
            return n;
        }
    }
    fds[n] = fd;
    events[n] = wanted;
    return n + 1;
}

static PyObject *
core_wait_fds(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"fds", "timeout", NULL};
    PyObject *pairs, *seconds = Py_None, *result = NULL;
    int64_t deadline;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:wait_fds", keywords, &pairs, &seconds) ||
        gio_deadline(seconds, &deadline) < 0) {
        return NULL;
    }
    PyObject *seq = PySequence_Tuple(pairs);
    if (seq == NULL) {
        return NULL;
    }
    Py_ssize_t given = PyTuple_GET_SIZE(seq);
    int *fds = PyMem_Malloc((size_t)(given + 1) * 3 * sizeof(int));
    if (fds == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    int *events = fds + given + 1, *ready = events + given + 1, n = 0;
    for (Py_ssize_t i = 0; i < given; i++) {
        int fd, wanted;
        PyObject *pair = PyTuple_GET_ITEM(seq, i);
        if (!PyTuple_Check(pair) ||
            !PyArg_ParseTuple(pair, "ii;wait_fds takes (fd, events) pairs", &fd, &wanted)) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_TypeError, "wait_fds takes (fd, events) pairs");
            }
            goto done;
        }
        if (!valid_events(wanted)) {
            goto done;
        }
        n = merge_fd(fds, events, n, fd, wanted);
    }
    int count = gio_wait_fds(PyModule_GetState(module), fds, events, ready, n, deadline);
    if (count < 0 || (result = PyList_New(0)) == NULL) {
        goto done;
    }
    for (int i = 0; count > 0 && i < n; i++) {
        if (ready[i] == 0) {
            continue;
        }
        PyObject *pair = Py_BuildValue("(ii)", fds[i], ready[i]);
        if (pair == NULL || PyList_Append(result, pair) < 0) {
            Py_XDECREF(pair);
            Py_CLEAR(result);
            goto done;
        }
        Py_DECREF(pair);
    }
done:
    PyMem_Free(fds);
    Py_DECREF(seq);
    return result;
}

static PyObject *
core_sleep(PyObject *module, PyObject *seconds)
{
    int64_t deadline;
    if (seconds == Py_None) {
        PyErr_SetString(PyExc_TypeError, "sleep() takes a number of seconds, not None");
        return NULL;
    }
    if (gio_deadline(seconds, &deadline) < 0 ||
        gio_sleep_until(PyModule_GetState(module), deadline) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
core_fd_closing(PyObject *Py_UNUSED(module), PyObject *arg)
{
    int fd = gio_as_int(arg);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    gio_api()->fd_closing(fd);
    Py_RETURN_NONE;
}

static PyObject *
core_fd_released(PyObject *module, PyObject *arg)
{
    int fd = gio_as_int(arg);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    GioState *st = PyModule_GetState(module);
    for (GioHub *hub = st->hubs; hub != NULL; hub = hub->next) {
        gio_poller_fd_released(hub, fd);
    }
    Py_RETURN_NONE;
}

static PyObject *
core_place(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    GioHere here;
    if (gio_here(PyModule_GetState(module), &here) < 0) {
        return NULL;
    }
    PyObject *place = PyLong_FromLong(here.place);
    gio_here_clear(&here);
    return place;
}

static PyObject *
core_shield(PyObject *module, PyObject *on)
{
    (void)module;
    int truth = PyObject_IsTrue(on);
    if (truth < 0) {
        return NULL;
    }
    PyObject *kept = gio_api()->shield(truth);
    return kept != NULL ? kept : Py_NewRef(Py_None);
}

static PyObject *
core_current_call(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    GioHere here;
    PyObject *call = gio_here_green(PyModule_GetState(module), &here)
                         ? Py_NewRef((PyObject *)here.worker->call)
                         : Py_NewRef(Py_None);
    gio_here_clear(&here);
    return call;
}

static PyObject *
core_calls(PyObject *module, PyObject *args)
{
    unsigned long ident = PyThread_get_thread_ident();
    PyObject *given = Py_None;
    if (!PyArg_ParseTuple(args, "|O:calls", &given)) {
        return NULL;
    }
    if (given != Py_None) {
        ident = PyLong_AsUnsignedLong(given);
        if (PyErr_Occurred()) {
            return NULL;
        }
    }
    PyObject *list = PyList_New(0); /* before Python 3.12 this may run Python */
    GioThread *t = ((GioState *)PyModule_GetState(module))->threads;
    while (t != NULL && t->ident != ident) {
        t = t->next;
    }
    for (GioCall *c = list == NULL || t == NULL ? NULL : t->calls; c != NULL; c = c->next) {
        if (PyList_Append(list, (PyObject *)c) < 0) {
            Py_CLEAR(list);
            break;
        }
    }
    return list;
}

static PyObject *
core_close_calls(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    GioThread *t = gio_thread_get(PyModule_GetState(module));
    if (t == NULL) {
        return NULL;
    }
    gio_thread_close_calls(t, false);
    Py_RETURN_NONE;
}

static PyObject *
core_after_fork(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    GioState *st = PyModule_GetState(module);
    GioThread *t = gio_thread_get(st);
    if (t == NULL) {
        return NULL;
    }
    t->ident = PyThread_get_thread_ident();
    Py_CLEAR(t->own_loop);
    gio_thread_forget_wake_fd(t);
    st->holder_type = NULL;
    gio_hubs_after_fork(st);
    /* asyncio holds that no loop runs in the child, and so does the call that forked: of all that
     * is suspended in the parent's loop nothing goes on here. */
    GioHere here;
    if (gio_here_green(st, &here)) {
        Py_CLEAR(here.worker->call->hub);
    }
    gio_here_clear(&here);
    return gio_loops_after_fork(st);
}

static PyObject *
core_set_own_loop(PyObject *module, PyObject *loop)
{
    GioThread *t = gio_thread_get(PyModule_GetState(module));
    if (t == NULL) {
        return NULL;
    }
    Py_XSETREF(t->own_loop, loop == Py_None ? NULL : Py_NewRef(loop));
    Py_RETURN_NONE;
}

static PyMethodDef core_methods[] = {
    {"async_", (PyCFunction)(void (*)(void))gio_async, METH_FASTCALL | METH_KEYWORDS,
     "async_($module, fn=None, /, *, with_context=False)\n--\n\n"
     "Make a sync function awaitable: ``async_(fn)(...)`` runs fn in a greenlet as it is awaited.\n\n"
     "Inside, `await_`, green functions and patched psycopg2 suspend the greenlet while the loop\n"
     "goes on. Also a decorator. Context variables are shared with the awaiting task, so\n"
     "with_context has nothing left to do; it is accepted for compatibility."},
    {"await_", (PyCFunction)gio_await, METH_O,
     "await_($module, awaitable_or_fn, /)\n--\n\n"
     "Await an awaitable from sync code, or make an async function callable from it.\n\n"
     "In a greenlet (below `async_` or `spawn`) only the greenlet waits. Where no loop runs in this\n"
     "thread, the thread's own loop runs until it is done. Directly in a running loop:\n"
     "WouldBlockError. Cancelling the task raises CancelledError in the awaitable, as await does."},
    {"spawn", (PyCFunction)(void (*)(void))gio_spawn, METH_FASTCALL | METH_KEYWORDS,
     "spawn($module, fn, /, *args, **kwargs)\n--\n\n"
     "Start ``fn(*args, **kwargs)`` in a greenlet that runs concurrently; returns its handle.\n\n"
     "It may use `await_`, green functions and patched psycopg2 at any depth. It starts at the next\n"
     "turn of the loop, with a copy of the current context variables, as create_task does. With no\n"
     "loop running, it belongs to the thread's own loop, and makes progress whenever plain code\n"
     "waits. On greenletio's own loop it has no asyncio task until somebody asks for one."},
    {"_on_spawn", gio_spawn_tell, METH_O,
     "_on_spawn($module, function, /)\n--\n\n"
     "Have function(green) called where one is spawned, before it begins; None: no longer."},
    {"_greens_ask", gio_greens_ask, METH_NOARGS,
     "Make the tasks that the greenlets of the loop that runs here have done without."},
    {"wait_fd", (PyCFunction)(void (*)(void))core_wait_fd, METH_VARARGS | METH_KEYWORDS,
     "wait_fd($module, fd, events, timeout=None)\n--\n\n"
     "Wait until fd is ready for READ and/or WRITE: the ready events, 0 after timeout seconds."},
    {"wait_fds", (PyCFunction)(void (*)(void))core_wait_fds, METH_VARARGS | METH_KEYWORDS,
     "wait_fds($module, fds, timeout=None)\n--\n\n"
     "Wait until one of the (fd, events) pairs is ready; returns the ready ones."},
    {"sleep", core_sleep, METH_O,
     "sleep($module, seconds, /)\n--\n\n"
     "Suspend the greenlet, or the thread where no loop runs, for some seconds; 0 lets others run."},
    {"fd_closing", core_fd_closing, METH_O,
     "fd_closing($module, fd, /)\n--\n\n"
     "Wake whoever waits for fd with EBADF: call it before you close one that may be waited on."},
    {"fd_released", core_fd_released, METH_O,
     "fd_released($module, fd, /)\n--\n\n"
     "fd goes to somebody who will not call fd_closing: keep nothing registered for it."},
    {"place", core_place, METH_NOARGS,
     "place($module, /)\n--\n\n"
     "What a wait would do here: 1 suspend this greenlet, 0 block the thread, -1 WouldBlockError."},
    {"shield", core_shield, METH_O,
     "shield($module, on, /)\n--\n\n"
     "While on, waits made here are not ended by cancellation or enclosing timeouts. Turned off\n"
     "it returns the cancellation that arrived, or None. For short clean-up with a deadline."},
    {"current_call", core_current_call, METH_NOARGS,
     "current_call($module, /)\n--\n\nThe async_ call that is running here, or None."},
    {"get_ident", gio_sync_get_ident, METH_NOARGS,
     "get_ident($module, /)\n--\n\n"
     "The number of what runs here: a call of async_ or spawn, or a thread of the system."},
    {"_become_main", gio_sync_become_main, METH_O,
     "_become_main($module, call, /)\n--\n\n"
     "Have the call (None: none) count as the code of the main thread."},
    {"calls", core_calls, METH_VARARGS,
     "calls($module, ident=None, /)\n--\n\n"
     "The async_ calls of this thread, or of another, that have started and not ended, and what\n"
     "is being stepped or waits in sync code under a portal."},
    {"_portal", gio_portal, METH_O,
     "_portal($module, coroutine, /)\n--\n\n"
     "What a task is to step instead of the coroutine, so that sync code below it may wait."},
    {"_portal_adopt", gio_portal_adopt, METH_VARARGS,
     "_portal_adopt($module, type, task, portal, /)\n--\n\n"
     "From its next step on, the task (of asyncio's type in C) steps the portal instead of the\n"
     "coroutine that the portal is of. False if the task's field was not found."},
    {"_gc_phase", (PyCFunction)(void (*)(void))gio_gc_phase, METH_FASTCALL,
     "_gc_phase($module, phase, info, /)\n--\n\n"
     "For gc.callbacks: while garbage is being collected, its finalizers can't wait."},
    {"_close_calls", core_close_calls, METH_NOARGS, "Unwind every suspended call of this thread."},
    {"_after_fork", core_after_fork, METH_NOARGS,
     "In a forked child: leave the parent's fds alone. Returns the event loops that are open."},
    {"_set_own_loop", core_set_own_loop, METH_O, "The loop that this thread's plain code runs."},
    {NULL},
};

static int
intern_all(GioState *st)
{
    const struct {
        PyObject **slot;
        const char *text;
    } strings[] = {
        {&st->str_acquire, "acquire"},
        {&st->str_add_done_callback, "add_done_callback"},
        {&st->str_append, "append"},
        {&st->str_locked, "locked"},
        {&st->str_pop, "pop"},
        {&st->str_popleft, "popleft"},
        {&st->str_release, "release"},
        {&st->str_blocking, "_asyncio_future_blocking"},
        {&st->str_call_soon, "call_soon"},
        {&st->str_call_soon_threadsafe, "call_soon_threadsafe"},
        {&st->str_buffer_updated, "buffer_updated"},
        {&st->str_cancel, "cancel"},
        {&st->str_close, "close"},
        {&st->str_context, "context"},
        {&st->str_connection_lost, "connection_lost"},
        {&st->str_connection_made, "connection_made"},
        {&st->str_data_received, "data_received"},
        {&st->str_datagram_received, "datagram_received"},
        {&st->str_eof_received, "eof_received"},
        {&st->str_error_received, "error_received"},
        {&st->str_get_buffer, "get_buffer"},
        {&st->str_running_loop, "__asyncio_running_event_loop__"},
        {&st->str_hub, "__greenletio_hub__"},
        {&st->str_name, "__name__"},
        {&st->str_qualname, "__qualname__"},
        {&st->str_remove_done_callback, "remove_done_callback"},
        {&st->str_throw, "throw"},
        {&st->str_timeout, "_timeout"},
        {&st->str_tls, "_tls"},
        {&st->str_fileno, "fileno"},
        {&st->str_connect_ex, "connect_ex"},
        {&st->str_ensure_fd_no_transport, "_ensure_fd_no_transport"},
        {&st->str_gettimeout, "gettimeout"},
        {&st->str_setblocking, "setblocking"},
        {&st->str_get_loop, "get_loop"},
        {&st->str_is_closed, "is_closed"},
        {&st->thread_key, "greenletio._core.Thread"},
    };
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        *strings[i].slot = PyUnicode_InternFromString(strings[i].text);
        if (*strings[i].slot == NULL) {
            return -1;
        }
    }
    st->kw_context = PyTuple_Pack(1, st->str_context);
    return st->kw_context == NULL ? -1 : 0;
}

static PyObject *
import_attr(const char *module_name, const char *attr)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *value = module == NULL ? NULL : PyObject_GetAttrString(module, attr);
    Py_XDECREF(module);
    return value;
}

static int
core_exec(PyObject *module)
{
    GioState *st = PyModule_GetState(module);
    if (intern_all(st) < 0 || gio_greenlet_import(st) < 0 ||
        (st->cancelled_error = import_attr("asyncio", "CancelledError")) == NULL ||
        (st->current_task = import_attr("asyncio", "current_task")) == NULL ||
        (st->get_running_loop = import_attr("asyncio", "_get_running_loop")) == NULL ||
        (st->buffered_protocol = import_attr("asyncio", "BufferedProtocol")) == NULL ||
        (st->transport_socket = import_attr("asyncio.trsock", "TransportSocket")) == NULL ||
        (st->set_result = import_attr("asyncio.futures", "_set_result_unless_cancelled")) == NULL ||
        gio_thread_setup_types(module, st) < 0 || gio_worker_setup_types(module, st) < 0 ||
        gio_call_setup_types(module, st) < 0 || gio_portal_setup_types(module, st) < 0 ||
        gio_function_setup_types(module, st) < 0 || gio_waiter_setup_types(module, st) < 0 ||
        gio_hub_setup_types(module, st) < 0 || gio_timeout_setup_types(module, st) < 0 ||
        gio_loop_setup_types(module, st) < 0 || gio_green_setup_types(module, st) < 0 ||
        gio_socket_setup_types(module, st) < 0 || gio_green_tls_setup_types(module, st) < 0 ||
        gio_lock_setup_types(module, st) < 0 || gio_condition_setup_types(module, st) < 0 ||
        gio_event_setup_types(module, st) < 0 || gio_simple_queue_setup_types(module, st) < 0 ||
        gio_queue_setup_types(module, st) < 0 || gio_local_setup_types(module, st) < 0 ||
        PyModule_AddIntConstant(module, "READ", GIO_READ) < 0 ||
        PyModule_AddIntConstant(module, "WRITE", GIO_WRITE) < 0 ||
        PyModule_AddIntConstant(module, "KEEP", GIO_KEEP) < 0 || gio_api_export(module, st) < 0) {
        return -1;
    }
    /* It imports this module: by now everything that it needs is there. */
    st->loops = PyImport_ImportModule("greenletio._loops");
    st->done = st->loops == NULL ? NULL : PyObject_GetAttrString(st->loops, "done");
    return st->done == NULL ? -1 : 0;
}

static int
core_traverse(PyObject *module, visitproc visit, void *arg)
{
    GioState *st = PyModule_GetState(module);
    Py_VISIT(st->call_type);
    Py_VISIT(st->portal_type);
    Py_VISIT(st->async_function_type);
    Py_VISIT(st->await_function_type);
    Py_VISIT(st->waiter_type);
    Py_VISIT(st->hub_type);
    Py_VISIT(st->watch_type);
    Py_VISIT(st->thread_type);
    Py_VISIT(st->timeout_type);
    Py_VISIT(st->worker_type);
    Py_VISIT(st->green_socket_type);
    Py_VISIT(st->tls_session_type);
    Py_VISIT(st->lock_type);
    Py_VISIT(st->rlock_type);
    Py_VISIT(st->condition_type);
    Py_VISIT(st->event_type);
    Py_VISIT(st->semaphore_type);
    Py_VISIT(st->simple_queue_type);
    Py_VISIT(st->queue_type);
    Py_VISIT(st->local_type);
    Py_VISIT(st->main_call);
    Py_VISIT(st->heappush);
    Py_VISIT(st->heappop);
    Py_VISIT(st->queue_empty);
    Py_VISIT(st->real_lock_type);
    Py_VISIT(st->deque_type);
    Py_VISIT(st->loop_type);
    Py_VISIT(st->green_type);
    Py_VISIT(st->public_green);
    Py_VISIT(st->enter_task);
    Py_VISIT(st->leave_task);
    Py_VISIT(st->spawn_task);
    Py_VISIT(st->on_spawn);
    Py_VISIT(st->handle_type);
    Py_VISIT(st->timer_handle_type);
    Py_VISIT(st->sock_type);
    Py_VISIT(st->sock_op_type);
    Py_VISIT(st->socket_type);
    Py_VISIT(st->stream_type);
    Py_VISIT(st->read_pipe_type);
    Py_VISIT(st->write_pipe_type);
    Py_VISIT(st->datagram_type);
    Py_VISIT(st->tls_type);
    Py_VISIT(st->greenlet_exit);
    Py_VISIT(st->cancelled_error);
    Py_VISIT(st->get_running_loop);
    Py_VISIT(st->buffered_protocol);
    Py_VISIT(st->transport_socket);
    Py_VISIT(st->set_result);
    Py_VISIT(st->current_task);
    Py_VISIT(st->done);
    Py_VISIT(st->loops);
    Py_VISIT(st->worker_run);
    Py_VISIT(st->task_type);
    Py_VISIT(st->future_type);
    return 0;
}

/* The types and strings are left in place: objects of ours may outlive the module
 * at interpreter shutdown and still look them up. */
static int
core_clear(PyObject *module)
{
    GioState *st = PyModule_GetState(module);
    Py_CLEAR(st->done);
    Py_CLEAR(st->loops);
    Py_CLEAR(st->main_call);
    return 0;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "greenletio._core",
    .m_doc = "The C core: waits, the bridge between greenlets and coroutines, the hub.",
    .m_size = sizeof(GioState),
    .m_methods = core_methods,
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
