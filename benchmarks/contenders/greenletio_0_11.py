"""greenletio 0.11.0, in an environment of its own because it has the same name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.contenders._bridge import FdBridge, empty
from benchmarks.meter import Meter

greenletio = importlib.import_module("greenletio")
async_ = greenletio.async_


class Contender(FdBridge):
    packages = ("greenletio", "greenlet", "uvloop", "psycopg2", "psycopg2-binary")

    def __init__(self) -> None:
        self._wait = greenletio.await_
        # what its green socket calls before a recv
        self._wait_fd = importlib.import_module("greenletio.io").wait_to_read

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
