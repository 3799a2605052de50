"""Cursors of the server: rows of a large result, some at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any

from greenletio import _pg
from greenletio.pg.errors import InterfaceError, NoActiveSqlTransaction

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("Cursor", "CursorFactory")

PREFETCH = 50


class Cursor:
    """What ``await connection.cursor(…)`` gives: open, until its transaction ends."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        query: str,
        record_class: type[_pg.Record] | None,
    ) -> None:
        self._connection = connection
        self._name = name
        self._query = query
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

    def __repr__(self) -> str:
        state = "exhausted " if self._exhausted else ""
        query = self._query if len(self._query) <= 60 else f"{self._query[:57]}..."
        kind = f"{type(self).__module__}.{type(self).__name__}"
        return f'<{kind} "{query}" {state}{id(self):#x}>'


class CursorFactory:
    """What ``connection.cursor(…)`` gives: await it for a Cursor, or iterate over its rows."""

    def __init__(
        self,
        connection: Connection,
        check: Callable[[], None],
        query: str,
        args: tuple[Any, ...],
        prefetch: int | None,
        timeout: float | None,
        record_class: type[_pg.Record] | None,
    ) -> None:
        if prefetch is not None and prefetch <= 0:
            raise InterfaceError("the prefetch argument must be greater than zero")
        self._connection = connection
        self._check = check  # that it is usable still
        self._query = query
        self._args = args
        self._prefetch = prefetch
        self._timeout = timeout
        self._record_class = record_class

    async def _open(self) -> Cursor:
        connection = self._connection
        self._check()
        if not connection.is_in_transaction():
            raise NoActiveSqlTransaction("a cursor cannot be created outside of a transaction")
        name = connection._new_name("cursor")
        declare = f"DECLARE {name} NO SCROLL CURSOR FOR {self._query}"
        await connection._op("query", "status", declare, self._args, timeout=self._timeout)
        return Cursor(connection, name, self._query, self._record_class)

    def __await__(self) -> Generator[Any, Any, Cursor]:
        if self._prefetch is not None:
            raise InterfaceError("the prefetch argument can only be given to iterate over rows")
        return self._open().__await__()

    async def __aiter__(self) -> AsyncIterator[_pg.Record]:
        cursor = await self._open()
        rows: deque[_pg.Record] = deque()
        while True:
            rows.extend(await cursor._fetch(self._prefetch or PREFETCH, self._timeout))
            if not rows:
                await cursor.close()
                return
            while rows:
                yield rows.popleft()
