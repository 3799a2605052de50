"""Row factories: what the rows of a cursor are, by psycopg's conventions.

A factory is called with the cursor when there is a result, and returns what makes a row of a tuple.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from greenletio.pg.errors import ProgrammingError

if TYPE_CHECKING:
    from greenletio.pg._cursor import Cursor

__all__ = (
    "args_row",
    "class_row",
    "dict_row",
    "kwargs_row",
    "namedtuple_row",
    "scalar_row",
    "tuple_row",
)

_T = TypeVar("_T")

Maker = Callable[[tuple[Any, ...]], _T]
Factory = Callable[["Cursor[Any]"], Maker[_T]]


def _names(cursor: Cursor[Any]) -> list[str]:
    return [column.name for column in cursor.description or ()]


def tuple_row(cursor: Cursor[Any]) -> Maker[tuple[Any, ...]]:
    """Tuples: the default."""
    return _same


def _same(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return values


def dict_row(cursor: Cursor[Any]) -> Maker[dict[str, Any]]:
    """Dicts by the columns' names."""
    names = _names(cursor)
    return lambda values: dict(zip(names, values, strict=True))


def namedtuple_row(cursor: Cursor[Any]) -> Maker[Any]:
    """Named tuples."""
    make: Maker[Any] = _namedtuple(tuple(_names(cursor)))._make
    return make


@lru_cache(512)
def _namedtuple(names: tuple[str, ...]) -> Any:
    cleaned = ["".join(c if c.isalnum() or c == "_" else "_" for c in name) for name in names]
    fields = [f"f{name}" if name[:1] in "_0123456789" else name for name in cleaned]
    return namedtuple("Row", fields, rename=True)


def class_row(cls: type[_T]) -> Factory[_T]:
    """Objects of a class that takes the columns by keyword: a dataclass, say."""
    return kwargs_row(cls)


def args_row(function: Callable[..., _T]) -> Factory[_T]:
    """What a function makes of the columns, given by position."""
    return lambda cursor: lambda values: function(*values)


def kwargs_row(function: Callable[..., _T]) -> Factory[_T]:
    """What a function makes of the columns, given by keyword."""

    def factory(cursor: Cursor[Any]) -> Maker[_T]:
        names = _names(cursor)
        return lambda values: function(**dict(zip(names, values, strict=True)))

    return factory


def scalar_row(cursor: Cursor[Any]) -> Maker[Any]:
    """The first column alone."""
    if not cursor.description:
        raise ProgrammingError("at least one column is expected")
    return lambda values: values[0]
