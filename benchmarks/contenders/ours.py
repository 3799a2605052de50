"""greenletio, as it is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.contenders._bridge import MARK, FdBridge, empty
from benchmarks.meter import Meter, check

greenletio = importlib.import_module("greenletio")
async_ = greenletio.async_


class Contender(FdBridge):
    packages = ("greenletio", "greenlet", "uvloop", "psycopg2", "psycopg2-binary")

    def __init__(self) -> None:
        importlib.import_module("greenletio._core")
        self._wait = greenletio.await_
        self._wait_fd = importlib.import_module("greenletio.io").wait_readable

    def _enter(self, fn: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
        call: Coroutine[Any, Any, Any] = async_(fn)(*args)
        return call

    async def _each_call(self, meter: Meter, n: int) -> object:
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await async_(empty)()
        return got

    def _patch_psycopg2(self) -> None:
        greenletio.patch_psycopg2()

    async def spawn(self, meter: Meter, n: int) -> None:
        def sync() -> object:
            got = None
            spawn = greenletio.spawn
            for count in meter.phases(n):
                for _ in range(count):
                    got = spawn(empty).get()
            return got

        check(await self._enter(sync) is MARK, "a spawned call")
