"""What a Pool does by itself: a connection's methods, each on one of its connections."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from greenletio import _pg
from greenletio.pg._arrow import ArrowLike, ArrowTable
from greenletio.pg.aio._copy import Output, Source

if TYPE_CHECKING:
    import numpy as np

    from greenletio.pg._pool import Core
    from greenletio.pg._pool_slot import Slot
    from greenletio.pg.aio._pool import PoolAcquireContext
    from greenletio.pg.aio._pool_shared import Shared

__all__ = ("Queries", "Single")


class Single:
    """What is one query."""

    async def _one(self, name: str, query: str, args: tuple[Any, ...], **options: Any) -> Any:
        """A connection's method; of the options those that are not None, its defaults."""
        raise NotImplementedError

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """``Connection.execute()``."""
        status: str = await self._one("execute", query, args, timeout=timeout)
        return status

    async def fetch(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> list[_pg.Record]:
        """``Connection.fetch()``."""
        rows: list[_pg.Record] = await self._one(
            "fetch", query, args, timeout=timeout, record_class=record_class
        )
        return rows

    async def fetchrow(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> _pg.Record | None:
        """``Connection.fetchrow()``."""
        row: _pg.Record | None = await self._one(
            "fetchrow", query, args, timeout=timeout, record_class=record_class
        )
        return row

    async def fetchval(
        self, query: str, *args: Any, column: int = 0, timeout: float | None = None
    ) -> Any:
        """``Connection.fetchval()``."""
        return await self._one("fetchval", query, args, column=column or None, timeout=timeout)


class Queries(Single):
    """The connection is reset afterwards, in the background."""

    _core: Core
    _shares: bool

    if TYPE_CHECKING:

        @property
        def shared(self) -> Shared: ...
        def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext: ...
        async def _lease(self, timeout: float | None) -> Slot: ...

    # The four that are hot have no proxy unless functions of the user's are to be called.
    _setup: Any
    _reset: Any

    async def _one(self, name: str, query: str, args: tuple[Any, ...], **options: Any) -> Any:
        if self._shares:
            return await self.shared._one(name, query, args, **options)
        return await self._alone(name, query, args, **options)

    async def _alone(self, name: str, query: str, args: tuple[Any, ...], **options: Any) -> Any:
        options = {option: value for option, value in options.items() if value is not None}
        if self._setup is not None or self._reset is not None:
            async with self.acquire() as connection:
                return await getattr(connection, name)(query, *args, **options)
        slot = await self._lease(None)
        slot.used(query)
        try:
            return await getattr(slot.con, name)(query, *args, **options)
        finally:
            self._core.give(slot)

    async def executemany(
        self, command: str, args: Iterable[Sequence[Any]], *, timeout: float | None = None
    ) -> None:
        """``Connection.executemany()``."""
        async with self.acquire() as connection:
            await connection.executemany(command, args, timeout=timeout)

    async def copy_from_table(self, table_name: str, *, output: Output, **options: Any) -> str:
        """``Connection.copy_from_table()``."""
        async with self.acquire() as connection:
            return await connection.copy_from_table(table_name, output=output, **options)

    async def copy_from_query(self, query: str, *args: Any, output: Output, **options: Any) -> str:
        """``Connection.copy_from_query()``."""
        async with self.acquire() as connection:
            return await connection.copy_from_query(query, *args, output=output, **options)

    async def copy_to_table(self, table_name: str, *, source: Source, **options: Any) -> str:
        """``Connection.copy_to_table()``."""
        async with self.acquire() as connection:
            return await connection.copy_to_table(table_name, source=source, **options)

    async def copy_records_to_table(
        self,
        table_name: str,
        *,
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        **options: Any,
    ) -> str:
        """``Connection.copy_records_to_table()``."""
        async with self.acquire() as connection:
            return await connection.copy_records_to_table(table_name, records=records, **options)

    async def copy_arrow_to_table(
        self, table_name: str, *, source: ArrowLike, **options: Any
    ) -> str:
        """``Connection.copy_arrow_to_table()``."""
        async with self.acquire() as connection:
            return await connection.copy_arrow_to_table(table_name, source=source, **options)

    async def fetch_arrow(self, query: str, *args: Any, **options: Any) -> ArrowTable:
        """``Connection.fetch_arrow()``."""
        async with self.acquire() as connection:
            return await connection.fetch_arrow(query, *args, **options)

    async def fetch_numpy(
        self, query: str, *args: Any, **options: Any
    ) -> dict[str, np.ndarray[Any, Any]]:
        """``Connection.fetch_numpy()``."""
        async with self.acquire() as connection:
            return await connection.fetch_numpy(query, *args, **options)

    # ---- how many there are

    _init_size: int

    def get_size(self) -> int:
        """How many connections there are."""
        return self._core.size

    def get_init_size(self) -> int:
        """How many are made at first."""
        return self._init_size

    def get_min_size(self) -> int:
        """How many there are at least."""
        return self._core.limits.min_size

    def get_max_size(self) -> int:
        """How many there may be."""
        return self._core.limits.max_size

    def get_idle_size(self) -> int:
        """How many nobody has."""
        return self._core.available

    def stats(self) -> dict[str, int]:
        """What there is and what has happened: ``greenletio.pg.Pool.stats()``."""
        return self._core.as_dict()

    get_stats = stats  # the sync pool's other name for it, psycopg_pool's
