"""Values on their way between Django, which has them as psycopg's, and the driver."""

from __future__ import annotations

import datetime
import json
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from zoneinfo import ZoneInfo

from psycopg import sql as psycopg_sql
from psycopg.adapt import AdaptersMap
from psycopg.types.json import Json as PsycopgJson
from psycopg.types.json import Jsonb as PsycopgJsonb
from psycopg.types.numeric import Int2, Int4, Int8
from psycopg.types.range import Range

from greenletio import pg
from greenletio._pg import BUILTIN, Codec
from greenletio.pg import _json
from greenletio.pg._query import Typed, replace_placeholders
from greenletio.pg.errors import ProgrammingError

__all__ = ("INET", "RANGE_CLASS", "Adapters", "as_text", "codecs", "compose", "to_driver")

CHAR, CIDR, FLOAT4, INET, TIMESTAMPTZ, JSONB = 18, 650, 700, 869, 1184, 3802

#: By these Django says which type an integer field has: the server's, and an array of it.
INTEGERS: dict[type, tuple[int, int]] = {Int2: (21, 1005), Int4: (23, 1007), Int8: (20, 1016)}


class Adapters:
    """What psycopg's functions take in place of one of its own connections."""

    connection = None

    def __init__(self, adapters: AdaptersMap) -> None:
        self.adapters = adapters


# --- to the server -------------------------------------------------------------------------------


def _driver_json(value: Any) -> pg.Json:
    kind = pg.Jsonb if isinstance(value, PsycopgJsonb) else pg.Json
    return kind(value.obj, value.dumps)


def _range(value: Range[Any]) -> Any:
    if not (isinstance(value.lower, str) or isinstance(value.upper, str)):
        return value
    left, right = value.bounds[0], value.bounds[1]
    bounds = ("" if bound is None else str(bound) for bound in (value.lower, value.upper))
    return f"{left}{','.join(bounds)}{right}"


def _list(value: list[Any]) -> list[Any]:
    return [_in_list(item) for item in value]


def _first(value: Any) -> Any:
    """Of lists in lists the first value that is there."""
    if not isinstance(value, list):
        return value
    return next((one for one in map(_first, value) if one is not None), None)


def _in_list(item: Any) -> Any:
    if isinstance(item, (PsycopgJson, PsycopgJsonb)):
        return _json.dumps(_driver_json(item))
    convert = _CONVERTED.get(type(item))
    return item if convert is None else convert(item)


_CONVERTED: dict[type, Callable[[Any], Any]] = {
    PsycopgJson: _driver_json,
    PsycopgJsonb: _driver_json,
    IPv4Address: str,
    IPv6Address: str,
    Range: _range,
    list: _list,
}


def to_driver(params: Any, hstore: Callable[[], int]) -> Any:
    """Parameters as the driver takes them; `hstore` gives the oid of what a dict is, or 0."""

    def one(value: Any) -> Any:
        kind = type(value)
        if kind is dict:
            return Typed(value, hstore())
        integer = INTEGERS.get(type(_first(value)))
        if integer is not None:
            return Typed(value, integer[kind is list])
        convert = _CONVERTED.get(kind)
        return value if convert is None else convert(value)

    if isinstance(params, Mapping):
        return {name: one(value) for name, value in params.items()}
    return [one(value) for value in params]


# --- into the query ------------------------------------------------------------------------------


def compose(query: Any, params: Any, context: Any) -> str:
    """The query with the values in it; `context` has psycopg's adapters."""
    text = as_text(query, context)
    if params is None:
        return text
    literals = iter(()) if isinstance(params, Mapping) else iter(params)

    def literal(name: str | None) -> str:
        try:
            value = next(literals) if name is None else params[name]
        except (StopIteration, KeyError):
            raise ProgrammingError("the query has more placeholders than parameters") from None
        return psycopg_sql.quote(value, context)

    composed = replace_placeholders(text, literal)
    if next(literals, literals) is not literals:
        raise ProgrammingError("the query has fewer placeholders than parameters")
    return composed


def as_text(query: Any, context: Any) -> str:
    """A query as a str, whether it was one or is built of psycopg's parts."""
    if isinstance(query, psycopg_sql.Composable):
        return query.as_string(context)
    text: str = query.decode() if isinstance(query, bytes) else query
    return text


# --- from the server -----------------------------------------------------------------------------


class _RangeClass:
    """Makes psycopg's ranges, and knows them: what the driver asks of the class of its own."""

    def __call__(
        self, lower: Any, upper: Any, lower_inc: bool, upper_inc: bool, empty: bool = False
    ) -> Range[Any]:
        return Range(lower, upper, "(["[lower_inc] + ")]"[upper_inc], empty)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Range)


RANGE_CLASS: Any = _RangeClass()


def _shortest(value: float) -> float:
    """The shortest number that is the same float4, as the server writes it."""
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", value):
            return short
    return float(f"{value:.9g}")


def _address(value: Any) -> str:
    mapped = getattr(value, "ipv4_mapped", None)
    return str(value) if mapped is None else f"::ffff:{mapped}"


def _document(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


#: What Django wants otherwise than the driver has it: JSON it reads itself.
_OWN: tuple[tuple[int, Callable[[Any], Any] | None, Callable[[Any], Any] | None], ...] = (
    (FLOAT4, _shortest, None),
    (INET, _address, None),
    (CIDR, _address, None),
    (JSONB, None, _document),
)


@lru_cache(32)
def codecs(zone: datetime.tzinfo | None, local: str) -> dict[int, Codec]:
    """How what the server sends becomes what Django expects.

    A timestamptz is in `zone`; None: naive, as the clocks in the time zone named `local` have it.
    """
    own = _json.codecs()
    for oid, read, write in _OWN:
        plain = BUILTIN[oid]
        own[oid] = Codec("wrapped", oid, plain.name, plain, decoder=read, encoder=write)
    own[CHAR] = Codec("text", CHAR, "char")
    if zone is not datetime.timezone.utc:
        own[TIMESTAMPTZ] = _timestamptz(zone, local)
    by_name = {codec.name: codec for codec in BUILTIN.values()}
    for codec in BUILTIN.values():
        element = by_name.get(codec.name.removesuffix("[]"))
        if codec.name.endswith("[]") and element is not None and element.oid in own:
            own[codec.oid] = Codec("array", codec.oid, codec.name, own[element.oid])
    return own


def _timestamptz(zone: datetime.tzinfo | None, local: str) -> Codec:
    to = zone or ZoneInfo(local)

    def read(value: Any) -> Any:
        value = value.astimezone(to)
        return value if zone is not None else value.replace(tzinfo=None)

    plain = BUILTIN[TIMESTAMPTZ]
    return Codec("wrapped", TIMESTAMPTZ, plain.name, plain, decoder=read)
