"""Pool: asyncpg's, on the heart that it shares with the sync face (``pool.sync``)."""

from __future__ import annotations

import asyncio
import logging
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from greenletio import _pg
from greenletio.pg._pool import Core
from greenletio.pg._pool_connect import Connect, Run, leave, report_transaction
from greenletio.pg._pool_parts import Limits, PoolClosed, wait
from greenletio.pg._pool_roles import set_roles
from greenletio.pg._pool_slot import Reset, Slot
from greenletio.pg._reset import RESET_TIMEOUT
from greenletio.pg.aio import _connect
from greenletio.pg.aio._connection import Connection
from greenletio.pg.aio._pool_proxy import PoolConnectionProxy
from greenletio.pg.aio._pool_queries import Queries
from greenletio.pg.aio._pool_shared import Shared
from greenletio.pg.errors import InterfaceError

if TYPE_CHECKING:
    from greenletio.pg._pool_sync import Pool as SyncPool

__all__ = ("Pool", "PoolAcquireContext", "PoolConnectionProxy", "create_pool")

logger = logging.getLogger("greenletio.pg.pool")

INF = float("inf")
#: Seconds after which close() says that it still waits for connections.
LONG_CLOSE = 60.0
NO_LEASE = "setup= and reset= are for leases: a pool that has them has no shared connections"

Callback = Callable[[Any], Awaitable[Any]]


class PoolAcquireContext:
    """What ``pool.acquire()`` gives: await it, or ``async with`` it."""

    __slots__ = ("_connection", "_done", "_pool", "_readonly", "_timeout")

    def __init__(self, pool: Pool, timeout: float | None, readonly: bool = False) -> None:
        self._readonly = readonly
        self._pool = pool
        self._timeout = timeout
        self._connection: PoolConnectionProxy | None = None
        self._done = False

    async def __aenter__(self) -> PoolConnectionProxy:
        if self._connection is not None or self._done:
            raise InterfaceError("a connection is already acquired")
        self._connection = connection = await self._pool._acquire(self._timeout, self._readonly)
        return connection

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._done = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._pool.release(connection)

    def __await__(self) -> Generator[Any, Any, PoolConnectionProxy]:
        self._done = True
        return self._pool._acquire(self._timeout, self._readonly).__await__()


class Pool(Queries):
    """A pool of connections: asyncpg's names, arguments and semantics.

    ``await pool`` (or ``async with pool``) connects ``init_size`` of them, by default `min_size`.
    It belongs to no loop: tasks of any loop may use it, and by ``pool.sync`` greenlets and threads.
    Who waits for a connection gets one in the order of asking. A connection that is released is
    reset in the background, and given to nobody before that is over.

    With ``readonly=n`` the connection string names several servers, and the pool finds out which
    one is the primary: its connections are to that one, and up to `n` more to standbys, for
    ``acquire(readonly=True)``; to the primary, too, where there is no standby, unless
    `readonly_fallback` is False. A standby that lags by more than `max_lag` seconds is not read.

    With ``shared=n`` the queries of the pool itself go out together with those of other tasks, on
    `n` connections that all share: ``pool.shared`` says how.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        min_size: int = 10,
        max_size: int = 10,
        init_size: int | None = None,
        max_queries: float = 50000,
        max_inactive_connection_lifetime: float = 300.0,
        max_lifetime: float = INF,
        max_waiting: float = INF,
        connect: Callable[..., Awaitable[Connection]] | None = None,
        setup: Callback | None = None,
        init: Callback | None = None,
        reset: Callback | None = None,
        loop: object = None,
        connection_class: type[Connection] = Connection,
        record_class: type[_pg.Record] = _pg.Record,
        name: str | None = None,
        shared: int = 0,
        readonly: int = 0,
        readonly_fallback: bool = True,
        max_lag: float | None = None,
        **connect_kwargs: Any,
    ) -> None:
        idle = max_inactive_connection_lifetime
        limits = Limits(
            min_size,
            max_size,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime or INF,
            max_idle=idle or INF,
            max_uses=max_queries,
            keep_idle=0,
        )
        init_size = min_size if init_size is None else init_size
        if init_size < 0:
            raise ValueError("init_size is expected to be greater or equal to zero")
        if init_size > max_size:
            raise ValueError("init_size is greater than max_size")
        if init_size < min_size:
            raise ValueError("init_size is smaller than min_size")
        if max_queries <= 0:
            raise ValueError("max_queries is expected to be greater than zero")
        if idle < 0:
            raise ValueError(
                "max_inactive_connection_lifetime is expected to be greater or equal to zero"
            )
        if not issubclass(connection_class, Connection):
            raise TypeError(
                "connection_class is expected to be a subclass of greenletio.pg.aio.Connection, "
                f"got {connection_class!r}"
            )
        if not issubclass(record_class, _pg.Record):
            raise TypeError(
                "record_class is expected to be a subclass of greenletio.pg.aio.Record, "
                f"got {record_class!r}"
            )
        if shared < 0:
            raise ValueError("shared is expected to be a number of connections")
        if shared and (setup is not None or reset is not None):
            raise ValueError(NO_LEASE)
        self._shares = bool(shared)
        self._shared_size = int(shared) or 1
        self._shared: Shared | None = None
        self._init_size = init_size
        self._setup = setup
        self._init = init
        self._reset = reset
        self._make = connect
        self._classes = {"connection_class": connection_class, "record_class": record_class}
        self._kwargs: dict[str, Any] = {"dsn": dsn, **connect_kwargs}
        self._state = "new"  # initializing, open, closing, closed
        self._core = Core(self, limits, name or f"at {id(self):#x}")
        if readonly and connect is not None:
            raise ValueError("a pool with readonly=… connects by itself: without connect=")
        set_roles(self._core, readonly, self._kwargs, readonly_fallback, max_lag)
        self._sync: SyncPool | None = None
        self._check = self._check_state

    @classmethod
    def _of(cls, core: Core, check: Callable[[], None], shared_size: int) -> Pool:
        """The async face of a pool of the other one's."""
        pool = cls.__new__(cls)
        pool._core = core
        pool._check = check
        pool._init_size = core.limits.min_size
        pool._setup = pool._init = pool._reset = None
        pool._shares, pool._shared_size, pool._shared = False, shared_size, None
        pool._sync = None
        pool._state = "open"
        return pool

    # ---- connecting: what the core asks

    def connect(self, core: Core, slot: Slot, timeout: float) -> Connect:
        kwargs = {**self._kwargs, **self._classes}
        if timeout < INF:
            kwargs["timeout"] = min(kwargs.get("timeout") or 60, max(timeout, 0.001))
        if core.role is not None:
            kwargs = core.role.options(kwargs, slot)
        make = self._make
        if make is None:
            return Connect(slot, lambda open: _connect.connect(_open=open, **kwargs), self._init)
        # Ours are not known to it: as asyncpg, it gets what connect() was to get.
        theirs = {**self._kwargs, **self._classes}
        dsn = theirs.pop("dsn")
        args = () if dsn is None else (dsn,)
        expected = self._classes["connection_class"]
        return Connect(slot, lambda _: make(*args, loop=None, **theirs), self._init, expected)

    def set_connect_args(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """What new connections are made with from now on; expire_connections() replaces the old."""
        if self._core.face is not self:
            raise InterfaceError("this pool is a greenletio.pg.Pool's: it was given its arguments")
        self._kwargs = {"dsn": dsn, **connect_kwargs}

    # ---- opening and closing

    async def _initialize(self) -> Pool:
        if self._state in ("open", "closing"):
            return self
        if self._state == "initializing":
            raise InterfaceError("pool is being initialized in another task")
        if self._state == "closed":
            raise PoolClosed("pool is closed")
        self._state = "initializing"
        try:
            await self._fill()
        except BaseException:
            self._state = "closed"
            self._core.terminate()
            raise
        self._state = "open"
        return self

    async def _fill(self) -> None:
        """The first by itself: what is wrong with the arguments is wrong for all."""
        if not self._init_size:
            return
        tasks: list[asyncio.Future[Any]] = []
        slots = [await wait(self._core.acquire(INF))]
        try:
            for _ in range(self._init_size - 1):
                tasks.append(asyncio.ensure_future(wait(self._core.acquire(INF))))
            slots += await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        for slot in slots:
            self._core.ready(slot)
        self._core.stats.clear()  # these were nobody's requests

    def _check_state(self) -> None:
        if self._state == "initializing":
            raise InterfaceError(
                "pool is being initialized, but not yet ready: likely there is a race between "
                "creating a pool and using it"
            )
        if self._state == "new":
            raise InterfaceError("pool is not initialized")
        if self._state != "open":
            raise PoolClosed(f"pool is {self._state}")

    def is_closing(self) -> bool:
        """Whether it is closing, or closed."""
        return self._state in ("closing", "closed")

    async def close(self) -> None:
        """Close it when every connection was released; meanwhile nobody gets one.

        Waits without limit: ``asyncio.timeout()`` sets one, and after that, or if it is cancelled,
        the pool is terminated.
        """
        if self._state == "closed":
            return
        if self._state != "closing":
            self._check()
        self._state = "closing"
        timer = asyncio.get_running_loop().call_later(LONG_CLOSE, _closing_takes_long)
        self._core.close()
        try:
            await wait(self._core.drained())
        except BaseException:
            self.terminate()
            raise
        finally:
            timer.cancel()
            self._state = "closed"

    def terminate(self) -> None:
        """Close every connection at once."""
        if self._state == "closed":
            return
        if self._state != "closing":
            self._check()
        self._state = "closed"
        self._core.terminate()

    async def expire_connections(self) -> None:
        """Have every connection replaced before it is acquired again."""
        self._core.expire()

    def __await__(self) -> Generator[Any, Any, Pool]:
        return self._initialize().__await__()

    async def __aenter__(self) -> Pool:
        return await self._initialize()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def sync(self) -> SyncPool:
        """The same pool for greenlets and threads; it closes with this one."""
        if self._sync is None:
            from greenletio.pg._pool_sync import Pool as SyncPool

            self._sync = SyncPool._of(self._core, self._check, self._shared_size)
        return self._sync

    @property
    def shared(self) -> Shared:
        """The pool's queries on connections that many tasks share, which go out together.

        ``await pool.shared.fetch(…)`` in place of ``pool.fetch(…)``: fewer round trips and less
        work for the same queries. With ``create_pool(shared=n)`` the pool's own execute(), fetch(),
        fetchrow() and fetchval() do so, on up to `n` connections beside `max_size`. Not for
        pools with ``setup`` or ``reset``, which are for leases: InterfaceError.
        """
        if self._shared is None:
            if self._setup is not None or self._reset is not None:
                raise InterfaceError(NO_LEASE)
            self._shared = Shared(self, self._shared_size)
        return self._shared

    # ---- acquiring and releasing

    def acquire(
        self, *, timeout: float | None = None, readonly: bool = False
    ) -> PoolAcquireContext:
        """A connection: ``async with pool.acquire() as connection`` releases it, too.

        Waits for one, up to `timeout` seconds (PoolTimeout, which is a TimeoutError). A cancelled
        acquire loses none. With a `timeout` release() waits for the reset, which may take as long.
        With `readonly` it is one to a standby, and cannot write (pools with ``readonly=n``; else
        InterfaceError). A pool with roles that has a `timeout` tries to connect until then.
        """
        return PoolAcquireContext(self, timeout, readonly)

    def _check_usable(self) -> None:
        if self._state != "open" or self._core.closing:
            self._check()

    async def _lease(self, timeout: float | None, readonly: bool = False) -> Slot:
        self._check_usable()
        core = self._core.of(readonly)
        slot = core.take()
        if slot is None:
            patient = core.role is not None and timeout is not None
            steps = core.acquire(INF if timeout is None else timeout, patient)
            slot = cast(Slot, await wait(steps))
        if slot.home is not _get_running_loop():
            await self._move(slot)
        return slot

    async def _move(self, slot: Slot) -> None:
        """It comes from another loop, or from sync code, or is new."""
        loop = asyncio.get_running_loop()
        slot.home = loop
        if slot.undress is not None:
            slot.wear_own()
        if slot.moves_to(loop):
            try:
                await asyncio.sleep(0)
            except BaseException:
                slot.core.give(slot)
                raise

    async def _acquire(self, timeout: float | None, readonly: bool = False) -> PoolConnectionProxy:
        slot = await self._lease(timeout, readonly)
        proxy = PoolConnectionProxy(slot, timeout)
        if self._setup is not None:
            try:
                await self._setup(proxy)
            except BaseException:
                slot.core.discard(slot)
                raise
            slot.dirty = True
        return proxy

    async def release(
        self, connection: PoolConnectionProxy, *, timeout: float | None = None
    ) -> None:
        """Give a connection back: at once, its reset goes on in the background.

        With a ``reset`` of one's own it waits for that, and with a `timeout`, here or of acquire(),
        for the pool's: as many seconds, TimeoutError after that. It asks the server in any case.
        """
        is_leased = type(connection) is PoolConnectionProxy
        slot = connection._slot if is_leased else None
        if is_leased and slot is None:
            return
        if slot is None or not self._core.is_mine(slot):
            raise InterfaceError(
                f"Pool.release() received invalid connection: {connection!r} is not a member of "
                "this pool"
            )
        connection._detach()
        timeout = connection._patience if timeout is None else timeout
        if not slot.core.has(slot):
            return  # it was terminated, or its setup() failed
        try:
            report_transaction(slot.con)
            leave(slot)
        except BaseException:  # a warning that is an error
            slot.core.discard(slot)
            raise
        if self._reset is None and (timeout is None or slot.needs_no_reset()):
            slot.core.give(slot)
        else:
            # A task of its own: whoever releases may be cancelled.
            await asyncio.shield(asyncio.ensure_future(self._give(slot, timeout)))

    async def _give(self, slot: Slot, timeout: float | None) -> None:
        core = slot.core
        timeout = timeout or RESET_TIMEOUT
        try:
            if slot.con.is_closed():
                pass
            elif self._reset is None:
                await Reset(slot, timeout).wait()
            else:
                await asyncio.wait_for(Run(self._reset, slot.con).wait(), timeout)
            slot.dirty = False
        except BaseException as exc:
            core.spoilt(slot, exc)
            raise
        core.give(slot)


def _closing_takes_long() -> None:
    logger.warning(
        "Pool.close() is taking over %d seconds: check if connections are left that were not "
        "released; asyncio.timeout() sets a limit",
        LONG_CLOSE,
    )


def create_pool(dsn: str | None = None, **kwargs: Any) -> Pool:
    """A pool: ``await`` it, or ``async with`` it. The arguments are Pool's, and connect()'s."""
    return Pool(dsn, **kwargs)
