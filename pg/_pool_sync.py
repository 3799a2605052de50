"""Pool: psycopg_pool's conventions for sync code; its heart it shares with the async face."""

from __future__ import annotations

import select
import warnings
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from greenletio import _core
from greenletio.pg import _json, rows
from greenletio.pg._connection import Connection
from greenletio.pg._cursor import Cursor
from greenletio.pg._errors import InterfaceError, NotSupportedError, OperationalError
from greenletio.pg._pool import Core
from greenletio.pg._pool_connect import Connect, Run, leave
from greenletio.pg._pool_parts import Limits, PoolClosed, PoolTimeout, may_wait, run
from greenletio.pg._pool_roles import set_roles
from greenletio.pg._pool_shared_sync import Shared
from greenletio.pg._pool_slot import Reset, Slot
from greenletio.pg._reset import RESET_TIMEOUT, may_prepare
from greenletio.pg.errors import ConnectionClosed

if TYPE_CHECKING:
    from greenletio.pg.aio._pool import Pool as AsyncPool

__all__ = ("Pool", "PooledConnection")

INF = float("inf")

Callback = Callable[[Connection[Any]], Any]


class _Returned:
    """What a connection has in place of the real one when its lease is over."""

    _pid = 0
    _transaction_status = 0

    def is_closed(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        raise InterfaceError("this connection was given back to its pool")


_RETURNED = cast(Any, _Returned())


class PooledConnection(Connection[Any]):
    """A connection for as long as it is leased; close() closes it for good."""

    _slot: Slot | None = None

    def cursor(self, *, row_factory: Any = None) -> Cursor[Any]:
        if self._slot is None:
            raise InterfaceError("this connection was given back to its pool")
        return super().cursor(row_factory=row_factory)

    def _run(
        self, query: str, params: Any, timeout: float | None, cursor: Cursor[Any] | None = None
    ) -> Any:
        if self._slot is not None and may_prepare(query):
            self._slot.prepared = True
        return super()._run(query, params, timeout, cursor)

    def _change_codecs(self, steps: Any) -> None:
        raise NotSupportedError("the codecs of a pool's connections are set by its configure=")

    def _release(self) -> Slot | None:
        """The lease is over: gives what it was of, the first time."""
        slot, self._slot, self._raw = self._slot, None, _RETURNED
        if slot is not None:
            slot.con._on_event = slot.on_event
        return slot

    def __del__(self) -> None:
        slot = self._release()
        if slot is not None:
            warnings.warn(f"{slot.con!r} was not given back", ResourceWarning, 2, source=self)
            slot.core.discard(slot)


def _has_news(fd: int) -> bool:
    """Whether the server has said something meanwhile: perhaps that it is gone."""
    if fd < 0:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class Pool:
    """A pool of connections for sync code: greenlets of any loop, and plain threads.

    ``with pool.connection() as connection`` commits at the end of the block, or rolls back after an
    exception, and gives the connection back, which is reset. Who waits gets one in the order of
    asking. Tasks use the same pool by ``pool.aio``.

    `kwargs`: what connect() takes beside the connection string. `configure(connection)` is called
    for each new one, `reset(connection)` for each that came back, `check(connection)` before one is
    handed out: what they raise closes it. `timeout`, `max_lifetime`, `max_idle` are in seconds;
    ``max_waiting=0`` is no limit. `shared`: how many connections ``pool.shared`` may have.

    With ``readonly=n`` the connection string names several servers, and the pool finds out which
    one is the primary: its connections are to that one, and up to `n` more to standbys, for
    ``connection(readonly=True)``; to the primary, too, where there is no standby, unless
    `readonly_fallback` is False. A standby that lags by more than `max_lag` seconds is not read.
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        kwargs: Mapping[str, Any] | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool = True,
        configure: Callback | None = None,
        check: Callback | None = None,
        reset: Callback | None = None,
        name: str | None = None,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        shared: int = 1,
        readonly: int = 0,
        readonly_fallback: bool = True,
        max_lag: float | None = None,
    ) -> None:
        if timeout <= 0:
            raise ValueError("timeout is expected to be greater than zero")
        limits = Limits(
            min_size,
            min_size if max_size is None else max_size,
            max_waiting=max_waiting or INF,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
        )
        if shared <= 0:
            raise ValueError("shared is expected to be greater than zero")
        self._set(Core(self, limits, name or f"at {id(self):#x}"), None, shared)
        options = dict(kwargs or {})
        self._autocommit = bool(options.pop("autocommit", False))
        self._row_factory = options.pop("row_factory", None) or rows.tuple_row
        self._kwargs = {"dsn": conninfo or None, **options}
        set_roles(self._core, readonly, self._kwargs, readonly_fallback, max_lag)
        self._configure = configure
        self._checker = check
        self._reset = reset
        self.timeout = timeout
        self._opened = False
        if open:
            self.open()

    def _set(self, core: Core, check_open: Callable[[], None] | None, shared_size: int) -> None:
        self._core = core
        self._shared_size = shared_size
        self._shared: Shared | None = None
        self._check_open = check_open or self._check
        self._aio: AsyncPool | None = None

    @classmethod
    def _of(cls, core: Core, check_open: Callable[[], None], shared_size: int) -> Pool:
        """The sync face of a pool of the other one's."""
        pool = cls.__new__(cls)
        pool._set(core, check_open, shared_size)
        pool._autocommit = False
        pool._row_factory = rows.tuple_row
        pool._checker = pool._reset = None
        pool.timeout = 30.0
        pool._opened = True
        return pool

    @property
    def aio(self) -> AsyncPool:
        """The same pool for tasks, by asyncpg's names; it closes with this one."""
        if self._aio is None:
            # Not from its module: two threads that import a package at its ends meet in the middle.
            from greenletio.pg.aio import Pool as AsyncPool

            self._aio = AsyncPool._of(self._core, self._check, self._shared_size)
        return self._aio

    def connect(self, core: Core, slot: Slot, timeout: float) -> Connect:
        from greenletio.pg.aio import _connect

        kwargs = dict(self._kwargs)
        if timeout < INF:
            kwargs["timeout"] = max(timeout, 0.001)
        if core.role is not None:
            kwargs = core.role.options(kwargs, slot)
        init = None if self._configure is None else self._configured
        return Connect(slot, lambda open: _connect.connect(_open=open, **kwargs), init)

    def _configured(self, raw: Any) -> None:
        assert self._configure is not None
        connection = Connection(raw, autocommit=self._autocommit, row_factory=self._row_factory)
        try:
            self._configure(connection)
            if raw._transaction_status != 0:
                raise InterfaceError("configure() has left a transaction open: commit it")
        finally:
            connection._raw = _RETURNED

    # ---- opening and closing

    @property
    def name(self) -> str:
        return self._core.name

    @property
    def min_size(self) -> int:
        return self._core.limits.min_size

    @property
    def max_size(self) -> int:
        return self._core.limits.max_size

    @property
    def closed(self) -> bool:
        """Whether no connections are to be had: it is closed, or was not opened."""
        return self._core.closing or not self._opened

    def _check(self) -> None:
        if self._core.closing:
            raise PoolClosed(f"pool {self.name!r} is closed")
        if not self._opened:
            raise PoolClosed(f"pool {self.name!r} is not open: call open()")

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Begin: `min_size` connections are made in the background; `wait` for them."""
        if self._core.closing:
            raise PoolClosed(f"pool {self.name!r} is closed and cannot be opened again")
        self._opened = True
        if self.min_size:
            self._core.keeper.look_after(monotonic())
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until there are `min_size` connections; PoolTimeout, and closed, if not in time."""
        self._check_open()
        end = monotonic() + timeout
        core = self._core
        delay = 0.1
        failure: BaseException | None = None
        while core.size < core.limits.min_size:
            may_wait()
            pause = 0.01  # others are at it
            try:
                if run(core.refill()):
                    continue
            except OperationalError as exc:
                failure, pause, delay = exc, delay, 2 * delay
            except BaseException:
                self.close()
                raise
            if monotonic() + pause >= end:
                self.close()
                why = "" if failure is None else f": {failure}"
                raise PoolTimeout(
                    f"pool {self.name!r} has not {core.limits.min_size} connections after "
                    f"{timeout:.2f} s{why}"
                ) from failure
            _core.sleep(pause)

    def close(self, timeout: float = 5.0) -> None:
        """Nobody gets a connection from now on; those in use are closed when they come back.

        Never waits for them: `timeout` is there for psycopg_pool's sake.
        """
        self._core.close()

    def __enter__(self) -> Pool:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def drain(self) -> None:
        """Have every connection replaced before it is used again."""
        self._core.expire()

    # ---- connections

    @contextmanager
    def connection(
        self, timeout: float | None = None, *, readonly: bool = False
    ) -> Iterator[Connection[Any]]:
        """A connection for the block, which is its transaction: kept at its end, else undone.

        Waits up to `timeout` seconds for one, by default the pool's. With `readonly` it is one to
        a standby, and cannot write (pools with ``readonly=n``; else InterfaceError).
        """
        connection = self.getconn(timeout, readonly=readonly)
        try:
            yield connection
            if not connection.closed and connection._raw._transaction_status != 0:
                connection.commit()
        finally:  # the reset rolls back
            self.putconn(connection)

    def getconn(self, timeout: float | None = None, *, readonly: bool = False) -> Connection[Any]:
        """A connection, to be given back by putconn().

        Waits for one, up to `timeout` seconds: PoolTimeout; TooManyRequests if `max_waiting` wait
        already. A cancelled getconn loses none. While connecting fails it is tried again.
        """
        self._check_open()
        timeout = self.timeout if timeout is None else timeout
        end = monotonic() + timeout
        core = self._core.of(readonly)
        while True:
            slot = core.take()
            if slot is None:
                may_wait()
                left = max(0.0, end - monotonic())
                slot = cast(Slot, run(core.acquire(left, patient=True)))
            try:
                self._settle(slot, _get_running_loop())
                connection = self._dressed(slot)
                if self._checker is not None:
                    try:
                        Run(self._checker, connection).run()
                    except BaseException:
                        connection._release()
                        raise
                return connection
            except (OperationalError, ConnectionClosed) as exc:
                core.spoilt(slot, exc)  # the next one may do, or a new one
                if monotonic() >= end:
                    raise
            except BaseException:
                core.discard(slot)
                raise

    def _settle(self, slot: Slot, loop: Any) -> None:
        """It may come from another place, where nobody heard that the server went away."""
        if slot.moves_to(loop) and _core.place() > 0:
            _core.sleep(0)
        if loop is None and _has_news(slot.con._fd):
            slot.con._op("script", "status", "", timeout=RESET_TIMEOUT).run()

    def _dressed(self, slot: Slot) -> PooledConnection:
        """The connection as this face has it."""
        raw = slot.con
        slot.used()
        if slot.undress is None:
            slot.wear(_json.codecs())
        slot.home = None
        connection = PooledConnection(
            raw, autocommit=self._autocommit, row_factory=self._row_factory
        )
        connection._slot = slot
        ref = weakref.ref(connection)
        own = raw._event

        def on_event(kind: str, value: Any) -> None:
            target = ref()
            if target is not None:
                target._event(kind, value)
            if kind == "closed":
                own(kind, value)

        slot.on_event = raw._on_event
        raw._on_event = on_event
        return connection

    def putconn(self, connection: Connection[Any]) -> None:
        """Give it back: it is rolled back and reset, and then the next one's.

        Where a loop runs that goes on in the background; else it waits for it, whatever cancels.
        """
        slot = getattr(connection, "_slot", None)
        if slot is None or not self._core.is_mine(slot):
            raise ValueError(f"{connection!r} is not, or no longer, leased from pool {self.name!r}")
        connection._let_go()
        cast(PooledConnection, connection)._release()
        raw = slot.con
        leave(slot)
        if self._reset is None:
            if slot.core.give(slot):
                return
        elif raw.is_closed() or slot.core.closing:
            slot.core.give(slot)
            return
        self._reset_here(slot)

    def _reset_here(self, slot: Slot) -> None:
        raw = slot.con
        _core.shield(True)
        try:
            Reset(slot).run()
            if self._reset is not None:
                connection = Connection(raw, row_factory=self._row_factory)
                try:
                    Run(self._reset, connection).run()
                finally:
                    connection._raw = _RETURNED
                if raw._transaction_status != 0:
                    raise InterfaceError("reset() has left a transaction open")
        except Exception as exc:
            slot.core.spoilt(slot, exc)
        except BaseException as exc:
            slot.core.spoilt(slot, exc)
            raise
        else:
            slot.core.ready(slot)
        finally:
            later = _core.shield(False)
        if later is not None:
            raise later

    @staticmethod
    def check_connection(connection: Connection[Any]) -> None:
        """A `check` that asks the server, in a round trip."""
        connection._raw._op("script", "status", "", timeout=RESET_TIMEOUT).run()

    def check(self) -> None:
        """Have those that are idle asked whether they still work, and replace those that do not."""
        core = self._core
        for _ in range(len(core.idle)):
            slot = core.take()
            if slot is None:
                return
            core.stats.requests -= 1
            try:
                slot.moves_to(_get_running_loop())
                slot.con._op("script", "status", "", timeout=RESET_TIMEOUT).run()
            except (OperationalError, ConnectionClosed) as exc:
                core.spoilt(slot, exc)
            except BaseException:
                core.discard(slot)
                raise
            else:
                core.put_last(slot)

    @property
    def shared(self) -> Shared:
        """Queries on connections that many greenlets and threads share, which go out together.

        ``pool.shared.execute(…)`` gives a cursor. `shared` connections, at most, beside `max_size`.
        """
        if self._shared is None:
            self._shared = Shared(self, self._shared_size)
        return self._shared

    # ---- statistics

    def stats(self) -> dict[str, int]:
        """What there is and what has happened: psycopg_pool's names; times in milliseconds."""
        return self._core.as_dict()

    get_stats = stats  # psycopg_pool's name

    def pop_stats(self) -> dict[str, int]:
        """The same, and begin to count anew."""
        stats = self.stats()
        self._core.stats.clear()
        if self._core.readers is not None:
            self._core.readers.stats.clear()
        return stats
