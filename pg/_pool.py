"""The heart of a connection pool, which tasks of any loop, greenlets and plain threads share.

What takes time is written once, as generators that yield what is to be waited for: a Wait, a
Connect, a Reset. The faces (``pg.Pool``, ``pg.aio.Pool``) wait for those in their own ways. A
connection is leased to one at a time; when it comes back it is reset, and then handed to the one
who has waited longest, or kept.

A lease that is given back is the pool's at once: its reset goes on in the background where a loop
runs, whatever becomes of the task that had it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import weakref
from asyncio import _get_running_loop
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from greenletio import _core
from greenletio.pg._errors import InterfaceError, OperationalError
from greenletio.pg._pool_keeper import Keeper
from greenletio.pg._pool_parts import (
    RETRY_AFTER,
    RETRY_AFTER_MOST,
    Limits,
    PoolClosed,
    PoolTimeout,
    Stats,
    Step,
    Steps,
    TooManyRequests,
    Wait,
    reason,
)
from greenletio.pg._pool_slot import Reset, Slot
from greenletio.pg._reset import RESET_TIMEOUT
from greenletio.pg.errors import ConnectionClosed

if TYPE_CHECKING:
    from greenletio.pg._pool_roles import Role
    from greenletio.pg._pool_shared import Lanes
    from greenletio.pg.aio._connection import Connection

__all__ = ("Core",)

logger = logging.getLogger("greenletio.pg.pool")

#: How much of its lifetime a connection may lose by chance, so that they do not all end at once.
JITTER = 0.1
#: Seconds after which those who wait look whether the loop of a reset has ended. Each looks for
#: all of them: with every so many more it looks that much more rarely.
LOOK, LOOKERS = 1.0, 100
#: Seconds by which a loop's timer may come before its time.
ROUNDING = 0.002


class Face(Protocol):
    """What a pool needs of the face that made it."""

    def connect(self, core: Core, slot: Slot, timeout: float) -> Step:
        """Connect, and whatever a new connection needs; sets ``slot.con``."""


class Core:
    """The connections, who has them, and who waits for one."""

    def __init__(self, face: Face, limits: Limits, name: str) -> None:
        self.face = face
        self.limits = limits
        self.name = name
        self.generation = 0
        self.closing = False
        self.asleep = 0  # closed since nobody needed them: not to be replaced before somebody does
        self.idle: deque[Slot] = deque()  # the last one was used last
        self.resetting: set[Slot] = set()
        self.role: Role | None = None  # which servers its connections may be to; None: any
        self.readers: Core | None = None  # the one for readonly=True
        self.lanes: list[Lanes] = []  # the connections that many share, of each face
        self.stats = Stats()
        self._slots: set[Slot] = set()  # all that count: idle, leased, resetting, connecting
        self._queue: deque[_core.Waiter[Any]] = deque()
        self._drained: list[_core.Waiter[None]] = []
        # Held for a few instructions, never across a wait. Re-entrant: a finalizer that the
        # garbage collector runs inside may give a connection back.
        self._mutex = threading.RLock()
        self.keeper = Keeper(self)
        _cores.add(self)

    def _after_fork(self) -> None:
        """The connections are the parent's, and so are those who wait."""
        self._mutex = threading.RLock()
        self.idle.clear()
        self.resetting.clear()
        self._slots.clear()
        self._queue.clear()
        self.asleep = 0
        for lanes in self.lanes:
            lanes.after_fork()
        self.keeper = Keeper(self)

    # ---- what there is

    @property
    def size(self) -> int:
        """How many connections there are; those that are being made do not count."""
        return sum(slot.is_connected() and not slot.con.is_closed() for slot in list(self._slots))

    @property
    def places(self) -> int:
        """How many are taken, by connections that are being made, too."""
        return len(self._slots)

    @property
    def available(self) -> int:
        """How many connections nobody has; some of them may be in their reset."""
        return len(self.idle) + len(self.resetting)

    @property
    def waiting(self) -> int:
        """How many wait for a connection."""
        return len(self._queue)

    def of(self, readonly: bool) -> Core:
        """The heart for that; InterfaceError if there is none."""
        if not readonly:
            return self
        if self.readers is None:
            raise InterfaceError(
                "readonly=True needs a pool that knows the roles of its servers: make it with "
                "readonly=, the number of connections for that"
            )
        return self.readers

    def is_mine(self, slot: Slot) -> bool:
        """Whether the slot is one of this pool's, of either heart."""
        return slot.core in (self, self.readers)

    def has(self, slot: Slot) -> bool:
        """Whether that is one of its places, still."""
        return slot in self._slots

    # ---- taking one

    def take(self) -> Slot | None:
        """One that is idle, if there is one; it is leased from now on. Never waits."""
        dead = None
        with self._mutex:
            if self.closing:
                raise PoolClosed(f"pool {self.name!r} is closed")
            self.stats.requests += 1
            slot = None
            while self.idle:
                slot = self.idle.pop()
                if not self._is_spent(slot):
                    break
                dead = dead or []
                dead.append(slot)
                slot = None
            if slot is not None and self.role is not None and self.role.wants_look(slot):
                self.idle.append(slot)
                slot = None
        for one in dead or ():
            self.discard(one)
        if slot is not None:
            slot.since = monotonic()
        return slot

    def _is_spent(self, slot: Slot) -> bool:
        return (
            slot.con.is_closed()
            or slot.generation != self.generation
            or slot.expires <= monotonic()
            or slot.uses >= self.limits.max_uses
            or (self.role is not None and self.role.is_over(slot))
        )

    def acquire(self, timeout: float, patient: bool = False) -> Steps:
        """The steps to a lease for whom take() had nothing. `timeout`: seconds.

        A connect that fails is its end, or if it is `patient` is tried again until the timeout.
        """
        start = monotonic()
        stats = self.stats
        stats.queued += 1
        delay, failure, waited = 0.0, None, False
        try:
            while True:
                slot, waiter = self._grow_or_queue(again=waited, grow=not delay)
                if waiter is not None:
                    waited = True
                    left = start + timeout - monotonic()
                    slot = yield from self._granted(waiter, min(delay or left, left))
                    if slot is None and start + timeout <= monotonic():
                        self._invite()  # if it was this one's turn to connect, it is the next one's
                        raise self._timed_out(timeout, failure)
                    delay = 0.0
                if slot is None:
                    continue
                if slot.is_connected():
                    if slot.dirty:
                        left = max(0.0, start + timeout - monotonic())
                        try:
                            yield Reset(slot, min(left, RESET_TIMEOUT))
                        except (
                            OperationalError,
                            ConnectionClosed,
                            TimeoutError,
                            asyncio.TimeoutError,
                        ) as exc:
                            self.spoilt(slot, exc)
                            continue
                        except Exception as exc:
                            self.spoilt(slot, exc)
                            raise
                        except BaseException:  # cancelled: the reset goes on without us
                            if not self.give(slot):
                                self.discard(slot)
                            raise
                    if not (yield from self._may_be_used(slot, start + timeout)):
                        continue
                    slot.since = monotonic()
                    return slot
                try:
                    yield from self._connect(slot, start + timeout - monotonic())
                except (OperationalError, OSError, asyncio.TimeoutError) as exc:
                    if monotonic() >= start + timeout - ROUNDING:
                        if failure is None or not isinstance(
                            exc, (asyncio.TimeoutError, TimeoutError)
                        ):  # else it was cut short: what was wrong before says more
                            failure = exc
                        raise self._timed_out(timeout, failure) from failure
                    if not patient:
                        raise
                    failure = exc
                    delay = min(2 * delay or RETRY_AFTER, RETRY_AFTER_MOST)
                else:
                    if (yield from self._may_be_used(slot, start + timeout)):
                        return slot
        except BaseException:
            stats.errors += 1
            raise
        finally:
            stats.waited += monotonic() - start

    def _may_be_used(self, slot: Slot, end: float) -> Steps:
        """The steps to whether its role allows that, by `end` (monotonic); else it is closed."""
        role = self.role
        if role is None or not role.wants_look(slot):
            return True
        good = False
        try:
            good = yield from role.look(slot, end)
        except (OperationalError, ConnectionClosed, TimeoutError, asyncio.TimeoutError) as exc:
            self.stats.bad += 1
            logger.warning("a connection could not be asked how far its server lags: %s", exc)
        finally:
            if not good:
                self.discard(slot)
        return good

    def _grow_or_queue(
        self, again: bool, grow: bool
    ) -> tuple[Slot | None, _core.Waiter[Any] | None]:
        """A place to connect in, a connection that came free, or a place in the queue."""
        self.end_resets()
        with self._mutex:
            if self.closing:
                raise PoolClosed(f"pool {self.name!r} is closed")
            while self.idle:
                slot = self.idle.pop()
                if not self._is_spent(slot):
                    return slot, None
                self._slots.discard(slot)
                slot.close()
            stranded = self._stranded()
            if stranded is not None:
                return stranded, None
            if grow and len(self._slots) < self.limits.max_size:
                slot = Slot(self)
                self._slots.add(slot)
                self.asleep = max(0, self.asleep - 1)
                return slot, None
            if not again and len(self._queue) >= self.limits.max_waiting:
                raise TooManyRequests(
                    f"{len(self._queue)} requests wait already for the {self.limits.max_size} "
                    f"connections of pool {self.name!r}"
                )
            waiter: _core.Waiter[Any] = _core.Waiter()
            (self._queue.appendleft if again else self._queue.append)(waiter)
            return None, waiter

    def _granted(self, waiter: _core.Waiter[Any], seconds: float) -> Steps:
        """Wait for what comes: a connection, or None when it is time to look again."""
        end = monotonic() + seconds
        try:
            while not (in_time := (yield Wait(waiter, min(end - monotonic(), self._look_in())))):
                if monotonic() >= end:
                    break
                self._hand_on_stranded()
                fresh: _core.Waiter[Any] = _core.Waiter()
                with self._mutex:
                    if waiter not in self._queue:
                        break  # it was granted something at the last moment
                    self._queue[self._queue.index(waiter)] = waiter = fresh
        except BaseException:
            self._withdraw(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                granted = waiter.result()
                if isinstance(granted, Slot) and granted.dirty:  # it was handed on as it was
                    self.discard(granted)
                elif isinstance(granted, Slot):
                    self.ready(granted)
                else:
                    self._invite()
            raise
        if not in_time:
            self._withdraw(waiter)
        granted = waiter.result() if waiter.done() else None
        return granted if isinstance(granted, Slot) else None

    def _look_in(self) -> float:
        return LOOK * (1 + len(self._queue) // LOOKERS)

    def _withdraw(self, waiter: _core.Waiter[Any]) -> None:
        with self._mutex:
            try:
                self._queue.remove(waiter)
            except ValueError:
                pass  # whoever took it off has granted something

    def _connect(self, slot: Slot, timeout: float) -> Steps:
        start = monotonic()
        self.stats.connects += 1
        try:
            yield self.face.connect(self, slot, timeout)
        except BaseException as exc:
            if isinstance(exc, Exception):
                self.stats.connect_errors += 1
            self.discard(slot)
            raise
        finally:
            self.stats.connecting += monotonic() - start
        slot.since = monotonic()
        lifetime = self.limits.max_lifetime
        slot.expires = slot.since + lifetime * (1 - JITTER * random.random())
        if self.role is not None:
            self.role.connected(slot)
        if self.closing:
            self.discard(slot)
            raise PoolClosed(f"pool {self.name!r} was closed")

    def _timed_out(self, timeout: float, failure: BaseException | None) -> PoolTimeout:
        leased = len(self._slots) - self.available
        text = (
            f"no connection of pool {self.name!r} became free within {timeout:.2f} s: "
            f"{leased} of {self.limits.max_size} are in use, {len(self._queue)} more requests wait"
        )
        if failure is not None:
            text += f"; the last attempt to connect failed: {reason(failure)}"
        error = PoolTimeout(text)
        error.__cause__ = failure
        return error

    # ---- giving it back

    def give(self, slot: Slot) -> bool:
        """A lease ends: never waits, from whatever place. False if the caller must reset it.

        Where a loop runs the reset goes on in its background.
        """
        self.stats.usage += monotonic() - slot.since
        if self.role is not None:
            self._look_at_role(self.role, slot)
        if self.closing or self._is_spent(slot):
            if slot.con.is_closed():
                self.stats.lost += 1
            self.discard(slot)
        elif not slot.dirty or slot.needs_no_reset():
            slot.dirty = False
            self.ready(slot)
        elif _get_running_loop() is None:
            return False
        else:
            self.resetting.add(slot)
            slot.reset()
            if slot in self.resetting:
                self.keeper.look_after(slot.since + RESET_TIMEOUT)
        return True

    def _look_at_role(self, role: Role, slot: Slot) -> None:
        """A lease has shown what its server is."""
        if slot.con.is_closed():
            role.avoid(slot.host)
        elif role.is_over(slot):
            role.evicted += 1
            role.avoid(slot.host)
            if role.refuses(slot):
                self.expire()

    def reset_ended(self, slot: Slot, error: BaseException | None) -> None:
        """The reset in the background is over."""
        with self._mutex:
            if slot not in self.resetting:
                return
            self.resetting.discard(slot)
        if error is None:
            self.ready(slot)
        else:
            self.spoilt(slot, error)

    def spoilt(self, slot: Slot, error: BaseException) -> None:
        """It could not be reset: nobody may have it."""
        self.stats.bad += 1
        if self.role is not None:
            self.role.avoid(slot.host)
        if not slot.con.is_closed():
            logger.warning("a connection could not be reset and is closed: %s", reason(error))
        self.discard(slot)

    def ready(self, slot: Slot) -> None:
        """It is clean: to the one who has waited longest, or kept."""
        with self._mutex:
            if not self.closing and not self._is_spent(slot):
                while self._queue:
                    if self._queue.popleft().set(slot):
                        return
                slot.since = monotonic()
                self.idle.append(slot)
                self.keeper.look_after(min(slot.since + self.limits.max_idle, slot.expires))
                return
        self.discard(slot)

    def put_last(self, slot: Slot) -> None:
        """As ready() of one that was only looked at: those that were used before come first."""
        self.ready(slot)
        with self._mutex:
            if self.idle and self.idle[-1] is slot:
                self.idle.rotate(1)

    def discard(self, slot: Slot) -> None:
        """Close it and free its place."""
        slot.give_up()
        slot.close()
        with self._mutex:
            self._slots.discard(slot)
        self.look_drained()
        self._invite()
        if self._is_short() and not self.closing:
            self.keeper.look_after(monotonic())

    def look_drained(self) -> None:
        """Something has come to its end: perhaps it was the last."""
        with self._mutex:
            if self.closing and self._is_drained():
                for waiter in self._drained:
                    waiter.set(None)

    def _is_drained(self) -> bool:
        return not self._slots and all(lanes.is_drained() for lanes in self.lanes)

    def _invite(self) -> None:
        """There is room: the one who has waited longest may connect."""
        with self._mutex:
            while self._queue and len(self._slots) < self.limits.max_size:
                if self._queue.popleft().set(None):
                    return

    # ---- keeping

    def _stranded(self) -> Slot | None:
        """One whose reset began in a loop that does not run any more: it is to be reset again."""
        here = _get_running_loop()
        with self._mutex:
            for slot in list(self.resetting):  # to which threads add without the mutex
                if slot.loop is not here and slot.loop is not None and not slot.loop.is_running():
                    self.resetting.discard(slot)
                    slot.home = slot.loop = None
                    return slot
        return None

    def _hand_on_stranded(self) -> None:
        """To the one who has waited longest, who will reset it."""
        while (slot := self._stranded()) is not None:
            with self._mutex:
                while self._queue:
                    if self._queue.popleft().set(slot):
                        slot = None
                        break
            if slot is not None:
                self.discard(slot)

    def end_resets(self) -> None:
        """Give up resets whose time is over."""
        now = monotonic()
        for slot in list(self.resetting) if self.resetting else ():
            if now >= slot.since + RESET_TIMEOUT:
                error = OperationalError("the server did not answer in time")
                self.reset_ended(slot, error)

    def sweep(self) -> float:
        """Close what has been idle for too long, or is old. When to look again (monotonic)."""
        self.end_resets()
        now, due, over = monotonic(), float("inf"), []
        with self._mutex:
            spare = len(self._slots) - self.limits.keep_idle
            for slot in list(self.idle):
                if self._is_spent(slot):
                    over.append(slot)
                    self.idle.remove(slot)
                    spare -= 1
                elif now >= slot.since + self.limits.max_idle:
                    if spare > 0:
                        over.append(slot)
                        self.idle.remove(slot)
                        spare -= 1
                        self.asleep += len(self._slots) - len(over) < self.limits.min_size
                else:
                    due = min(due, slot.since + self.limits.max_idle)
                due = min(due, slot.expires) if slot not in over else due
            for slot in list(self.resetting):
                due = min(due, slot.since + RESET_TIMEOUT)
        for slot in over:
            self.discard(slot)
        return due

    def is_missing(self) -> bool:
        """Whether there are fewer connections than there shall be."""
        return self._is_short() or any(lanes.is_missing() for lanes in self.lanes)

    def _is_short(self) -> bool:
        return len(self._slots) + self.asleep < self.limits.min_size

    def refill(self) -> Steps:
        """The steps to one more connection, leased or shared, where there are too few."""
        for lanes in self.lanes:
            if (yield from lanes.refill()):
                return True
        with self._mutex:
            if self.closing or not self._is_short():
                return False
            slot = Slot(self)
            self._slots.add(slot)
        yield from self._connect(slot, 60.0)
        self.ready(slot)
        return True

    def outdated(self, con: Connection, kind: str) -> None:
        """One has found that the schema has changed: the others of this loop's are told, too."""
        loop = _get_running_loop()
        for slot in list(self._slots) if loop is not None else ():
            if slot.home is loop and slot.con is not con and not slot.con.is_closed():
                slot.con._outdated(kind)

    def expire(self) -> None:
        """Have all connections replaced: the idle ones now, the others when they come back."""
        with self._mutex:
            self.generation += 1
            idle = list(self.idle)
            self.idle.clear()
        for slot in idle:
            self.discard(slot)
        if self.readers is not None:
            self.readers.expire()

    # ---- the end

    def as_dict(self) -> dict[str, int]:
        """What there is and what has happened, by psycopg_pool's names."""
        found = {
            "pool_min": self.limits.min_size,
            "pool_max": self.limits.max_size,
            "pool_size": self.size,
            "pool_available": self.available,
            "requests_waiting": self.waiting,
            **self.stats.as_dict(),
        }
        for lanes in self.lanes:
            for name, number in lanes.as_dict().items():
                found[name] = found.get(name, 0) + number
        if self.readers is not None:
            for name, number in self.readers.as_dict().items():
                found[f"readonly_{name}"] = number
        if self.role is not None:
            found["evicted"] = self.role.evicted
        return found

    def close(self) -> None:
        """Nobody gets one from now on. What is idle is closed, the rest when it comes back."""
        with self._mutex:
            self.closing = True
            idle, queue = list(self.idle), list(self._queue)
            self.idle.clear()
            self._queue.clear()
        if self.readers is not None:
            self.readers.close()
        for waiter in queue:
            waiter.set_exception(PoolClosed(f"pool {self.name!r} is closed"))
        for lanes in self.lanes:
            lanes.close()
        self.keeper.stop()
        while (stranded := self._stranded()) is not None:
            idle.append(stranded)
        for slot in idle:
            self.discard(slot)

    def drained(self) -> Steps:
        """The step to the end of all leases, and resets, of a pool that is closing."""
        while True:
            self.end_resets()
            waiter: _core.Waiter[None] = _core.Waiter()
            with self._mutex:
                if self._is_drained():
                    break
                self._drained.append(waiter)
                resetting = list(self.resetting)
            ends = [slot.since + RESET_TIMEOUT for slot in resetting]
            yield Wait(waiter, min(ends, default=float("inf")) - monotonic())
            self._drained.remove(waiter)
        if self.readers is not None:
            yield from self.readers.drained()

    def terminate(self) -> None:
        """Close every connection at once."""
        self.close()
        if self.readers is not None:
            self.readers.terminate()
        for lanes in self.lanes:
            lanes.terminate()
        for slot in list(self._slots):
            with self._mutex:
                self.resetting.discard(slot)
            self.discard(slot)


_cores: weakref.WeakSet[Core] = weakref.WeakSet()


def live_cores() -> list[Core]:
    """Those that are open in this process, sorted by their names."""
    while True:
        try:
            cores = list(_cores)
        except RuntimeError:  # another thread has made one meanwhile
            continue
        return sorted((core for core in cores if not core.closing), key=lambda core: core.name)


def _after_fork() -> None:
    for core in list(_cores):
        core._after_fork()


os.register_at_fork(after_in_child=_after_fork)
