"""Lanes: a pool's connections that many share, whose queries are on their way together.

They are beside those that are leased: nobody who leases one waits for them, and they wait for
nobody. Each is connected when it is first needed. One that is lost, old, or from which nothing has
come for too long gets no further queries, and another takes its place; the queries that are at the
server stay with it.
"""

from __future__ import annotations

import copy
import threading
from asyncio import TimeoutError as AsyncTimeout
from asyncio import _get_running_loop
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from greenletio import _core
from greenletio.pg._errors import Error, NotSupportedError, OperationalError
from greenletio.pg._pool_parts import (
    RETRY_AFTER,
    RETRY_AFTER_MOST,
    PoolClosed,
    PoolTimeout,
    Steps,
    Wait,
    reason,
)
from greenletio.pg._pool_slot import Slot
from greenletio.pg.errors import ConnectionClosed, QueryInDoubt

if TYPE_CHECKING:
    from greenletio import _pg
    from greenletio.pg._pool import Core

__all__ = ("AGAIN", "ALONE", "Lane", "Lanes")

#: What is to be done about a query that failed: once more, on another shared connection or on one
#: of its own. Else it has failed.
AGAIN, ALONE = "again", "alone"

#: Seconds without any answer after which a query that was given up takes its lane with it.
STUCK = 1.0
#: Seconds that the end of a lane may take that has something under way.
END_TIMEOUT = 10.0


class Lane:
    """A shared connection, and how many wait for something on it."""

    __slots__ = ("answers", "con", "slot", "users", "used")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.con = slot.con
        self.users = 0
        self.answers = 0
        self.used = True  # further queries may come

    def end(self, at_once: bool) -> None:
        """Close it; what is under way is nobody's, and is ended in the background. Never waits."""
        con = self.con
        if not at_once and con._busy and _get_running_loop() is not None and not con.is_closed():
            try:
                con._cancel()
                con._op("finish", "nothing", "", timeout=END_TIMEOUT).send(None)
                return
            except (StopIteration, Error):
                pass
        self.slot.close()


class Lanes:
    """The shared connections of a pool's face: up to `count`, each dressed by ``dress(raw)``."""

    def __init__(self, core: Core, count: int, dress: Callable[[Any], None]) -> None:
        self._core = core
        self._count = count
        self._dress = dress
        self._lanes: tuple[Lane, ...] = ()
        self._ending: set[Lane] = set()  # of no use for further queries, but somebody waits on it
        self._waiting: list[_core.Waiter[Any]] = []
        self._mutex = threading.RLock()  # held for a few instructions, never across a wait
        self._connecting = False
        self._wanted = False
        self.requests = self.repeated = self.in_doubt = 0
        core.lanes.append(self)

    def after_fork(self) -> None:
        """The connections are the parent's."""
        self._mutex = threading.RLock()
        self._lanes, self._ending, self._waiting = (), set(), []
        self._connecting = False

    @property
    def size(self) -> int:
        """How many there are that may be used."""
        return sum(not lane.con.is_closed() for lane in self._lanes)

    # ---- one for a query

    def pick(self) -> Lane | None:
        """The one that the fewest wait on; it has one user more. None if there is none."""
        core, best, now = self._core, None, monotonic()
        for lane in self._lanes:
            slot = lane.slot
            if (
                lane.con.is_closed()
                or slot.expires <= now
                or slot.generation != core.generation
                or not lane.used
                or (core.role is not None and core.role.is_over(slot))
            ):
                self.retire(lane)
            elif best is None or lane.users < best.users:
                best = lane
        if core.closing:
            raise PoolClosed(f"pool {core.name!r} is closed")
        if best is not None:
            with self._mutex:
                best.users += 1
            if self._count > 1 and self.is_missing():
                core.keeper.look_after(now)
        return best

    def leave(self, lane: Lane) -> None:
        """The query is over, for whoever asked it."""
        with self._mutex:
            lane.users -= 1
            over = not lane.users and not lane.used
            self.requests += 1
        if over:
            self._end(lane)

    def retire(self, lane: Lane) -> None:
        """No further queries go there; it is closed when nobody waits on it."""
        with self._mutex:
            lane.used = False
            self._lanes = tuple(one for one in self._lanes if one is not lane)
            self._ending.add(lane)
            over = not lane.users
        if over:
            self._end(lane)

    def _end(self, lane: Lane) -> None:
        with self._mutex:
            if lane not in self._ending:
                return
            self._ending.discard(lane)
        lane.end(self._core.closing)
        self._core.look_drained()

    def failed(
        self, lane: Lane, op: _pg.Op[Any], exc: BaseException, answers: int, since: float
    ) -> str | None:
        """What is to be done about it; None: raise it. Raises QueryInDoubt in its place."""
        if isinstance(exc, NotSupportedError) and op._untouched:
            return ALONE
        if isinstance(exc, AsyncTimeout | TimeoutError) or not isinstance(exc, Exception):
            if lane.answers == answers and monotonic() - since > STUCK:
                self.retire(lane)  # the next ones need not wait behind whatever it is
            return None
        lane.answers += 1
        lost = isinstance(exc, (OperationalError, ConnectionClosed)) and lane.con.is_closed()
        if not lost or (isinstance(exc, Error) and exc.diag.severity == "ERROR"):
            return None
        self.retire(lane)
        if op._untouched:
            self.repeated += 1
            return AGAIN
        self.in_doubt += 1
        raise QueryInDoubt(
            f"{exc}; the query was at the server by then: it was done, or it was not"
        ) from exc

    # ---- connecting

    def ready(self, timeout: float, patient: bool = False) -> Steps:
        """The steps to a lane for whom pick() had none. `timeout`: seconds.

        One of those who wait connects. What it fails with is everybody's, unless it is `patient`.
        """
        start = monotonic()
        while True:
            lane = self.pick()
            if lane is not None:
                return lane
            with self._mutex:
                waiter: _core.Waiter[Any] | None = None
                if self._connecting:
                    waiter = _core.Waiter()
                    self._waiting.append(waiter)
                self._connecting = True
            left = start + timeout - monotonic()
            if waiter is None:
                yield from self._connect(left, patient)
                continue
            try:
                if not (yield Wait(waiter, left)):
                    raise self._timed_out(timeout)
            finally:
                with self._mutex:
                    if waiter in self._waiting:
                        self._waiting.remove(waiter)
            failure = waiter.result()
            if isinstance(failure, Exception):
                raise copy.copy(failure) from failure

    def _timed_out(self, timeout: float, failure: BaseException | None = None) -> PoolTimeout:
        text = f"pool {self._core.name!r} had no shared connection within {timeout:.2f} s"
        if failure is not None:
            text += f"; the last attempt to connect failed: {reason(failure)}"
        return PoolTimeout(text)

    def _connect(self, timeout: float, patient: bool) -> Steps:
        """Add one; `_connecting` is ours."""
        core, failure = self._core, None
        end, delay = monotonic() + timeout, 0.0
        self._wanted = True
        try:
            while True:
                slot = Slot(core)
                try:
                    yield from core._connect(slot, end - monotonic())
                    break
                except (OperationalError, OSError, AsyncTimeout) as exc:
                    delay = min(2 * delay or RETRY_AFTER, RETRY_AFTER_MOST)
                    if not patient or core.closing:
                        raise
                    if monotonic() + delay >= end:
                        raise self._timed_out(timeout, exc) from exc
                    yield Wait(_core.Waiter(), delay)
            try:
                self._dress(slot.con)
                slot.con.shared = True
            except BaseException:
                core.discard(slot)
                raise
            with self._mutex:
                self._lanes = (*self._lanes, Lane(slot))
        except Exception as exc:
            failure = exc
            raise
        finally:
            with self._mutex:
                self._connecting = False
                waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.set(failure)
            if core.closing:
                self.close()

    def is_missing(self) -> bool:
        """Whether there are fewer than there shall be, and nobody is at it."""
        few = len(self._lanes) < self._count
        return few and self._wanted and not self._connecting and not self._core.closing

    def refill(self) -> Steps:
        """The steps to one more, where one is missing."""
        with self._mutex:
            if not self.is_missing():
                return False
            self._connecting = True
        yield from self._connect(60.0, patient=False)
        return True

    # ---- the end

    def is_drained(self) -> bool:
        """Nobody waits on any."""
        return not self._lanes and not self._ending

    def close(self) -> None:
        """No further queries: each is closed when nobody waits on it."""
        for lane in self._lanes:
            self.retire(lane)
        with self._mutex:
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.set_exception(PoolClosed(f"pool {self._core.name!r} is closed"))

    def terminate(self) -> None:
        """Close them at once."""
        for lane in (*self._lanes, *self._ending):
            lane.used = False
            lane.slot.close()
        self.close()
        with self._mutex:
            self._ending.clear()
        self._core.look_drained()

    def as_dict(self) -> dict[str, int]:
        """For the pool's statistics."""
        return {
            "shared_size": self.size,
            "shared_requests": self.requests,
            "shared_repeated": self.repeated,
            "shared_in_doubt": self.in_doubt,
        }
