"""asgiref: sync_to_async runs the function in a thread, async_to_sync brings a coroutine back."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import Any, ClassVar

from benchmarks.contenders._bridge import MARK, empty, immediate
from benchmarks.meter import Meter, check

asgiref = importlib.import_module("asgiref.sync")
sync_to_async: Callable[[Callable[..., Any]], Callable[..., Any]] = asgiref.sync_to_async
async_to_sync: Callable[[Callable[..., Any]], Callable[..., Any]] = asgiref.async_to_sync


class Contender:
    packages: ClassVar[tuple[str, ...]] = ("asgiref", "uvloop")

    async def call(self, meter: Meter, n: int) -> None:
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await sync_to_async(empty)()
        check(got is MARK, "an empty call")

    async def immediate(self, meter: Meter, n: int) -> None:
        def sync() -> object:
            got = None
            for count in meter.phases(n):
                for _ in range(count):
                    got = async_to_sync(immediate)()
            return got

        check(await sync_to_async(sync)() is MARK, "an immediate coroutine")

    async def suspend(self, meter: Meter, n: int) -> None:
        def sync() -> object:
            got = None
            for count in meter.phases(n):
                for _ in range(count):
                    got = async_to_sync(asyncio.sleep)(0, MARK)
            return got

        check(await sync_to_async(sync)() is MARK, "a suspended wait")

    async def spawn(self, meter: Meter, n: int) -> None:
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await asyncio.ensure_future(sync_to_async(empty)())
        check(got is MARK, "a spawned call")
