"""``threading`` for greenlets: locks that suspend them, threads that are greenlets.

The standard module's own source, executed again on the green ``_thread``; both modules see the
same threads. A primitive may be shared by greenlets of any loop and by threads of the system; a
waiter is served in its turn, and one that is cancelled or times out never takes a lock or a
notification with it. ``Thread.start`` spawns a greenlet where a loop runs and starts a
thread of the system where none does. What runs under ``async_`` or ``spawn`` counts as a
thread of its own for ``local``, ``get_ident``, ``current_thread`` and the owner of an ``RLock``.

Deviations: a green thread ends with its loop (``asyncio.run`` cancels it; join what must
finish), it starts with a copy of the context variables, and a call that must wait directly in
a running loop raises ``WouldBlockError``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading as _std
import weakref
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from greenletio import _core, _loops
from greenletio.green import _thread as _green_thread
from greenletio.green._std import adopt, current_call, execute, public
from greenletio.green._thread import _PLAIN, _ignored, _lives

__all__ = public(_std)

# Both modules have the same threads.
_SHARED = (
    "_active",
    "_active_limbo_lock",
    "_counter",
    "_dangling",
    "_limbo",
    "_main_thread",
    "_register_atexit",
    "_shutdown",
    "_shutdown_locks",
    "_shutdown_locks_lock",
    "_threading_atexits",
)

_names: dict[str, Any] = globals()
execute(
    _names,
    _std,
    derived=("Thread", "Timer", "_MainThread", "_DummyThread", "Barrier"),
    # No hook of fork: the standard module's own looks after the threads of both.
    given={"_thread": _green_thread, "os": SimpleNamespace()},
)
_names.update((name, getattr(_std, name)) for name in _SHARED if hasattr(_std, name))
RLock: Any = _names["RLock"]


class Condition(_core.Condition, _std.Condition):
    """``threading.Condition``. A cancelled ``wait`` takes the lock back before it raises."""

    def __init__(self, lock: Any = None) -> None:
        super().__init__(lock)


class Semaphore(_core.Semaphore, _std.Semaphore):
    """``threading.Semaphore``, FIFO. ``release`` never waits and may come from any thread."""

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)


class BoundedSemaphore(Semaphore):
    """``threading.BoundedSemaphore``: ``ValueError`` when more is given back than was taken."""

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)
        self._initial_value = value

    def release(self, n: int = 1) -> None:
        """Give ``n`` back: first to those that wait. Never waits."""
        if self._value + n > self._initial_value:
            raise ValueError("Semaphore released too many times")
        super().release(n)


class Event(_core.Event, _std.Event):
    """``threading.Event``. ``set`` never waits and may come from any thread."""

    def __init__(self) -> None:
        super().__init__()

    @cached_property
    def _cond(self) -> Condition:  # for what knows the standard one's inside
        return Condition(_core.Lock())


# Threads.

_active: Any = _names["_active"]
_get_native_id: Any = _names["get_native_id"]
_current_thread: Any = _names["current_thread"]
_make_invoke: Any = _names["_make_invoke_excepthook"]
_HANDLE = "_os_thread_handle" if sys.version_info >= (3, 14) else "_handle"
_greens: dict[Any, Any] = {}  # threads that are greenlets, while they run; weakly, their loops


def excepthook(args: Any, /) -> Any:
    """Report an exception that ended a thread: by the standard module's hook, unless replaced."""
    _std.excepthook(args)


__excepthook__ = excepthook


def _make_invoke_excepthook() -> Any:
    invoke = _make_invoke()

    def invoke_excepthook(thread: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and _ignored(error) and current_call() is not None:
            raise error
        invoke(thread)

    return invoke_excepthook


class _GreenThread:
    """The methods of ``Thread`` that are not the standard module's."""

    _greenletio_start: Any = _names["Thread"].start

    def start(self: Any) -> None:
        """Start it: spawned, or as a thread of the system where no loop runs. Never waits for it
        where it is spawned."""
        if _core.place() == _PLAIN or not self._initialized or self._started.is_set():
            self._greenletio_start()  # which also refuses what cannot be started
            return
        self._greenletio_spawn()
        self._native_id = _get_native_id()
        _active[self._ident] = self
        _greens[self] = weakref.ref(asyncio.get_running_loop())
        self._started.set()

    if sys.version_info >= (3, 13):

        def _greenletio_spawn(self: Any) -> None:
            handle = getattr(self, _HANDLE)
            _names["_start_joinable_thread"](
                self._greenletio_work, handle=handle, daemon=self.daemon
            )
            self._ident = handle.ident

            def end() -> None:
                self._greenletio_end()
                handle._set_done()

            _lives[self._ident].then = end

    else:

        def _greenletio_spawn(self: Any) -> None:
            self._ident = _names["_start_new_thread"](self._greenletio_work, ())
            life = _lives[self._ident]
            life.then = self._greenletio_end
            lock = self._tstate_lock = life.sentinel = _core.Lock()
            lock.acquire()
            if not self.daemon:
                with _names["_shutdown_locks_lock"]:
                    _names["_maintain_shutdown_locks"]()
                    _names["_shutdown_locks"].add(lock)

    def _greenletio_work(self: Any) -> None:
        hooks = _names["_trace_hook"], _names["_profile_hook"]
        before = sys.gettrace(), sys.getprofile()
        if hooks[0]:
            sys.settrace(hooks[0])
        if hooks[1]:
            sys.setprofile(hooks[1])
        context = getattr(self, "_context", None)  # since Python 3.14
        try:
            if context is None:
                self.run()
            else:
                context.run(self.run)
        except BaseException:
            self._invoke_excepthook(self)
        finally:  # they are the thread's of the system, which does other things next
            if hooks[0]:
                sys.settrace(before[0])
            if hooks[1]:
                sys.setprofile(before[1])

    def _greenletio_end(self: Any) -> None:
        _active.pop(self._ident, None)
        _greens.pop(self, None)

    def _wait_for_tstate_lock(self: Any, block: bool = True, timeout: float = -1) -> None:
        # The standard one takes a wait that was cancelled for the end of the thread.
        lock = self._tstate_lock
        if lock is not None and lock.acquire(block, timeout):
            lock.release()
            self._stop()


def _short(cls: Any) -> Any:
    """A __repr__ that says ``threading.Event``."""
    return lambda self: cls.__repr__(self).replace("greenletio.green.", "", 1)


_cls: Any
for _cls in (Event, Semaphore, BoundedSemaphore, _names["Barrier"]):
    if hasattr(getattr(_std, _cls.__name__), "__repr__"):
        _cls.__repr__ = _short(getattr(_std, _cls.__name__))

for _name, _method in vars(_GreenThread).items():
    if not _name.startswith("__") and (
        _name != "_wait_for_tstate_lock" or sys.version_info < (3, 13)
    ):
        setattr(_names["Thread"], _name, _method)


def current_thread() -> _std.Thread:
    """The ``Thread`` that runs here; one that only stands for it, under a bare ``async_``."""
    call = current_call()
    thread: Any
    if call is None:
        thread = _current_thread()
    else:
        thread = _active.get(id(call))
        if thread is None:
            thread = _names["_DummyThread"]()
            weakref.finalize(call, _active.pop, id(call), None).atexit = False
    return thread  # type: ignore[no-any-return]


def _join_greens(loop: Any = None) -> None:
    """Wait for the green threads that are no daemons, of the loop that runs or of ``loop``."""
    loop = loop or asyncio._get_running_loop()  # none does in a forked child
    while True:
        waited = [
            thread
            for thread, its_loop in list(_greens.items())
            if its_loop() is loop and not thread.daemon
        ]
        if not waited:
            return
        for thread in waited:
            thread.join()


def _join_all() -> None:
    """When a program ends: those that its own loop can bring to an end. The others have ended."""
    if _loops._own.loop is not None:
        _join_greens(_loops._own.loop)
    for life in list(_lives.values()):
        life.end()


os.register_at_fork(after_in_child=_greens.clear)
try:
    _std._register_atexit(_join_all)  # type: ignore[attr-defined]
except RuntimeError:  # it ends already
    pass

adopt(_names, _std)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
