"""So many requests at once, and the others in a line. For ASGI applications."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from greenletio import _core

__all__ = ("Places",)


class Places:
    """A number of places: who finds none waits, those that came first come first.

    What waits there has not begun, so that it takes little memory. For tasks of any loop.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit is a number of requests, at least 1, not {limit!r}")
        self._free = limit
        self._line: deque[_core.Waiter[None]] = deque()
        # Re-entrant: a finalizer that the garbage collector runs inside may leave a place.
        self._mutex = threading.RLock()

    async def hold(self, answer: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Await ``answer(*args)`` in a place."""
        turn = self._take()
        if turn is not None:
            try:
                await turn
            except BaseException:
                self._give_up(turn)
                raise
        try:
            await answer(*args)
        finally:
            self._leave()

    def _take(self) -> _core.Waiter[None] | None:
        with self._mutex:
            if self._free:
                self._free -= 1
                return None
            turn: _core.Waiter[None] = _core.Waiter()
            self._line.append(turn)
            return turn

    def _give_up(self, turn: _core.Waiter[None]) -> None:
        with self._mutex:
            if turn in self._line:
                self._line.remove(turn)
            else:
                self._leave()  # it has come at the last moment

    def _leave(self) -> None:
        with self._mutex:
            if self._line:
                self._line.popleft().set(None)
            else:
                self._free += 1
