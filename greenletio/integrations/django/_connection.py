"""The connection as Django uses it: greenletio.pg's, with what Django expects of psycopg's."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import Any

from psycopg import IsolationLevel
from psycopg.adapt import AdaptersMap

from greenletio import _pg, pg
from greenletio.integrations._named_cursors import NamedCursor, NamedCursors
from greenletio.integrations.django._values import (
    INET,
    RANGE_CLASS,
    as_text,
    codecs,
    compose,
    to_driver,
)
from greenletio.pg import _types
from greenletio.pg._pool_sync import PooledConnection
from greenletio.pg._quote import quoted

__all__ = ("Connection", "Cursor", "Pooled", "dress")

Zone = tuple[datetime.tzinfo | None, str]

#: Where the server has to see that two parameters are the same value, which it sees of literals.
_COMPARING = ("GROUP BY", "DISTINCT")
_CHANGES_SCHEMA = re.compile(r"\s*(?:CREATE|ALTER|DROP)\b", re.IGNORECASE)

#: What is known of the types of a database, for all connections that read values in the same way.
_known: dict[tuple[str, Zone], dict[int, _pg.Codec]] = {}


class _Cursor(pg.Cursor[Any]):
    def callproc(self, procname: str, parameters: Any = None, **options: Any) -> Any:
        """As any cursor's, but the name is quoted, as Django's other backends do it."""
        return super().callproc(quoted(procname), parameters or (), **options)

    def execute(self, query: Any, params: Any = None, *, timeout: float | None = None) -> Any:
        query = as_text(query, self.connection)
        return super().execute(query, params, timeout=timeout)


class Cursor(_Cursor):
    """A cursor whose result is here as a whole."""


class ServerCursor(_Cursor, NamedCursor):
    """One at the server, for QuerySet.iterator()."""


class _Info:
    """What psycopg tells of a connection in its ``info``."""

    encoding = "utf-8"

    def __init__(self, raw: _pg.Connection) -> None:
        self._raw = raw

    @property
    def backend_pid(self) -> int:
        return self._raw._pid

    @property
    def server_version(self) -> int:
        return self._raw._server_version

    @property
    def transaction_status(self) -> int:
        return self._raw._transaction_status

    def parameter_status(self, name: str) -> str | None:
        return self._raw._parameter(name)


class Connection(NamedCursors):
    """A connection to the server; psycopg's functions take it for one of psycopg's."""

    adapters: AdaptersMap
    zone: Zone
    #: Whether all queries go with their values in them.
    binds_here = False
    #: psycopg's functions want to know nothing of libpq.
    connection = None

    @property
    def info(self) -> _Info:
        return _Info(self.raw)

    def cursor(self, name: str | None = None, **kwargs: Any) -> Any:
        if name is not None:
            return ServerCursor(self, name)
        if self.closed:
            raise pg.InterfaceError("the connection is closed")
        return Cursor(self, kwargs.get("row_factory") or self.row_factory)

    def _begin_sql(self, isolation: Any = None, *options: Any, **more: Any) -> str:
        level = self.isolation_level if isolation is None else isolation
        if isinstance(level, IsolationLevel):
            level = level.name
        return super()._begin_sql(level, *options, **more)

    def _run(
        self, query: str, params: Any, timeout: float | None, cursor: pg.Cursor[Any] | None = None
    ) -> Any:
        if params:
            if self.binds_here or any(word in query for word in _COMPARING):
                query, params = compose(query, params, self), None
            else:
                params = to_driver(params, self._hstore)
        result = super()._run(query, params, timeout, cursor)
        if not params and _CHANGES_SCHEMA.match(query):
            # A table that is made where another was: a query that stays the same has other columns.
            self._raw._doubt_statements()
        return result

    def _hstore(self) -> int:
        """The type's oid, if django.contrib.postgres has told psycopg of it."""
        known = self.adapters.types.get("hstore")
        return 0 if known is None else known.oid

    def _run_many(self, query: str, params_seq: Iterable[Any]) -> int:
        return super()._run_many(query, (to_driver(one, self._hstore) for one in params_seq))

    def _event(self, kind: str, value: Any) -> None:
        super()._event(kind, value)
        if kind == "outdated":
            _known.clear()
            dress(self, self.adapters, self.zone)


class Pooled(Connection, PooledConnection):
    """One that belongs to a pool."""

    def cursor(self, name: str | None = None, **kwargs: Any) -> Any:
        if self._slot is None:
            raise pg.InterfaceError("this connection was given back to its pool")
        return super().cursor(name, **kwargs)


def dress(connection: Any, adapters: AdaptersMap, zone: Zone) -> Connection:
    """Have a connection read values as Django expects them; it becomes one of ours."""
    raw = connection._raw
    if not isinstance(connection, Connection):
        pooled = isinstance(connection, PooledConnection)
        connection.__class__ = Pooled if pooled else Connection
    connection.adapters = adapters
    connection.zone = zone
    own = codecs(*zone)
    if raw._codecs.get(INET) is not own[INET]:
        options = raw._options()
        database = ":".join(options.get(key, "") for key in ("hostaddr", "host", "port", "dbname"))
        known = _known.setdefault((database, zone), {})
        raw._codecs.clear()
        raw._codecs.update({**known, **own})
        raw._introspect = _types.builder(known, own, raw._codecs, RANGE_CLASS)
        raw._forget_codecs()
    ours: Connection = connection
    return ours
