"""greenback: a portal for each call, as for a task that has none."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.contenders._bridge import Bridge, empty
from benchmarks.meter import Meter

greenback = importlib.import_module("greenback")
with_portal_run_sync = greenback.with_portal_run_sync


class Contender(Bridge):
    packages = ("greenback", "greenlet", "uvloop")
    _cannot = ("rss",)  # a portal belongs to a task: a call cannot be driven by hand

    def __init__(self) -> None:
        self._wait = greenback.await_

    def _enter(self, fn: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
        call: Coroutine[Any, Any, Any] = with_portal_run_sync(fn, *args)
        return call

    async def _each_call(self, meter: Meter, n: int) -> object:
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await with_portal_run_sync(empty)
        return got
