"""Cursor: the DB-API's, with psycopg's additions. A result is fetched as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import starmap
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from greenletio._pg import BUILTIN, ArrowBatch, Op, Statement
from greenletio.pg import _text
from greenletio.pg._arrow import BATCH_ROWS, ArrowLike, ArrowTable, Numeric, source_of, to_numpy
from greenletio.pg._copy import CHUNK, HEADER, TRAILER, Copy, target
from greenletio.pg._quote import quoted
from greenletio.pg.errors import InterfaceError, NotSupportedError, ProgrammingError
from greenletio.pg.rows import _same

if TYPE_CHECKING:
    import numpy as np

    from greenletio.pg._connection import Connection
    from greenletio.pg.rows import Factory, Maker

__all__ = ("Column", "Cursor", "typed")

BPCHAR, VARCHAR, NUMERIC = 1042, 1043, 1700

_WORD = r'(?:[^\W\d][\w$]*|"(?:[^"\0]|"")+")'
_NAME = re.compile(_WORD)
_FUNCTION = re.compile(rf"{_WORD}(?:\.{_WORD})*")

Row = TypeVar("Row")
Result = tuple[list[Any] | None, tuple[Any, ...] | None, str]


class Column(NamedTuple):
    """A column of a result: the DB-API's seven fields."""

    name: str
    type_code: int
    display_size: int | None = None
    internal_size: int | None = None
    precision: int | None = None
    scale: int | None = None
    null_ok: bool | None = None


def _column(name: str, oid: int, size: int, modifier: int) -> Column:
    """A column, whose type may be restricted: varchar(30), numeric(5, 2)."""
    length = precision = scale = None
    if modifier < 4:
        pass
    elif oid in (BPCHAR, VARCHAR):
        length = modifier - 4
    elif oid == NUMERIC:
        precision, scale = (modifier - 4) >> 16, (modifier - 4) & 0x7FF
        scale -= 0x800 if scale & 0x400 else 0  # eleven bits, with a sign
    return Column(name, oid, length, size if size > 0 else None, precision, scale)


@lru_cache(512)
def _columns(description: tuple[tuple[str, int, int, int], ...]) -> tuple[Column, ...]:
    return tuple(starmap(_column, description))


class Cursor(Generic[Row]):
    """Runs queries and holds the result of the last one."""

    #: The DB-API's, for databases whose rows have numbers: the server's have none.
    lastrowid: None = None

    def __init__(self, connection: Connection[Any], row_factory: Factory[Row]) -> None:
        self.connection = connection
        self.row_factory = row_factory
        self.arraysize = 1
        self.closed = False
        self._pending: Op[Result] | None = None  # in a pipeline
        self._clear()

    def _clear(self) -> None:
        """There is no result."""
        self._results: list[Result] = []  # those to come
        self._rows: list[Any] | None = None
        self._make: Maker[Row] | None = None
        self.statusmessage: str | None = None
        self.description: list[Column] | None = None
        self.rownumber: int | None = None
        self.rowcount = -1

    def _set(self, result: Result) -> None:
        self._rows, description, tag = result
        self._make = None
        self.statusmessage = tag
        self.rownumber = None if self._rows is None else 0
        self.description = None if description is None else [*_columns(description)]
        word = tag.rpartition(" ")[2]
        self.rowcount = int(word) if word.isdecimal() else -1

    def _check(self) -> None:
        if self.closed:
            raise InterfaceError("the cursor is closed")

    def _start(self) -> None:
        """Something new is run: what there was is dropped."""
        self._check()
        self._clear()

    # -- running

    def execute(
        self, query: str, params: Any = None, *, timeout: float | None = None
    ) -> Cursor[Row]:
        """Run a query. Placeholders are %s with a sequence, %(name)s with a mapping, or $1.

        Without parameters it may be several statements: nextset() goes on to their results. Waits
        for the server; can be cancelled, and ended by `timeout` seconds.
        """
        self._start()
        self._pending = None
        results = self.connection._run(query, params, timeout, self)
        if isinstance(results, Op):
            self._pending = results
            return self
        if results:
            self._set(results.pop(0))
            self._results = results
        return self

    def _settle(self) -> None:
        """Take the result that a pipeline has brought, if it has."""
        if self._pending is not None and self._pending._succeeded:
            op, self._pending = self._pending, None
            self._set(op.run())

    def _arrive(self) -> None:
        """Wait for the result in a pipeline."""
        if self._pending is not None:
            self._set(self._pending.run())
            self._pending = None

    def executemany(
        self, query: str, params_seq: Iterable[Any], *, returning: bool = False
    ) -> None:
        """Run a query once for each of the parameters; with `returning` keep the results.

        In a transaction, and so unless autocommit is on, 10,000 of them are taken at a time and
        sent: what has been done is undone by whoever ends the transaction when the next ones cannot
        be made. Otherwise all of them are taken before the first is sent.
        """
        self._start()
        if not returning:
            self.rowcount = self.connection._run_many(query, params_seq)
            return
        for one in params_seq:
            result = self.connection._run(query, one, None)
            if isinstance(result, Op):
                raise NotSupportedError("executemany() cannot return rows inside a pipeline")
            self._results += result
        if self._results:
            self._set(self._results.pop(0))

    def callproc(
        self,
        procname: str,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """Call a function of the server: its rows are the result.

        The name is taken as in SQL: with a schema, in quotes where it needs them. A mapping gives
        parameters by name. Returns a copy of the parameters, as the DB-API wants it. (A procedure
        is called by ``execute("CALL name(%s)", …)``.)
        """
        if not _FUNCTION.fullmatch(procname):
            raise ProgrammingError(f"no name of a function: {procname!r}")
        if isinstance(parameters, (str, bytes)):
            raise TypeError(f"parameters are a sequence or a mapping, not {parameters!r}")
        names = list(parameters) if isinstance(parameters, Mapping) else []
        for name in names:
            if not _NAME.fullmatch(name):
                raise ProgrammingError(f"no name of a parameter: {name!r}")
        given = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
        values = list(given.values()) if isinstance(given, dict) else given
        marks = [f"{name} => ${at}" for at, name in enumerate(names, 1)]
        marks = marks or [f"${at}" for at in range(1, len(values) + 1)]
        self.execute(f"SELECT * FROM {procname}({', '.join(marks)})", values, timeout=timeout)
        return given

    def stream(
        self, query: str, params: Any = None, *, timeout: float | None = None
    ) -> Iterator[Row]:
        """The rows of a query as they come: the server waits while nobody takes them.

        Until the last one was taken the connection is busy. Leaving the loop early cancels the
        query, which fails the transaction if one is open; the connection can be used at once.
        `timeout` is for each wait.
        """
        self._start()
        with self.connection._streaming(query, params, timeout, "tuples") as (statement, read):
            self._describe(statement)
            make = self.row_factory(self)
            while isinstance(rows := read(None), list):
                for row in rows:
                    yield make(row)

    def _describe(self, statement: Statement) -> None:
        columns = zip(statement.names, statement.columns, strict=True)
        self.description = [Column(name, codec.oid) for name, codec in columns]

    def stream_arrow(
        self,
        query: str,
        params: Any = None,
        *,
        timeout: float | None = None,
        numeric: Numeric = "decimal",
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[ArrowBatch]:
        """The rows of a query as Arrow columns, a batch at a time; otherwise as stream().

        Each batch has `batch_rows` rows, but the last, and those with a gigabyte of text in a
        column. What a type's Arrow form is, docs/columns.md says. A value without one (an infinite
        timestamp, say) is a DataError that names the column.
        """
        for batch in self._batches(query, params, timeout, numeric, batch_rows):
            if len(batch):
                yield batch

    def _batches(
        self, query: str, params: Any, timeout: float | None, numeric: Numeric, batch_rows: int
    ) -> Iterator[ArrowBatch]:
        """The last one has no rows."""
        self._start()
        connection = self.connection
        with connection._streaming(query, params, timeout, "columns", batch_rows) as part:
            statement, read = part
            self._describe(statement)
            while True:
                batch = ArrowBatch(connection._raw, statement, batch_rows, numeric)
                if isinstance(read(batch), str):
                    break
                yield batch
            # The columns may have others than at first: the plan was made anew.
            yield ArrowBatch(connection._raw, statement, batch_rows, numeric)

    def fetch_arrow(
        self,
        query: str,
        params: Any = None,
        *,
        timeout: float | None = None,
        numeric: Numeric = "decimal",
        batch_rows: int = BATCH_ROWS,
    ) -> ArrowTable:
        """The same, all at once: for pyarrow.table(), polars.DataFrame() and the like."""
        batches = list(self._batches(query, params, timeout, numeric, batch_rows))
        return ArrowTable(batches[:-1] or batches)

    def fetch_numpy(
        self,
        query: str,
        params: Any = None,
        *,
        timeout: float | None = None,
        numeric: Numeric = "float64",
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The columns of a query as NumPy's arrays, by name.

        Numbers and booleans with NULL in them are masked arrays; times have NaT for NULL; what
        NumPy has no type of is an array of Python objects, with None.
        """
        return to_numpy(self.fetch_arrow(query, params, timeout=timeout, numeric=numeric).batches)

    @contextmanager
    def copy(self, sql: str) -> Iterator[Copy]:
        """A COPY … FROM STDIN or TO STDOUT: ``with cursor.copy(sql) as copy: copy.write(…)``."""
        self._start()
        with self.connection._copying(sql) as copy, copy:
            yield copy
        if copy.status is not None:
            self._set((None, None, copy.status))

    def copy_arrow(
        self,
        table: str,
        source: ArrowLike,
        *,
        columns: Sequence[str] | None = None,
        schema: str | None = None,
    ) -> None:
        """Copy Arrow columns to a table, encoded in C; rowcount says how many rows.

        `source` is whatever speaks Arrow's PyCapsule protocol: a table or record batches of
        pyarrow, a data frame of Polars or pandas, a relation of DuckDB, an ArrowTable. `columns`
        are the table's, in the source's order; else they have the names of the source's. A value
        that its column cannot have is a DataError that names both; then nothing was copied.
        """
        self._check()
        arrow = source_of(source)
        names = arrow.names if columns is None else columns
        self._copy_binary(table, names, schema, lambda statement: arrow.encode(statement, CHUNK))

    def copy_records(
        self,
        table: str,
        records: Iterable[Sequence[Any]],
        *,
        columns: Sequence[str] | None = None,
        schema: str | None = None,
    ) -> None:
        """Copy records to a table in binary, encoded in C: the fastest way in for Python's values;
        rowcount says how many. A value that its column cannot have is a DataError; then nothing was
        copied.
        """
        rows = iter(records)
        self._copy_binary(
            table, columns, schema, lambda statement: statement.encode_rows(rows, CHUNK)
        )

    def _copy_binary(
        self,
        table: str,
        columns: Sequence[str] | None,
        schema: str | None,
        encode: Callable[[Statement], bytes],
    ) -> None:
        """Chunks of rows, until there are no more."""
        chosen = "*" if columns is None else ", ".join(map(quoted, columns))
        statement = self.connection._prepared(f"SELECT {chosen} FROM {target(table, schema, None)}")
        with self.copy(f"COPY {target(table, schema, columns)} FROM STDIN (FORMAT binary)") as copy:
            copy.write(HEADER)
            while chunk := encode(statement):
                copy.write(chunk)
            copy.write(TRAILER)

    def nextset(self) -> bool | None:
        """Go on to the next result; None if there is none."""
        self._check()
        self._arrive()
        if not self._results:
            return None
        self._set(self._results.pop(0))
        return True

    # -- rows

    def _fetched(self) -> tuple[list[Any], Maker[Row], int]:
        self._check()
        if self._pending is not None:
            self._arrive()
        if self._rows is None or self.rownumber is None:
            raise ProgrammingError("the last operation didn't produce a result")
        if self._make is None:
            self._make = self.row_factory(self)
        return self._rows, self._make, self.rownumber

    def fetchone(self) -> Row | None:
        """The next row; None if there is none."""
        rows, make, at = self._fetched()
        if at >= len(rows):
            return None
        self.rownumber = at + 1
        return make(rows[at])

    def fetchmany(self, size: int = 0) -> list[Row]:
        """The next `size` rows, or arraysize if it is 0."""
        rows, make, at = self._fetched()
        size = size or self.arraysize
        if size < 0:
            raise ValueError(f"a number of rows is needed, not {size}")
        end = min(at + size, len(rows))
        self.rownumber = end
        return [make(row) for row in rows[at:end]]

    def fetchall(self) -> list[Row]:
        """All rows that were not fetched yet."""
        rows, make, at = self._fetched()
        self.rownumber = len(rows)
        return rows[at:] if make is _same else [make(row) for row in rows[at:]]

    def __next__(self) -> Row:
        rows, make, at = self._fetched()
        if at >= len(rows):
            raise StopIteration
        self.rownumber = at + 1
        return make(rows[at])

    def __iter__(self) -> Iterator[Row]:
        while True:
            rows, make, at = self._fetched()
            if at >= len(rows):
                return
            self.rownumber = at + 1
            yield make(rows[at])

    def scroll(self, value: int, mode: str = "relative") -> None:
        """Move in the result."""
        rows, _, at = self._fetched()
        if mode not in ("relative", "absolute"):
            raise ValueError(f"bad mode: {mode!r}, it is 'relative' or 'absolute'")
        to = at + value if mode == "relative" else value
        if not 0 <= to < len(rows):
            raise IndexError("position out of bound")
        self.rownumber = to

    # -- the rest of the DB-API

    def close(self) -> None:
        """Drop the result; the cursor is of no use afterwards."""
        self.closed = True
        self._pending = None
        self._clear()

    def setinputsizes(self, sizes: Any) -> None:
        """Nothing: the DB-API allows that."""

    def setoutputsize(self, size: Any, column: int | None = None) -> None:
        """Nothing: the DB-API allows that."""

    def __enter__(self) -> Cursor[Row]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} of {self.connection!r}>"


def typed(result: Result, codecs: dict[int, Any]) -> Result:
    """A result of the simple protocol, whose rows are text, with the values of its types."""
    rows, description, tag = result
    if rows is None or description is None:
        return result
    readers = [codecs.get(column[1]) or BUILTIN.get(column[1]) for column in description]
    return (
        [
            tuple(
                value if value is None or codec is None else _text.decode(codec, value)
                for codec, value in zip(readers, row, strict=True)
            )
            for row in rows
        ],
        description,
        tag,
    )
