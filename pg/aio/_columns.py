"""Results as columns: Arrow's and NumPy's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from greenletio import _pg
from greenletio._pg import ArrowBatch
from greenletio.pg._arrow import BATCH_ROWS, ArrowTable, Numeric, to_numpy
from greenletio.pg.aio._stream import Streaming

if TYPE_CHECKING:
    import numpy as np

    from greenletio.pg.aio._connection import Connection

__all__ = ("ArrowStream", "ColumnMethods")


class ColumnMethods:
    """The methods of a connection that fetch columns."""

    async def fetch_arrow(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,
        numeric: Numeric = "decimal",
        batch_rows: int = BATCH_ROWS,
    ) -> ArrowTable:
        """The rows of a query as Arrow columns, decoded in C: no Python object is made of a value.

        What a type's Arrow form is, docs/columns.md says. A value without one (an infinite
        timestamp, say) is a DataError that names the column. `timeout` is for each wait.
        """
        stream = self.stream_arrow(
            query, *args, timeout=timeout, numeric=numeric, batch_rows=batch_rows
        )
        async with stream:
            batches = [batch async for batch in stream]
        return ArrowTable(batches or [stream._batch()])

    def stream_arrow(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,
        numeric: Numeric = "decimal",
        batch_rows: int = BATCH_ROWS,
    ) -> ArrowStream:
        """The same a batch at a time: ``async for batch in connection.stream_arrow(query)``.

        The server waits while nobody takes batches. Each has `batch_rows` rows, but the last, and
        those with a gigabyte of text in a column.
        """
        connection = cast("Connection", self)
        connection._check_open()
        return ArrowStream(connection, query, args, timeout, numeric, batch_rows)

    async def fetch_numpy(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,
        numeric: Numeric = "float64",
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The columns of a query as NumPy's arrays, by name.

        Numbers and booleans with NULL in them are masked arrays; times have NaT for NULL; what
        NumPy has no type of is an array of Python objects, with None.
        """
        table = await self.fetch_arrow(query, *args, timeout=timeout, numeric=numeric)
        return to_numpy(table.batches)


class ArrowStream(Streaming):
    """What ``connection.stream_arrow(…)`` gives; as ``connection.stream(…)``, but of batches."""

    def __init__(
        self,
        connection: Connection,
        query: str,
        args: tuple[Any, ...],
        timeout: float | None,
        numeric: Numeric,
        batch_rows: int,
    ) -> None:
        self._connection = connection
        self._timeout = connection._timeout if timeout is None else timeout
        self._how = (batch_rows, numeric)
        self._session = connection._op(
            "stream", "columns", query, args, timeout=self._timeout, column=batch_rows
        )
        self._statement: _pg.Statement | None = None
        self._status: str | None = None

    def __aiter__(self) -> ArrowStream:
        return self

    def _batch(self) -> ArrowBatch:
        assert self._statement is not None
        return ArrowBatch(self._connection, self._statement, *self._how)

    async def __anext__(self) -> ArrowBatch:
        if self._status is not None:
            raise StopAsyncIteration
        if self._statement is None:
            self._statement = await self._session
            self._started = True
        try:
            batch = self._batch()
        except BaseException:
            self._close()
            raise
        answer = await self._connection._op(
            "copy_read", "nothing", "", batch, session=self._session, timeout=self._timeout
        )
        if isinstance(answer, str):
            self._status = answer
            raise StopAsyncIteration
        return batch
