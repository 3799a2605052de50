"""Queries as the DB-API has them: placeholders, and which types Python's values are sent as."""

from __future__ import annotations

import array
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import Any
from uuid import UUID

from greenletio._pg import BUILTIN
from greenletio.pg._json import Json, Jsonb, dumps
from greenletio.pg._script import statements
from greenletio.pg.errors import ProgrammingError

__all__ = ("Typed", "is_script", "prepare", "replace_placeholders")

#: An array of the server's has so many at most.
DIMENSIONS = 6

_PLACEHOLDER = re.compile(r"%(?:%|\((?P<name>[^)]*)\)(?P<named>.)|(?P<plain>.)|$)", re.DOTALL)


class Typed:
    """A value that is sent as one of a certain type."""

    __slots__ = ("oid", "value")

    def __init__(self, value: Any, oid: int) -> None:
        self.value = value
        self.oid = oid


_ARRAY_OF: dict[int, int] = {
    codec.element.oid: oid
    for oid, codec in BUILTIN.items()
    if codec.element is not None and codec.name.endswith("[]")
}


def replace_placeholders(query: str, replacement: Callable[[str | None], str]) -> str:
    """The query with what `replacement` gives for the name of each placeholder; None: it has none.

    ProgrammingError if something else follows a percent sign.
    """

    def replace(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        kind = found["named"] or found["plain"]
        if kind is None or kind not in "sbt":
            raise ProgrammingError(
                f"{found[0]!r} is no placeholder: '%s' and '%(name)s' are, and %% is a percent sign"
            )
        return replacement(found["name"])

    return _PLACEHOLDER.sub(replace, query)


@lru_cache(256)
def _parse(query: str) -> tuple[str, tuple[str, ...] | int]:
    """The query with $1, $2, …; and the names in that order, or how many have none."""
    names: list[str] = []
    count = 0

    def number(name: str | None) -> str:
        nonlocal count
        if name is not None:
            if name not in names:
                names.append(name)
            return f"${names.index(name) + 1}"
        count += 1
        return f"${count}"

    sql = replace_placeholders(query, number)
    if names and count:
        raise ProgrammingError("'%s' and '%(name)s' cannot be mixed in one query")
    return sql, tuple(names) if names else count


def prepare(query: str, params: Any) -> tuple[str, tuple[Any, ...], bytes]:
    """A query and what goes with it, as the connection takes them: text, values, types.

    With %s it takes a sequence, with %(name)s a mapping; $1, $2, … are the server's own way, for
    queries without any of the others.
    """
    if params is None:
        return query, (), b""
    sql, names = _parse(query) if "%" in query else (query, 0)
    if isinstance(names, tuple):
        if not isinstance(params, Mapping):
            raise TypeError("a query with '%(name)s' takes a mapping")
        try:
            values: Sequence[Any] = [params[name] for name in names]
        except KeyError as exc:
            raise ProgrammingError(f"query parameter missing: {exc.args[0]}") from None
    elif isinstance(params, Mapping) and (names or params):
        raise TypeError("a query with '%s' or '$1' takes a sequence, not a mapping")
    elif isinstance(params, Mapping):
        values = ()
    elif isinstance(params, (str, bytes)) or not isinstance(params, Sequence):
        raise TypeError(f"query parameters should be a sequence or a mapping, got {params!r}")
    else:
        values = params
        if names and names != len(values):
            raise ProgrammingError(
                f"the query has {names} placeholders but {len(values)} parameters were passed"
            )
    known = _known_types(tuple(map(type, values)))
    if known is not None:
        oids, integers = known
        for at in integers:
            if not -(2**31) <= values[at] < 2**31:
                break
        else:
            return sql, tuple(values), oids
    adapted = [_adapt(value) for value in values]
    oids = array.array("I", [oid for _, oid in adapted]).tobytes()
    return sql, tuple(value for value, _ in adapted), oids


@lru_cache(512)
def _known_types(kinds: tuple[type, ...]) -> tuple[bytes, list[int]] | None:
    """What values of these Python types are sent as, and which of them are integers, whose type is
    right if they fit into 32 bits; None where it is more than the types that matters.
    """
    oids = [23 if kind is int else _OIDS.get(kind, -1) for kind in kinds]
    if -1 in oids:
        return None
    integers = [at for at, kind in enumerate(kinds) if kind is int]
    return array.array("I", oids).tobytes(), integers


def _adapt(value: Any) -> tuple[Any, int]:
    """A value as it is sent, and its type; 0: the server finds out."""
    oid = _OIDS.get(type(value))
    if oid is not None:
        return value, oid
    kind = _KINDS.get(type(value))
    if kind is None:
        for base, candidate in _KINDS.items():
            if isinstance(value, base):
                kind = candidate
                break
        else:
            return value, 0
    adapted: tuple[Any, int] = kind(value)
    return adapted


def _integer(value: int) -> tuple[int, int]:
    if -(2**31) <= value < 2**31:
        return value, 23
    return value, 20 if -(2**63) <= value < 2**63 else 1700


def _list(value: list[Any]) -> tuple[list[Any], int]:
    level: list[Any] = value
    oids: set[int] = set()
    for _ in range(DIMENSIONS):  # what is deeper, or has no end, is refused when it is sent
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, list):
                deeper.extend(item)
            elif item is not None:
                oids.add(25 if isinstance(item, str) else _adapt(item)[1])
        level = deeper
    if not oids:
        return value, 0
    if oids <= {20, 23, 1700}:
        widest = 1700 if 1700 in oids else 20 if 20 in oids else 23
        return value, _ARRAY_OF[widest]
    return value, _ARRAY_OF.get(oids.pop(), 0) if len(oids) == 1 else 0


def _datetime(value: datetime.datetime) -> tuple[datetime.datetime, int]:
    return value, 1114 if value.tzinfo is None else 1184


def _time(value: datetime.time) -> tuple[datetime.time, int]:
    return value, 1083 if value.tzinfo is None else 1266


_OIDS: dict[type, int] = {
    type(None): 0,
    str: 0,
    bool: 16,
    float: 701,
    Decimal: 1700,
    bytes: 17,
    bytearray: 17,
    memoryview: 17,
    datetime.date: 1082,
    datetime.timedelta: 1186,
    UUID: 2950,
}
_KINDS: dict[type, Any] = {
    int: _integer,
    list: _list,
    datetime.datetime: _datetime,
    datetime.time: _time,
    Typed: lambda value: (value.value, value.oid),
    Jsonb: lambda value: (dumps(value), 3802),
    Json: lambda value: (dumps(value), 114),
    float: lambda value: (value, 701),
    Decimal: lambda value: (value, 1700),
    bytes: lambda value: (value, 17),
    datetime.date: lambda value: (value, 1082),
    datetime.timedelta: lambda value: (value, 1186),
    UUID: lambda value: (value, 2950),
}


def is_script(query: str) -> bool:
    """Whether there are several statements in it: they go by the simple protocol."""
    if ";" not in query.rstrip().rstrip(";"):
        return False
    return len(list(islice(statements(query), 2))) > 1
