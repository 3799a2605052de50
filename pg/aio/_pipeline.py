"""Pipelines: queries that are sent without waiting for the answers to those before them."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from greenletio import _pg
from greenletio.pg._pipeline import Ops
from greenletio.pg.errors import Error

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("Pipeline",)


class Pipeline(Ops):
    """What ``connection.pipeline()`` gives: an ``async with`` block.

    Its methods send a query at once and give an Op: await it when its result is needed, inside the
    block or after it. Queries that are awaited on the connection itself meanwhile are part of the
    pipeline, too.

    Outside a transaction what is sent up to a sync() is one transaction. When a query fails,
    nothing that follows it is done up to the next sync(): those raise PipelineAborted. The first
    error that nobody was told of is raised by sync(), and at the end of the block, which is a sync
    as well. A block that is left by an exception, CancelledError for one, gives its queries up.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    # -- sending

    def execute(self, query: str, /, *args: Any, timeout: float | None = None) -> _pg.Op[str]:
        """Send a query; its status."""
        return self._send(self._connection.execute(query, *args, timeout=timeout))

    def fetch(
        self,
        query: str,
        /,
        *args: Any,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> _pg.Op[list[_pg.Record]]:
        """Send a query; its rows."""
        connection = self._connection
        return self._send(
            connection.fetch(query, *args, timeout=timeout, record_class=record_class)
        )

    def fetchrow(
        self,
        query: str,
        /,
        *args: Any,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> _pg.Op[_pg.Record | None]:
        """Send a query; its first row, or None."""
        connection = self._connection
        return self._send(
            connection.fetchrow(query, *args, timeout=timeout, record_class=record_class)
        )

    def fetchval(
        self, query: str, /, *args: Any, column: int = 0, timeout: float | None = None
    ) -> _pg.Op[Any]:
        """Send a query; a column of its first row, or None."""
        return self._send(self._connection.fetchval(query, *args, column=column, timeout=timeout))

    def _send(self, op: _pg.Op[Any]) -> _pg.Op[Any]:
        op.start()
        self._ops.append(op)
        return op

    # -- syncs

    async def sync(self) -> None:
        """Wait until all that was sent is done, and begin anew after an error, which is raised."""
        await self._connection._op("sync", "nothing", "")
        self._settle()

    async def __aenter__(self) -> Pipeline:
        op = self._connection._op("pipeline", "nothing", "")
        try:
            await op
        except BaseException:
            if op._succeeded:  # cancelled in the last moment
                self._connection._op("pipeline_end", "nothing", "").start()
            raise
        return self

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if typ is not None:
            self._give_up()
        if self._connection.is_closed():
            self._settle()
            return
        try:
            await self._connection._op("pipeline_end", "nothing", "")
        except BaseException as error:
            self._give_up()
            if typ is None or not isinstance(error, Error):
                raise
        self._settle()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._connection!r}>"
