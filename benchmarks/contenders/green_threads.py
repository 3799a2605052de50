"""The standard library as it is, on threads of the system."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from benchmarks.contenders._sync import Sync


class Contender(Sync):
    def __init__(self) -> None:
        names = ("socket", "ssl", "threading", "queue", "http.client")
        self._of = SimpleNamespace(
            **{name.replace(".", "_"): importlib.import_module(name) for name in names}
        )
        self._of.threading.stack_size(128 * 1024)  # for 10,000 at once
        self._sleep = time.sleep

    def _spawn(self, fn: Callable[..., object], *args: Any) -> Any:
        thread = self._of.threading.Thread(target=fn, args=args)
        thread.start()
        return thread
