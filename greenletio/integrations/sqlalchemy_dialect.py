"""SQLAlchemy's dialect for greenletio.pg: ``postgresql+greenletio://``.

    engine = create_engine("postgresql+greenletio://user@host/database")
    engine = create_async_engine("postgresql+greenletio://user@host/database")

The first is for sync code: cooperative under ``async_`` and ``spawn``, plainly blocking where no
loop runs. The second is SQLAlchemy's own asyncio API on the same driver. What a URL's query names
are libpq's options. psycopg's dialect is the base: what its documentation says of types holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from sqlalchemy import util
from sqlalchemy.dialects.postgresql import ranges
from sqlalchemy.dialects.postgresql._psycopg_common import _PGDialect_common_psycopg
from sqlalchemy.dialects.postgresql.base import (
    PGDeferrableConnectionCharacteristic,
    PGDialect,
    PGReadOnlyConnectionCharacteristic,
)
from sqlalchemy.dialects.postgresql.pg_catalog import INT2VECTOR, OIDVECTOR
from sqlalchemy.dialects.postgresql.psycopg import (
    PGCompiler_psycopg,
    PGDialect_psycopg,
    _PGBigInteger,
    _PGInteger,
    _PGSmallInteger,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool
from sqlalchemy.util.concurrency import await_only

import greenletio
from greenletio import async_, pg
from greenletio._pg import Codec
from greenletio.integrations._named_cursors import IDLE, NamedCursor, NamedCursors
from greenletio.integrations.sqlalchemy import GreenQueuePool
from greenletio.pg import _json

__all__ = ("PGDialectAsync_greenletio", "PGDialect_greenletio")

_ident = itertools.count(1)


# --- ranges --------------------------------------------------------------------------------------


def _to_driver(value: Any) -> Any:
    if not isinstance(value, ranges.Range):
        return value
    if value.empty:
        return pg.Range(empty=True)
    return pg.Range(value.lower, value.upper, value.bounds[0] == "[", value.bounds[1] == "]")


def _from_driver(value: pg.Range[Any]) -> ranges.Range[Any]:
    if value.isempty:
        return ranges.Range(empty=True)
    left, right = "(["[value.lower_inc], ")]"[value.upper_inc]
    bounds: Any = left + right
    return ranges.Range(value.lower, value.upper, bounds=bounds)


class _Range(ranges.AbstractSingleRangeImpl):  # type: ignore[type-arg]
    def bind_processor(self, dialect: Any) -> Callable[[Any], Any]:
        return _to_driver

    def result_processor(self, dialect: Any, coltype: Any) -> Callable[[Any], Any]:
        return lambda value: None if value is None else _from_driver(value)


class _MultiRange(ranges.AbstractMultiRangeImpl):  # type: ignore[type-arg]
    def bind_processor(self, dialect: Any) -> Callable[[Any], Any]:
        def bind(value: Any) -> Any:
            return value if value is None or isinstance(value, str) else [*map(_to_driver, value)]

        return bind

    def result_processor(self, dialect: Any, coltype: Any) -> Callable[[Any], Any]:
        def result(value: Any) -> Any:
            return None if value is None else ranges.MultiRange(map(_from_driver, value))

        return result


# --- the connection ------------------------------------------------------------------------------


class _Connection(NamedCursors):
    """One whose cursor() takes the name of a cursor at the server, as psycopg's does."""

    def cursor(self, name: str | None = None, **kwargs: Any) -> Any:
        if name is None:
            return super().cursor(**kwargs)
        return NamedCursor(self, f"_gio_cursor_{next(_ident)}")

    def rollback(self) -> None:
        """And what is left at the server, as this is what the pool does to a connection."""
        super().rollback()
        for name in [*self.held]:
            self.end_cursor(name)


def _adopt(connection: Any, kind: type[_Connection]) -> None:
    """Make a connection one of ours, whoever has made it."""
    if not isinstance(connection, pg.Connection):
        raise TypeError(f"the dialect needs a greenletio.pg.Connection, not {connection!r}")
    if not isinstance(connection, kind):
        connection.__class__ = kind


class _DBAPI:
    """greenletio.pg as the dialect sees it."""

    __version__ = greenletio.__version__

    def __getattr__(self, name: str) -> Any:
        return getattr(pg, name)

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        return pg.connect(*args, **kwargs)


# --- the compiler --------------------------------------------------------------------------------

_CASTS = {_PGInteger: "::INTEGER", _PGBigInteger: "::BIGINT", _PGSmallInteger: "::SMALLINT"}


class _Compiler(PGCompiler_psycopg):
    """Knows the casts that there are most of: an IN has one for each value, at each execution."""

    def render_bind_cast(self, type_: Any, dbapi_type: Any, sqltext: str) -> str:
        cast = _CASTS.get(type(dbapi_type))
        if cast is not None:
            return sqltext + cast
        rendered: str = super().render_bind_cast(type_, dbapi_type, sqltext)  # type: ignore[no-untyped-call]
        return rendered


# --- the dialect ---------------------------------------------------------------------------------


class _ReadOnly(PGReadOnlyConnectionCharacteristic):
    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        dialect.set_readonly(dbapi_conn, None)  # what the server's default is, a standby's also


class _Deferrable(PGDeferrableConnectionCharacteristic):
    def reset_characteristic(self, dialect: Any, dbapi_conn: Any) -> None:
        dialect.set_deferrable(dbapi_conn, None)


class PGDialect_greenletio(PGDialect_psycopg):
    """For create_engine(): sync code, cooperative in greenlets."""

    driver = "greenletio"
    supports_statement_cache = True
    statement_compiler = _Compiler
    minimum_dbapi_version = None  # type: ignore[assignment]
    connection_characteristics = PGDialect_psycopg.connection_characteristics.union(
        {"postgresql_readonly": _ReadOnly(), "postgresql_deferrable": _Deferrable()}
    )

    colspecs = {
        **{
            kind: impl
            for kind, impl in PGDialect_psycopg.colspecs.items()
            if kind not in (INT2VECTOR, OIDVECTOR)  # psycopg has text there, the driver lists
        },
        ranges.AbstractSingleRange: _Range,
        ranges.AbstractMultiRange: _MultiRange,
    }

    def __init__(self, **kwargs: Any) -> None:
        _PGDialect_common_psycopg.__init__(self, **kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def import_dbapi(cls) -> Any:
        return _DBAPI()

    @classmethod
    def load_provisioning(cls) -> None:
        """For SQLAlchemy's own test suite."""
        PGDialect_psycopg.load_provisioning()  # type: ignore[no-untyped-call]

    @classmethod
    def get_pool_class(cls, url: Any) -> type[Pool]:
        return GreenQueuePool

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> type[PGDialectAsync_greenletio]:
        return PGDialectAsync_greenletio

    def create_connect_args(self, url: Any) -> Any:
        args, options = _PGDialect_common_psycopg.create_connect_args(self, url)  # type: ignore[no-untyped-call]
        if self.client_encoding is not None:
            options["client_encoding"] = self.client_encoding
        return args, options

    def initialize(self, connection: Any) -> None:
        PGDialect.initialize(self, connection)  # type: ignore[no-untyped-call]
        if not self.insert_returning:
            self.insert_executemany_returning = False

    def on_connect(self) -> Callable[[Any], None]:
        tell = super().on_connect()  # type: ignore[no-untyped-call]

        def on_connect(connection: pg.Connection[Any]) -> None:
            self._adopt(connection)
            self._set_codecs(connection)
            tell(connection)

        return on_connect

    def _adopt(self, connection: Any) -> None:
        _adopt(connection, _Connection)

    def _set_codecs(self, connection: pg.Connection[Any]) -> None:
        codecs = connection.raw._codecs
        if self._json_deserializer is not None:
            codecs.update(_json.codecs(self._json_deserializer))
        if self._native_inet_types is False:
            for name in ("inet", "cidr"):
                oid = {"inet": 869, "cidr": 650}[name]
                codecs[oid] = Codec("foreign", oid, name)

    # What the base asks psycopg for.

    @util.memoized_property
    def _psycopg_Json(self) -> Callable[[Any], pg.Json]:
        return lambda value: pg.Json(value, self._json_serializer)

    @util.memoized_property
    def _psycopg_Jsonb(self) -> Callable[[Any], pg.Jsonb]:
        return lambda value: pg.Jsonb(value, self._json_serializer)

    def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        cursor.execute(statement, parameters)
        if context is not None and context.isddl:
            # A table that is made where another was: a query that stays the same has other columns.
            cursor.connection.raw._doubt_statements()

    # Transactions: what the next BEGIN says, and nothing that stays with the server's session.

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        dbapi_connection.autocommit = level == "AUTOCOMMIT"
        dbapi_connection.isolation_level = None if level == "AUTOCOMMIT" else level

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        return self._shown(dbapi_connection, "transaction_isolation").upper()

    def set_readonly(self, connection: Any, value: bool | None) -> None:
        connection.read_only = value

    def get_readonly(self, connection: Any) -> bool:
        return self._shown(connection, "transaction_read_only") == "on"

    def set_deferrable(self, connection: Any, value: bool | None) -> None:
        connection.deferrable = value

    def get_deferrable(self, connection: Any) -> bool:
        return self._shown(connection, "transaction_deferrable") == "on"

    def _shown(self, connection: pg.Connection[Any], what: str) -> str:
        idle = connection.raw._transaction_status == IDLE
        row = connection.execute(f"SHOW {what}").fetchone()
        if idle:
            connection.rollback()
        assert row is not None
        value: str = row[0]
        return value

    def do_begin_twophase(self, connection: Any, xid: str) -> None:
        connection.connection.tpc_begin(xid)

    def do_prepare_twophase(self, connection: Any, xid: str) -> None:
        connection.connection.tpc_prepare()

    def do_rollback_twophase(
        self, connection: Any, xid: str, is_prepared: bool = True, recover: bool = False
    ) -> None:
        self._end_twophase(connection.connection, "tpc_rollback", xid if recover else None)

    def do_commit_twophase(
        self, connection: Any, xid: str, is_prepared: bool = True, recover: bool = False
    ) -> None:
        self._end_twophase(connection.connection, "tpc_commit", xid if recover else None)

    def _end_twophase(self, connection: Any, how: str, xid: str | None) -> None:
        if xid is not None:
            connection.rollback()  # another's transaction is ended outside of one
        getattr(connection, how)(xid)

    def do_recover_twophase(self, connection: Any) -> list[str]:
        return [str(xid) for xid in connection.connection.tpc_recover()]

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        return isinstance(e, pg.Error) and connection is not None and connection.closed


# --- SQLAlchemy's asyncio API --------------------------------------------------------------------


class _AwaitedOp:
    """An operation of a connection whose wait is SQLAlchemy's, in a greenlet of SQLAlchemy's."""

    def __init__(self, op: Any) -> None:
        self._op = op

    def run(self) -> Any:
        return await_only(self._op)


class _AwaitedCursor(pg.Cursor[Any]):
    async def _async_soft_close(self) -> None:
        """What SQLAlchemy asks of a cursor whose rows are all here."""


class _AwaitedConnection(_Connection):
    def cursor(self, name: str | None = None, **kwargs: Any) -> Any:
        if name is None:
            return _AwaitedCursor(self, self.row_factory)
        return super().cursor(name)


class _AwaitedRaw:
    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def _op(self, *args: Any, **kwargs: Any) -> _AwaitedOp:
        return _AwaitedOp(self._raw._op(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _adopt_awaited(connection: Any) -> None:
    _adopt(connection, _AwaitedConnection)
    if not isinstance(connection._raw, _AwaitedRaw):
        connection._raw = _AwaitedRaw(connection._raw)


class _AsyncDBAPI(_DBAPI):
    def connect(self, *args: Any, **kwargs: Any) -> Any:
        creator = kwargs.pop("async_creator_fn", async_(pg.connect))
        connection = await_only(creator(*args, **kwargs))
        _adopt_awaited(connection)  # now: a listener of the user's may come before the dialect's
        return connection


class PGDialectAsync_greenletio(PGDialect_greenletio):
    """For create_async_engine()."""

    is_async = True
    supports_statement_cache = True
    has_terminate = True

    @classmethod
    def import_dbapi(cls) -> Any:
        return _AsyncDBAPI()

    @classmethod
    def get_pool_class(cls, url: Any) -> type[Pool]:
        return AsyncAdaptedQueuePool

    def _adopt(self, connection: Any) -> None:
        _adopt_awaited(connection)

    def do_terminate(self, dbapi_connection: Any) -> None:
        dbapi_connection.raw.terminate()

    def get_driver_connection(self, connection: Any) -> Any:
        return connection
