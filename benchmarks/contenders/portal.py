"""The same work as `plain`, asyncio alone, in tasks under greenletio's portal: what that costs."""

from __future__ import annotations

import importlib
from typing import ClassVar

from benchmarks.contenders import plain
from benchmarks.meter import Meter

greenletio = importlib.import_module("greenletio")


class Contender(plain.Contender):
    packages: ClassVar[tuple[str, ...]] = ("greenletio", "greenlet", "uvloop")
    # Those that suspend nothing, have no task, or measure what a portal has no part in.
    _cannot = ("call", "immediate", "rss")

    async def suspend(self, meter: Meter, n: int) -> None:
        with await greenletio.portal():
            await super().suspend(meter, n)

    async def deep(self, meter: Meter, n: int) -> None:
        with await greenletio.portal():
            await super().deep(meter, n)

    async def tasks(self, meter: Meter, n: int) -> None:
        with await greenletio.portal():
            await super().tasks(meter, n)

    async def spawn(self, meter: Meter, n: int) -> None:
        with await greenletio.portal():
            await super().spawn(meter, n)

    async def fd(self, meter: Meter, n: int) -> None:
        with await greenletio.portal():
            await super().fd(meter, n)

    async def rss_task(self, meter: Meter, n: int) -> float:
        with await greenletio.portal():
            return await super().rss_task(meter, n)
