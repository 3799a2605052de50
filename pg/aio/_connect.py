"""connect(): asyncpg's arguments, as libpq's options."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from greenletio import _pg
from greenletio.pg._connect import connect_async
from greenletio.pg._conninfo import options_of
from greenletio.pg.aio._connection import Connection
from greenletio.pg.errors import InterfaceError, NotSupportedError
from greenletio.pg.rows import Factory

__all__ = ("connect",)


def _sslmode(ssl: Any) -> str | None:
    if ssl is None or isinstance(ssl, str):
        return ssl or None
    if ssl is True:
        return "verify-full"
    if ssl is False:
        return "disable"
    raise NotSupportedError(
        "ssl= takes a libpq sslmode, True or False; an SSLContext cannot be given to libpq: "
        "name the files by sslrootcert=, sslcert= and sslkey="
    )


async def connect(
    dsn: str | None = None,
    *,
    host: str | Sequence[str] | None = None,
    port: int | str | Sequence[int] | None = None,
    user: str | None = None,
    password: str | None = None,
    passfile: str | None = None,
    database: str | None = None,
    loop: object = None,
    timeout: float | None = 60,
    statement_cache_size: int = 100,
    max_cached_statement_lifetime: float = 300,
    max_cacheable_statement_size: int = 1024 * 15,
    command_timeout: float | None = None,
    ssl: Any = None,
    connection_class: type[Connection] = Connection,
    record_class: type[_pg.Record] = _pg.Record,
    server_settings: dict[str, str] | None = None,
    target_session_attrs: str | None = None,
    pooler: bool = False,
    row_factory: Factory[Any] | None = None,
    _open: Callable[..., Coroutine[Any, Any, None]] = connect_async,
    **options: Any,
) -> Connection:
    """Connect to a server: asyncpg's arguments, and any option of libpq by its name.

    ``dsn`` is a URL or a libpq connection string; what it does not name comes from libpq's
    environment variables, service files and ``.pgpass``. Several hosts are tried in turn, each
    address within ``connect_timeout`` seconds if that is set, all of them within `timeout` seconds.
    Can be cancelled. Raises CannotConnect or the server's own error, TimeoutError after `timeout`.

    `row_factory`, one of ``greenletio.pg.rows``, makes rows other than Records.

    ``pooler=True`` is for PgBouncer and others that give a session to a client for a transaction or
    a statement only: nothing is prepared on the server, and nothing of a session is relied on. So
    it is with ``statement_cache_size=0``, too, but then every query asks for its types anew.

    ``max_cached_statement_lifetime`` is accepted and has no effect: a statement leaves the cache
    when newer ones need its place. ``loop`` is ignored.
    """
    if not issubclass(connection_class, Connection):
        raise InterfaceError(
            f"connection_class is not a subclass of Connection: {connection_class}"
        )
    if statement_cache_size < 0 or max_cacheable_statement_size < 0:
        raise ValueError("the sizes of the statement cache must not be negative")
    if command_timeout is not None and float(command_timeout) <= 0:
        raise ValueError("command_timeout must be greater than 0")
    if server_settings and "application_name" in server_settings:  # libpq sends one in any case
        server_settings = dict(server_settings)
        options["application_name"] = server_settings.pop("application_name")
    if server_settings:
        settings = " ".join(
            f"-c {key}={value}".replace("\\", "\\\\").replace(" ", "\\ ").replace("-c\\ ", "-c ", 1)
            for key, value in server_settings.items()
        )
        options["options"] = f"{options.get('options', '')} {settings}".strip()
    given = {
        "host": host,
        "port": port,
        "user": user,
        "password": password,
        "passfile": passfile,
        "dbname": database,
        "sslmode": _sslmode(ssl),
        "target_session_attrs": target_session_attrs,
        **options,
    }
    connection = connection_class()
    connection._cache_size = statement_cache_size
    connection._cacheable_size = max_cacheable_statement_size
    connection._pooler = pooler or statement_cache_size == 0
    connection._timeout = command_timeout
    connection._record_class = record_class
    await _open(connection, options_of(dsn, given), timeout)  # a pool's may wait as sync code does
    connection._connected()
    connection.row_factory = row_factory
    return connection
