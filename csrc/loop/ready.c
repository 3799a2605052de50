/* The ready queue: what the loop runs next, in the order it came.
 *
 * A ring of (function, object). Any thread may push, with the GIL; the loop's thread pops.
 */
#include "loop/loop.h"

static int
grow(GioReadyRing *ring)
{
    size_t size = ring->size ? ring->size * 2 : 64;
    GioReady *slots = PyMem_Malloc(size * sizeof *slots);
    if (slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < ring->count; i++) {
        slots[i] = ring->slots[(ring->head + i) & (ring->size - 1)];
    }
    PyMem_Free(ring->slots);
    ring->slots = slots;
    ring->size = size;
    ring->head = 0;
    return 0;
}

int
gio_ready_push(GioLoop *loop, GioRun run, PyObject *self)
{
    GioReadyRing *ring = &loop->ready;
    if (ring->count == ring->size && grow(ring) < 0) {
        return -1;
    }
    ring->slots[(ring->head + ring->count++) & (ring->size - 1)] = (GioReady){run, Py_NewRef(self)};
    return 0;
}

GioReady
gio_ready_pop(GioLoop *loop)
{
    GioReadyRing *ring = &loop->ready;
    GioReady entry = ring->slots[ring->head];
    ring->head = (ring->head + 1) & (ring->size - 1);
    ring->count--;
    return entry;
}

void
gio_ready_clear(GioLoop *loop)
{
    while (loop->ready.count > 0) {
        GioReady entry = gio_ready_pop(loop);
        if (entry.run == gio_handle_run) {
            gio_handle_cancel((GioHandle *)entry.self);
        }
        Py_DECREF(entry.self);
    }
    GioReady *slots = loop->ready.slots;
    loop->ready = (GioReadyRing){0};
    PyMem_Free(slots);
}
