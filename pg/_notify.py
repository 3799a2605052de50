"""Notifications of a connection for sync code, by psycopg's names."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from greenletio import _core
from greenletio.pg._listen import Notification
from greenletio.pg.errors import ConnectionClosed

if TYPE_CHECKING:
    from greenletio import _pg

__all__ = ("Notifying",)

#: How many are kept for notifies() while nobody takes them; then the oldest go.
KEPT = 10_000
#: Seconds after which notifies() asks: another thread may have taken the connection from the loop
#: that reads for us.
LOOK = 10.0


class Notifying:
    """What a connection does with notifications."""

    _raw: _pg.Connection

    if TYPE_CHECKING:

        def _turn(self) -> Any: ...

    def __init__(self) -> None:
        self._notify_handlers: list[Callable[[Notification], Any]] = []
        self._notified: deque[Notification] = deque(maxlen=KEPT)
        self._listening: list[_core.Waiter[None]] = []

    def add_notify_handler(self, callback: Callable[[Notification], Any]) -> None:
        """Have callback(notification) called for each one, whenever it comes: while a query runs,
        too. Where no loop runs, that is with the next query."""
        self._notify_handlers.append(callback)

    def remove_notify_handler(self, callback: Callable[[Notification], Any]) -> None:
        """Undo add_notify_handler()."""
        self._notify_handlers.remove(callback)

    def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> Iterator[Notification]:
        """Notifications as they come, after a LISTEN.

        Ends `timeout` seconds after it was begun, or after `stop_after` of them; else it goes on
        until the connection is closed, which raises ConnectionClosed or OperationalError. The
        connection may be used meanwhile. Those that come while nobody iterates are kept, the last
        10,000, unless there is a handler. Inside a transaction the server sends none: commit the
        LISTEN, and end what else is open.

        (``pg.Listener`` connects again when the connection is lost.)
        """
        end = None if timeout is None else monotonic() + timeout
        count = 0
        self._ask()  # a loop that runs here reads for us from now on
        while stop_after is None or count < stop_after:
            waiter: _core.Waiter[None] = _core.Waiter()
            self._listening.append(waiter)
            try:
                left = LOOK if end is None else max(0.0, end - monotonic())
                came = bool(self._notified) or self._await_news(waiter, min(left, LOOK))
            finally:
                self._listening.remove(waiter)
            if not came and end is not None and monotonic() >= end:
                return
            if not came:
                self._ask()
            if self._notified:
                yield self._notified.popleft()
                count += 1
            elif self._raw.is_closed():
                raise ConnectionClosed("the connection was closed")

    def _ask(self) -> None:
        """A round trip, with which comes what there is."""
        if self._raw.is_closed():
            raise ConnectionClosed("the connection is closed")
        with self._turn():
            self._raw._op("script", "status", "").run()

    def _await_news(self, waiter: _core.Waiter[None], seconds: float) -> bool:
        if _core.place() != 0:
            return waiter.wait(seconds)
        if not _core.wait_fd(self._raw._fd, _core.READ, seconds):
            return False
        self._ask()
        return True

    def _hear(self, kind: str, value: Any) -> None:
        """What the connection tells of."""
        if kind == "notification":
            pid, channel, payload = value
            notification = Notification(channel, payload, pid)
            handlers = list(self._notify_handlers)  # one may remove itself
            for callback in handlers:
                callback(notification)
            if self._listening or not handlers:
                self._notified.append(notification)
        for waiter in self._listening:
            waiter.set(None)
