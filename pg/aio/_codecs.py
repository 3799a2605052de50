"""How values of a type are read and written on one connection: codecs of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from greenletio import _pg
from greenletio.pg._codecs import reset_codec, set_builtin_codec, set_codec
from greenletio.pg._connect import connected, forget_types
from greenletio.pg._steps import wait

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("CodecMethods", "Settings")


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
        connection = self._open()
        await wait(set_codec(self, connection, typename, schema, encoder, decoder, format))

    async def reset_type_codec(self, typename: str, *, schema: str = "public") -> None:
        """Undo set_type_codec()."""
        await wait(reset_codec(self, self._open(), typename, schema))

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
        connection = self._open()
        await wait(set_builtin_codec(self, connection, typename, schema, codec_name, format))

    async def reload_schema_state(self) -> None:
        """Forget what is known of the types of the database: it is looked up anew."""
        connection = cast("Connection", self)
        forget_types(connection, self._own_codecs)
        connection._forget_codecs()

    def _open(self) -> Connection:
        connection = cast("Connection", self)
        connection._check_open()
        return connection

    def _use_codecs(self) -> None:
        connection = cast("Connection", self)
        connected(connection, self._own_codecs)
        connection._forget_codecs()
