"""SQLAlchemy's greenlet_spawn and await_only."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.contenders._bridge import Bridge, empty
from benchmarks.meter import Meter

concurrency = importlib.import_module("sqlalchemy.util.concurrency")
greenlet_spawn = concurrency.greenlet_spawn


class Contender(Bridge):
    packages = ("SQLAlchemy", "greenlet", "uvloop")

    def __init__(self) -> None:
        self._wait = concurrency.await_only

    def _enter(self, fn: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
        call: Coroutine[Any, Any, Any] = greenlet_spawn(fn, *args)
        return call

    async def _each_call(self, meter: Meter, n: int) -> object:
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await greenlet_spawn(empty)
        return got
