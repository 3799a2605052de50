"""Slot: a place in a pool and the connection in it; what is done to that between two leases."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import _get_running_loop
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from greenletio import _core
from greenletio.pg._connect import dress
from greenletio.pg._pool_parts import Step
from greenletio.pg._reset import RESET_TIMEOUT, may_prepare, reset_script

if TYPE_CHECKING:
    from greenletio import _pg
    from greenletio._hosts import Host
    from greenletio.pg._pool import Core
    from greenletio.pg.aio._connection import Connection

__all__ = ("Reset", "Slot")


class Slot:
    """A place in the pool, and the connection in it.

    Whoever has taken it off the pool's lists (a lease, a connect, a reset) is its only owner.
    """

    __slots__ = (
        "_op",
        "_waiter",
        "con",
        "core",
        "detached",
        "dirty",
        "expires",
        "generation",
        "home",
        "host",
        "looked",
        "loop",
        "on_event",
        "prepared",
        "row_factory",
        "settled",
        "since",
        "standby",
        "tried",
        "undress",
        "uses",
    )

    def __init__(self, core: Core) -> None:
        self.core = core
        self.con: Connection = cast("Connection", None)  # until it is connected
        self.loop: asyncio.AbstractEventLoop | None = None  # where it was last used
        self.detached: asyncio.AbstractEventLoop | None = None  # from which it was taken away
        self.home: asyncio.AbstractEventLoop | None = None  # whose tasks may use it as it is
        self.undress: list[int] | None = None  # of what types the codecs are the sync face's
        self.on_event: Any = None  # what it was before the sync face's lease
        self.generation = core.generation
        self.expires = float("inf")
        self.since = monotonic()  # when it was leased, or came back, or its reset began
        self.uses = 0
        self.dirty = False  # something was run since it was reset
        self.prepared = False  # it may have been SQL's PREPARE
        self._op: _pg.Op[str] | None = None
        self._waiter: _core.Waiter[None] | None = None
        self.settled = False
        # Of a pool with roles:
        self.tried: list[Host] = []  # the hosts to which a connection was tried, in this order
        self.host: Host | None = None  # the one to which there is one
        self.standby: str | None = None  # what that one was: "on", "off", None: not told
        self.looked = 0.0  # when it was asked how far it lags

    def take(self, con: Connection) -> None:
        """This is its connection."""
        self.con = con
        con._pool = weakref.ref(self.core)
        self.row_factory = con.row_factory

    def is_connected(self) -> bool:
        """Whether there is a connection, open or closed."""
        return cast(object, self.con) is not None

    def used(self, sql: object = None) -> None:
        """Something is run on it: `sql`, if that is known."""
        self.dirty = True
        self.uses += 1
        if may_prepare(sql):
            self.prepared = True

    def moves_to(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """It is used there from now on. True: only after what the loop has to do already.

        Whoever takes it away from a running loop leaves the removal of its reader to that loop.
        Brought back, it would be given a reader first, which the removal then hits.
        """
        if self.loop is loop:
            return False
        if self.loop is not None:
            self.detached = self.loop
        self.loop = loop
        return loop is not None

    def wear(self, codecs: dict[int, _pg.Codec]) -> None:
        """Have the sync face's codecs, until wear_own()."""
        if self.undress is None:
            self.undress = dress(self.con, codecs)
            self.con._forget_codecs()

    def wear_own(self) -> None:
        """Undo what the sync face has changed of its codecs."""
        oids, self.undress = self.undress or (), None
        for oid in oids:
            self.con._codecs.pop(oid, None)
        self.con._forget_codecs()

    # ---- the reset

    def next_script(self) -> str:
        """What is to be run next for it; when that ended and `settled` is set, it is clean."""
        con = self.con
        # Of a query that is being cancelled, nobody knows yet what transaction it leaves.
        status = con._transaction_status
        self.settled = status != 1 and not con._busy
        return reset_script(con, self.prepared) if self.settled else ""

    def needs_no_reset(self) -> bool:
        """Whether it is a pooler's, between two transactions: the session is nobody's."""
        con = self.con
        return con._pooler and con._transaction_status == 0 and not con._busy

    def is_clean(self) -> bool:
        """What next_script() gave was run; whether that is all."""
        if self.settled:
            self.dirty = False
            if self.prepared:
                self.prepared = False
                self.con._cache.clear()
        return self.settled

    def reset(self) -> None:
        """Undo what the lease has done to the session, in the background of this loop."""
        self.since = monotonic()
        self._op = op = self.con._op("script", "status", self.next_script())
        try:
            self._waiter = waiter = op.send(None)
        except BaseException as exc:  # StopIteration, too: it ended at once
            self._went(exc)
        else:
            waiter.add_done_callback(self._answered)

    def _answered(self, waiter: _core.Waiter[None]) -> None:
        op = self._op
        if op is None or waiter is not self._waiter:
            return  # given up meanwhile
        try:
            op.send(None)
        except BaseException as exc:
            self._went(exc)

    def _went(self, exc: BaseException) -> None:
        self._op = self._waiter = None
        if not isinstance(exc, StopIteration):
            self.core.reset_ended(self, exc)
        elif self.is_clean():
            self.core.reset_ended(self, None)
        else:
            self.reset()

    def give_up(self) -> None:
        """Its reset, if one is under way, will not be heard of."""
        self._op = self._waiter = None

    def close(self) -> None:
        """Close the connection, where its loop is; never waits."""
        con, loop = self.con, self.loop or self.detached
        if not self.is_connected() or con.is_closed():
            return
        if loop is not None and loop is not _get_running_loop() and loop.is_running():
            try:
                loop.call_soon_threadsafe(con.terminate)
                return
            except RuntimeError:
                pass  # the loop was closed
        con.terminate()


class Reset(Step):
    """The reset of a lease, for whoever waits for it; raises what goes wrong."""

    def __init__(self, slot: Slot, timeout: float = RESET_TIMEOUT) -> None:
        self._slot = slot
        self._timeout = timeout
        slot.give_up()

    def _next(self) -> _pg.Op[str]:
        slot = self._slot
        return slot.con._op("script", "status", slot.next_script(), timeout=self._timeout)

    def run(self) -> None:
        self._next().run()
        while not self._slot.is_clean():
            self._next().run()

    async def wait(self) -> None:
        await self._next()
        while not self._slot.is_clean():
            await self._next()
