"""SQLAlchemy: ``GreenQueuePool``, a connection pool whose checkout waits without blocking the loop.

    greenletio.patch_psycopg2()  # or patch_psycopg()
    engine = create_engine("postgresql+psycopg2://...", poolclass=GreenQueuePool)

Sync engines, sessions and ORM models are then used in functions that run under ``async_`` or
``spawn``; touched directly in a coroutine (a lazy attribute, say), they raise ``WouldBlockError``,
which names the frame that lacks ``async_``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any, cast

from sqlalchemy import event, exc
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.util.queue import Empty, Full, QueueCommon

from greenletio import _core
from greenletio._lock import FairLock
from greenletio._loops import would_block

__all__ = ("GreenQueuePool",)


class _Turn:
    """A checkout in the queue, and what it gets: a connection, or None: the right to make one.

    Who has left the queue has got it, whether or not the wait ends with an exception.
    """

    __slots__ = ("record", "waiter")

    def __init__(self) -> None:
        self.waiter: _core.Waiter[None] = _core.Waiter()
        self.record: ConnectionPoolEntry | None = None


class _Idle(QueueCommon[ConnectionPoolEntry]):
    """The idle connections, and those who wait for one. Never waits itself.

    Somebody waits only while nothing is idle and no connection may be added: the pool keeps that
    true under `mutex`. It is re-entrant because a finalizer that the garbage collector runs
    inside may return a connection.
    """

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        self.maxsize = maxsize
        self.use_lifo = use_lifo
        self.mutex = threading.RLock()
        self.turns: deque[_Turn] = deque()
        self._items: deque[ConnectionPoolEntry] = deque()

    def grant(self, record: ConnectionPoolEntry | None) -> bool:
        """Give the next in the queue its turn; False if nobody waits. Under `mutex`."""
        if not self.turns:
            return False
        turn = self.turns.popleft()
        turn.record = record
        turn.waiter.set(None)
        return True

    def empty(self) -> bool:
        return not self._items

    def full(self) -> bool:
        return 0 < self.maxsize <= len(self._items)

    def qsize(self) -> int:
        return len(self._items)

    def get_nowait(self) -> ConnectionPoolEntry:
        with self.mutex:
            if not self._items:
                raise Empty
            return self._items.pop() if self.use_lifo else self._items.popleft()

    def put_nowait(self, item: ConnectionPoolEntry) -> None:
        with self.mutex:
            if self.full():
                raise Full
            self._items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        return self.get_nowait()

    def put(
        self, item: ConnectionPoolEntry, block: bool = True, timeout: float | None = None
    ) -> None:
        self.put_nowait(item)


class _QuietDialect:
    """The engine's dialect as the pool sees it: nothing is sent while a connection is collected.

    A connection that is garbage-collected instead of closed is reset by SQLAlchemy on the spot,
    which would mean to wait in the middle of a collection. As the pool of an asynchronous
    dialect it is closed instead, with a warning.
    """

    is_async = True
    has_terminate = True

    def __init__(self, dialect: Any) -> None:
        self.dialect = dialect

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dialect, name)

    def do_terminate(self, dbapi_connection: Any) -> None:
        self.dialect.do_close(dbapi_connection)


class GreenQueuePool(QueuePool):
    """SQLAlchemy's ``QueuePool`` for greenlets: same parameters, same events, same exceptions.

    For synchronous engines on a driver that greenletio makes cooperative. One pool serves
    greenlets of any number of loops and plain threads at the same time.

    - A checkout that finds no connection waits, at most ``timeout`` seconds (``TimeoutError``, as
      QueuePool's): a greenlet is suspended, a plain thread blocks. Directly in a running loop it
      raises ``WouldBlockError``; one that needs no wait works there. A connection or a free place
      goes to the one who has waited longest, and not to one who comes later.
    - A checkout that is cancelled, in the queue or while it connects, takes nothing with it.
    - A query that is cancelled leaves its connection in the pool if the driver could bring it
      back to a usable state (QueuePool always closes it).
    - A connection that is garbage-collected without having been closed is closed, not reset.

    ``dispose()`` and ``recreate()`` don't wait for connections that are in use.
    """

    _queue_class = _Idle
    _pool: _Idle
    _quiet_dialect = _QuietDialect(QueuePool._dialect)

    def __init__(self, creator: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(creator, *args, **kwargs)
        self._overflow_lock = cast(Any, self._pool.mutex)  # re-entrant, for the same reason
        # Held while the first connection runs the connect events, which query the server: a
        # thread's lock would block the loop of the second.
        for listeners in (self.dispatch.connect, self.dispatch.first_connect):
            cast(Any, listeners.for_modify(self.dispatch))._exec_once_mutex = FairLock()

    @property
    def _dialect(self) -> Any:
        return self._quiet_dialect

    @_dialect.setter
    def _dialect(self, dialect: Any) -> None:
        if isinstance(dialect, _QuietDialect):  # from recreate()
            dialect = dialect.dialect
        self._quiet_dialect = _QuietDialect(dialect)
        if isinstance(dialect, Dialect) and not event.contains(
            dialect, "handle_error", _keep_cancelled
        ):
            event.listen(dialect, "handle_error", _keep_cancelled)

    def _do_get(self) -> ConnectionPoolEntry:
        idle = self._pool
        if self._pre_ping and _core.place() < 0:  # else the ping would fail, and cost a connection
            raise would_block("a checkout with pool_pre_ping")
        turn: _Turn | None = None
        with idle.mutex:
            if not idle.empty():
                return idle.get_nowait()
            if not self._inc_overflow():
                turn = _Turn()
                idle.turns.append(turn)
        if turn is not None:
            record = self._wait_for(turn)
            if record is not None:
                return record
        try:
            return self._create_connection()
        except BaseException:
            self._dec_overflow()
            raise

    def _wait_for(self, turn: _Turn) -> ConnectionPoolEntry | None:
        try:
            turn.waiter.wait(self._timeout)
        except BaseException:
            if not self._leave(turn):
                self._pass_on(turn.record)
            raise
        if self._leave(turn):
            raise exc.TimeoutError(
                f"GreenQueuePool limit of size {self.size()} overflow {self.overflow()} reached, "
                f"connection timed out, timeout {self._timeout:.2f}",
                code="3o7r",
            )
        return turn.record

    def _leave(self, turn: _Turn) -> bool:
        """Leave the queue; False if the turn had come before."""
        with self._pool.mutex:
            try:
                self._pool.turns.remove(turn)
            except ValueError:
                return False
            return True

    def _pass_on(self, record: ConnectionPoolEntry | None) -> None:
        if record is None:
            self._dec_overflow()
        else:
            self._do_return_conn(record)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        idle = self._pool
        with idle.mutex:
            if idle.grant(record):
                return
            if not idle.full():
                idle.put_nowait(record)
                return
        try:
            record.close()
        finally:
            self._dec_overflow()

    def _dec_overflow(self) -> Any:
        with self._pool.mutex:
            # Handed on if somebody waits, else freed.
            return self._pool.grant(None) or super()._dec_overflow()

    def dispose(self) -> None:
        super().dispose()
        with self._pool.mutex:
            while self._pool.turns and self._inc_overflow():
                self._pool.grant(None)


def _keep_cancelled(context: ExceptionContext) -> None:
    """Don't let SQLAlchemy close a connection that its driver has brought back after a cancel.

    Only where a statement was cancelled: the rollback of the surrounding block is still to come,
    and gives the connection back. Where that is cancelled itself, nothing but SQLAlchemy's
    invalidation would.
    """
    if (
        isinstance(context.original_exception, asyncio.CancelledError)
        and context.execution_context is not None
        and context.connection is not None
        and isinstance(context.connection.engine.pool, GreenQueuePool)
        and not context.connection.closed
        and not context.connection.invalidated
        and _is_usable(context.connection.connection.dbapi_connection)
    ):
        context.is_disconnect = False


def _is_usable(dbapi_connection: Any) -> bool:
    if dbapi_connection.closed:
        return False
    if hasattr(dbapi_connection, "raw"):  # our driver's: what comes next waits for the query's end
        return True
    # psycopg2 and psycopg 3 alike; 1 is a query in progress, 4 a lost connection.
    return dbapi_connection.info.transaction_status not in (1, 4)
