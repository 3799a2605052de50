"""eventlet's green modules, on its own hub."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from benchmarks.contenders._sync import Sync

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that it is deprecated
    eventlet = importlib.import_module("eventlet")


class _Green:
    def __init__(self, green: Any) -> None:
        self.join = green.wait


class Contender(Sync):
    packages = ("eventlet", "greenlet")
    _cannot = ("simple_queue",)

    def __init__(self) -> None:
        names = {"socket": "socket", "ssl": "ssl", "threading": "threading", "queue": "Queue"}
        names["http_client"] = "http.client"
        self._of = SimpleNamespace(
            **{
                name: importlib.import_module(f"eventlet.green.{green}")
                for name, green in names.items()
            }
        )
        self._sleep = eventlet.sleep

    def _spawn(self, fn: Callable[..., object], *args: Any) -> Any:
        return _Green(eventlet.spawn(fn, *args))
