"""greenletio 0.11.0's green modules. It has no spawn, only threads, and no queue: that is the
standard library's, imported under its patch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from benchmarks.contenders._sync import InLoop

greenletio = importlib.import_module("greenletio")


class Contender(InLoop):
    packages = ("greenletio", "greenlet")
    _cannot = ("simple_queue",)  # in C: it blocks

    def __init__(self) -> None:
        for name in ("queue", "http.client"):
            sys.modules.pop(name, None)
        with greenletio.patch_blocking():
            queue = importlib.import_module("queue")
            http_client = importlib.import_module("http.client")
        of = {
            name: importlib.import_module(f"greenletio.green.{name}")
            for name in ("socket", "ssl", "threading")
        }
        self._of = SimpleNamespace(queue=queue, http_client=http_client, **of)
        self._sleep = importlib.import_module("greenletio.green.time").sleep

    def _spawn(self, fn: Callable[..., object], *args: Any) -> Any:
        thread = self._of.threading.Thread(target=fn, args=args)
        thread.start()
        return thread

    def _enter(self, fn: Callable[..., None], *args: Any) -> Coroutine[Any, Any, None]:
        call: Coroutine[Any, Any, None] = greenletio.async_(fn)(*args)
        return call
