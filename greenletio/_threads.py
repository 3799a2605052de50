"""A small pool of threads for calls that no file descriptor can wait for (name resolution)."""

from __future__ import annotations

import _thread
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from greenletio import _core

__all__ = ("count", "run_in_thread", "run_to_end", "set_size", "size")

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: How many such calls run at once in the whole process unless set_size() says otherwise.
DEFAULT_SIZE = 8

# Seconds that an idle thread waits for the next call before it ends.
_IDLE_S = 10.0


# Signals that a thread brings upon itself.
_FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}

# Seconds after which a call that was interrupted, and goes on, is interrupted again.
_INTERRUPT_AGAIN_S = 0.05


class _Job:
    __slots__ = ("_args", "_done", "_error", "_fn", "_kwargs", "_result", "_waiters", "abandoned")

    def __init__(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._fn, self._args, self._kwargs = fn, args, kwargs
        self._result: Any = None
        self._error: BaseException | None = None
        self._waiters: deque[_core.Waiter[None]] = deque()
        self._done = False
        self.abandoned = False

    def run(self) -> None:
        if not self.abandoned:
            try:
                self._result = self._fn(*self._args, **self._kwargs)
            except BaseException as error:
                self._error = error
        self._done = True
        while self._waiters:
            self._waiters.popleft().set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has run; False if ``timeout`` seconds pass first. Can be cancelled, and
        called again then."""
        waiter: _core.Waiter[None] = _core.Waiter()
        self._waiters.append(waiter)
        return self._done or waiter.wait(timeout)

    def take(self) -> Any:
        try:
            if self._error is not None:
                raise self._error
            return self._result
        finally:
            self._error = None  # its traceback refers to this frame


class _Pool:
    """Daemon threads of the system, as many as there are calls, up to ``size``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.threads = 0
        self._lock = _thread.allocate_lock()  # held for a few instructions
        self._jobs: deque[_Job] = deque()
        self._idle: deque[Any] = deque()  # a taken lock for each idle thread, newest last

    def submit(self, job: _Job) -> None:
        with self._lock:
            self._jobs.append(job)
            if self._idle:
                self._idle.pop().release()
                return
            if self.threads >= self.size:
                return
            self.threads += 1
        try:
            _thread.start_new_thread(self._work, ())
        except BaseException:
            with self._lock:
                self.threads -= 1
                alone = not self.threads
                if alone:
                    self._jobs.remove(job)
            if alone:
                raise

    def _work(self) -> None:
        # Signals are for the threads of the program, one of which may be waiting for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        wake = _thread.allocate_lock()
        wake.acquire()
        while True:
            with self._lock:
                job = self._jobs.popleft() if self._jobs and self.threads <= self.size else None
                if job is None:
                    if self.threads > self.size:
                        self.threads -= 1
                        if self._jobs and self._idle:  # it is not us that they are for
                            self._idle.pop().release()
                        return
                    self._idle.append(wake)
            if job is not None:
                job.run()
                del job
            elif not wake.acquire(True, _IDLE_S):
                with self._lock:
                    if wake in self._idle:  # else a call has just been given to us
                        self._idle.remove(wake)
                        self.threads -= 1
                        return
                wake.acquire()

    def cancel(self, job: _Job) -> bool:
        """Nobody waits for it any more: it is not started if it has not been. Whether it has."""
        job.abandoned = True
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)
                return False
        return True


_pool = _Pool(DEFAULT_SIZE)


def _forget_pool() -> None:
    global _pool
    _pool = _Pool(_pool.size)  # a forked child has none of the threads


os.register_at_fork(after_in_child=_forget_pool)


def size() -> int:
    """How many calls the pool runs at once."""
    return _pool.size


def set_size(threads: int) -> None:
    """Let the pool run ``threads`` calls at once; further ones queue."""
    if threads < 1:
        raise ValueError("the pool needs at least one thread")
    _pool.size = threads


def count() -> int:
    """How many threads the pool has now."""
    return _pool.threads


def run_in_thread(fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `fn` in a thread of a bounded pool and wait for it without blocking the loop.

    Where a wait would block the thread anyway, `fn` is called right here. Cancellation and timeouts
    abandon the call: the thread finishes it, its result is dropped. Directly in a running
    loop: WouldBlockError.
    """
    result: _T = _run(None, fn, args, kwargs)
    return result


def run_to_end(
    interrupt: Callable[[], object], fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """run_in_thread for calls that must not go on when nobody waits for them any more.

    A call that is cancelled or out of time is told by `interrupt()`, and waited for.
    """
    result: _T = _run(interrupt, fn, args, kwargs)
    return result


def _run(interrupt: Callable[[], object] | None, fn: Any, args: Any, kwargs: Any) -> Any:
    place = _core.place()
    if place == 0:
        return fn(*args, **kwargs)
    job, pool = _Job(fn, args, kwargs), _pool
    if place < 0:
        job.wait()  # which says why not
    pool.submit(job)
    try:
        job.wait()
    except BaseException:
        if pool.cancel(job) and interrupt is not None:
            _core.shield(True)
            try:
                interrupt()
                # The thread may not have come to where it can be interrupted.
                while not job.wait(_INTERRUPT_AGAIN_S):
                    interrupt()
            finally:
                _core.shield(False)
        raise
    return job.take()
