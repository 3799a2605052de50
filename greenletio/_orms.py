"""Tells of an ORM that takes all greenlets of a thread for one, when it first connects in one.

peewee and Pony keep a thread's connection, and what it has loaded, in a `threading.local`, and
connect under a lock. Imported under `patch_blocking` both are green. Imported as they are, the
greenlets of a thread share a transaction without knowing of each other, or stop their loop.
"""

from __future__ import annotations

import sys
import warnings
from _thread import _local
from types import FrameType

from greenletio import _core

__all__ = ("check_caller",)

_ORMS = frozenset(("peewee", "playhouse", "pony"))
_DRIVERS = frozenset(("greenletio", "psycopg", "psycopg2"))
_told: set[str] = set()


def check_caller() -> None:
    """To be called where a driver connects: warn, once, if such an ORM does so in a greenlet."""
    if _ORMS.isdisjoint(sys.modules) or _core.place() <= 0:
        return
    frame: FrameType | None = sys._getframe(1)
    level = 2
    guilty = None
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package in _ORMS:
            if any(_is_local(value) for value in list(frame.f_globals.values())):
                guilty = package
        elif guilty is not None or package not in _DRIVERS:
            break
        frame, level = frame.f_back, level + 1
    if guilty is None or guilty in _told:
        return
    _told.add(guilty)
    warnings.warn(
        f"all greenlets of this thread share {guilty}'s state, its connection included, and may "
        f"block each other: import {guilty} under patch_blocking(), before anything else does",
        RuntimeWarning,
        level,
    )


def _is_local(value: object) -> bool:
    """Whether it is a local of threads, or a class of such."""
    kind = value if isinstance(value, type) else type(value)
    return _local in type.__dict__["__mro__"].__get__(kind)
