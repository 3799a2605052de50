"""Cursors of the server: rows of a large result, some at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

from greenletio import _pg
from greenletio.pg.errors import InterfaceError

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("Cursor", "CursorFactory")

PREFETCH = 50


class Cursor:
    """What ``await connection.cursor(…)`` gives: open, until its transaction ends."""

    def __init__(
        self, connection: Connection, name: str, record_class: type[_pg.Record] | None
    ) -> None:
        self._connection = connection
        self._name = name
        self._record_class = record_class
        self._exhausted = False

    async def _fetch(self, n: int, timeout: float | None) -> list[_pg.Record]:
        if n <= 0:
            raise InterfaceError("n must be greater than zero")
        if self._exhausted:
            return []
        # A statement of its own for each cursor: by its name the columns differ.
        rows = await self._connection.fetch(
            f"FETCH FORWARD {int(n)} FROM {self._name}",
            timeout=timeout,
            record_class=self._record_class,
        )
        self._exhausted = len(rows) < n
        return rows

    async def fetch(self, n: int, *, timeout: float | None = None) -> list[_pg.Record]:
        """The next n rows, or those that are left."""
        return await self._fetch(n, timeout)

    async def fetchrow(self, *, timeout: float | None = None) -> _pg.Record | None:
        """The next row, or None."""
        rows = await self._fetch(1, timeout)
        return rows[0] if rows else None

    async def forward(self, n: int, *, timeout: float | None = None) -> int:
        """Pass over n rows; how many there were."""
        if n <= 0:
            raise InterfaceError("n must be greater than zero")
        if self._exhausted:
            return 0
        status = await self._connection.execute(
            f"MOVE FORWARD {int(n)} FROM {self._name}", timeout=timeout
        )
        moved = int(status.rpartition(" ")[2])
        self._exhausted = moved < n
        return moved

    async def close(self) -> None:
        """Close it before its transaction ends."""
        self._exhausted = True
        await self._connection.execute(f"CLOSE {self._name}")


class CursorFactory:
    """What ``connection.cursor(…)`` gives: await it for a Cursor, or iterate over its rows."""

    def __init__(
        self,
        connection: Connection,
        query: str,
        args: tuple[Any, ...],
        prefetch: int | None,
        timeout: float | None,
        record_class: type[_pg.Record] | None,
    ) -> None:
        if prefetch is not None and prefetch <= 0:
            raise InterfaceError("prefetch must be greater than zero")
        self._connection = connection
        self._query = query
        self._args = args
        self._prefetch = prefetch or PREFETCH
        self._timeout = timeout
        self._record_class = record_class

    async def _open(self) -> Cursor:
        connection = self._connection
        if not connection.is_in_transaction():
            raise InterfaceError("a cursor can be opened inside a transaction only")
        name = connection._new_name("cursor")
        declare = f"DECLARE {name} NO SCROLL CURSOR FOR {self._query}"
        await connection._op("query", "status", declare, self._args, timeout=self._timeout)
        return Cursor(connection, name, self._record_class)

    def __await__(self) -> Generator[Any, Any, Cursor]:
        return self._open().__await__()

    async def __aiter__(self) -> AsyncIterator[_pg.Record]:
        cursor = await self._open()
        rows: deque[_pg.Record] = deque()
        while True:
            rows.extend(await cursor._fetch(self._prefetch, self._timeout))
            if not rows:
                return
            while rows:
                yield rows.popleft()
