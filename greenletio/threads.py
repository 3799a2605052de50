"""The small pool of threads for what no file descriptor can signal, for code of one's own.

The green modules use it for name resolution, ``sqlite3``, ``fsync`` and the like.
"""

from __future__ import annotations

from greenletio._threads import run_in_thread, set_size, size

__all__ = ("run_in_thread", "set_size", "size")
