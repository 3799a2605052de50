"""Statements that the user prepares."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from greenletio import _pg
from greenletio.pg._lobject import FAILED
from greenletio.pg._quote import quoted
from greenletio.pg.aio._cursor import CursorFactory
from greenletio.pg.errors import InterfaceError

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("Attribute", "PreparedStatement", "Type")


class Type(NamedTuple):
    """A type of the server."""

    oid: int
    name: str
    kind: str
    schema: str


class Attribute(NamedTuple):
    """A column of a statement."""

    name: str
    type: Type


_KINDS = ("array", "composite", "multirange", "range")


def _plan(value: Any) -> Any:
    """What EXPLAIN gave, unless the user's codec has read that."""
    return json.loads(value) if isinstance(value, str) else value


def _type(codec: _pg.Codec) -> Type:
    """A domain is what it is based on, as in the server's own answers."""
    base = codec
    while base.form == "wrapped" and base.element is not None:
        if base.decoder is None:
            codec = base.element
        base = base.element
    kind = base.form if base.form in _KINDS else "scalar"
    if codec.name.endswith("[]"):
        kind = "array"
    name = codec.name.removeprefix(f"{codec.schema}.")
    return Type(codec.oid, name, kind or "scalar", codec.schema)


class PreparedStatement:
    """What ``connection.prepare()`` gives: the same query again and again."""

    def __init__(
        self,
        connection: Connection,
        statement: _pg.Statement,
        record_class: type[_pg.Record] | None,
    ) -> None:
        self._connection = connection  # a pool's is over with its lease
        self._server_side = connection
        self._statement = statement
        self._record_class = record_class
        self._closed = False

    async def close(self) -> None:
        """Have the server forget it; it is of no use afterwards."""
        self._check()
        self._closed = True
        connection, name = self._server_side, self._statement.name
        if connection._transaction_status == FAILED:  # it hears of nothing
            connection._to_close.append(name)
        else:
            await self._connection.execute(f"DEALLOCATE {quoted(name)}")

    def _check(self) -> None:
        self._connection._check_open()
        if self._closed:
            raise InterfaceError("the prepared statement is closed")

    async def _run(
        self,
        want: str,
        args: tuple[Any, ...],
        timeout: float | None,
        column: int | str = 0,
        record_class: type[_pg.Record] | None = None,
    ) -> Any:
        self._check()
        connection = self._connection
        if timeout is None:
            timeout = connection._timeout
        if isinstance(column, str):  # of equal ones it is the last, as in a Record
            column = {name: at for at, name in enumerate(self._statement.names)}[column]
        run = connection._op(
            "query",
            want,
            self._statement.sql,
            args,
            statement=self._statement,
            timeout=timeout,
            record_class=record_class or self._record_class,
            column=column,
        )
        if connection._query_loggers:
            return await connection._logged(run, self._statement.sql, args, timeout)
        return await run

    async def fetch(
        self, *args: Any, timeout: float | None = None, record_class: type[_pg.Record] | None = None
    ) -> list[_pg.Record]:
        """Its rows."""
        rows: list[_pg.Record] = await self._run("records", args, timeout, 0, record_class)
        return self._connection._made(rows)

    async def fetchrow(
        self, *args: Any, timeout: float | None = None, record_class: type[_pg.Record] | None = None
    ) -> _pg.Record | None:
        """Its first row, or None."""
        row: _pg.Record | None = await self._run("record", args, timeout, 0, record_class)
        made: _pg.Record | None = self._connection._made_one(row)
        return made

    async def fetchval(
        self, *args: Any, column: int | str = 0, timeout: float | None = None
    ) -> Any:
        """A column of its first row, by position or name, or None."""
        return await self._run("value", args, timeout, column)

    async def fetchmany(
        self,
        args: Iterable[Sequence[Any]],
        *,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> list[_pg.Record]:
        """Its rows for each of the sequences of arguments, all or nothing."""
        connection = self._connection
        rows: list[_pg.Record] = []

        async def run() -> None:
            for one in args:
                rows.extend(await self._run("records", tuple(one), None, 0, record_class))

        async def whole() -> None:
            if connection.is_in_transaction() and connection._transaction is None:
                await run()  # it fails as a whole, if it fails
            else:
                async with connection.transaction():
                    await run()

        await asyncio.wait_for(whole(), connection._timeout if timeout is None else timeout)
        return rows

    def cursor(
        self, *args: Any, prefetch: int | None = None, timeout: float | None = None
    ) -> CursorFactory:
        """A cursor for its rows, inside a transaction."""
        self._check()
        query = self._statement.sql
        connection = self._connection
        return CursorFactory(
            connection, self._check, query, args, prefetch, timeout, self._record_class
        )

    async def executemany(
        self, args: Iterable[Sequence[Any]], *, timeout: float | None = None
    ) -> None:
        """Run it once for each sequence of arguments, all or nothing."""
        await self._connection.executemany(self._statement.sql, args, timeout=timeout)

    async def explain(self, *args: Any, analyze: bool = False) -> Any:
        """The server's plan for it; with `analyze` it is run, and the changes are undone."""
        query = "EXPLAIN (FORMAT JSON, VERBOSE" + (", ANALYZE) " if analyze else ") ")
        query += self._statement.sql
        if not analyze:
            return _plan(await self._connection.fetchval(query, *args))
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            return _plan(await self._connection.fetchval(query, *args))
        finally:
            await transaction.rollback()

    def get_statusmsg(self) -> str | None:
        """What the server said of it when it was last run: "SELECT 2", say; None: it was not."""
        return self._statement.status

    def get_name(self) -> str:
        """Its name on the server."""
        return self._statement.name

    def get_query(self) -> str:
        """Its text."""
        return self._statement.sql

    def get_parameters(self) -> tuple[Type, ...]:
        """The types of its parameters."""
        return tuple(map(_type, self._statement.parameters))

    def get_attributes(self) -> tuple[Attribute, ...]:
        """Its columns."""
        statement = self._statement
        return tuple(
            Attribute(name, _type(codec))
            for name, codec in zip(statement.names, statement.columns, strict=True)
        )

    def __del__(self) -> None:
        connection, statement = self._server_side, self._statement
        if self._closed or not statement.name or not statement.is_prepared:
            return
        if not connection.is_closed() and statement not in connection._cache.values():
            connection._to_close.append(statement.name)

    def __repr__(self) -> str:
        return f"<PreparedStatement {self._statement.sql!r}>"
