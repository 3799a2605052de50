"""``_thread`` for greenlets: locks that suspend them, and threads that are greenlets.

``start_new_thread`` spawns a greenlet where a loop runs and starts a thread of the system where
none does. Deviation: ``stack_size`` speaks of the latter alone.
"""

from __future__ import annotations

import _thread as _std
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import greenlet

import greenletio
from greenletio import _core, _threads
from greenletio._core import Lock, RLock, _local, get_ident  # noqa: F401  (re-exported)
from greenletio.green._std import (
    adopt,
    become_main,
    current_call,
    interrupt,
    main_task,
    public,
)

__all__ = public(_std)

_PLAIN = 0  # _core.place(): no loop runs in this thread
allocate_lock = allocate = LockType = Lock
if hasattr(_std, "lock"):
    lock = Lock


# Threads.

_real = _std._local()  # .sentinel of a thread of the system


class _Life:
    """A thread that is a greenlet, from its start to its end."""

    __slots__ = ("ident", "sentinel", "then")

    def __init__(self, then: Callable[[], object] | None) -> None:
        self.ident: int | None = None
        self.sentinel: Lock | None = None
        self.then = then  # is called when it ends

    def end(self) -> None:
        """Called however it ends, more than once perhaps."""
        if self.ident is None or _lives.pop(self.ident, None) is None:
            return
        self.ident = None
        if self.then is not None:
            self.then()
        if self.sentinel is not None and self.sentinel.locked():
            self.sentinel.release()


class _Guard:
    """An argument of the call that runs a thread: goes with it, also if that never began."""

    __slots__ = ("life",)

    def __init__(self, life: _Life) -> None:
        self.life = life

    def __del__(self) -> None:
        self.life.end()


_lives: dict[int, _Life] = {}  # by identity


def _ignored(error: BaseException) -> bool:
    """Whether ``error`` ends a green thread as it should end: unwound with its loop."""
    return isinstance(error, (asyncio.CancelledError, greenlet.GreenletExit))


class _Unraisable:
    """Python has no name for the type of what sys.unraisablehook is called with."""

    kind: Any = None

    def __del__(self) -> None:
        raise ValueError

    @classmethod
    def find(cls) -> Any:
        if cls.kind is None:
            hook, sys.unraisablehook = sys.unraisablehook, cls._take
            try:
                cls()
            finally:
                sys.unraisablehook = hook
        return cls.kind

    @classmethod
    def _take(cls, args: Any) -> None:
        cls.kind = type(args)


def _complain(function: Any) -> None:
    said, told = "Exception ignored in thread started by", function
    if sys.version_info >= (3, 13):
        said, told = f"{said} {function!r}", None
    args = _Unraisable.find()((*sys.exc_info(), said, told))
    sys.unraisablehook(args)


def _run(function: Callable[..., object], args: Any, kwargs: Any) -> None:
    """What a thread of the system does."""
    _real.sentinel = None
    try:
        function(*args, **kwargs)
    except SystemExit:
        pass
    except BaseException:
        _complain(function)
    finally:
        if _real.sentinel is not None and _real.sentinel.locked():
            _real.sentinel.release()


def _run_green(function: Callable[..., object], args: Any, kwargs: Any, guard: _Guard) -> None:
    try:
        function(*args, **kwargs)
    except SystemExit:
        pass
    except BaseException as error:
        if _ignored(error):
            raise
        _complain(function)
    finally:
        guard.life.end()


def _spawn(function: Any, args: Any, kwargs: Any, then: Callable[[], object] | None = None) -> int:
    """Start a green thread and return its identity. ``then`` is called however it ends."""
    life = _Life(then)
    green = greenletio.spawn(_run_green, function, args, kwargs, _Guard(life))
    ident = life.ident = id(green._call)
    _lives[ident] = life
    return ident


def start_new_thread(
    function: Callable[..., object], args: tuple[Any, ...], kwargs: Any = None, /
) -> int:
    """Call ``function`` in a new thread and return its identity. Never waits."""
    if not callable(function):
        raise TypeError("first arg must be callable")
    if not isinstance(args, tuple):
        raise TypeError("2nd arg must be a tuple")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise TypeError("optional 3rd arg must be a dictionary")
    kwargs = {} if kwargs is None else kwargs
    if _core.place() == _PLAIN:
        return _std.start_new_thread(_run, (function, args, kwargs))
    sys.audit("_thread.start_new_thread", function, args, kwargs)
    return _spawn(function, args, kwargs)


def _after_fork() -> None:
    """A forked child has one thread, the one that forked. No loop runs in it."""
    call = _core.current_call()
    _lives.pop(id(call), None)
    for life in list(_lives.values()):
        life.end()
    if call is not None:
        become_main(None, call)


os.register_at_fork(after_in_child=_after_fork)

start_new = start_new_thread
_interrupt: Any = _std.interrupt_main


def interrupt_main(signum: int = signal.SIGINT, /) -> None:
    """Act as if the signal had come: what its handler raises is raised in the main thread."""
    main = main_task()
    if main is None or _core.current_call() is None or current_call() is None:
        _interrupt(signum)
        return
    if not 0 < signum < signal.NSIG:
        raise ValueError("signal number out of range")
    main.get_loop().call_soon(_handle, signum)
    if _core.place() > 0:
        _core.sleep(0)  # until it was handled: our end might come before it


def _handle(signum: int) -> None:
    try:
        _interrupt(signum)  # the handler is called before it returns
    except BaseException as error:
        interrupt(error)


def _set_sentinel() -> Lock:
    """A lock that is released, if somebody holds it, when the thread that runs here ends."""
    sentinel = Lock()
    if current_call() is None:
        _real.sentinel = sentinel
    elif (life := _lives.get(get_ident())) is not None:
        life.sentinel = sentinel
    return sentinel


def _count() -> int:
    """How many threads there are that were started here or by the system."""
    return _std._count() - _threads.count() + len(_lives)


if sys.version_info >= (3, 13):

    class _ThreadHandle:
        """Stands for a thread, which it can wait for."""

        def __init__(self) -> None:
            self._ident: int | None = None
            self._running = Lock()
            self._running.acquire()
            self._real: Any = None  # the handle of a thread of the system

        @property
        def ident(self) -> int:
            return self._ident or 0

        def is_done(self) -> bool:
            return not self._running.locked()

        def _set_done(self) -> None:
            if self._ident is None:
                raise RuntimeError("thread not started")
            if self._running.locked():
                self._running.release()

        def join(self, timeout: float | None = None) -> None:
            """Wait until it has ended, at most ``timeout`` seconds. Can be cancelled."""
            if self._ident is None:
                raise RuntimeError("thread not started")
            if not self.is_done() and self._ident == get_ident():
                raise RuntimeError("Cannot join current thread")
            if self._running.acquire(timeout=-1 if timeout is None or timeout < 0 else timeout):
                self._running.release()
                if self._real is not None:
                    self._real.join()  # its last instructions

    def _make_thread_handle(ident: int, /) -> _ThreadHandle:
        handle = _ThreadHandle()
        handle._ident = ident
        return handle

    def start_joinable_thread(
        function: Callable[[], object], handle: Any = None, daemon: bool = True
    ) -> _ThreadHandle:
        """Call ``function`` in a new thread; returns ``handle``, or a new one. Never waits."""
        if not callable(function):
            raise TypeError("thread function must be callable")
        if handle is None:
            handle = _ThreadHandle()
        elif not isinstance(handle, _ThreadHandle):
            raise TypeError("'handle' must be a _ThreadHandle")
        if handle._ident is not None:
            raise RuntimeError("thread already started")
        if _core.place() != _PLAIN:
            sys.audit("_thread.start_joinable_thread", function, daemon, handle)
            handle._ident = _spawn(function, (), {}, handle._set_done)
            return handle

        def run() -> None:
            handle._ident = get_ident()
            try:
                _run(function, (), {})
            finally:
                handle._set_done()

        handle._real = _std._ThreadHandle()
        _std.start_joinable_thread(run, handle._real, daemon)
        handle._ident = handle._real.ident
        return handle


adopt(globals(), _std)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
