"""Codecs for the types that a database has of its own: made of what the catalogue says.

What one connection has looked up serves all of the process to the same database.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from greenletio._pg import BUILTIN, Codec
from greenletio.pg._range import Range
from greenletio.pg._values import by_send_function, make

__all__ = ("builder", "custom")

#: A row of the catalogue, all text: oid, schema, name, kind, element, base, subtype, range,
#: attributes, the name of the function that sends it.
Row = tuple[Any, ...]
Codecs = dict[int, Codec]

# Functions that send a value as its text.
_TEXT_ANYWAY = {19, 25, 114, 142, 1042, 1043, 3802}  # what we read as str in any case
_SEND_TEXT = {"textsend", "enum_send", "citextsend", "varcharsend", "namesend"}


def builder(known: Codecs) -> Callable[[Iterable[Row], list[int]], Codecs]:
    """What a connection calls with the catalogue's rows; `known` keeps what was found."""

    def build(rows: Iterable[Row], wanted: list[int]) -> Codecs:
        described = {int(row[0]): row for row in rows}
        for oid in wanted:
            _find(oid, described, known)
        return {oid: known[oid] for oid in {*wanted, *described} if oid in known}

    return build


def custom(
    oid: int,
    name: str,
    send: str | None,
    format: str,
    encoder: Callable[[Any], Any],
    decoder: Callable[[Any], Any],
) -> Codec:
    """A codec by a user's functions, which see the server's text, or its bytes."""
    if format == "binary":
        base = BUILTIN[17]
    elif oid in _TEXT_ANYWAY or send in _SEND_TEXT:
        base = BUILTIN.get(oid) or Codec("text", oid, name)
    else:
        base = Codec("foreign", oid, name)
    return Codec("wrapped", oid, name, base, decoder=decoder, encoder=encoder)


def _find(oid: int, rows: dict[int, Row], known: Codecs) -> Codec:
    found = BUILTIN.get(oid) or known.get(oid)
    if found is None:
        found = known[oid] = _make(oid, rows, known)
    return found


def _make(oid: int, rows: dict[int, Row], known: Codecs) -> Codec:
    if oid not in rows:  # dropped meanwhile
        return Codec("foreign", oid, f"the type with oid {oid}")
    _, schema, name, kind, element, base, subtype, range_, attributes, send = rows[oid]
    if schema not in ("pg_catalog", "public"):
        name = f"{schema}.{name}"
    if kind == "e":
        return Codec("text", oid, name)
    if kind == "d":
        codec = _find(int(base), rows, known)
        return Codec("foreign", oid, name) if codec.is_text else Codec("wrapped", oid, name, codec)
    if kind == "r":
        codec = _find(int(subtype), rows, known)
        if not codec.is_text:
            return Codec("range", oid, name, codec, decoder=Range)
    elif kind == "m":
        codec = _find(int(range_), rows, known)
        if not codec.is_text:
            return Codec("multirange", oid, name, codec)
    elif kind == "c" and attributes:
        fields = json.loads(attributes)
        parts = tuple(_find(int(part), rows, known) for _, part in fields)
        if not any(part.is_text for part in parts):
            return Codec("composite", oid, name, parts, tuple(field for field, _ in fields))
    elif element != "0":
        codec = _find(int(element), rows, known)
        if not codec.is_text:
            return Codec("array", oid, name.removeprefix("_") + "[]", codec)
    elif send in _SEND_TEXT:
        return Codec("text", oid, name)
    elif send in by_send_function:
        return make(oid, name, *by_send_function[send])
    return Codec("foreign", oid, name)
