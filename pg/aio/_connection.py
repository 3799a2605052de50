"""Connection: asyncpg's methods. The hot ones (execute, fetch, fetchrow, fetchval) are in C."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from greenletio import _pg
from greenletio.pg._connect import connected, forget_types
from greenletio.pg._lobject import FAILED
from greenletio.pg._quote import quoted
from greenletio.pg._reset import UNDO
from greenletio.pg._tls import TLS, tls_of
from greenletio.pg.aio._codecs import CodecMethods
from greenletio.pg.aio._columns import ColumnMethods
from greenletio.pg.aio._copy import CopyMethods
from greenletio.pg.aio._cursor import CursorFactory
from greenletio.pg.aio._lobject import LargeObjectMethods
from greenletio.pg.aio._logging import LoggingMethods
from greenletio.pg.aio._messages import PostgresLogMessage, message_of
from greenletio.pg.aio._pipeline import Pipeline
from greenletio.pg.aio._prepared import PreparedStatement
from greenletio.pg.aio._rows import RowFactory
from greenletio.pg.aio._stream import Stream
from greenletio.pg.aio._transaction import Transaction
from greenletio.pg.errors import ConnectionClosed, InterfaceError, InvalidSqlStatementName

if TYPE_CHECKING:
    from greenletio.pg._pool import Core

__all__ = ("Connection", "ServerVersion")

logger = logging.getLogger("greenletio.pg")

#: How many statements that nobody has any more may wait for the end of a transaction.
KEPT = 20
HELD = "SELECT name FROM pg_catalog.pg_prepared_statements WHERE name = ANY($1::text[])"

Listener = Callable[["Connection", int, str, str], Any]
LogListener = Callable[["Connection", PostgresLogMessage], Any]


class ServerVersion(NamedTuple):
    """The server's version."""

    major: int
    minor: int
    micro: int
    releaselevel: str
    serial: int


class Connection(
    CodecMethods,
    ColumnMethods,
    CopyMethods,
    LargeObjectMethods,
    LoggingMethods,
    RowFactory,
    _pg.Connection,
):
    """A session with a server, for tasks: asyncpg's names and semantics.

    Several tasks may use one connection: their queries take turns, in the order in which they were
    made, unless it is ``shared``: then they are at the server together, and what concerns the whole
    session is refused. pipeline() is for one user who need not wait for each answer.

    A cancelled or timed-out query is ended on the server in the background (of a shared one, only
    the answer is thrown away), and the connection stays usable. Loops in several threads, and
    threads without one, may use it at the same time: one of them moves it on for all, and another
    takes over when that one ends.
    """

    _transaction: Transaction | None

    def __init__(self) -> None:
        self._transaction = None
        self._names = 0
        self._own_codecs = {}
        self._query_loggers = []
        self._source: list[str] = []
        self._to_close: list[str] = []  # statements that nobody has any more
        self._listeners: dict[str, list[Listener]] = {}
        # Channels whose LISTEN may not have been heard, and for whom it was sent.
        self._unanswered: dict[str, list[Listener]] = {}
        self._log_listeners: list[LogListener] = []
        self._termination_listeners: list[Callable[[Connection], Any]] = []
        self._lease: Callable[[], Connection | None] | None = None  # whose listeners these are
        self._pool: Callable[[], Core | None] | None = None  # that it is of

    def _connected(self) -> None:
        self._on_event = _events(self)
        loop = asyncio._get_running_loop()  # a pool connects in plain code, too
        if loop is not None and loop.get_debug():
            self._source = traceback.format_stack(sys._getframe(1), 10)

    def _check_open(self) -> None:
        if self.is_closed():
            raise ConnectionClosed("the connection is closed")

    # -- what happens by itself

    def _face(self) -> Connection:
        """What its listeners know it as: in a pool, the lease."""
        lease = None if self._lease is None else self._lease()
        return self if lease is None else lease

    def _event(self, kind: str, value: Any) -> None:
        if kind == "notification":
            pid, channel, payload = value
            for listener in list(self._listeners.get(channel, ())):
                self._call(listener, self._face(), pid, channel, payload)
        elif kind == "notice":
            message = message_of(value)
            log_listeners = list(self._log_listeners)  # one may remove itself
            for log_listener in log_listeners:
                self._call_now(log_listener, self._face(), message)
            if not log_listeners:
                level = logging.WARNING if message.severity == "WARNING" else logging.INFO
                logger.log(level, "%s: %s", message.severity, message.message)
        elif kind in ("outdated", "stale"):
            if kind == "outdated":
                forget_types(self, self._own_codecs)
            core = None if self._pool is None else self._pool()
            if core is not None:
                core.outdated(self, kind)
        elif kind == "closed":
            listeners, self._termination_listeners = self._termination_listeners, []
            for termination_listener in listeners:
                self._call(termination_listener, self)

    def _outdated(self, kind: str) -> None:
        """Another connection of the pool has found statements, or types, that are of no use."""
        if kind == "outdated":
            connected(self, self._own_codecs)
        self._forget_codecs()

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a listener in the loop's turn: it may use the connection."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            function(*args)
            return
        if inspect.iscoroutinefunction(function):
            _keep(loop.create_task(function(*args)))
        else:
            loop.call_soon(function, *args)

    def _call_now(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it before whoever waits for the query that it is about goes on."""
        if inspect.iscoroutinefunction(function):
            self._call(function, *args)
            return
        try:
            function(*args)
        except Exception:
            logger.exception("the listener %r of %r failed", function, self)

    # -- queries

    async def executemany(
        self, command: str, args: Iterable[Sequence[Any]], *, timeout: float | None = None
    ) -> None:
        """Run a statement once for each sequence of arguments, all or nothing.

        They are sent as fast as the server takes them, without waiting for each. `args` is
        iterated over meanwhile, in the loop's own turns: what makes them cannot wait.
        """
        self._check_open()
        await self._op("many", "nothing", command, args, timeout=timeout)

    async def fetchmany(
        self,
        query: str,
        args: Iterable[Sequence[Any]],
        *,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> list[_pg.Record]:
        """Run a query once for each sequence of arguments, all or nothing; all its rows."""
        statement = await self.prepare(query, timeout=timeout, record_class=record_class)
        return await statement.fetchmany(args, timeout=timeout)

    async def prepare(
        self,
        query: str,
        *,
        name: str | None = None,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> PreparedStatement:
        """Prepare a statement, to be run again and again; under a name, or one of the driver's."""
        self._check_open()
        # A pooler's next round trip knows nothing of it: it has no name.
        name = "" if self._pooler else name or self._new_name("prepared")
        statement = _pg.Statement(self, query, name)
        await self._close_statements(timeout)
        await self._op("prepare", "statement", query, statement=statement, timeout=timeout)
        return PreparedStatement(self, statement, record_class)

    async def _close_statements(self, timeout: float | None) -> None:
        """Those that nobody has any more leave the server."""
        in_transaction = self.is_in_transaction()
        failed = self._transaction_status == FAILED
        if in_transaction and (len(self._to_close) <= KEPT or failed):
            return  # it has few of them, or has failed and hears of nothing
        names, self._to_close = self._to_close, []
        close = [f"DEALLOCATE {quoted(each)}" for each in names]
        try:
            if in_transaction:  # which would fail with those that DEALLOCATE ALL has taken
                held = self._op("query", "records", HELD, (names,), timeout=timeout, plain=True)
                close = [f"DEALLOCATE {quoted(row[0])}" for row in await held]
            if close:
                await self._op("script", "status", "; ".join(close), timeout=timeout)
        except InvalidSqlStatementName:  # DEALLOCATE ALL was sent meanwhile
            for each in close:
                with contextlib.suppress(InvalidSqlStatementName):
                    await self._op("script", "status", each, timeout=timeout)
        except BaseException:
            self._to_close += names
            raise

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """A block of work that is done as a whole or not at all; nested: a savepoint."""
        self._check_open()
        return Transaction(self, isolation, readonly, deferrable)

    def pipeline(self) -> Pipeline:
        """A block whose queries are sent without waiting for the answers to those before them:
        ``async with connection.pipeline() as p: row = p.fetchrow(…); …; await row``."""
        return Pipeline(self)

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open, failed or not."""
        return self._transaction_status in (2, 3)

    def _new_name(self, kind: str) -> str:
        self._names += 1
        return f"_gio_{kind}_{self._names}"

    def cursor(
        self,
        query: str,
        *args: Any,
        prefetch: int | None = None,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> CursorFactory:
        """A cursor of the server, inside a transaction: ``async for row in connection.cursor(…)``
        fetches `prefetch` rows at a time; awaited, it gives a Cursor to fetch from."""
        return CursorFactory(self, self._check_open, query, args, prefetch, timeout, record_class)

    def stream(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> Stream:
        """The rows of a query as they come: ``async for row in connection.stream(query)``.

        Inside or outside a transaction, without a cursor of the server. `timeout` is for each wait.
        """
        self._check_open()
        return Stream(self, query, args, timeout, record_class)

    # -- listeners

    async def add_listener(self, channel: str, callback: Listener) -> None:
        """LISTEN: have callback(connection, pid, channel, payload) called for each notification."""
        self._check_open()
        if self._pooler:
            raise InterfaceError(
                "LISTEN needs a session of one's own: this connection is to a transaction pooler"
            )
        listeners = self._listeners.setdefault(channel, [])
        is_first = not listeners
        if callback not in listeners:
            # At once: the first notification may come with the server's answer.
            listeners.append(callback)
        if not is_first and channel not in self._unanswered:
            return
        asking = self._unanswered.setdefault(channel, [])
        asking.append(callback)
        try:
            await self.fetch(f"LISTEN {quoted(channel)}")
        except BaseException:
            asking.remove(callback)
            if callback not in asking:  # nobody else has, or will have, added it
                self._forget_listener(channel, callback)
            if not asking and self._unanswered.get(channel) is asking:
                del self._unanswered[channel]
            raise
        self._unanswered.pop(channel, None)

    def _forget_listener(self, channel: str, callback: Listener) -> None:
        listeners = self._listeners.get(channel, [])
        if callback in listeners:
            listeners.remove(callback)
        if not listeners:
            self._listeners.pop(channel, None)

    async def remove_listener(self, channel: str, callback: Listener) -> None:
        """Undo add_listener()."""
        if self.is_closed() or callback not in self._listeners.get(channel, ()):
            return
        self._forget_listener(channel, callback)
        if channel not in self._listeners:
            await self.fetch(f"UNLISTEN {quoted(channel)}")

    def add_log_listener(self, callback: LogListener) -> None:
        """Have callback(connection, diagnostic) called for each notice; else they are logged."""
        if callback not in self._log_listeners:
            self._log_listeners.append(callback)

    def remove_log_listener(self, callback: LogListener) -> None:
        """Undo add_log_listener()."""
        if callback in self._log_listeners:
            self._log_listeners.remove(callback)

    def add_termination_listener(self, callback: Callable[[Connection], Any]) -> None:
        """Have callback(connection) called when the connection ends, for whatever reason."""
        if callback not in self._termination_listeners:
            self._termination_listeners.append(callback)

    def remove_termination_listener(self, callback: Callable[[Connection], Any]) -> None:
        """Undo add_termination_listener()."""
        if callback in self._termination_listeners:
            self._termination_listeners.remove(callback)

    # -- what is known of it

    def get_server_pid(self) -> int:
        """The process of the server that serves it."""
        return self._pid

    @property
    def tls(self) -> TLS | None:
        """What TLS has agreed on, and the server's certificate; None: closed, or not encrypted."""
        return tls_of(self)

    def get_server_version(self) -> ServerVersion:
        """The server's version."""
        major, rest = divmod(self._server_version, 10000)
        minor, micro = (0, rest) if major >= 10 else divmod(rest, 100)
        return ServerVersion(major, minor, micro, "final", 0)

    # -- the end

    async def close(self, *, timeout: float | None = None) -> None:
        """Close it. What the server does just now is cancelled; what was asked for after that is
        done first. After `timeout` seconds it is closed at once, with TimeoutError.
        """
        if self.is_closed():
            return
        if self._busy:
            self._cancel()
        await self._op("finish", "nothing", "", timeout=timeout)

    async def reset(self, *, timeout: float | None = None) -> None:
        """Undo what the session has set: transaction, listeners, settings, temporary objects.

        A transaction that is open is reported to the loop's exception handler, unless it is a
        block that will notice.
        """
        self._check_open()
        self._listeners.clear()
        self._log_listeners.clear()
        transaction, self._transaction = self._transaction, None
        sql = self.get_reset_query()
        if self.is_in_transaction():
            sql = f"ROLLBACK; {sql}"
            if transaction is None or not transaction._managed:
                message = f"Resetting connection with an active transaction {self!r}"
                asyncio.get_running_loop().call_exception_handler({"message": message})
        if sql:
            await self._op("script", "status", sql, timeout=timeout)

    def get_reset_query(self) -> str:
        """What reset() sends: for subclasses to change."""
        return "" if self._pooler else UNDO  # a pooler's session is not ours

    def __del__(self) -> None:
        if not self.is_closed():
            where = f"created at:\n{''.join(self._source)}" if self._source else _SOURCE
            message = f"unclosed connection {self!r}; {where}"
            warnings.warn(message, ResourceWarning, 2)
            self.terminate()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed() else f"to server process {self._pid}"
        return f"<{type(self).__module__}.{type(self).__name__} {state}>"


_SOURCE = "run in asyncio debug mode to see where it was made"


def _events(connection: Connection) -> Callable[[str, Any], None]:
    """The connection's own callback must not keep it alive."""
    import weakref

    ref = weakref.ref(connection)

    def on_event(kind: str, value: Any) -> None:
        target = ref()
        if target is not None:
            target._event(kind, value)

    return on_event


_tasks: set[asyncio.Task[Any]] = set()


def _keep(task: asyncio.Task[Any]) -> None:
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
