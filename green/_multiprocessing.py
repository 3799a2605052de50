"""``_multiprocessing`` whose semaphores suspend the greenlet: below the locks of multiprocessing.

No descriptor tells when another process releases one, so ``acquire`` tries again and again, with
pauses of at most 20 ms.
"""

from __future__ import annotations

import _multiprocessing as _std  # type: ignore[import-not-found]
from typing import Any

from greenletio import _core
from greenletio.green._std import Deadline, adopt, public

__all__ = public(_std)

_PLAIN = 0  # _core.place(): no loop runs in this thread

if hasattr(_std, "SemLock"):

    class SemLock(_std.SemLock):  # type: ignore[misc]
        """``_multiprocessing.SemLock``. ``acquire`` can be cancelled."""

        def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
            if not block or _core.place() == _PLAIN:
                taken: bool = super().acquire(block, timeout)
                return taken
            deadline, pause = Deadline(None if timeout is None else max(timeout, 0.0)), 0.0002
            while not super().acquire(False):
                left = deadline.left()
                if left == 0:
                    return False
                _core.sleep(pause if left is None else min(pause, left))
                pause = min(pause * 2, 0.02)
            return True

        def __enter__(self) -> bool:
            return self.acquire()


adopt(globals(), _std)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
