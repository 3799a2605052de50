"""Something that is to be done every so many seconds, also while its user does other things."""

from __future__ import annotations

import _thread
import weakref
from asyncio import TimerHandle, _get_running_loop
from typing import Protocol

__all__ = ("Heartbeat",)


class _Ticking(Protocol):
    def tick(self) -> None: ...


class Heartbeat:
    """Calls ``target.tick()`` until it is stopped or nobody has the target any more.

    By a timer of the loop that runs here; where none runs by a thread.
    """

    def __init__(self, target: _Ticking, seconds: float) -> None:
        self._target = weakref.ref(target)
        self._seconds = seconds
        self._stopped = False
        self._wake = _thread.allocate_lock()
        self._loop = _get_running_loop()
        self._timer: TimerHandle | None = None
        if self._loop is not None:
            self._timer = self._loop.call_later(seconds, self._turn)
        else:
            self._wake.acquire()
            _thread.start_new_thread(self._run, ())

    def stop(self) -> None:
        """From any thread."""
        self._stopped = True
        if self._loop is None and self._wake.locked():
            self._wake.release()
        elif self._timer is not None and _get_running_loop() is self._loop:
            self._timer.cancel()

    def _tick(self) -> bool:
        target = self._target()
        if target is None or self._stopped:
            return False
        target.tick()
        return True

    def _turn(self) -> None:
        if self._tick() and self._loop is not None:
            self._timer = self._loop.call_later(self._seconds, self._turn)

    def _run(self) -> None:
        while not self._wake.acquire(timeout=self._seconds):
            if not self._tick():
                return
