/* The one file that includes greenlet.h: its API pointer is static per file.
 *
 * Wraps the few operations that the core needs, and makes the Worker type, a
 * greenlet with C fields. Holding the GIL is required throughout; a greenlet can
 * only be switched to from its own thread.
 */
#include "core.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include <greenlet/greenlet.h>
#pragma GCC diagnostic pop

_Static_assert(sizeof(GioGreenlet) == sizeof(PyGreenlet), "greenlet's object has another layout");

PyObject *(*gio_greenlet_switch_raw)(PyObject *g, PyObject *args, PyObject *kwargs);

int
gio_greenlet_import(GioState *st)
{
    PyGreenlet_Import();
    if (_PyGreenlet_API == NULL) {
        return -1;
    }
    *(void **)&gio_greenlet_switch_raw = _PyGreenlet_API[PyGreenlet_Switch_NUM];
    st->greenlet_exit = Py_NewRef(PyExc_GreenletExit);
    return 0;
}

PyObject *
gio_greenlet_current(void)
{
    return (PyObject *)PyGreenlet_GetCurrent();
}

PyObject *
gio_greenlet_parent(PyObject *g)
{
    return (PyObject *)PyGreenlet_GetParent((PyGreenlet *)g);
}

int
gio_greenlet_set_parent(PyObject *g, PyObject *p)
{
    return PyGreenlet_SetParent((PyGreenlet *)g, (PyGreenlet *)p);
}

bool
gio_greenlet_active(PyObject *g)
{
    return PyGreenlet_ACTIVE((PyGreenlet *)g);
}

/* No slots of its own: greenlet's traverse, clear and deallocation serve, and
 * the fields are empty whenever a worker can be collected. */
static PyType_Slot worker_slots[] = {
    {Py_tp_doc, "The greenlets that run async_ functions, one call after another."},
    {0, NULL},
};

static PyType_Spec worker_spec = {
    .name = "greenletio._core.Worker",
    .basicsize = sizeof(GioWorker),
    /* Py_TPFLAGS_HAVE_GC comes with greenlet's traverse and clear, or not at all. */
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = worker_slots,
};

int
gio_worker_setup_types(PyObject *module, GioState *st)
{
    PyObject *base = (PyObject *)&PyGreenlet_Type;
    st->worker_type = gio_add_type(module, &worker_spec, base, false);
    if (st->worker_type == NULL) {
        return -1;
    }
    st->worker_run = PyCFunction_New(&gio_worker_run_def, NULL);
    return st->worker_run == NULL ? -1 : 0;
}
