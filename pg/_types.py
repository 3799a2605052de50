"""Codecs for the types that a database has of its own: made of what the catalogue says.

What one connection has looked up serves all of the process to the same database.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from greenletio._pg import BUILTIN, Codec
from greenletio.pg import _text
from greenletio.pg._errors import InterfaceError, InternalError, NotSupportedError
from greenletio.pg._range import Range
from greenletio.pg._values import by_send_function, make

__all__ = (
    "Wish",
    "alias",
    "builder",
    "check_custom",
    "check_format",
    "custom",
    "full_name",
    "of_composite",
    "own_name",
)

#: A row of the catalogue, all text: oid, schema, name, kind, element, base, subtype, range,
#: attributes, the name of the function that sends it.
Row = tuple[Any, ...]
#: How many types of a database are remembered; and how many that a connection has looked up.
TYPES = 2000
Codecs = dict[int, Codec]


class Wish(NamedTuple):
    """How a user wants values of a type to be written and read."""

    encoder: Callable[[Any], Any]
    decoder: Callable[[Any], Any]
    format: str


Wishes = Mapping[tuple[str, str], Wish]

#: The names by which SQL, and people, call some of the server's types.
_ALIASES = {
    "bigint": "int8",
    "bit varying": "varbit",
    "boolean": "bool",
    "char": "bpchar",
    "character": "bpchar",
    "character varying": "varchar",
    "decimal": "numeric",
    "double precision": "float8",
    "int": "int4",
    "integer": "int4",
    "real": "float4",
    "smallint": "int2",
    "time with time zone": "timetz",
    "time with timezone": "timetz",
    "time without time zone": "time",
    "time without timezone": "time",
    "timestamp with time zone": "timestamptz",
    "timestamp with timezone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "timestamp without timezone": "timestamp",
}

# Functions that send a value as its text.
_TEXT_ANYWAY = {19, 25, 114, 142, 1042, 1043, 3802}  # what we read as str in any case
_SEND_TEXT = {"textsend", "enum_send", "citextsend", "varcharsend", "namesend"}


def builder(
    known: Codecs,
    own: Codecs,
    codecs: Codecs,
    range_class: Any = Range,
    wishes: Wishes | None = None,
) -> Callable[[Iterable[Row], list[int]], Codecs]:
    """What a connection calls with the catalogue's rows; `known` keeps what was found.

    `own` are the connection's user's codecs, of which others may be made, `wishes` those by schema
    and name; `known` must not be shared with connections that have others. `codecs` are all that
    the connection has: it adds what is returned, and what came so before may leave. `range_class`
    is what ranges are read as, and is asked whether a value is one.
    """
    wanted_so = wishes or {}
    added: set[int] = set()

    def build(rows: Iterable[Row], wanted: list[int]) -> Codecs:
        if len(known) > TYPES:  # those of temporary tables are ever new ones
            known.clear()
        try:
            described = {int(row[0]): row for row in rows}
            for oid in wanted:
                _find(oid, described, known, own, range_class, wanted_so)
        except (LookupError, RecursionError, TypeError, ValueError) as exc:
            raise InternalError("what the server says of types makes no sense") from exc
        found = {oid: known[oid] for oid in {*wanted, *described} if oid in known}
        if len(added) > TYPES:  # statements have theirs
            for oid in added:
                codecs.pop(oid, None)
            added.clear()
        added.update(found)
        return found

    return build


def check_format(format: str) -> None:
    """InterfaceError if a codec's values have no such form."""
    if format not in ("text", "binary", "tuple"):
        raise InterfaceError(f"a codec's format is text, binary or tuple, not {format!r}")


def check_custom(kind: str, is_array: bool, schema: str, name: str, format: str) -> None:
    """InterfaceError or NotSupportedError for a type that cannot have a user's codec."""
    if kind in ("r", "m") or is_array:
        raise InterfaceError(
            f"cannot use custom codec on type {schema}.{name}: it is neither a scalar type "
            "nor a composite type"
        )
    if kind == "d":
        raise NotSupportedError(
            "custom codecs on domain types are not supported: the server calls the values of "
            f"{schema}.{name} by its base type, whose codec can be set"
        )
    if kind == "c" and format != "tuple":
        raise NotSupportedError(
            f"only tuple-format codecs can be used on composite types ({schema}.{name}): "
            "set_type_codec(…, format='tuple')"
        )


def of_composite(
    base: Codec, encoder: Callable[[Any], Any], decoder: Callable[[Any], Any]
) -> Codec:
    """A codec by a user's functions, which see the attributes of a composite."""
    if base.form != "composite":
        raise NotSupportedError(
            f"the composite type {base.name} has an attribute whose binary form is not known"
        )
    return Codec(
        "wrapped",
        base.oid,
        base.name,
        base,
        decoder=lambda record: decoder(tuple(record)),
        encoder=encoder,
        schema=base.schema,
    )


def custom(oid: int, schema: str, name: str, send: str | None, wish: Wish) -> Codec:
    """A codec by a user's functions, which see the server's text, its bytes, or a tuple."""
    encoder, decoder, format = wish
    full = full_name(schema, name)
    if format == "tuple":
        if oid not in _TUPLES:
            raise NotSupportedError(f"type {full} has no form as a tuple: {_TUPLE_TYPES}")
        layout, order = _TUPLES[oid]
        base = Codec(
            "wrapped",
            oid,
            full,
            BUILTIN[17],
            decoder=lambda data: tuple(layout.unpack(data)[at] for at in order),
            encoder=lambda values: _pack(layout, order, values),
        )
    elif format == "binary":
        base = BUILTIN[17]
    elif oid in _TEXT_ANYWAY or send in _SEND_TEXT:
        base = BUILTIN.get(oid) or Codec("text", oid, full)
    else:
        base = Codec("foreign", oid, full)
    return Codec("wrapped", oid, full, base, decoder=decoder, encoder=encoder, schema=schema)


_INT4, _INT8 = struct.Struct("!i"), struct.Struct("!q")
#: What a type has in its binary form, and where that is in the tuple.
_TUPLES: dict[int, tuple[struct.Struct, tuple[int, ...]]] = {
    1082: (_INT4, (0,)),
    1083: (_INT8, (0,)),
    1114: (_INT8, (0,)),
    1184: (_INT8, (0,)),
    1186: (struct.Struct("!qii"), (2, 1, 0)),
    1266: (struct.Struct("!qi"), (0, 1)),
}
_TUPLE_TYPES = "date, time, timetz, timestamp, timestamptz, interval and composites have"


def _pack(layout: struct.Struct, order: tuple[int, ...], values: Any) -> bytes:
    if len(values) != len(order):
        raise ValueError(f"a tuple of {len(order)} integers is expected")
    return layout.pack(*(values[order.index(at)] for at in range(len(order))))


def alias(oid: int, schema: str, name: str, target: Codec, format: str | None) -> Codec:
    """A codec for a type whose values are like those of another, in one of its forms or both."""
    full = full_name(schema, name)
    if format != "text":
        return Codec("wrapped", oid, full, target, schema=schema)

    def decode(text: str) -> Any:
        return _text.decode(target, text)

    plain = Codec("foreign", oid, full)
    return Codec("wrapped", oid, full, plain, decoder=decode, encoder=str, schema=schema)


def own_name(schema: str, name: str) -> tuple[str, str]:
    """A type's schema and name as the catalogue has them, of whatever people call it."""
    return schema, _ALIASES.get(name.lower(), name) if schema == "pg_catalog" else name


def full_name(schema: str, name: str) -> str:
    """A type's name, as messages have it."""
    return name if schema in ("pg_catalog", "public") else f"{schema}.{name}"


def _no_text(name: str) -> Callable[[str], Any]:
    def refuse(text: str) -> Any:
        raise NotSupportedError(
            f"a value of the composite type {name} can be read in binary only, and a codec that "
            "was set for a part of it reads text"
        )

    return refuse


def _find(
    oid: int, rows: dict[int, Row], known: Codecs, own: Codecs, range_class: Any, wishes: Wishes
) -> Codec:
    found = own.get(oid) or BUILTIN.get(oid) or known.get(oid)
    if found is None:
        found = known[oid] = _make(oid, rows, known, own, range_class, wishes)
    return found


def _make(
    oid: int, rows: dict[int, Row], known: Codecs, own: Codecs, range_class: Any, wishes: Wishes
) -> Codec:
    if oid not in rows:  # dropped meanwhile
        return Codec("foreign", oid, f"the type with oid {oid}")
    _, schema, name, kind, element, base, subtype, range_, attributes, send = rows[oid]
    wish = wishes.get((schema, name))
    if wish is not None:
        check_custom(kind, element != "0", schema, name, wish.format)
        if kind != "c":
            return custom(oid, schema, name, send, wish)
        others = {key: other for key, other in wishes.items() if other is not wish}
        plain = _make(oid, rows, known, own, range_class, others)
        return of_composite(plain, wish.encoder, wish.decoder)
    name = full_name(schema, name)

    def made(form: str, element: Any = None, names: tuple[str, ...] = (), **how: Any) -> Codec:
        return Codec(form, oid, name, element, names, schema=schema, **how)

    def find(part: Any) -> Codec:
        return _find(int(part), rows, known, own, range_class, wishes)

    def is_users(part: Codec) -> bool:
        return part.oid in own or (part.oid in rows and rows[part.oid][1:3] in wishes)

    if kind == "e":
        return made("text")
    if kind == "d":
        return made("wrapped", find(base))
    if kind == "r":
        codec = find(subtype)
        if not codec.is_text:
            return made("range", codec, decoder=range_class)
    elif kind == "m":
        codec = find(range_)
        if not codec.is_text:
            return made("multirange", codec)
    elif kind == "c" and attributes:
        fields = json.loads(attributes)
        parts = tuple(find(part) for _, part in fields)
        if any(part.is_text and is_users(part) for part in parts):
            return made("wrapped", made("foreign"), decoder=_no_text(name))
        if not any(part.is_text for part in parts):
            return made("composite", parts, tuple(field for field, _ in fields))
    elif element != "0":
        return Codec("array", oid, f"{find(element).name}[]", find(element), schema=schema)
    elif send in _SEND_TEXT:
        return made("text")
    elif send in by_send_function:
        return make(oid, name, *by_send_function[send], schema)
    return made("foreign")
