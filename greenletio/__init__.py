"""greenletio: synchronous and asynchronous Python together, without threads.

`async_` makes a sync function awaitable, `await_` waits for async code in sync code, `spawn` runs
sync functions concurrently; each runs in a greenlet whose waits leave the event loop free.
``greenletio.green`` has drop-in replacements of the standard library's blocking modules,
`patch_blocking` imports other people's code against them, and `patch_psycopg2` and `patch_psycopg`
make the PostgreSQL drivers (and every ORM on them) cooperative.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from greenletio._core import async_, await_, sleep, timeout
from greenletio._green import Green, spawn
from greenletio._group import Group
from greenletio.errors import GreenletioError, WouldBlockError

if TYPE_CHECKING:
    from greenletio._event_loop import EventLoop, EventLoopPolicy, install, new_event_loop, run
    from greenletio._patch import patch_blocking
    from greenletio._patch_all import patch_all
    from greenletio._portal import portal
    from greenletio._psycopg import patch_psycopg, unpatch_psycopg
    from greenletio._psycopg2 import patch_psycopg2, psycopg2_blocking, unpatch_psycopg2

__all__ = (
    "EventLoop",
    "EventLoopPolicy",
    "Green",
    "GreenletioError",
    "Group",
    "WouldBlockError",
    "async_",
    "await_",
    "install",
    "new_event_loop",
    "patch_all",
    "patch_blocking",
    "patch_psycopg",
    "patch_psycopg2",
    "portal",
    "psycopg2_blocking",
    "run",
    "sleep",
    "spawn",
    "timeout",
    "unpatch_psycopg",
    "unpatch_psycopg2",
)

__version__ = "1.0.0.dev0"

# Imported when first used: each draws in modules that other programs have no need of.
_LAZY = {
    "EventLoop": "greenletio._event_loop",
    "EventLoopPolicy": "greenletio._event_loop",
    "install": "greenletio._event_loop",
    "new_event_loop": "greenletio._event_loop",
    "run": "greenletio._event_loop",
    "patch_all": "greenletio._patch_all",
    "patch_blocking": "greenletio._patch",
    "patch_psycopg": "greenletio._psycopg",
    "unpatch_psycopg": "greenletio._psycopg",
    "patch_psycopg2": "greenletio._psycopg2",
    "portal": "greenletio._portal",
    "psycopg2_blocking": "greenletio._psycopg2",
    "unpatch_psycopg2": "greenletio._psycopg2",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
