"""``queue`` whose queues suspend the greenlet. ``put`` and ``get`` can be cancelled.

A queue may be shared by greenlets of any loop and by threads of the system. ``Empty`` and
``Full`` are the standard module's own. No deviation. Who asks for ever without waiting
(``get_nowait`` in a loop) lets the others run after a thousand calls that were in vain.
"""

from __future__ import annotations

import queue as _std
from typing import Any, TypeVar

from greenletio import _core
from greenletio._core import SimpleQueue  # noqa: F401  (re-exported)
from greenletio.green import threading as _threading
from greenletio.green._std import adopt, execute, public

__all__ = public(_std)

_T = TypeVar("_T")


# What the C half does itself: with these hooks, and a `queue` of the kind that they make.
_OWN_HOOKS = (_std.Queue, _std.LifoQueue, _std.PriorityQueue)


def _kind(cls: type) -> int:
    """What is to be known of the hooks of a class: which are its own (1, 2, 3), or none (0)."""
    for kind, base in enumerate(_OWN_HOOKS, 1):
        names = ("_init", "_qsize", "_put", "_get")
        if all(getattr(cls, name) is getattr(base, name) for name in names):
            return kind
    return 0


class Queue(_core.Queue[_T], _std.Queue[_T]):
    """``queue.Queue``."""

    _kind_of_class = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._kind_of_class = _kind(cls)

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        # mutex stays a real lock: no method waits while it holds it, so the methods that do
        # not block never do, wherever they are called from.
        self.not_empty = _threading.Condition(self.mutex)
        self.not_full = _threading.Condition(self.mutex)
        self.all_tasks_done = _threading.Condition(self.mutex)
        self._kind = self._kind_of_class


class LifoQueue(Queue[_T], _std.LifoQueue[_T]):
    """``queue.LifoQueue``."""


class PriorityQueue(Queue[Any], _std.PriorityQueue[Any]):
    """``queue.PriorityQueue``."""


_again: dict[str, Any] = {"__name__": __name__}
execute(_again, _std)
_PySimpleQueue: Any = _again["_PySimpleQueue"]

adopt(globals(), _std)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
