"""COPY: from and to files, paths, functions, iterables; records in binary, encoded in C."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import IO, Any, cast

from greenletio import _pg
from greenletio.pg._arrow import ArrowLike, source_of
from greenletio.pg._copy import CHUNK, HEADER, TRAILER, target
from greenletio.pg._quote import quoted
from greenletio.pg.errors import ArgumentsMismatch

__all__ = ("CopyMethods",)

Output = str | os.PathLike[str] | IO[bytes] | Callable[[bytes], Awaitable[Any]]
Bytes = bytes | bytearray | memoryview
Source = str | os.PathLike[str] | IO[bytes] | AsyncIterable[bytes] | Bytes

_FLAGS = {"header", "freeze", "oids"}
_LISTS = {"force_quote", "force_not_null", "force_null"}
_WORDS = {"format"}
_TEXTS = {"delimiter", "null", "quote", "escape", "encoding"}


def _options(options: dict[str, Any]) -> str:
    """The options of a COPY, as the WITH clause."""
    parts = []
    for key, value in options.items():
        if value is None:
            continue
        if key in _FLAGS:
            parts.append(f"{key.upper()} {'TRUE' if value else 'FALSE'}")
        elif key in _LISTS:
            if value is not True:
                parts.append(f"{key.upper()} ({', '.join(map(quoted, value))})")
            else:
                parts.append(f"{key.upper()} *")
        elif key in _WORDS:
            if not re.fullmatch(r"\w+", value):
                raise ValueError(f"not a format: {value!r}")
            parts.append(f"{key.upper()} {value}")
        elif key in _TEXTS:
            text = str(value).replace("'", "''")
            parts.append(f"{key.upper()} '{text}'")
        else:
            raise TypeError(f"COPY has no option {key!r}")
    return f" WITH ({', '.join(parts)})" if parts else ""


class CopyMethods:
    """The methods of a connection that copy."""

    async def copy_from_table(
        self,
        table_name: str,
        *,
        output: Output,
        columns: Sequence[str] | None = None,
        schema_name: str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> str:
        """Copy a table's rows to a path, a file, or a coroutine function; gives the status.

        The options are COPY's: ``format``, ``delimiter``, ``null``, ``header``, … The rows come as
        fast as they are taken.
        """
        sql = f"COPY {target(table_name, schema_name, columns)} TO STDOUT{_options(options)}"
        return await asyncio.wait_for(_copy_out(self, sql, output), timeout)

    async def copy_from_query(
        self,
        query: str,
        *args: Any,
        output: Output,
        timeout: float | None = None,
        **options: Any,
    ) -> str:
        """The same for what a query gives."""

        async def run() -> str:
            text = await _with_literals(self, query, args) if args else query
            return await _copy_out(self, f"COPY ({text}) TO STDOUT{_options(options)}", output)

        return await asyncio.wait_for(run(), timeout)

    async def copy_to_table(
        self,
        table_name: str,
        *,
        source: Source,
        columns: Sequence[str] | None = None,
        schema_name: str | None = None,
        timeout: float | None = None,
        where: str | None = None,
        **options: Any,
    ) -> str:
        """Copy rows to a table from a path, a file, an async iterable, or bytes; the status."""
        sql = f"COPY {target(table_name, schema_name, columns)} FROM STDIN{_options(options)}"
        if where:
            sql += f" WHERE {where}"
        return await asyncio.wait_for(_copy_in(self, sql, _chunks(source)), timeout)

    async def copy_records_to_table(
        self,
        table_name: str,
        *,
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        columns: Sequence[str] | None = None,
        schema_name: str | None = None,
        timeout: float | None = None,
        where: str | None = None,
    ) -> str:
        """Copy records to a table, in binary: the fastest way in; gives the status."""
        table = target(table_name, schema_name, None)
        chosen = "*" if columns is None else ", ".join(map(quoted, columns))
        sql = f"COPY {target(table_name, schema_name, columns)} FROM STDIN WITH (FORMAT binary)"
        if where:
            sql += f" WHERE {where}"

        async def run() -> str:
            connection = cast(_pg.Connection, self)
            select = f"SELECT {chosen} FROM {table}"
            statement = await connection._op("prepare", "statement", select)
            return await _copy_in(self, sql, _encoded(statement, records))

        return await asyncio.wait_for(run(), timeout)

    async def copy_arrow_to_table(
        self,
        table_name: str,
        *,
        source: ArrowLike,
        columns: Sequence[str] | None = None,
        schema_name: str | None = None,
        timeout: float | None = None,
        where: str | None = None,
    ) -> str:
        """Copy Arrow columns to a table, encoded in C; gives the status.

        `source` is whatever speaks Arrow's PyCapsule protocol: a table or record batches of
        pyarrow, a data frame of Polars or pandas, a relation of DuckDB, an ArrowTable. `columns`
        are the table's, in the source's order; else they have the names of the source's. A value
        that its column cannot have is a DataError that names both; then nothing was copied.
        """
        arrow = source_of(source)
        names = arrow.names if columns is None else columns
        sql = f"COPY {target(table_name, schema_name, names)} FROM STDIN WITH (FORMAT binary)"
        if where:
            sql += f" WHERE {where}"

        async def run() -> str:
            connection = cast(_pg.Connection, self)
            chosen = ", ".join(map(quoted, names))
            select = f"SELECT {chosen} FROM {target(table_name, schema_name, None)}"
            statement = await connection._op("prepare", "statement", select)
            return await _copy_in(self, sql, _arrow_rows(statement, arrow))

        return await asyncio.wait_for(run(), timeout)


# ---- out ----------------------------------------------------------------------------------------


async def _copy_out(connection: Any, sql: str, output: Output) -> str:
    if isinstance(output, str | os.PathLike):
        with open(output, "wb") as file:
            return await _copy_out(connection, sql, file)
    write: Callable[[bytes], Any]
    if hasattr(output, "write"):
        write = output.write
    elif callable(output):
        write = output
    else:
        raise TypeError(
            f"output is expected to be a path, a file, or a coroutine function, not {output!r}"
        )
    session = connection._op("copy", "status", sql)
    await session
    try:
        while True:
            rows = await connection._op("copy_read", "nothing", "", session=session)
            if isinstance(rows, str):
                return rows
            answer = write(rows)
            if inspect.isawaitable(answer):
                await answer
    except BaseException:
        session.close()
        raise


# ---- in -----------------------------------------------------------------------------------------


async def _copy_in(connection: Any, sql: str, chunks: AsyncIterator[bytes | memoryview]) -> str:
    session = connection._op("copy", "status", sql)
    await session
    try:
        async for chunk in chunks:
            await connection._op("copy_write", "nothing", "", chunk, session=session)
    except BaseException as exc:
        try:
            await connection._op("copy_end", "nothing", "", str(exc) or repr(exc), session=session)
        except Exception:
            session.close()
        raise
    status: str = await connection._op("copy_end", "nothing", "", session=session)
    return status


async def _chunks(source: Source) -> AsyncIterator[bytes | memoryview]:
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            async for chunk in _chunks(file):
                yield chunk
    elif hasattr(source, "read"):
        while chunk := source.read(CHUNK):
            if inspect.isawaitable(chunk):
                chunk = await chunk
                if not chunk:
                    return
            yield chunk
    elif hasattr(source, "__aiter__"):
        async for chunk in source:
            yield chunk
    else:
        try:
            whole = memoryview(source)
        except TypeError:
            raise TypeError(
                "source is expected to be a path, a file, an async iterable, or bytes, "
                f"not {source!r}"
            ) from None
        yield whole


async def _encoded(
    statement: _pg.Statement, records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]]
) -> AsyncIterator[bytes]:
    yield HEADER
    if isinstance(records, AsyncIterable):
        batch = []
        async for record in records:
            batch.append(record)
            if len(batch) == 500:
                yield statement.encode_rows(iter(batch), 1 << 62)
                batch.clear()
        yield statement.encode_rows(iter(batch), 1 << 62)
    else:
        rows = iter(records)
        while chunk := statement.encode_rows(rows, CHUNK):
            yield chunk
    yield TRAILER


async def _arrow_rows(statement: _pg.Statement, source: _pg.ArrowSource) -> AsyncIterator[bytes]:
    yield HEADER
    while chunk := source.encode(statement, CHUNK):
        yield chunk
    yield TRAILER


async def _with_literals(connection: Any, query: str, args: Sequence[Any]) -> str:
    """The query with its arguments in it, quoted by the server: COPY takes no parameters.

    What type such a literal is of, the server finds out as it does for a parameter.
    """
    statement = await connection._op("prepare", "statement", query)
    wanted = len(statement.parameters)
    if len(args) != wanted:
        raise ArgumentsMismatch(
            f"the server expects {wanted} arguments for this query, {len(args)} were passed"
        )
    literals = []
    for codec, value in zip(statement.parameters, args, strict=True):
        # As cstring, which no codec of the user's is for.
        literal = f"pg_catalog.quote_nullable(CAST($1::{codec.name} AS text))"
        quoting = f"SELECT pg_catalog.textout({literal})"
        literals.append(await connection.fetchval(quoting, value))
    return re.sub(r"\$(\d+)", lambda found: literals[int(found[1]) - 1], query)
