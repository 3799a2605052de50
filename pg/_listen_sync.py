"""Listener: notifications for sync code, on a connection that is looked after."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from greenletio.pg import _json, rows
from greenletio.pg._connection import Connection
from greenletio.pg._listen import Core, Event
from greenletio.pg._pool_parts import may_wait, run
from greenletio.pg._pool_sync import _RETURNED, Pool

__all__ = ("Listener",)

INF = float("inf")

Callback = Callable[[Event], Any]


class Listener:
    """Listens to channels, on a connection that is made again whenever it is lost.

    As ``aio.Listener``, whose arguments it has, for greenlets and threads: ``with Listener(dsn,
    channels=["orders"]) as listener``, then ``for event in listener``. `source` may be a Pool;
    `autocommit` and `row_factory` are those of connection().

    Where a loop runs, a task of it looks after the connection and calls the callbacks; in plain
    code a thread does, which ends with the listener.
    """

    def __init__(
        self,
        source: str | Pool | None = None,
        *,
        channels: Iterable[str] = (),
        buffer: int = 10_000,
        heartbeat: float | None = 15.0,
        answer_within: float = 10.0,
        connect_within: float = 10.0,
        give_up_after: float | None = None,
        autocommit: bool = False,
        row_factory: Any = None,
        **options: Any,
    ) -> None:
        from greenletio.pg.aio import _listen

        self._autocommit = autocommit
        self._row_factory = row_factory or rows.tuple_row
        codecs = _json.codecs()
        self._core = Core(
            _listen.Leased(source.aio, options, codecs)
            if isinstance(source, Pool)
            else _listen.Own(source, options, codecs),
            channels,
            buffer=buffer,
            heartbeat=heartbeat,
            answer_within=answer_within,
            connect_within=connect_within,
            give_up_after=give_up_after,
        )

    def open(self) -> None:
        """Connect and begin to listen; raises what that fails with. A listener is opened once."""
        may_wait()
        run(self._core.open())

    def close(self) -> None:
        """End it: who waits for an event is told that there are no more."""
        run(self._core.close())

    def __enter__(self) -> Listener:
        self.open()
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it has ended: it was closed, or has given up."""
        return self._core.closed

    @property
    def channels(self) -> tuple[str, ...]:
        """What it listens to."""
        return tuple(self._core.channels)

    def add(
        self, channel: str, callback: Callback | None = None, *, timeout: float | None = 30.0
    ) -> None:
        """Listen to a channel, too, from when this returns.

        Its events go to `callback` in place of the iterator: one event after the other. What it
        raises is logged. TimeoutError after `timeout` seconds without a connection; then nothing
        has changed.
        """
        run(self._core.add(channel, callback, INF if timeout is None else timeout))

    def remove(
        self, channel: str, callback: Callback | None = None, *, timeout: float | None = 30.0
    ) -> None:
        """Undo add(): of that callback, or of the channel with all of them."""
        run(self._core.remove(channel, callback, INF if timeout is None else timeout))

    def get(self, *, timeout: float | None = None) -> Event:
        """The next event. TimeoutError after `timeout` seconds, ConnectionClosed at the end."""
        event: Event | None = run(self._core.next(INF if timeout is None else timeout))
        if event is None:
            raise self._core._end()
        return event

    def __iter__(self) -> Listener:
        return self

    def __next__(self) -> Event:
        event: Event | None = run(self._core.next(INF))
        if event is None:
            raise StopIteration
        return event

    @contextmanager
    def connection(self, *, timeout: float | None = 30.0) -> Iterator[Connection[Any]]:
        """Its connection, for queries in the block, which is a transaction: kept at its end, undone
        after an exception. One block after the other.

        Waits up to `timeout` seconds for those before, and for a connection: TimeoutError. While a
        transaction is open, the server holds notifications back. LISTEN and UNLISTEN are the
        listener's.
        """
        core = self._core
        raw = run(core.use(INF if timeout is None else timeout))
        try:
            connection: Connection[Any] = Connection(
                raw, autocommit=self._autocommit, row_factory=self._row_factory
            )
            try:
                yield connection
                if not raw.is_closed() and raw._transaction_status != 0:
                    connection.commit()
            finally:
                connection._raw = _RETURNED
        finally:
            run(core.used(raw))

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and core.running:
            warnings.warn(f"unclosed listener {self!r}", ResourceWarning, 2, source=self)
            core.stop()

    def __repr__(self) -> str:
        names = ", ".join(self._core.channels)
        return f"<greenletio.pg.Listener [{names}]{' closed' if self.closed else ''}>"
