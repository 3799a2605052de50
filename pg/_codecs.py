"""Codecs of a connection's user: how both faces find types, and set what reads and writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from greenletio import _pg
from greenletio.pg._quote import literal
from greenletio.pg._steps import Steps
from greenletio.pg._types import (
    Wish,
    alias,
    check_custom,
    check_format,
    custom,
    full_name,
    of_composite,
    own_name,
)
from greenletio.pg._values import by_send_function, make
from greenletio.pg.errors import InterfaceError

__all__ = ("Face", "reset_codec", "set_builtin_codec", "set_codec")

# By the simple protocol, whose answer is text, whatever codecs the connection has.
_FIND_TYPE = (
    "SELECT t.oid, t.typarray, t.typtype, p.proname, t.typelem <> 0 AND t.typsubscript ="
    " 'pg_catalog.array_subscript_handler'::pg_catalog.regproc,"
    " pg_catalog.format_type(t.oid, NULL)"
    " FROM pg_catalog.pg_type t"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
    " LEFT JOIN pg_catalog.pg_proc p ON p.oid = t.typsend::oid"
    " WHERE t.typname = {name} AND n.nspname = {schema}"
)


class Face(Protocol):
    """Whose codecs they are."""

    _own_codecs: dict[int, _pg.Codec]

    def _use_codecs(self) -> None:
        """``_own_codecs`` has changed."""


class _Found(NamedTuple):
    oid: int
    array: int
    kind: str
    send: str | None
    is_array: bool
    sql: str  # its name, as SQL has it


def set_codec(
    face: Face,
    raw: _pg.Connection,
    typename: str,
    schema: str,
    encoder: Callable[[Any], Any],
    decoder: Callable[[Any], Any],
    format: str,
) -> Steps[None]:
    """As the faces' ``set_type_codec()`` says."""
    check_format(format)
    found = yield from _find_type(raw, typename, schema)
    check_custom(found.kind, found.is_array, schema, typename, format)
    if found.kind == "c":
        base = yield from _composite(face, raw, found)
        codec = of_composite(base, encoder, decoder)
    else:
        wish = Wish(encoder, decoder, format)
        codec = custom(found.oid, schema, typename, found.send, wish)
    _set(face, found, codec)


def reset_codec(face: Face, raw: _pg.Connection, typename: str, schema: str) -> Steps[None]:
    """Undo set_codec()."""
    found = yield from _find_type(raw, typename, schema)
    face._own_codecs.pop(found.oid, None)
    face._own_codecs.pop(found.array, None)
    face._use_codecs()


def set_builtin_codec(
    face: Face,
    raw: _pg.Connection,
    typename: str,
    schema: str,
    codec_name: str,
    format: str | None,
) -> Steps[None]:
    """As ``set_builtin_type_codec()`` says."""
    found = yield from _find_type(raw, typename, schema)
    if found.kind not in ("b", "d", "e") or found.is_array:
        raise InterfaceError(f"cannot alias non-scalar type {schema}.{typename}")
    if codec_name == "pg_contrib.hstore":
        name = full_name(schema, typename)
        target = make(found.oid, name, *by_send_function["hstore_send"], schema)
    else:
        _, wanted = own_name("pg_catalog", codec_name)
        named = [codec for codec in _pg.BUILTIN.values() if codec.name == wanted]
        if not named:
            raise InterfaceError(f"{codec_name!r} is no type that is built in")
        target = named[0]
    _set(face, found, alias(found.oid, schema, typename, target, format))


def _set(face: Face, found: _Found, codec: _pg.Codec) -> None:
    face._own_codecs[found.oid] = codec
    if found.array:
        many = _pg.Codec("array", found.array, f"{codec.name}[]", codec, schema=codec.schema)
        face._own_codecs[found.array] = many
    face._use_codecs()


def _find_type(raw: _pg.Connection, name: str, schema: str) -> Steps[_Found]:
    _, wanted = own_name(schema, name)
    sql = _FIND_TYPE.format(name=literal(wanted), schema=literal(schema))
    [(rows, _, _)] = yield raw._op("script", "tuples", sql)
    if not rows:
        raise ValueError(f"unknown type: {schema}.{name}")
    oid, array, kind, send, is_array, sql_name = rows[0]
    return _Found(int(oid), int(array), kind, send, is_array == "t", sql_name)


def _composite(face: Face, raw: _pg.Connection, found: _Found) -> Steps[_pg.Codec]:
    """The codec of a composite as it is without the user's own, of this connection or all."""
    face._own_codecs.pop(found.oid, None)
    face._use_codecs()
    query = f"SELECT NULL::{found.sql}"
    statement = yield raw._op("prepare", "statement", query)
    codec: _pg.Codec = statement.columns[0]
    return codec.element if codec.form == "wrapped" and codec.element is not None else codec
