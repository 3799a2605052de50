"""gevent: the standard library as it patches it, and its own queues, which are in C."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace

from benchmarks.contenders._sync import Sync

gevent = importlib.import_module("gevent")


class Contender(Sync):
    packages = ("gevent", "greenlet")

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ssl was imported before: that is harmless here
            importlib.import_module("gevent.monkey").patch_all()
        self._of = SimpleNamespace(
            socket=importlib.import_module("socket"),
            ssl=importlib.import_module("ssl"),
            threading=importlib.import_module("threading"),
            queue=importlib.import_module("gevent.queue"),
            http_client=importlib.import_module("http.client"),
        )
        self._sleep = gevent.sleep
        self._spawn = gevent.spawn
