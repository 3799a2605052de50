"""greenletio.green.*, on the loop that the bench names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from benchmarks.contenders._sync import InLoop

greenletio = importlib.import_module("greenletio")


class Contender(InLoop):
    packages = ("greenletio", "greenlet")

    def __init__(self) -> None:
        names = ("socket", "ssl", "threading", "queue", "http.client")
        self._of = SimpleNamespace(
            **{
                name.replace(".", "_"): importlib.import_module(f"greenletio.green.{name}")
                for name in names
            }
        )
        self._sleep = importlib.import_module("greenletio.green.time").sleep
        self._spawn = greenletio.spawn

    def _enter(self, fn: Callable[..., None], *args: Any) -> Coroutine[Any, Any, None]:
        call: Coroutine[Any, Any, None] = greenletio.async_(fn)(*args)
        return call
