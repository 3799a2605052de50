"""Proof that a loop goes on while something waits: a task that counts its own steps."""

import asyncio
from types import TracebackType


class Ticker:
    """`async with Ticker() as ticker`: `ticker.steps` grows while the loop turns.

    `enough` steps are what a loop makes in a small part of a second, even on a machine with ten
    times the work it can do; one that is held through the block makes none or one.
    """

    enough = 5

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
