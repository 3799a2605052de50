"""Functions of the user's that are told of each query."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("LoggedQuery", "LoggingMethods")

QueryLogger = Callable[["LoggedQuery"], Any]


class LoggedQuery(NamedTuple):
    """What a query logger is called with: a query that has ended, `elapsed` seconds after it began.

    `exception` is what it raised, or None. `conn_params` are libpq's options, without passwords.
    """

    query: str
    args: tuple[Any, ...]
    timeout: float | None
    elapsed: float
    exception: BaseException | None
    conn_addr: tuple[str, int] | str
    conn_params: dict[str, str]


_LOGGED = ("execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval")


class LoggingMethods:
    """The methods of a connection that log queries.

    The methods in C know nothing of it: while there are loggers, others stand before them.
    """

    _query_loggers: list[QueryLogger]

    def add_query_logger(self, callback: QueryLogger) -> None:
        """Have callback(LoggedQuery), a function or a coroutine function, called for each query."""
        if callback not in self._query_loggers:
            self._query_loggers.append(callback)
        for name in _LOGGED:
            self.__dict__[name] = partial(self._run_logged, name)

    def remove_query_logger(self, callback: QueryLogger) -> None:
        """Undo add_query_logger()."""
        if callback in self._query_loggers:
            self._query_loggers.remove(callback)
        if not self._query_loggers:
            for name in _LOGGED:
                self.__dict__.pop(name, None)

    @contextmanager
    def query_logger(self, callback: QueryLogger) -> Iterator[None]:
        """A block in which queries are logged."""
        self.add_query_logger(callback)
        try:
            yield
        finally:
            self.remove_query_logger(callback)

    async def _run_logged(self, name: str, query: str, /, *args: Any, **options: Any) -> Any:
        run = getattr(type(self), name)(self, query, *args, **options)
        timeout = options.get("timeout", cast("Connection", self)._timeout)
        return await self._logged(run, query, args, timeout)

    async def _logged(
        self, run: Awaitable[Any], query: str, args: tuple[Any, ...], timeout: float | None
    ) -> Any:
        connection = cast("Connection", self)
        params = connection._options()
        host, port = params.get("host", ""), int(params.get("port", 0))
        address = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        error: BaseException | None = None
        began = time.monotonic()
        try:
            return await run
        except BaseException as exc:
            error = exc
            raise
        finally:
            elapsed = time.monotonic() - began
            record = LoggedQuery(query, args, timeout, elapsed, error, address, params)
            for logger in list(self._query_loggers):
                connection._call(logger, record)
