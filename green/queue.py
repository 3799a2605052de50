"""``queue`` whose queues suspend the greenlet. ``put`` and ``get`` can be cancelled.

A queue may be shared by greenlets of any loop and by threads of the system. ``Empty`` and
``Full`` are the standard module's own. No deviation.
"""

from __future__ import annotations

import queue as _std
from collections import deque
from typing import Any, TypeVar

from greenletio import _core
from greenletio.green import _thread
from greenletio.green import threading as _threading
from greenletio.green._std import Deadline, adopt, execute, public

__all__ = public(_std)

_T = TypeVar("_T")


class Queue(_std.Queue[_T]):
    """``queue.Queue``."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        # mutex stays a real lock: no method waits while it holds it, so the methods that do
        # not block never do, wherever they are called from.
        self.not_empty = _threading.Condition(self.mutex)
        self.not_full = _threading.Condition(self.mutex)
        self.all_tasks_done = _threading.Condition(self.mutex)


class LifoQueue(Queue[_T], _std.LifoQueue[_T]):
    """``queue.LifoQueue``."""


class PriorityQueue(Queue[Any], _std.PriorityQueue[Any]):
    """``queue.PriorityQueue``."""


class SimpleQueue:
    """``queue.SimpleQueue``: ``put`` never waits, from anywhere, also inside a ``get``."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiters: deque[_core.Waiter[bool]] = deque()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Append ``item`` and wake one that waits. The other arguments are for compatibility."""
        self._items.append(item)
        _thread._wake(self._waiters)

    def put_nowait(self, item: Any) -> None:
        """Append ``item`` and wake one that waits."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest; ``Empty`` if there is none, after ``timeout`` seconds."""
        if block and timeout is not None and timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")
        deadline = Deadline(timeout if block else 0)
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                left = deadline.left()
            if left == 0:
                raise _std.Empty
            waiter: _core.Waiter[bool] = _core.Waiter()
            self._waiters.append(waiter)
            if self._items:  # put before we stood in the queue
                if not _thread._withdraw(waiter, self._waiters):
                    _thread._wake(self._waiters)
                continue
            _thread._await_turn(waiter, self._waiters, left, lambda: _thread._wake(self._waiters))

    def get_nowait(self) -> Any:
        """Take the oldest; ``Empty`` if there is none."""
        return self.get(block=False)

    def empty(self) -> bool:
        """Whether there is nothing in it now."""
        return not self._items

    def qsize(self) -> int:
        """How many there are in it now."""
        return len(self._items)


_again: dict[str, Any] = {"__name__": __name__}
execute(_again, _std)
_PySimpleQueue: Any = _again["_PySimpleQueue"]

adopt(globals(), _std)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
