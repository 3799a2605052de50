"""connect(): asyncpg's arguments, as libpq's options."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from greenletio import _pg
from greenletio.pg._connect import check_command_timeout, connect_async
from greenletio.pg._conninfo import options_of
from greenletio.pg._tls import demand
from greenletio.pg.aio._connection import Connection
from greenletio.pg.aio._tls import options_of as tls_options
from greenletio.pg.errors import InterfaceError, ProgrammingError
from greenletio.pg.rows import Factory

__all__ = ("connect", "options_for", "settings_of")


def settings_of(dsn: str | None) -> tuple[str | None, dict[str, str]]:
    """A URL without the parameters that libpq does not know, and those: settings of the server."""
    if dsn is None or "://" not in dsn or "?" not in dsn:
        return dsn, {}
    place, _, query = dsn.partition("?")
    kept, settings = [], {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if _is_option(unquote(name)):
            kept.append(part)
        else:
            settings[unquote(name)] = unquote(value)
    return f"{place}?{'&'.join(kept)}", settings


@lru_cache(256)
def _is_option(name: str) -> bool:
    """Whether it is an option of libpq's."""
    try:
        _pg.parse_conninfo(f"postgresql://?{quote(name)}=")
    except ProgrammingError:
        return name == "ssl"  # it says what is wrong with that one
    return True


def _check_size(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(f"{name} is expected to be greater or equal to 0, got {value!r}")


Password = str | Callable[[], str | Awaitable[str]] | Awaitable[str]


async def options_for(
    dsn: str | None,
    *,
    password: Password | None = None,
    ssl: Any = None,
    server_settings: dict[str, str] | None = None,
    **options: Any,
) -> dict[str, str]:
    """The options of libpq that connect()'s arguments are."""
    if callable(password):
        password = password()
    if inspect.isawaitable(password):
        password = await password
    dsn, in_url = settings_of(dsn)
    server_settings = {**in_url, **(server_settings or {})}
    if server_settings and "application_name" in server_settings:  # libpq sends one in any case
        server_settings = dict(server_settings)
        options["application_name"] = server_settings.pop("application_name")
    if server_settings:
        switches = " ".join(
            f"-c {key}={value}".replace("\\", "\\\\").replace(" ", "\\ ").replace("-c\\ ", "-c ", 1)
            for key, value in server_settings.items()
        )
        before = options.get("options") or options_of(dsn, {}).get("options", "")
        options["options"] = f"{before} {switches}".strip()
    named = options_of(dsn, {**options, "password": password})
    return named | tls_options(ssl, named)


async def connect(
    dsn: str | None = None,
    *,
    host: str | Sequence[str] | None = None,
    port: int | str | Sequence[int] | None = None,
    user: str | None = None,
    password: Password | None = None,
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
    shared: bool = False,
    pooler: bool = False,
    row_factory: Factory[Any] | None = None,
    tls_pin: str | Sequence[str] | None = None,
    _open: Callable[..., Coroutine[Any, Any, None]] = connect_async,
    **options: Any,
) -> Connection:
    """Connect to a server: asyncpg's arguments, and any option of libpq by its name.

    ``dsn`` is a URL or a libpq connection string (parameters of a URL that are no options of libpq
    are settings of the server); what it does not name comes from libpq's
    environment variables, service files and ``.pgpass``. Several hosts are tried in turn, each
    address within ``connect_timeout`` seconds if that is set, all of them within `timeout` seconds.
    ``ssl`` is a libpq sslmode, True (verify the server, by the system's authorities), False, or an
    SSLContext: its authorities, checks and versions are used; a client's certificate cannot be got
    out of it, its files are named by ``sslcert`` and ``sslkey``. ``password`` may be a function, or
    a coroutine function, that gives it. Can be cancelled. Raises CannotConnect or the server's own
    error, TimeoutError after `timeout`.

    ``command_timeout`` is the limit, in seconds, of each operation whose call names none, BEGIN and
    COMMIT included: then TimeoutError, and the connection is usable if the server ends what it does
    when asked to, within ``cancel_timeout`` seconds; else it is closed. Without it a server that is
    frozen is waited for as long as it is. Against one that is gone without a word there are libpq's
    ``tcp_user_timeout`` (in milliseconds) and ``keepalives_*``.

    A statement leaves the cache when newer ones need its place, and after
    ``max_cached_statement_lifetime`` seconds (0: never). ``loop`` is ignored.

    With ``shared`` the queries of many tasks are on their way at the same time, each one by itself:
    see ``Connection.shared``.

    ``tls_pin``, ``"sha256/…"`` or several: the server's public key must be one of them, whoever has
    signed its certificate, which is looked at before anything is sent to it (``docs/tls.md``); else
    TlsPinMismatch. TLS is demanded then.

    `row_factory`, one of ``greenletio.pg.rows``, makes rows other than Records.

    ``pooler=True`` is for PgBouncer and others that give a session to a client for a transaction or
    a statement only: nothing is prepared on the server, and nothing of a session is relied on. So
    it is with ``statement_cache_size=0``, too, but then every query asks for its types anew.
    """
    if not issubclass(connection_class, Connection):
        raise InterfaceError(
            f"connection_class is not a subclass of Connection: {connection_class}"
        )
    _check_size("statement_cache_size", statement_cache_size)
    _check_size("max_cached_statement_lifetime", max_cached_statement_lifetime)
    _check_size("max_cacheable_statement_size", max_cacheable_statement_size)
    command_timeout = check_command_timeout(command_timeout)
    named = await options_for(
        dsn,
        password=password,
        ssl=ssl,
        server_settings=server_settings,
        host=host,
        port=port,
        user=user,
        passfile=passfile,
        database=database,
        target_session_attrs=target_session_attrs,
        **options,
    )
    connection = connection_class()
    named = demand(connection, named, tls_pin)
    connection._cache_size = statement_cache_size
    connection._cache_lifetime = max_cached_statement_lifetime
    connection._cacheable_size = max_cacheable_statement_size
    connection._pooler = pooler or statement_cache_size == 0
    connection._timeout = command_timeout
    connection._record_class = record_class
    await _open(connection, named, timeout)  # a pool's may wait as sync code does
    connection._connected()
    connection.shared = shared
    connection.row_factory = row_factory
    return connection
