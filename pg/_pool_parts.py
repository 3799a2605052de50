"""Small parts of a pool: its errors, limits, statistics, and how its generators are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from greenletio import _core, _pg
from greenletio.pg._errors import InterfaceError, OperationalError
from greenletio.pg._steps import Steps as GeneratorSteps
from greenletio.pg._steps import run, wait

__all__ = (
    "RETRY_AFTER",
    "RETRY_AFTER_MOST",
    "Ask",
    "Limits",
    "PoolClosed",
    "PoolTimeout",
    "Stats",
    "Step",
    "Steps",
    "TooManyRequests",
    "Wait",
    "may_wait",
    "reason",
    "run",
    "wait",
)


#: Seconds before a connect that failed is tried again; it doubles up to the second number.
RETRY_AFTER, RETRY_AFTER_MOST = 0.1, 30.0


class PoolTimeout(OperationalError, asyncio.TimeoutError):
    """No connection of the pool became free in time."""


class PoolClosed(OperationalError, InterfaceError):
    """The pool is closed, or was not opened."""


class TooManyRequests(OperationalError):
    """As many requests wait for a connection already as may."""


class Limits:
    """What a pool may have, in seconds and in numbers; an ``inf`` is no limit."""

    def __init__(
        self,
        min_size: int,
        max_size: int,
        *,
        max_waiting: float = float("inf"),
        max_lifetime: float = float("inf"),
        max_idle: float = float("inf"),
        max_uses: float = float("inf"),
        keep_idle: int | None = None,
    ) -> None:
        if max_size <= 0:
            raise ValueError("max_size is expected to be greater than zero")
        if min_size < 0:
            raise ValueError("min_size is expected to be greater or equal to zero")
        if min_size > max_size:
            raise ValueError("min_size is greater than max_size")
        self.min_size = min_size
        self.max_size = max_size
        self.max_waiting = max_waiting
        self.max_lifetime = max_lifetime
        self.max_idle = max_idle
        self.max_uses = max_uses
        #: How many stay, however long nobody needs them; None: `min_size`.
        self.keep_idle = min_size if keep_idle is None else keep_idle


class Stats:
    """What has happened since the pool was made, or since clear(). Times are in seconds."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.requests = self.queued = self.errors = 0
        self.connects = self.connect_errors = 0
        self.bad = self.lost = 0
        self.usage = self.waited = self.connecting = 0.0

    def as_dict(self) -> dict[str, int]:
        """By psycopg_pool's names, in milliseconds; those that are 0 as well."""
        return {
            "usage_ms": int(1000 * self.usage),
            "requests_num": self.requests,
            "requests_queued": self.queued,
            "requests_wait_ms": int(1000 * self.waited),
            "requests_errors": self.errors,
            "returns_bad": self.bad,
            "connections_num": self.connects,
            "connections_ms": int(1000 * self.connecting),
            "connections_errors": self.connect_errors,
            "connections_lost": self.lost,
        }


class Step:
    """What a generator of the pool waits for."""

    def run(self) -> Any:
        """Wait for it in sync code."""
        raise NotImplementedError

    async def wait(self) -> Any:
        """Wait for it in a task."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.wait().__await__()


class Wait(Step):
    """A Waiter, for so many seconds: whether it was set."""

    def __init__(self, waiter: _core.Waiter[Any], seconds: float) -> None:
        self.waiter = waiter
        self.seconds = seconds

    def run(self) -> bool:
        return self.waiter.wait(None if self.seconds == float("inf") else self.seconds)

    async def wait(self) -> bool:
        timer = None
        if self.seconds < float("inf"):
            loop = asyncio.get_running_loop()
            timer = loop.call_later(max(0.0, self.seconds), self.waiter.set, Wait)
        try:
            return await self.waiter is not Wait
        finally:
            if timer is not None:
                timer.cancel()


def reason(exc: BaseException) -> str:
    """What an exception says; a timeout, of which libraries say nothing: that it was one."""
    return str(exc) or (
        "it took too long"
        if isinstance(exc, (TimeoutError, asyncio.TimeoutError))
        else type(exc).__name__
    )


class Ask(Step):
    """An operation that is nobody's but the pool's: asked from here, hooks are not told of it."""

    def __init__(self, op: _pg.Op[Any]) -> None:
        self._op = op

    def run(self) -> Any:
        return self._op.run()

    async def wait(self) -> Any:
        return await self._op


def may_wait() -> None:
    """Where a wait is forbidden, say so before anything is begun."""
    if _core.place() < 0:
        _core.Waiter().wait()


Steps = GeneratorSteps[Any]
