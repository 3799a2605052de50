"""row_factory: rows of tasks' queries as ``greenletio.pg.rows`` makes them for sync code."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, cast

from greenletio import _pg
from greenletio.pg._cursor import Column, Cursor
from greenletio.pg.rows import Factory

__all__ = ("RowFactory",)


class _Described:
    """What a factory looks at: the names of the columns."""

    def __init__(self, record: _pg.Record) -> None:
        self.description = [Column(name, 0) for name in record.keys()]


class RowFactory:
    """The attribute of a connection; without a factory the hot methods stay those in C."""

    _row_factory: Factory[Any] | None = None

    @property
    def row_factory(self) -> Factory[Any] | None:
        """What makes the rows of fetch(), fetchrow(), cursors and prepared statements.

        One of ``greenletio.pg.rows``: dict_row, namedtuple_row, class_row(…), …; None: Records.
        """
        return self._row_factory

    @row_factory.setter
    def row_factory(self, factory: Factory[Any] | None) -> None:
        if factory is not None and not callable(factory):
            raise TypeError(f"row_factory is one of greenletio.pg.rows, not {factory!r}")
        self._row_factory = factory
        for name, function in (("fetch", _fetch), ("fetchrow", _fetchrow)):
            if factory is None:
                self.__dict__.pop(name, None)
            else:
                self.__dict__[name] = partial(_call, weakref.ref(self), function)

    def _made(self, records: list[Any]) -> list[Any]:
        """The rows of a result."""
        factory = self._row_factory
        if factory is None or not records:
            return records
        make = factory(cast("Cursor[Any]", _Described(records[0])))
        return [make(tuple(record)) for record in records]

    def _made_one(self, record: Any) -> Any:
        return None if record is None else self._made([record])[0]


async def _fetch(connection: Any, *args: Any, **kwargs: Any) -> list[Any]:
    rows: list[Any] = connection._made(await _pg.Connection.fetch(connection, *args, **kwargs))
    return rows


async def _fetchrow(connection: Any, *args: Any, **kwargs: Any) -> Any:
    return connection._made_one(await _pg.Connection.fetchrow(connection, *args, **kwargs))


def _call(ref: weakref.ref[Any], function: Any, /, *args: Any, **kwargs: Any) -> Any:
    return function(ref(), *args, **kwargs)  # whoever calls it has the connection
