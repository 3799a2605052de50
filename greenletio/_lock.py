"""A lock that greenlets of any loop and plain threads may contend for, first come, first served."""

from __future__ import annotations

from typing import Any

# The same as greenletio.green.threading's, which not everybody who locks needs to import.
from greenletio._core import Lock as FairLock

__all__ = ("FairLock", "FairLockFor")


class FairLockFor:
    """A class attribute that gives instances a FairLock in place of their own lock, `name`.

    Of instances made before, too. They keep the lock they have, so that nothing is left to undo.
    """

    _key = "_greenletio_lock"

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        # setdefault: of two threads that come first at once, both get the same one.
        return vars(instance).get(self._key) or vars(instance).setdefault(self._key, FairLock())

    def __set__(self, instance: Any, lock: Any) -> None:
        vars(instance)[self._name] = lock
