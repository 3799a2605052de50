"""Statements that the user prepares."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from greenletio import _pg
from greenletio.pg.aio._cursor import CursorFactory

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


def _type(oid: int, name: str) -> Type:
    kind = "array" if name.endswith("[]") else "scalar"
    schema, dot, short = name.rpartition(".")
    return Type(oid, short if dot else name, kind, schema if dot else "pg_catalog")


class PreparedStatement:
    """What ``connection.prepare()`` gives: the same query again and again."""

    def __init__(
        self,
        connection: Connection,
        statement: _pg.Statement,
        record_class: type[_pg.Record] | None,
    ) -> None:
        self._connection = connection
        self._statement = statement
        self._record_class = record_class
        self._status: str | None = None

    def _op(
        self, want: str, args: tuple[Any, ...], timeout: float | None, column: int = 0
    ) -> _pg.Op[Any]:
        if timeout is None:
            timeout = self._connection._timeout
        return self._connection._op(
            "query",
            want,
            self._statement.sql,
            args,
            statement=self._statement,
            timeout=timeout,
            record_class=self._record_class,
            column=column,
        )

    async def fetch(
        self, *args: Any, timeout: float | None = None, record_class: type[_pg.Record] | None = None
    ) -> list[_pg.Record]:
        """Its rows."""
        rows: list[_pg.Record] = await self._op("records", args, timeout)
        return self._connection._made(rows)

    async def fetchrow(self, *args: Any, timeout: float | None = None) -> _pg.Record | None:
        """Its first row, or None."""
        row: _pg.Record | None = await self._op("record", args, timeout)
        made: _pg.Record | None = self._connection._made_one(row)
        return made

    async def fetchval(self, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """A column of its first row, or None."""
        return await self._op("value", args, timeout, column)

    def cursor(
        self, *args: Any, prefetch: int | None = None, timeout: float | None = None
    ) -> CursorFactory:
        """A cursor for its rows, inside a transaction."""
        query = self._statement.sql
        connection = self._connection
        return CursorFactory(connection, query, args, prefetch, timeout, self._record_class)

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
            return json.loads(await self._connection.fetchval(query, *args))
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            return json.loads(await self._connection.fetchval(query, *args))
        finally:
            await transaction.rollback()

    def get_name(self) -> str:
        """Its name on the server."""
        return self._statement.name

    def get_query(self) -> str:
        """Its text."""
        return self._statement.sql

    def get_parameters(self) -> tuple[Type, ...]:
        """The types of its parameters."""
        return tuple(_type(oid, name) for oid, name in self._statement.parameters)

    def get_attributes(self) -> tuple[Attribute, ...]:
        """Its columns."""
        statement = self._statement
        return tuple(
            Attribute(name, _type(*column))
            for name, column in zip(statement.names, statement.columns, strict=True)
        )

    def __repr__(self) -> str:
        return f"<PreparedStatement {self._statement.sql!r}>"
