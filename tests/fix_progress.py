"""Turns of a loop: a task that counts them proves that the loop goes on; others let some pass."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

import greenletio
from greenletio.pg import errors

T = TypeVar("T")


async def settle(turns: int = 5) -> None:
    """Long enough for every task to run until it waits."""
    for _ in range(turns):
        await asyncio.sleep(0)


def let_others_run(times: int = 5) -> None:
    """The same, for sync code."""
    for _ in range(times):
        greenletio.sleep(0)


async def connected_in_time(connect: Callable[[float], Awaitable[T]]) -> T:
    """What connect(seconds) gives, in as few seconds as it can: on a busy machine it takes more."""
    for seconds in (0.2, 1.0, 5.0):
        try:
            return await connect(seconds)
        except errors.CannotConnect:
            pass
    return await connect(25.0)


class Ticker:
    """`async with Ticker() as ticker`: `ticker.steps` grows while the loop turns.

    `enough` steps are what a loop makes in a small part of a second, even on a machine with ten
    times the work it can do; one that is held through the block makes none or one. A block has to
    take a fifth of a second at least: a busy machine may not let us run for half of that.
    """

    enough = 3

    def __init__(self) -> None:
        self.steps = 0

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            self.steps += 1

    async def __aenter__(self) -> "Ticker":
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if exc is None:
            assert self.steps >= self.enough, f"the loop made {self.steps} steps: it was held"
