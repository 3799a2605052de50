"""Keeping a pool: what is idle for too long or old is closed, what is missing is connected.

It happens where the pool was last used: by a timer of the loop that runs there, or where there is
none by a thread, which ends when there is nothing to look after.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import weakref
from asyncio import _get_running_loop
from time import monotonic
from typing import TYPE_CHECKING, Any

from greenletio.pg._pool_parts import reason, run, wait

if TYPE_CHECKING:
    from greenletio.pg._pool import Core

__all__ = ("Keeper",)

logger = logging.getLogger("greenletio.pg.pool")

INF = float("inf")
#: Seconds before a connection that could not be made is tried again; doubled up to the second.
AGAIN, AGAIN_MOST = 1.0, 60.0
#: Seconds by which a turn may be late before its loop is taken to have ended.
LATE = 1.0


class Keeper:
    """Looks after one pool. Its methods may be called from anywhere, and never wait."""

    def __init__(self, core: Core) -> None:
        self._core = weakref.ref(core)
        self._due = INF
        self._serial = 0  # of the timer, or the thread, that has the next turn
        self._loop: asyncio.AbstractEventLoop | None = None  # whose timer it is
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._wake = _thread.allocate_lock()
        self._lock = _thread.RLock()  # held for a few instructions
        self._has_thread = False
        self._thread_fills = False
        self._pause = 0.0
        self._stopped = False

    def look_after(self, due: float) -> None:
        """There is something to do at that moment (monotonic)."""
        if due < self._due or self._due + LATE < monotonic():
            self._arm(min(due, self._due))

    def _arm(self, due: float) -> None:
        if self._stopped or due == INF:
            return
        loop = _get_running_loop()
        with self._lock:
            self._due = due
            self._serial += 1
            if self._timer is not None and self._loop is loop:
                self._timer.cancel()
            self._loop = self._timer = None
            if loop is not None:
                self._loop = loop
                args = (weakref.ref(self), self._serial)
                self._timer = loop.call_later(max(0.0, due - monotonic()), _turn_in_loop, *args)
            elif self._has_thread:
                self._wake_thread()
            else:
                self._has_thread = True
                _thread.start_new_thread(_keep, (weakref.ref(self), self._wake))

    def _wake_thread(self) -> None:
        try:
            self._wake.release()
        except RuntimeError:
            pass  # it is awake

    def stop(self) -> None:
        """The pool is closing."""
        self._stopped = True
        self._serial += 1
        here = _get_running_loop()
        if self._timer is not None and self._loop is here:
            self._timer.cancel()
        self._timer = self._loop = None
        task = self._task
        if task is not None and not task.done():
            loop = task.get_loop()
            if loop is here:
                task.cancel()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        if self._has_thread:
            self._wake_thread()

    def _is_filling(self) -> bool:
        task = self._task
        in_loop = task is not None and not task.done() and task.get_loop().is_running()
        return self._thread_fills or in_loop

    def _turn(self, core: Core) -> bool:
        """Sweep; whether connections are missing."""
        self._due = INF
        self.look_after(core.sweep())  # others may have asked for an earlier turn meanwhile
        return core.is_missing() and not self._stopped and not self._is_filling()

    def _failed(self, exc: Exception) -> None:
        logger.warning(
            "a connection of the pool could not be made, it is tried again: %s", reason(exc)
        )
        self._pause = min(2 * self._pause or AGAIN, AGAIN_MOST)
        self.look_after(monotonic() + self._pause)

    # ---- in a loop

    async def _fill(self, core: Core) -> None:
        try:
            while await wait(core.refill()):
                self._pause = 0.0
        except asyncio.CancelledError:
            # The loop ends, probably, and would leave a next turn in the middle: whoever uses the
            # pool after this has it looked after again.
            self._serial += 1
            self._due = -INF
            raise
        except Exception as exc:
            self._failed(exc)

    # ---- in a thread

    def _fill_here(self, core: Core) -> None:
        self._thread_fills = True
        try:
            while run(core.refill()):
                self._pause = 0.0
        except Exception as exc:
            self._failed(exc)
        finally:
            self._thread_fills = False


def _turn_in_loop(ref: weakref.ref[Keeper], serial: int) -> None:
    keeper = ref()
    core = None if keeper is None else keeper._core()
    if keeper is None or core is None or keeper._serial != serial:
        return
    keeper._timer = None
    if keeper._turn(core):
        keeper._task = asyncio.get_running_loop().create_task(keeper._fill(core))


def _keep(ref: weakref.ref[Keeper], wake: Any) -> None:
    """The thread: it does not keep the pool alive."""
    wake.acquire(False)
    while True:
        keeper = ref()
        core = None if keeper is None else keeper._core()
        if keeper is None:
            return
        with keeper._lock:  # whoever arms it sees that the thread ends, or is seen by it
            idle = keeper._due == INF or keeper._loop is not None
            if core is None or keeper._stopped or idle:
                keeper._has_thread = False
                return
        seconds = keeper._due - monotonic()
        if seconds <= 0:
            if keeper._turn(core):
                keeper._fill_here(core)
            seconds = 0.0
        del keeper, core
        if seconds > 0:
            wake.acquire(True, min(seconds, 60.0))
