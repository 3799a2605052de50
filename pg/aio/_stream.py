"""The rows of one query as they come, without a transaction and without keeping them all."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from greenletio import _pg

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenletio.pg.aio._connection import Connection

__all__ = ("Stream", "Streaming")


class Streaming:
    """A query that is read some rows at a time, and how it is given up."""

    _session: _pg.Op[Any]
    _started = False
    _status: str | None

    def get_statusmsg(self) -> str | None:
        """What the server said at the end: "SELECT 2", say; None: it has not come to that."""
        return self._status

    async def aclose(self) -> None:
        """Give up the rows that were not taken."""
        self._close()

    def _close(self) -> None:
        if self._started and self._status is None:
            self._status = ""
            self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._close()

    def __del__(self) -> None:
        if hasattr(self, "_status"):
            self._close()


class Stream(Streaming):
    """What ``connection.stream(…)`` gives: ``async for row in connection.stream(query)``.

    The server waits while nobody takes rows: some hundred of them are here at a time. Until the
    last one was taken the connection is busy: queries of other tasks wait, one of the same task is
    refused. Leaving the loop early cancels the query, which fails the transaction if one is open;
    the connection can be used at once. Where somebody keeps the stream, aclose() or ``async with``
    does that.
    """

    def __init__(
        self,
        connection: Connection,
        query: str,
        args: tuple[Any, ...],
        timeout: float | None,
        record_class: type[_pg.Record] | None,
    ) -> None:
        self._connection = connection
        self._timeout = connection._timeout if timeout is None else timeout
        self._session = connection._op(
            "stream", "records", query, args, timeout=self._timeout, record_class=record_class
        )
        self._rows: deque[_pg.Record] = deque()
        self._status: str | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> _pg.Record:
        if not self._rows:
            await self._read()
        return self._rows.popleft()

    async def _read(self) -> None:
        if not self._started:
            self._started = True
            await self._session
        if self._status is None:
            rows = await self._connection._op(
                "copy_read", "nothing", "", session=self._session, timeout=self._timeout
            )
            if isinstance(rows, str):
                self._status = rows
            else:
                self._rows.extend(rows)
        if not self._rows:
            raise StopAsyncIteration

    def _close(self) -> None:
        self._rows.clear()
        super()._close()
