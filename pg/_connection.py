"""Connection: the DB-API's, with psycopg's conventions, for sync code."""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import greenlet

from greenletio import _pg
from greenletio._lock import FairLock
from greenletio.pg import _errors, _json, rows
from greenletio.pg._codecs import reset_codec, set_codec
from greenletio.pg._connect import (
    check_command_timeout,
    connect_sync,
    connected,
    dress,
    forget_types,
)
from greenletio.pg._conninfo import options_of
from greenletio.pg._copy import Copy
from greenletio.pg._cursor import Cursor, Result, typed
from greenletio.pg._lobject_sync import LargeObjectMethods
from greenletio.pg._notify import Notifying
from greenletio.pg._pipeline import Pipeline
from greenletio.pg._query import is_script, prepare
from greenletio.pg._steps import Steps, run
from greenletio.pg._tls import TLS, demand, tls_of
from greenletio.pg._tpc import TwoPhase
from greenletio.pg._transaction import Transaction, begin
from greenletio.pg.errors import (
    ConnectionClosed,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
)

if TYPE_CHECKING:
    from greenletio.pg.rows import Factory

__all__ = ("Connection", "connect")

Row = TypeVar("Row")
Other = TypeVar("Other")

logger = logging.getLogger("greenletio.pg")

IDLE = 0  # libpq's PQTRANS_IDLE
#: Of executemany(), which are held at a time.
ROWS = 10_000


class Connection(LargeObjectMethods, TwoPhase, Notifying, Generic[Row]):
    """A session with a server, for sync code.

    In a greenlet (under ``async_`` or ``spawn``) each call that waits for the server suspends the
    greenlet; where no loop runs it blocks the thread, directly in a running loop it raises
    WouldBlockError. Threads and greenlets may share a connection: their queries take turns. A call
    that is cancelled, interrupted or timed out ends its query on the server, and the connection
    stays usable.
    """

    # The DB-API's optional extension: the exceptions.
    Warning = _errors.Warning
    Error = _errors.Error
    InterfaceError = _errors.InterfaceError
    DatabaseError = _errors.DatabaseError
    DataError = _errors.DataError
    OperationalError = _errors.OperationalError
    IntegrityError = _errors.IntegrityError
    InternalError = _errors.InternalError
    ProgrammingError = _errors.ProgrammingError
    NotSupportedError = _errors.NotSupportedError

    def __init__(
        self,
        raw: _pg.Connection,
        *,
        autocommit: bool = False,
        row_factory: Factory[Row] = rows.tuple_row,  # type: ignore[assignment]
    ) -> None:
        super().__init__()
        self._raw = raw
        self._own_codecs: dict[int, _pg.Codec] = getattr(raw, "_own_codecs", {})
        self._lock = FairLock()
        self._holder: greenlet.greenlet | None = None  # who streams or copies
        self._autocommit = autocommit
        self._savepoints = 0
        self._blocks = 0
        self._pipeline: Pipeline | None = None
        self._notice_handlers: list[Callable[[_errors.Diagnostic], Any]] = []
        self.row_factory = row_factory
        #: What the transactions to come are like; None: as the session's defaults are.
        self.isolation_level: str | None = None
        self.read_only: bool | None = None
        self.deferrable: bool | None = None

    # -- running

    def _run(
        self, query: str, params: Any, timeout: float | None, cursor: Cursor[Any] | None = None
    ) -> list[Result] | _pg.Op[Result]:
        """The results of a query; in a pipeline what will have its result."""
        if not isinstance(query, str):
            raise TypeError(f"a query is a str, not {type(query).__name__}")
        raw = self._raw
        sql, args, oids = prepare(query, params)
        with self._turn():
            if self._pipeline is not None:
                self._begin(timeout)
                op = raw._op("query", "tuples", sql, args or (), oids=oids, timeout=timeout)
                return self._pipeline._send(op, cursor)
            if not args and is_script(sql):
                self._begin(timeout)
                results = raw._op("script", "tuples", sql, timeout=timeout).run()
                return [typed(result, raw._codecs) for result in results or ()]
            before = self._begin_sql() if self._begins() else None
            op = raw._op("query", "tuples", sql, args, oids=oids, timeout=timeout, before=before)
            return [op.run()]

    def _begins(self) -> bool:
        """Whether the next statement is the first of a transaction."""
        return not (self._autocommit or self._blocks) and self._raw._transaction_status == IDLE

    def _begin(self, timeout: float | None = None) -> None:
        """The first statement begins a transaction, if that is wanted."""
        pipeline = self._pipeline
        if pipeline is None:
            if self._begins():
                self._raw._op("script", "status", self._begin_sql(), timeout=timeout).run()
        elif pipeline.idle and not (self._autocommit or self._blocks):
            pipeline.idle = False
            pipeline._send(self._raw._op("query", "nothing", self._begin_sql(), ()))

    def _run_many(self, query: str, params_seq: Iterable[Any]) -> int:
        """Run a query for each of the parameters; the number of rows that were concerned.

        What comes in a row and has the same types goes to the server together.
        """
        raw = self._raw
        rows = (prepare(query, params) for params in params_seq)
        # Where the statement is a transaction of its own, they are one as a whole.
        alone = self._autocommit and self._pipeline is None and raw._transaction_status == IDLE
        size = None if alone else ROWS
        total, more = 0, True
        while more:
            # Before our turn: what makes them may wait, and use this connection, too.
            some = list(islice(rows, size))
            more = len(some) == size
            with self._turn():
                self._begin()
                for (sql, oids), group in groupby(some, key=lambda row: (row[0], row[2])):
                    values = [row[1] for row in group]
                    if self._pipeline is None:
                        total += raw._op("many", "nothing", sql, values, oids=oids).run()
                        continue
                    for args in values:
                        op = raw._op("query", "nothing", sql, args or (), oids=oids)
                        self._pipeline._send(op)
        return total if self._pipeline is None else -1

    @contextmanager
    def _copying(self, sql: str) -> Iterator[Copy]:
        """A COPY, which has the connection for itself until the block ends."""
        raw = self._raw
        if self._pipeline is not None:
            raise NotSupportedError("COPY cannot be part of a pipeline: do it outside")
        with self._hold():
            self._begin()
            yield Copy(raw, sql)

    @contextmanager
    def _streaming(
        self, query: str, params: Any, timeout: float | None, want: str, batch_rows: int = 0
    ) -> Iterator[tuple[_pg.Statement, Callable[[Any], Any]]]:
        """A query that has the connection for itself until the block ends: read() gives some of its
        rows, as a list or in the batch that it is given; at the end a str."""
        raw = self._raw
        sql, args, oids = prepare(query, params)
        if self._pipeline is not None:
            raise NotSupportedError("a stream cannot be part of a pipeline: do it outside")
        with self._hold():
            self._begin(timeout)
            session = raw._op(
                "stream", want, sql, args, oids=oids, timeout=timeout, column=batch_rows
            )
            try:
                statement = session.run()

                def read(batch: Any) -> Any:
                    return raw._op(
                        "copy_read", "nothing", "", batch, session=session, timeout=timeout
                    ).run()

                yield statement, read
            finally:
                session.close()

    def _prepared(self, sql: str) -> _pg.Statement:
        """The columns of a query, which is not run."""
        if self._pipeline is not None:
            raise NotSupportedError("COPY cannot be part of a pipeline: do it outside")
        with self._turn():
            self._begin()
            statement: _pg.Statement = self._raw._op("prepare", "statement", sql).run()
            return statement

    def _holds(self) -> bool:
        """Whether this greenlet streams or copies: what it asks now would wait for that."""
        return self._holder is not None and self._holder is greenlet.getcurrent()

    def _check_turn(self) -> None:
        if self._holds():
            raise InterfaceError(
                "the connection is streaming rows here, or copying: do that to the end, or use "
                "another one"
            )

    def _turn(self) -> FairLock:
        """For a ``with`` block in which nobody else asks anything."""
        if self._holder is not None:
            self._check_turn()
        return self._lock

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """The same, of which this greenlet makes use until the block ends."""
        with self._turn():
            self._holder = greenlet.getcurrent()
            try:
                yield
            finally:
                self._holder = None

    def _let_go(self) -> None:
        """A stream or COPY that this greenlet has left open is given up."""
        if self._holds():
            self._raw._cancel()

    def _command(self, sql: str) -> None:
        self._raw._op("script", "status", sql).run()

    @overload
    def cursor(self) -> Cursor[Row]: ...
    @overload
    def cursor(self, *, row_factory: Factory[Other]) -> Cursor[Other]: ...
    def cursor(self, *, row_factory: Any = None) -> Cursor[Any]:
        """A new cursor."""
        if self.closed:
            raise ConnectionClosed("the connection is closed")
        return Cursor(self, row_factory or self.row_factory)

    def execute(
        self, query: str, params: Any = None, *, timeout: float | None = None
    ) -> Cursor[Row]:
        """Run a query on a new cursor, which is returned."""
        return self.cursor().execute(query, params, timeout=timeout)

    # -- transactions

    @property
    def autocommit(self) -> bool:
        """Whether each statement is a transaction of its own; else the first one begins one."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if self._raw._transaction_status != IDLE and not self.closed:
            raise ProgrammingError("autocommit cannot be changed inside a transaction")
        self._autocommit = bool(value)

    def commit(self) -> None:
        """End the transaction, if one is open, and keep what it did."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """End the transaction, if one is open, and undo what it did."""
        self._end("ROLLBACK")

    def _end(self, sql: str) -> None:
        if self._blocks:
            raise ProgrammingError(f"{sql} inside a block of transaction() is the block's own")
        if self._tpc is not None:
            raise ProgrammingError(f"{sql} of a transaction by tpc_begin() is tpc_{sql.lower()}()")
        if self.closed:
            raise ConnectionClosed("the connection is closed")
        with self._turn():
            if self._pipeline is not None:
                self._pipeline._end_transaction(sql)
            elif self._raw._transaction_status != IDLE:
                self._command(sql)

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """A block whose queries are sent without waiting for the answers to those before them.

        execute() returns at once; the cursor waits for its result when that is fetched. When a
        query fails, nothing that follows it is done up to the next ``pipeline.sync()``: those raise
        PipelineAborted. The first error that nobody was told of is raised by sync(), and at the
        end of the block, which is a sync as well. A block that is left by an exception gives its
        queries up. COPY, scripts and transaction() belong outside.
        """
        raw = self._raw
        if self._pipeline is not None:
            raise InterfaceError("a pipeline is open already on this connection")
        self._check_turn()
        idle = raw._transaction_status == IDLE
        raw._op("pipeline", "nothing", "").run()
        pipeline = self._pipeline = Pipeline(raw, idle)
        try:
            yield pipeline
        except BaseException:
            pipeline._give_up()
            raise
        finally:
            self._pipeline = None
            if not raw.is_closed():
                try:
                    raw._op("pipeline_end", "nothing", "").run()
                except BaseException:
                    pipeline._give_up()
                    raise
        pipeline._settle()

    def _begin_sql(
        self,
        isolation: str | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> str:
        return begin(
            self.isolation_level if isolation is None else isolation,
            self.read_only if readonly is None else readonly,
            self.deferrable if deferrable is None else deferrable,
        )

    def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,
        *,
        isolation: str | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> Transaction:
        """A block that is done as a whole or not at all; inside a transaction: a savepoint.

        ``raise Rollback`` undoes it and goes on behind it, `force_rollback` undoes it in any case.
        `isolation` is ``"serializable"``, say; what is None is as the connection's isolation_level,
        read_only and deferrable say, or the session's defaults.
        """
        if self._pipeline is not None:
            raise InterfaceError(
                "a transaction() block belongs around a pipeline, not inside of it"
            )
        self._check_turn()
        options = (isolation, readonly, deferrable)
        return Transaction(self, options, savepoint_name, force_rollback)

    # -- types

    def set_type_codec(
        self,
        typename: str,
        *,
        schema: str = "public",
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any],
        format: str = "text",
    ) -> None:
        """Have values of a type be read and written by functions of yours.

        As ``aio.Connection.set_type_codec()``: `format` is "text", "binary" or "tuple". For the
        connections of a pool do it in its ``configure``.
        """
        self._change_codecs(set_codec(self, self._raw, typename, schema, encoder, decoder, format))

    def reset_type_codec(self, typename: str, *, schema: str = "public") -> None:
        """Undo set_type_codec()."""
        self._change_codecs(reset_codec(self, self._raw, typename, schema))

    def _change_codecs(self, steps: Steps[None]) -> None:
        if self.closed:
            raise ConnectionClosed("the connection is closed")
        if self._pipeline is not None:
            raise NotSupportedError("codecs cannot be changed in a pipeline: do it outside")
        with self._turn():
            run(steps)

    def _use_codecs(self) -> None:
        raw = self._raw
        connected(raw, self._own_codecs)
        if type(raw) is _pg.Connection:  # a pool's is the other face's, too, and dressed later
            dress(raw, _json.codecs())
        raw._forget_codecs()

    # -- what happens by itself

    def add_notice_handler(self, callback: Callable[[_errors.Diagnostic], Any]) -> None:
        """Have callback(diagnostic) called for each notice; without any they are logged."""
        self._notice_handlers.append(callback)

    def remove_notice_handler(self, callback: Callable[[_errors.Diagnostic], Any]) -> None:
        """Undo add_notice_handler()."""
        self._notice_handlers.remove(callback)

    def _event(self, kind: str, value: Any) -> None:
        if kind == "notice":
            diagnostic = _errors.Diagnostic(value)
            handlers = list(self._notice_handlers)  # one may remove itself
            for callback in handlers:
                callback(diagnostic)
            if not handlers:
                level = logging.WARNING if diagnostic.severity == "WARNING" else logging.INFO
                logger.log(level, "%s: %s", diagnostic.severity, diagnostic.message_primary)
        elif kind == "outdated":
            forget_types(self._raw, self._own_codecs)
            dress(self._raw, _json.codecs())
        elif kind in ("notification", "closed"):
            self._hear(kind, value)

    def __del__(self) -> None:
        raw = getattr(self, "_raw", None)
        if raw is not None and not raw.is_closed():
            warnings.warn(f"unclosed connection {self!r}", ResourceWarning, 2, source=self)
            raw.terminate()

    # -- what is known of it

    @property
    def closed(self) -> bool:
        """Whether it is closed, by whichever side."""
        return self._raw.is_closed()

    @property
    def tls(self) -> TLS | None:
        """What TLS has agreed on, and the server's certificate; None: closed, or not encrypted."""
        return tls_of(self._raw)

    @property
    def raw(self) -> _pg.Connection:
        """The connection itself, which the async face shares."""
        return self._raw

    def close(self) -> None:
        """Close it; a transaction that is open is rolled back by the server."""
        if not self._raw.is_closed():
            self._let_go()
            self._raw._op("finish", "nothing", "").run()

    def __enter__(self) -> Connection[Row]:
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Commit, or roll back after an exception; then close."""
        if self.closed:
            return
        try:
            if typ is None:
                self.commit()
            elif not self._holds():  # else close() undoes it, too
                self.rollback()
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"to server process {self._raw._pid}"
        return f"<{type(self).__module__}.{type(self).__name__} {state}>"


@overload
def connect(
    conninfo: str = "",
    *,
    autocommit: bool = False,
    timeout: float | None = None,
    command_timeout: float | None = None,
    row_factory: None = None,
    pooler: bool = False,
    tls_pin: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Connection[tuple[Any, ...]]: ...
@overload
def connect(
    conninfo: str = "",
    *,
    autocommit: bool = False,
    timeout: float | None = None,
    command_timeout: float | None = None,
    row_factory: Factory[Other],
    pooler: bool = False,
    tls_pin: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Connection[Other]: ...
def connect(
    conninfo: str = "",
    *,
    autocommit: bool = False,
    timeout: float | None = None,
    command_timeout: float | None = None,
    row_factory: Any = None,
    pooler: bool = False,
    tls_pin: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Connection[Any]:
    """Connect to a server: a libpq connection string or URL, and any option of libpq by its name.

    Several hosts are tried in turn, each address within ``connect_timeout`` seconds if that is set,
    all of them within `timeout` seconds. Names are resolved off the loop (where none runs, by a
    call of the system's that nothing ends before its time). Waits as every call of the connection
    does; can be cancelled. OperationalError (CannotConnect, or what the server said); TimeoutError
    after `timeout`.

    ``command_timeout`` is the limit, in seconds, of each wait for the server whose call names none,
    those of BEGIN, COMMIT and a COPY's pieces included: then TimeoutError, and the connection is
    usable if the server ends what it does when asked to, within ``raw.cancel_timeout`` seconds;
    else it is closed. Without it a server that is frozen is waited for as long as it is. Against
    one that is gone without a word there are libpq's ``tcp_user_timeout`` (in milliseconds) and
    ``keepalives_*``.

    ``pooler=True`` is for PgBouncer and others that give a session to a client for a transaction or
    a statement only: nothing is prepared on the server.

    ``tls_pin``, ``"sha256/…"`` or several: the server's public key must be one of them, whoever has
    signed its certificate, which is looked at before anything is sent to it (``docs/tls.md``); else
    TlsPinMismatch. TLS is demanded then.
    """
    raw = _pg.Connection()
    raw._pooler = pooler
    raw._timeout = check_command_timeout(command_timeout)
    connect_sync(raw, demand(raw, options_of(conninfo, kwargs), tls_pin), timeout)
    dress(raw, _json.codecs())
    connection: Connection[Any] = Connection(
        raw, autocommit=autocommit, row_factory=row_factory or rows.tuple_row
    )
    ref = weakref.ref(connection)

    def on_event(kind: str, value: Any) -> None:
        target = ref()
        if target is not None:
            target._event(kind, value)

    raw._on_event = on_event
    return connection
