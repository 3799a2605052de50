"""How values of a type are read and written on one connection: codecs of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from greenletio import _pg
from greenletio.pg._connect import connected, forget_types
from greenletio.pg._types import alias, custom, full_name
from greenletio.pg._values import by_send_function, make
from greenletio.pg.errors import InterfaceError, NotSupportedError

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("CodecMethods", "Settings")

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


class Settings:
    """The server's settings, as far as it reports them by itself, as attributes."""

    def __init__(self, connection: _pg.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> str:
        value = self._connection._parameter(name)
        if value is None:
            raise AttributeError(f"the server does not report {name!r}: ask by SHOW {name}")
        return value

    def get_data_codec(self, oid: int) -> _pg.Codec | None:
        """What reads and writes values of a type; None: it was not needed so far."""
        return self._connection._codecs.get(oid) or _pg.BUILTIN.get(oid)


class _Found(NamedTuple):
    oid: int
    array: int
    kind: str
    send: str | None
    is_array: bool
    sql: str  # its name, as SQL has it


def _literal(text: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


class CodecMethods:
    """The methods of a connection that set codecs."""

    _own_codecs: dict[int, _pg.Codec]

    def get_settings(self) -> Settings:
        """The settings that the server reports: ``connection.get_settings().TimeZone``."""
        return Settings(cast(_pg.Connection, self))

    async def set_type_codec(
        self,
        typename: str,
        *,
        schema: str = "public",
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any],
        format: str = "text",
    ) -> None:
        """Have values of a type be read and written by functions of yours.

        They see the server's text form as str, with ``format="binary"`` its binary form as bytes.
        With ``format="tuple"`` it is a tuple: the attributes of a composite; of an interval months,
        days, microseconds; of date, time, timetz, timestamp and timestamptz what the server counts
        from 2000-01-01 or midnight: days, or microseconds (and for timetz the seconds west of UTC).
        Types that are made of it (arrays, ranges, composites, domains) go by them, too.
        """
        if format not in ("text", "binary", "tuple"):
            raise InterfaceError(f"a codec's format is text, binary or tuple, not {format!r}")
        found = await self._find_type(typename, schema)
        name = full_name(schema, typename)
        if found.kind in ("r", "m") or found.is_array:
            raise InterfaceError(
                f"cannot use custom codec on type {schema}.{typename}: it is neither a scalar type "
                "nor a composite type"
            )
        if found.kind == "d":
            raise NotSupportedError(
                "custom codecs on domain types are not supported: the server calls the values of "
                "a domain by its base type, whose codec can be set"
            )
        if found.kind == "c":
            if format != "tuple":
                raise NotSupportedError(
                    "only tuple-format codecs can be used on composite types: "
                    "set_type_codec(…, format='tuple')"
                )
            base = await self._composite(found)
            codec = _pg.Codec(
                "wrapped",
                found.oid,
                name,
                base,
                decoder=lambda record: decoder(tuple(record)),
                encoder=encoder,
                schema=schema,
            )
        else:
            codec = custom(found.oid, schema, typename, found.send, format, encoder, decoder)
        self._set_codec(found, codec)

    async def reset_type_codec(self, typename: str, *, schema: str = "public") -> None:
        """Undo set_type_codec()."""
        found = await self._find_type(typename, schema)
        self._own_codecs.pop(found.oid, None)
        self._own_codecs.pop(found.array, None)
        self._use_codecs()

    async def set_builtin_type_codec(
        self,
        typename: str,
        *,
        schema: str = "public",
        codec_name: str,
        format: str | None = None,
    ) -> None:
        """Have values of a type be read and written as those of another one, which is built in.

        `codec_name` is the name of that type ("int", "text", …), or "pg_contrib.hstore".  `format`
        is the form in which they are the same, "text" or "binary"; None: in both.
        """
        found = await self._find_type(typename, schema)
        if found.kind not in ("b", "d", "e") or found.is_array:
            raise InterfaceError(f"cannot alias non-scalar type {schema}.{typename}")
        if codec_name == "pg_contrib.hstore":
            name = full_name(schema, typename)
            target = make(found.oid, name, *by_send_function["hstore_send"], schema)
        else:
            wanted = _ALIASES.get(codec_name.lower(), codec_name)
            named = [codec for codec in _pg.BUILTIN.values() if codec.name == wanted]
            if not named:
                raise InterfaceError(f"{codec_name!r} is no type that is built in")
            target = named[0]
        self._set_codec(found, alias(found.oid, schema, typename, target, format))

    async def reload_schema_state(self) -> None:
        """Forget what is known of the types of the database: it is looked up anew."""
        connection = cast("Connection", self)
        forget_types(connection, self._own_codecs)
        connection._forget_codecs()

    def _set_codec(self, found: _Found, codec: _pg.Codec) -> None:
        self._own_codecs[found.oid] = codec
        if found.array:
            many = _pg.Codec("array", found.array, f"{codec.name}[]", codec, schema=codec.schema)
            self._own_codecs[found.array] = many
        self._use_codecs()

    def _use_codecs(self) -> None:
        connection = cast("Connection", self)
        connected(connection, self._own_codecs)
        connection._forget_codecs()

    async def _find_type(self, name: str, schema: str) -> _Found:
        connection = cast("Connection", self)
        connection._check_open()
        wanted = _ALIASES.get(name.lower(), name) if schema == "pg_catalog" else name
        sql = _FIND_TYPE.format(name=_literal(wanted), schema=_literal(schema))
        [(rows, _, _)] = await connection._op("script", "tuples", sql)
        if not rows:
            raise ValueError(f"unknown type: {schema}.{name}")
        oid, array, kind, send, is_array, sql_name = rows[0]
        return _Found(int(oid), int(array), kind, send, is_array == "t", sql_name)

    async def _composite(self, found: _Found) -> _pg.Codec:
        """The codec of a composite as it is without the user's own."""
        connection = cast("Connection", self)
        self._own_codecs.pop(found.oid, None)
        self._use_codecs()
        query = f"SELECT NULL::{found.sql}"
        statement = await connection._op("prepare", "statement", query)
        codec: _pg.Codec = statement.columns[0]
        if codec.form != "composite":
            raise NotSupportedError(
                f"the composite type {codec.name} has an attribute whose binary form is not known"
            )
        return codec
