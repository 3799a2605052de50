"""``signal`` whose waits for a signal suspend the greenlet. They can be cancelled.

Deviation: ``sigwait`` and its kin look for the signal in intervals of at most 50 ms.
"""

from __future__ import annotations

import os
import signal as _std
import threading
from collections.abc import Iterable
from typing import Any

from greenletio import _core
from greenletio.green._std import Deadline, adopt, current_call, interrupt, main_task, public

__all__ = public(_std)

_PLAIN = 0  # _core.place(): no loop runs in this thread


class _Handler:
    """A signal handler that runs as the main thread's where that is a greenlet.

    If the signal comes while another greenlet runs, the loop calls it: what it raises is raised
    in the main greenlet, not in the one that happened to run.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __call__(self, signum: int, frame: Any) -> Any:
        main = main_task()
        if main is None or main.done() or current_call() is None:
            return self.handler(signum, frame)
        main.get_loop().call_soon(self._later, signum, frame)
        return None

    def _later(self, signum: int, frame: Any) -> None:
        try:
            self.handler(signum, frame)
        except BaseException as error:
            interrupt(error)


def _bare(handler: Any) -> Any:
    return handler.handler if isinstance(handler, _Handler) else handler


def signal(signalnum: int, handler: Any) -> Any:
    """Set the handler of a signal; returns the one that it had."""
    given = _Handler(handler) if callable(handler) and not isinstance(handler, int) else handler
    return _bare(_std.signal(signalnum, given))


def getsignal(signalnum: int) -> Any:
    """The handler of a signal."""
    return _bare(_std.getsignal(signalnum))


def pause() -> None:
    """Wait until a signal has come whose handler is a Python function. Main thread only."""
    if _core.place() == _PLAIN or threading.current_thread() is not threading.main_thread():
        _std.pause()
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = _std.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        _core.wait_fd(reading, _core.READ)
    finally:
        _std.set_wakeup_fd(before, warn_on_full_buffer=False)
        os.set_blocking(reading, False)
        try:
            if before >= 0:  # its owner hears of it, too
                os.write(before, os.read(reading, 4096))
        except OSError:
            pass
        _core.fd_closing(reading)
        os.close(reading)
        os.close(writing)


if hasattr(_std, "sigtimedwait"):

    def _take(sigset: Iterable[int], timeout: float | None) -> Any:
        deadline, pause_s = Deadline(timeout), 0.001
        sigset = list(sigset)
        while True:
            found = _std.sigtimedwait(sigset, 0)
            left = deadline.left()
            if found is not None or left == 0:
                return found
            _core.sleep(pause_s if left is None else min(pause_s, left))
            pause_s = min(pause_s * 2, 0.05)

    def sigwait(sigset: Iterable[int]) -> _std.Signals | int:
        """Wait for one of the signals, which are blocked; its number."""
        if _core.place() == _PLAIN:
            return _std.sigwait(sigset)
        number: int = _take(sigset, None).si_signo
        try:
            return _std.Signals(number)
        except ValueError:
            return number

    def sigwaitinfo(sigset: Iterable[int], /) -> Any:
        """Wait for one of the signals, which are blocked; what is known of it."""
        return _std.sigwaitinfo(sigset) if _core.place() == _PLAIN else _take(sigset, None)

    def sigtimedwait(sigset: Iterable[int], timeout: float, /) -> Any:
        """``sigwaitinfo``; None after ``timeout`` seconds."""
        if _core.place() == _PLAIN or not timeout > 0:
            return _std.sigtimedwait(sigset, timeout)
        return _take(sigset, timeout)


adopt(globals(), _std)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
