"""Connection: asyncpg's methods. The hot ones (execute, fetch, fetchrow, fetchval) are in C."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from greenletio import _pg
from greenletio.pg import _errors
from greenletio.pg._connect import forget_types
from greenletio.pg._reset import reset_script
from greenletio.pg._types import custom
from greenletio.pg.aio._copy import CopyMethods, quoted
from greenletio.pg.aio._cursor import CursorFactory
from greenletio.pg.aio._prepared import PreparedStatement
from greenletio.pg.aio._rows import RowFactory
from greenletio.pg.aio._transaction import Transaction
from greenletio.pg.errors import InterfaceError, NotSupportedError

__all__ = ("Connection", "ServerVersion")

logger = logging.getLogger("greenletio.pg")

Listener = Callable[["Connection", int, str, str], Any]
LogListener = Callable[["Connection", _errors.Diagnostic], Any]


class ServerVersion(NamedTuple):
    """The server's version."""

    major: int
    minor: int
    micro: int
    releaselevel: str
    serial: int


class Connection(CopyMethods, RowFactory, _pg.Connection):
    """A session with a server, for tasks: asyncpg's names and semantics.

    Several tasks may use one connection: their queries take turns, in the order in which they were
    made. A cancelled or timed-out query is ended on the server in the background, and the
    connection stays usable. It may pass from one loop or thread to another, but not be used by
    several at a time: a query of one may then wait until its timeout.
    """

    _transaction: Transaction | None

    def __init__(self) -> None:
        self._transaction = None
        self._names = 0
        self._listeners: dict[str, list[Listener]] = {}
        self._log_listeners: list[LogListener] = []
        self._termination_listeners: list[Callable[[Connection], Any]] = []

    def _connected(self) -> None:
        self._on_event = _events(self)

    # -- what happens by itself

    def _event(self, kind: str, value: Any) -> None:
        if kind == "notification":
            pid, channel, payload = value
            for listener in list(self._listeners.get(channel, ())):
                self._call(listener, self, pid, channel, payload)
        elif kind == "notice":
            diagnostic = _errors.Diagnostic(value)
            for log_listener in self._log_listeners:
                self._call(log_listener, self, diagnostic)
            if not self._log_listeners:
                level = logging.WARNING if diagnostic.severity == "WARNING" else logging.INFO
                logger.log(level, "%s: %s", diagnostic.severity, diagnostic.message_primary)
        elif kind == "closed":
            listeners, self._termination_listeners = self._termination_listeners, []
            for termination_listener in listeners:
                self._call(termination_listener, self)

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a listener in the loop's turn: it may use the connection."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            function(*args)
            return
        if asyncio.iscoroutinefunction(function):
            loop.call_soon(lambda: _keep(loop.create_task(function(*args))))
        else:
            loop.call_soon(function, *args)

    # -- queries

    async def executemany(
        self, command: str, args: Iterable[Sequence[Any]], *, timeout: float | None = None
    ) -> None:
        """Run a statement once for each sequence of arguments, all or nothing.

        They are sent as fast as the server takes them, without waiting for each. `args` is
        iterated over meanwhile, in the loop's own turns.
        """
        if timeout is None:
            timeout = self._timeout
        await self._op("many", "nothing", command, args, timeout=timeout)

    async def prepare(
        self,
        query: str,
        *,
        name: str | None = None,
        timeout: float | None = None,
        record_class: type[_pg.Record] | None = None,
    ) -> PreparedStatement:
        """Prepare a statement, to be run again and again. The server's name for it is ours."""
        if timeout is None:
            timeout = self._timeout
        statement = await self._op("prepare", "statement", query, timeout=timeout)
        return PreparedStatement(self, statement, record_class)

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """A block of work that is done as a whole or not at all; nested: a savepoint."""
        return Transaction(self, isolation, readonly, deferrable)

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
        return CursorFactory(self, query, args, prefetch, timeout, record_class)

    # -- listeners

    async def add_listener(self, channel: str, callback: Listener) -> None:
        """LISTEN: have callback(connection, pid, channel, payload) called for each notification."""
        if self._pooler:
            raise InterfaceError(
                "LISTEN needs a session of one's own: this connection is to a transaction pooler"
            )
        if channel not in self._listeners:
            await self.fetch(f"LISTEN {quoted(channel)}")
        listeners = self._listeners.setdefault(channel, [])
        if callback not in listeners:
            listeners.append(callback)

    async def remove_listener(self, channel: str, callback: Listener) -> None:
        """Undo add_listener()."""
        listeners = self._listeners.get(channel)
        if self.is_closed() or listeners is None or callback not in listeners:
            return
        listeners.remove(callback)
        if not listeners:
            del self._listeners[channel]
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

    def get_server_version(self) -> ServerVersion:
        """The server's version."""
        major, minor = divmod(self._server_version, 10000)
        return ServerVersion(major, minor, 0, "final", 0)

    # -- the end

    async def close(self, *, timeout: float | None = None) -> None:
        """Close it after what is under way; after `timeout` seconds at once, with TimeoutError."""
        if self.is_closed():
            return
        await self._op("finish", "nothing", "", timeout=timeout)

    async def reset(self, *, timeout: float | None = None) -> None:
        """Undo what the session has set: transaction, listeners, settings, temporary objects."""
        self._listeners.clear()
        self._log_listeners.clear()
        self._transaction = None
        await self._op("script", "status", reset_script(self), timeout=timeout)

    async def reload_schema_state(self) -> None:
        """Forget what is known of the types of the database, and the codecs that were set."""
        forget_types(self)
        self._forget_codecs()

    async def set_type_codec(
        self,
        typename: str,
        *,
        schema: str = "public",
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any],
        format: str = "text",
    ) -> None:
        """Have values of a type, and of arrays of it, read and written by functions of yours.

        They see the server's text form as str, or with ``format="binary"`` its binary form as
        bytes.
        """
        if format not in ("text", "binary"):
            raise NotSupportedError(f"a codec's format is 'text' or 'binary', not {format!r}")
        oid, array, send = await self._find_type(typename, schema)
        codec = custom(oid, typename, send, format, encoder, decoder)
        self._codecs[oid] = codec
        if array:
            name = f"{typename}[]"
            form = "foreign" if codec.is_text else "array"
            self._codecs[array] = _pg.Codec(form, array, name, codec)
        self._forget_codecs()

    async def reset_type_codec(self, typename: str, *, schema: str = "public") -> None:
        """Undo set_type_codec()."""
        oid, array, _ = await self._find_type(typename, schema)
        self._codecs.pop(oid, None)
        self._codecs.pop(array, None)
        self._forget_codecs()

    async def _find_type(self, name: str, schema: str) -> tuple[int, int, str]:
        row = await _pg.Connection.fetchrow(self, _FIND_TYPE, name, schema)
        if row is None:
            raise ValueError(f"there is no type {schema}.{name}")
        oid, array, kind, send = row
        if kind in (b"c", b"r", b"m"):
            raise NotSupportedError(f"a codec cannot be set for {name}, which is made of others")
        return oid, array, send

    def __del__(self) -> None:
        if not self.is_closed():
            warnings.warn(f"unclosed connection {self!r}", ResourceWarning, 2, source=self)
            self.terminate()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed() else f"to server process {self._pid}"
        return f"<{type(self).__module__}.{type(self).__name__} {state}>"


_FIND_TYPE = (
    "SELECT t.oid, t.typarray, t.typtype, p.proname::text FROM pg_catalog.pg_type t"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
    " LEFT JOIN pg_catalog.pg_proc p ON p.oid = t.typsend::oid"
    " WHERE (t.typname = $1 OR t.oid = to_regtype($1)) AND n.nspname = $2 LIMIT 1"
)


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
