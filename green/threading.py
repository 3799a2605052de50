"""``threading`` for greenlets: locks that suspend them, threads that are greenlets.

A primitive may be shared by greenlets of any loop and by threads of the system; a waiter is
served in its turn, and one that is cancelled or times out never takes a lock or a
notification with it. ``Thread.start`` spawns a greenlet where a loop runs and starts a
thread of the system where none does. What runs under ``async_`` or ``spawn`` counts as a
thread of its own for ``local``, ``get_ident``, ``current_thread`` and the owner of an ``RLock``.

Deviations: a green thread ends with its loop (``asyncio.run`` cancels it; join what must
finish), ``settrace`` and ``setprofile`` do not reach it, and a call that must wait directly in
a running loop raises ``WouldBlockError``.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading as _std
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import greenlet

import greenletio
from greenletio import _core
from greenletio.green._local import local  # noqa: F401  (re-exported)
from greenletio.green._std import adopt, public

__all__ = public(_std)

_PLAIN = 0  # _core.place(): no loop runs in this thread
_allocate = _std.Lock  # a real lock: held for a few instructions, never across a wait

# Waiters are set to True by whoever wakes them; one that withdraws sets itself to False.
_Waiters: TypeAlias = "deque[_core.Waiter[bool]]"


def _wake(waiters: _Waiters, n: int = 1) -> int:
    """Wake the first ``n`` that still wait; how many there were."""
    woken = 0
    while woken < n:
        try:
            waiter = waiters.popleft()
        except IndexError:
            break
        woken += waiter.set(True)
    return woken


def _withdraw(waiter: _core.Waiter[bool], waiters: _Waiters) -> bool:
    """Stop waiting. False: too late, it has been woken and owns what it was woken for."""
    waiter.set(False)
    try:
        waiters.remove(waiter)
    except ValueError:
        pass
    return waiter.cancelled() or not waiter.result()


def _await_turn(
    waiter: _core.Waiter[bool],
    waiters: _Waiters,
    timeout: float | None,
    pass_on: Callable[[], object],
) -> bool:
    """Wait until woken. False at the timeout; on an exception a turn that came is passed on."""
    try:
        return waiter.wait(timeout) or not _withdraw(waiter, waiters)
    except BaseException:
        if not _withdraw(waiter, waiters):
            pass_on()
        raise


def get_ident() -> int:
    """The number of what runs here: a greenlet's call, or the thread of the system."""
    call = _core.current_call()
    return _std.get_ident() if call is None else id(call)


class Lock:
    """``threading.Lock``: FIFO; may be released by another greenlet or thread than took it.

    There is no moment at which a signal handler or a finalizer that uses the same lock could
    find it inconsistent: the state is a real lock, and a release hands it to the first waiter.
    """

    __slots__ = ("__weakref__", "_state", "_waiters")

    def __init__(self) -> None:
        self._at_fork_reinit()

    def _at_fork_reinit(self) -> None:
        self._state = _allocate()
        self._waiters: _Waiters = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; False if it is taken, after ``timeout`` seconds. Can be cancelled."""
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout < 0 and timeout != -1:
            raise ValueError("timeout value must be a non-negative number")
        if timeout > _std.TIMEOUT_MAX:
            raise OverflowError("timeout value is too large")
        if self._state.acquire(False):
            return True
        if not blocking or timeout == 0:
            return False
        waiter: _core.Waiter[bool] = _core.Waiter()
        self._waiters.append(waiter)
        if self._state.acquire(False):  # released before we stood in the queue
            _withdraw(waiter, self._waiters)
            return True
        limit = None if timeout == -1 else timeout
        return _await_turn(waiter, self._waiters, limit, self.release)

    def release(self) -> None:
        """Hand the lock to the first waiter, or open it. Never waits; from any thread."""
        while not _wake(self._waiters):
            self._state.release()
            if not self._waiters or not self._state.acquire(False):
                return  # nobody came in between, or whoever holds it now will wake them

    def locked(self) -> bool:
        """Whether it is taken."""
        return self._state.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<{state} {type(self).__module__}.{type(self).__qualname__} at {id(self):#x}>"

    acquire_lock = acquire
    release_lock = release
    locked_lock = locked


class RLock:
    """``threading.RLock``: its owner, a greenlet's call or a thread, may take it again."""

    __slots__ = ("__weakref__", "_block", "_count", "_owner")

    def __init__(self) -> None:
        self._at_fork_reinit()

    def _at_fork_reinit(self) -> None:
        self._block = Lock()
        self._owner: int | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; False if another has it, after ``timeout`` seconds. Can be cancelled."""
        me = get_ident()
        if self._owner == me:
            self._count += 1
            return True
        if not self._block.acquire(blocking, timeout):
            return False
        self._owner, self._count = me, 1
        return True

    def release(self) -> None:
        """Give it back once. ``RuntimeError`` unless the caller owns it. Never waits."""
        if self._owner != get_ident():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = None
            self._block.release()

    def locked(self) -> bool:
        """Whether it is taken."""
        return self._block.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{state} {name} owner={self._owner} count={self._count} at {id(self):#x}>"

    # What Condition needs.

    def _is_owned(self) -> bool:
        return self._owner == get_ident()

    def _release_save(self) -> tuple[int, int | None]:
        if not self._count:
            raise RuntimeError("cannot release un-acquired lock")
        state = self._count, self._owner
        self._count, self._owner = 0, None
        self._block.release()
        return state

    def _acquire_restore(self, state: tuple[int, int | None]) -> None:
        self._block.acquire()
        self._count, self._owner = state

    def _recursion_count(self) -> int:
        return self._count if self._is_owned() else 0


class Condition(_std.Condition):
    """``threading.Condition``. A cancelled ``wait`` takes the lock back before it raises."""

    _waiters: _Waiters

    def __init__(self, lock: Any = None) -> None:
        lock = RLock() if lock is None else lock
        super().__init__(lock)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a notification; False after ``timeout`` seconds. Can be cancelled."""
        if not self._is_owned():  # type: ignore[attr-defined]
            raise RuntimeError("cannot wait on un-acquired lock")
        waiter: _core.Waiter[bool] = _core.Waiter()
        waiters = self._waiters
        waiters.append(waiter)
        saved = self._release_save()  # type: ignore[attr-defined]
        try:
            limit = None if timeout is None else max(timeout, 0)
            return _await_turn(waiter, waiters, limit, lambda: _wake(waiters))
        finally:
            self._retake(saved)

    def _retake(self, saved: Any) -> None:
        cancelled = None
        while True:
            try:
                self._acquire_restore(saved)  # type: ignore[attr-defined]
                break
            except asyncio.CancelledError as error:
                cancelled = error  # the caller is inside `with`: it must hold the lock
        if cancelled is not None:
            raise cancelled

    def notify(self, n: int = 1) -> None:
        """Wake ``n`` that wait. The caller must own the lock."""
        if not self._is_owned():  # type: ignore[attr-defined]
            raise RuntimeError("cannot notify on un-acquired lock")
        _wake(self._waiters, n)


class Semaphore(_std.Semaphore):
    """``threading.Semaphore``, FIFO. ``release`` never waits and may come from any thread."""

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)
        self._mutex = _allocate()
        self._waiters: _Waiters = deque()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take one; False if there is none, after ``timeout`` seconds. Can be cancelled."""
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        waiter: _core.Waiter[bool] = _core.Waiter()
        with self._mutex:
            if self._value > 0:
                self._value -= 1
                return True
            if not blocking or (timeout is not None and timeout <= 0):
                return False
            self._waiters.append(waiter)
        return _await_turn(waiter, self._waiters, timeout, lambda: Semaphore.release(self))

    __enter__ = acquire

    def release(self, n: int = 1) -> None:
        """Give ``n`` back: first to those that wait. Never waits."""
        if n < 1:
            raise ValueError("n must be one or more")
        with self._mutex:
            self._value += n - _wake(self._waiters, n)


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


class Event(_std.Event):
    """``threading.Event``. ``set`` never waits and may come from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._waiters: _Waiters = deque()

    def _at_fork_reinit(self) -> None:
        self._waiters = deque()

    def set(self) -> None:
        """Raise the flag and wake all that wait."""
        self._flag = True
        _wake(self._waiters, len(self._waiters))

    def clear(self) -> None:
        """Lower the flag."""
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the flag; False after ``timeout`` seconds. Can be cancelled."""
        if self._flag:
            return True
        waiter: _core.Waiter[bool] = _core.Waiter()
        self._waiters.append(waiter)
        if self.is_set():  # raised before we stood in the queue
            _withdraw(waiter, self._waiters)
            return True
        limit = None if timeout is None else max(timeout, 0)
        return _await_turn(waiter, self._waiters, limit, lambda: None)


class Barrier(_std.Barrier):
    """``threading.Barrier``. ``wait`` can be cancelled."""

    def __init__(
        self,
        parties: int,
        action: Callable[[], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(parties, action, timeout)
        self._cond = Condition(Lock())


# Threads.

_threads: WeakKeyDictionary[_core._Call, _std.Thread] = WeakKeyDictionary()
_dummies = itertools.count(1)


def excepthook(args: Any, /) -> Any:
    """Report an exception that ended a thread: by the standard module's hook, unless replaced."""
    _std.excepthook(args)


__excepthook__ = excepthook


def _report(thread: _std.Thread) -> None:
    try:
        excepthook(_std.ExceptHookArgs((*sys.exc_info(), thread)))
    except Exception:
        sys.excepthook(*sys.exc_info())


class Thread(_std.Thread):
    """``threading.Thread``: a greenlet if a loop runs where it is started, else a real thread."""

    _initialized: bool
    _started: _std.Event

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
        **context: Any,  # context=, on 3.14
    ) -> None:
        super().__init__(group, target, name, args, kwargs, daemon=daemon, **context)
        self._ended = Event()
        self._is_green = False
        self._invoke_excepthook = _report

    def start(self) -> None:
        """Start it: spawned, or as a thread of the system where no loop runs."""
        if _core.place() == _PLAIN or not self._initialized or self._started.is_set():
            super().start()  # which also refuses what cannot be started
            return
        self._started.set()
        self._native_id = _std.get_native_id()
        self._is_green = True
        green = greenletio.spawn(self._run_green)
        call: Any = green._call
        self._ident = id(call)
        _threads[call] = self
        green._on_end(lambda _: self._ended.set())

    def _run_green(self) -> None:
        try:
            self.run()
        except (asyncio.CancelledError, greenlet.GreenletExit):
            raise
        except BaseException:
            _report(self)

    def _bootstrap(self) -> None:
        try:
            super()._bootstrap()  # type: ignore[misc]
        finally:
            self._ended.set()

    def __repr__(self) -> str:
        if not self._started.is_set() or not self._is_green:
            return super().__repr__()
        status = "started" if self.is_alive() else "stopped"
        return f"<{type(self).__name__}({self.name}, {status} green {self._ident})>"

    def is_alive(self) -> bool:
        """Whether it has been started and has not ended."""
        if not self._is_green:
            return super().is_alive()
        return not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most ``timeout`` seconds. Can be cancelled."""
        if not self._initialized:
            raise RuntimeError("Thread.__init__() not called")
        if not self._started.is_set():
            raise RuntimeError("cannot join thread before it is started")
        if self is current_thread():
            raise RuntimeError("cannot join current thread")
        if self._ended.wait(timeout) and not self._is_green:
            super().join()  # its last instructions


class _GreenDummy(Thread):
    """Stands for a call of ``async_`` or ``spawn`` that no ``Thread`` object started."""

    def __init__(self, call: _core._Call) -> None:
        super().__init__(name=f"Dummy-green-{next(_dummies)}", daemon=True)
        self._started.set()
        self._ident = id(call)
        self._native_id = _std.get_native_id()

    def is_alive(self) -> bool:
        return True

    def join(self, timeout: float | None = None) -> None:
        raise RuntimeError("cannot join a dummy thread")


class Timer(Thread):
    """``threading.Timer``."""

    def __init__(
        self,
        interval: float,
        function: Callable[..., object],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.interval = interval
        self.function = function
        self.args = args if args is not None else []
        self.kwargs = kwargs if kwargs is not None else {}
        self.finished = Event()

    cancel = _std.Timer.cancel
    run = _std.Timer.run


def current_thread() -> _std.Thread:
    """The ``Thread`` that runs here; one that only stands for it, under a bare ``async_``."""
    call = _core.current_call()
    if call is None:
        return _std.current_thread()
    thread = _threads.get(call)
    if thread is None:
        thread = _threads[call] = _GreenDummy(call)
    return thread


def enumerate() -> list[_std.Thread]:
    """All threads that are alive, green and real."""
    return [*_std.enumerate(), *(t for t in list(_threads.values()) if t.is_alive())]


def active_count() -> int:
    """How many threads are alive, green and real."""
    return len(enumerate())


currentThread = current_thread
activeCount = active_count

adopt(globals(), _std)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
