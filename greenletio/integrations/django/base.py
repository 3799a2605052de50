"""The database backend: ``"ENGINE": "greenletio.integrations.django"``."""

from __future__ import annotations

import functools
import itertools
import os
import time
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import (
    IsolationLevel,
    get_adapters_template,
    is_psycopg3,
)
from django.utils.asyncio import async_unsafe
from django.utils.functional import cached_property
from psycopg.adapt import AdaptersMap

from greenletio import _core, pg
from greenletio.integrations.django import _connections
from greenletio.integrations.django._connection import Connection, dress
from greenletio.integrations.django.creation import DatabaseCreation
from greenletio.integrations.django.features import DatabaseFeatures
from greenletio.integrations.django.introspection import DatabaseIntrospection
from greenletio.integrations.django.operations import DatabaseOperations

__all__ = ("DatabaseWrapper",)

if not is_psycopg3:
    raise ImproperlyConfigured(
        "Django's PostgreSQL backend, which this one is made of, has found psycopg2 only: "
        "install psycopg 3"
    )

#: Of psycopg's pool and connections, and of no meaning to ours.
NOT_OURS = ("client_encoding", "context", "cursor_factory", "prepare_threshold")
NOT_THE_POOLS = ("num_workers", "open", "reconnect_failed", "reconnect_timeout")

#: The pool where OPTIONS["pool"] does not say otherwise.
POOL = {"min_size": 0, "max_size": 10}

_cursors = itertools.count(1)


class DatabaseWrapper(base.DatabaseWrapper):
    """A connection of Django's: of one task, or of one thread where no loop runs."""

    Database = pg
    creation_class = DatabaseCreation
    features_class = DatabaseFeatures
    introspection_class = DatabaseIntrospection
    ops_class = DatabaseOperations
    _connection_pools: dict[str, pg.Pool] = {}

    #: Of a task's, which gets its connections from a pool unless that is forbidden: the native id
    #: of its thread; else 0.
    of_task = 0
    _leased_from: pg.Pool | None = None
    connection: Any

    # ---- connecting

    @property
    def pool(self) -> pg.Pool | None:
        """The pool that it gets its connections from."""
        options = self.settings_dict["OPTIONS"].get("pool")
        if self.alias == NO_DB_ALIAS or not (self.of_task if options is None else options):
            return None
        if options and self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured("Pooling doesn't support persistent connections.")
        pool = self._connection_pools.get(self.alias)
        if pool is None:
            pool = self._connection_pools.setdefault(self.alias, self._make_pool(options))
        return pool

    def _make_pool(self, options: Any) -> pg.Pool:
        own = options if isinstance(options, dict) else {}
        wanted = {"name": f"of Django's {self.alias!r}", **POOL, **own}
        wanted["max_size"] = max(wanted["min_size"], wanted["max_size"] or 0)
        for name in NOT_THE_POOLS:
            wanted.pop(name, None)
        params = self._connect_params(self.get_connection_params())
        if self.settings_dict["CONN_HEALTH_CHECKS"]:
            wanted.setdefault("check", pg.Pool.check_connection)
        return pg.Pool(
            kwargs={**params, "autocommit": True},
            open=False,
            **wanted,
        )

    def close_pool(self) -> None:
        pool = self._connection_pools.pop(self.alias, None)
        if pool is not None:
            pool.close()

    def _connect_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """What greenletio.pg.connect() takes, with a session's settings from its first moment."""
        params = {name: value for name, value in params.items() if name not in NOT_OURS}
        wanted = {"TimeZone": self.timezone_name}
        if role := self.settings_dict["OPTIONS"].get("assume_role"):
            wanted["role"] = role
        if not params.get("pooler"):  # which may let nothing through
            options = [params["options"]] if params.get("options") else []
            for name, value in wanted.items():
                escaped = str(value).replace("\\", "\\\\").replace(" ", "\\ ")
                options.append(f"-c {name}={escaped}")
            params["options"] = " ".join(options)
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Connection:
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        try:
            self.isolation_level = IsolationLevel(level or IsolationLevel.READ_COMMITTED)
        except ValueError:
            raise ImproperlyConfigured(
                f"Invalid transaction isolation level {level} "
                f"specified. Use one of the psycopg.IsolationLevel values."
            ) from None
        pool = self.pool
        if pool is None:
            opened: Any = pg.connect(**self._connect_params(conn_params))
        else:
            pool.open()
            opened = pool.getconn()
        self._leased_from = pool
        connection = dress(opened, AdaptersMap(self._adapters), self._zone)
        if level is not None:
            connection.isolation_level = self.isolation_level
        if self.settings_dict["OPTIONS"].get("server_side_binding") is False:
            connection.binds_here = True
        return connection

    @property
    def _adapters(self) -> AdaptersMap:
        template: AdaptersMap = get_adapters_template(settings.USE_TZ, self.timezone)
        return template

    @property
    def _zone(self) -> Any:
        return self.timezone, self.timezone_name

    def _configure_role(self, connection: Any) -> bool:
        if not self.settings_dict["OPTIONS"].get("pooler"):
            return False  # it is so from the connection's beginning
        configured: bool = super()._configure_role(connection)
        return configured

    def init_connection_state(self) -> None:
        BaseDatabaseWrapper.init_connection_state(self)
        if self._configure_connection(self.connection) and not self.get_autocommit():
            self.connection.commit()

    def connect(self) -> None:
        _undecorated(BaseDatabaseWrapper.connect)(self)
        if self._leased_from is not None:
            self.close_at = time.monotonic()  # given back at the end of each request

    def validate_thread_sharing(self) -> None:
        # To green code each of a task's calls is a thread of its own.
        if self.of_task == 0 or self.of_task != _connections.get_native_id():
            super().validate_thread_sharing()

    # ---- cursors

    def create_cursor(self, name: str | None = None) -> Any:
        if self.connection.zone != self._zone:
            dress(self.connection, AdaptersMap(self._adapters), self._zone)
        return self.connection.cursor(name)

    def chunked_cursor(self) -> Any:
        return self._cursor(name=f"_django_curs_{next(_cursors)}")

    def is_usable(self) -> bool:
        if self.connection is None:
            return False
        try:
            self.connection.cursor().execute("SELECT 1")
        except pg.Error:
            return False
        return True

    @cached_property  # type: ignore[untyped-decorator]
    def pg_version(self) -> int:
        with self.temporary_connection():
            version: int = self.connection.info.server_version
            return version

    # ---- giving back

    def close(self) -> None:
        if self._leased_from is None:
            _may_wait()
        _undecorated(BaseDatabaseWrapper.close)(self)

    def _close(self) -> None:
        if self.connection is None:
            return
        pool, self._leased_from = self._leased_from, None
        if pool is None:
            with self.wrap_database_errors:
                self.connection.close()
        else:
            connection, self.connection = self.connection, None
            pool.putconn(connection)

    def leave(self) -> None:
        """Its task has ended: the connection goes back to its pool, or is closed; never waits."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        pool, self._leased_from = self._leased_from, None
        if pool is None:
            connection.raw.terminate()
        else:
            pool.putconn(connection)


# ---- where it may be called -------------------------------------------------------------------


def _undecorated(method: Any) -> Any:
    return getattr(method, "__wrapped__", method)


def _may_wait() -> None:
    if _core.place() < 0 and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise SynchronousOnlyOperation(
            "You cannot call this from an async context: it would hold the loop. Call the function "
            "that does by `await async_(function)(...)` or `await sync_to_async(function)(...)`."
        )


def _in_greenlets(method: Any) -> Any:
    """A method for sync code wherever that may wait, which asyncio's loop alone does not tell."""

    @functools.wraps(method)
    def inner(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, DatabaseWrapper):
            return method(self, *args, **kwargs)
        _may_wait()
        return _undecorated(method)(self, *args, **kwargs)

    return inner


def _guard() -> None:
    """Replace what Django refuses in a thread with a running loop."""
    refused = async_unsafe(lambda: None).__code__
    for name in dir(DatabaseWrapper):
        methods = [vars(cls)[name] for cls in DatabaseWrapper.__mro__ if name in vars(cls)]
        if name != "close" and any(getattr(one, "__code__", 0) is refused for one in methods):
            # This one is replaced where Django's SimpleTestCase replaces it, too, in the base.
            owner = BaseDatabaseWrapper if name == "ensure_connection" else DatabaseWrapper
            setattr(owner, name, _in_greenlets(methods[0]))


_guard()
_connections.install(DatabaseWrapper)
