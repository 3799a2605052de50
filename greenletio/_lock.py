"""A lock that greenlets of any loop and plain threads may contend for, first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from greenletio import _core

__all__ = ("FairLock", "FairLockFor")


class FairLock:
    """``threading.Lock``, but a greenlet that has to wait is suspended and its loop goes on.

    The lock is handed from its holder to the one who has waited longest. It may be acquired by
    one and released by another. Where a wait is forbidden (directly in a running loop) only an
    acquire that would have to wait raises ``WouldBlockError``.
    """

    __slots__ = ("_held", "_mutex", "_queue")

    def __init__(self) -> None:
        # Held for a few instructions, never across a wait. Re-entrant: a finalizer that the
        # garbage collector runs inside may use the same lock.
        self._mutex = threading.RLock()
        self._held = False
        self._queue: deque[_core.Waiter[None]] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; waits, up to ``timeout`` seconds (-1: without limit). Cancellable.

        Returns whether it was taken. A cancelled or timed-out acquire leaves no trace.
        """
        with self._mutex:
            if not self._held:
                self._held = True
                return True
            if not blocking or timeout == 0:
                return False
            waiter: _core.Waiter[None] = _core.Waiter()
            self._queue.append(waiter)
        try:
            waiter.wait(None if timeout < 0 else timeout)
        except BaseException:
            if not self._withdraw(waiter):
                self.release()
            raise
        return not self._withdraw(waiter)

    def _withdraw(self, waiter: _core.Waiter[None]) -> bool:
        """Leave the queue; False if the lock had been granted before."""
        with self._mutex:
            try:
                self._queue.remove(waiter)
            except ValueError:
                return False
            return True

    def release(self) -> None:
        """Hand the lock to the next in the queue, or free it. Never waits."""
        with self._mutex:
            if not self._held:
                raise RuntimeError("release unlocked lock")
            if self._queue:
                self._queue.popleft().set(None)
            else:
                self._held = False

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class FairLockFor:
    """A class attribute that gives instances a FairLock in place of their own lock, `name`.

    Of instances made before, too. They keep the lock they have, so that nothing is left to undo.
    """

    _key = "_greenletio_lock"

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        # setdefault: of two threads that come first at once, both get the same one.
        return vars(instance).get(self._key) or vars(instance).setdefault(self._key, FairLock())

    def __set__(self, instance: Any, lock: Any) -> None:
        vars(instance)[self._name] = lock
