"""``fcntl`` whose waits for a lock that another holds suspend the greenlet.

They try again and again, with pauses of at most 50 ms, so that a wait that is cancelled has taken
no lock. All else is the standard module's.
"""

from __future__ import annotations

import fcntl as _std
from collections.abc import Callable
from typing import Any

from greenletio import _core
from greenletio.green._std import adopt, public, until_unlocked

__all__ = public(_std)

_PLAIN = 0  # _core.place(): no loop runs in this thread


# Commands of fcntl() that wait, and those that do not instead.
_WAITING = {
    getattr(_std, f"{kind}W"): getattr(_std, kind)
    for kind in ("F_SETLK", "F_OFD_SETLK")
    if hasattr(_std, f"{kind}W")
}


def _lock(operation: int, lock: Callable[[int], Any]) -> Any:
    if operation & (_std.LOCK_NB | _std.LOCK_UN) or _core.place() == _PLAIN:
        return lock(operation)
    return until_unlocked(lambda: lock(operation | _std.LOCK_NB))


def flock(fd: Any, operation: int, /) -> None:
    """Lock or unlock a file; waits for it. Can be cancelled."""
    _lock(operation, lambda op: _std.flock(fd, op))


def lockf(fd: Any, cmd: int, len: int = 0, start: int = 0, whence: int = 0, /) -> Any:
    """Lock or unlock a part of a file; waits for it. Can be cancelled."""
    return _lock(cmd, lambda op: _std.lockf(fd, op, len, start, whence))


def fcntl(fd: Any, cmd: int, arg: Any = 0, /) -> Any:
    """``fcntl.fcntl``; waits for a lock with ``F_SETLKW`` and its like. Can be cancelled."""
    if cmd not in _WAITING or _core.place() == _PLAIN:
        return _std.fcntl(fd, cmd, arg)
    return until_unlocked(lambda: _std.fcntl(fd, _WAITING[cmd], arg))


adopt(globals(), _std)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
