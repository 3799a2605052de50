"""Listener: notifications for tasks, on a connection that is looked after."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from greenletio import _pg
from greenletio.pg._connect import dress
from greenletio.pg._listen import Core, Event, Gap, Notification
from greenletio.pg._pool_parts import wait
from greenletio.pg.aio import _connect
from greenletio.pg.aio._connection import Connection
from greenletio.pg.aio._pool import Pool
from greenletio.pg.aio._pool_proxy import PoolConnectionProxy

__all__ = ("Gap", "Listener", "Notification")

INF = float("inf")

Codecs = dict[int, _pg.Codec]
Callback = Callable[[Event], Awaitable[Any] | Any]


class Own:
    """Connections that are made for the listener."""

    def __init__(
        self, dsn: str | None, options: dict[str, Any], codecs: Codecs | None = None
    ) -> None:
        self._options = {"dsn": dsn, **options}
        self._codecs = codecs or {}

    async def take(self, timeout: float) -> Connection:
        con = await _connect.connect(**{"timeout": timeout, **self._options})
        dress(con, self._codecs)
        return con

    async def leave(self, con: Connection) -> None:
        await con.close()


class Leased:
    """Connections of a pool: one lease at a time."""

    def __init__(self, pool: Pool, options: dict[str, Any], codecs: Codecs | None = None) -> None:
        if options:
            raise TypeError(f"a pool connects by itself: {', '.join(options)} would be ignored")
        self._pool = pool
        self._codecs = codecs
        self._lease: PoolConnectionProxy | None = None

    async def take(self, timeout: float) -> Connection:
        self._lease = lease = await self._pool.acquire(timeout=timeout)
        slot = lease._slot
        assert slot is not None
        slot.used()  # LISTEN is to be undone
        if self._codecs is not None:
            slot.home = None
            slot.wear(self._codecs)
        return slot.con

    async def leave(self, con: Connection) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._pool.release(lease)


class Listener:
    """Listens to channels, on a connection that is made again whenever it is lost.

    ``async with Listener(dsn, channels=["orders"]) as listener`` connects, and raises what that
    fails with. Then ``async for event in listener`` gives a Notification for each NOTIFY, and a Gap
    wherever some may be missing: after a connection was lost, and where nobody has taken events
    fast enough. What a channel has callbacks for goes to those, a Gap to all of them.

    `source` is a URL or connection string, `options` are connect()'s; or it is a Pool, of which the
    listener leases one connection for as long as it lives. `buffer`: how many events wait to be
    taken; those that do not fit are dropped, and counted by the Gap in their place. A connection on
    which nothing is said for `heartbeat` seconds is asked for a sign of life, and replaced if that
    does not come within `answer_within` seconds. A connect may take `connect_within` seconds; it is
    tried again after 0.1 seconds, then after twice that, up to 30, less up to half of it by chance;
    without end, unless `give_up_after` seconds are named: then who waits is told what it failed
    with. Every wait can be cancelled.
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
        **options: Any,
    ) -> None:
        self._core = Core(
            Leased(source, options) if isinstance(source, Pool) else Own(source, options),
            channels,
            buffer=buffer,
            heartbeat=heartbeat,
            answer_within=answer_within,
            connect_within=connect_within,
            give_up_after=give_up_after,
        )

    async def open(self) -> None:
        """Connect and begin to listen; raises what that fails with. A listener is opened once."""
        await wait(self._core.open())

    async def close(self) -> None:
        """End it: who waits for an event is told that there are no more."""
        await wait(self._core.close())

    async def __aenter__(self) -> Listener:
        await self.open()
        return self

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Whether it has ended: it was closed, or has given up."""
        return self._core.closed

    @property
    def channels(self) -> tuple[str, ...]:
        """What it listens to."""
        return tuple(self._core.channels)

    async def add(
        self, channel: str, callback: Callback | None = None, *, timeout: float | None = 30.0
    ) -> None:
        """Listen to a channel, too, from when this returns.

        Its events go to `callback`, a function or coroutine function, in place of the iterator:
        one event after the other. What it raises is logged. TimeoutError after `timeout` seconds
        without a connection; then nothing has changed.
        """
        await wait(self._core.add(channel, callback, INF if timeout is None else timeout))

    async def remove(
        self, channel: str, callback: Callback | None = None, *, timeout: float | None = 30.0
    ) -> None:
        """Undo add(): of that callback, or of the channel with all of them."""
        await wait(self._core.remove(channel, callback, INF if timeout is None else timeout))

    async def get(self, *, timeout: float | None = None) -> Event:
        """The next event. TimeoutError after `timeout` seconds, ConnectionClosed at the end."""
        event: Event | None = await wait(self._core.next(INF if timeout is None else timeout))
        if event is None:
            raise self._core._end()
        return event

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Event:
        event: Event | None = await wait(self._core.next(INF))
        if event is None:
            raise StopAsyncIteration
        return event

    @asynccontextmanager
    async def connection(self, *, timeout: float | None = 30.0) -> AsyncIterator[Connection]:
        """Its connection, for queries in the block; one block after the other.

        Waits up to `timeout` seconds for those before, and for a connection: TimeoutError. A
        transaction that is open at the end of the block is rolled back; while one is open, the
        server holds notifications back. LISTEN and UNLISTEN are the listener's.
        """
        core = self._core
        con = await wait(core.use(INF if timeout is None else timeout))
        try:
            yield con
        finally:
            await wait(core.used(con))

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and core.running:
            warnings.warn(f"unclosed listener {self!r}", ResourceWarning, 2, source=self)
            core.stop()

    def __repr__(self) -> str:
        names = ", ".join(self._core.channels)
        return f"<greenletio.pg.aio.Listener [{names}]{' closed' if self.closed else ''}>"
