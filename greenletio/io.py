"""Waiting for file descriptors from sync code.

Each function suspends the greenlet it is called in while its loop goes on; where no loop
runs in the thread it blocks as poll(2) does; directly in a running loop it raises
WouldBlockError. All can be cancelled (``asyncio.CancelledError``) and are ended by an
enclosing ``greenletio.timeout``. Nothing stays registered afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from greenletio import _core

__all__ = ("wait_any", "wait_readable", "wait_writable")


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


_Fd = TypeVar("_Fd", bound="int | _HasFileno")


def _fileno(fd: int | _HasFileno) -> int:
    return fd if isinstance(fd, int) else fd.fileno()


def wait_readable(fd: int | _HasFileno, timeout: float | None = None) -> bool:
    """Wait until `fd` (a number or an object with fileno()) can be read without blocking.

    End of file and errors count as readable. False if `timeout` seconds pass first.
    OSError (EBADF) if it is closed, or gets closed by greenletio meanwhile.
    """
    return _core.wait_fd(_fileno(fd), _core.READ, timeout) != 0


def wait_writable(fd: int | _HasFileno, timeout: float | None = None) -> bool:
    """Wait until `fd` can be written without blocking; False if `timeout` seconds pass first."""
    return _core.wait_fd(_fileno(fd), _core.WRITE, timeout) != 0


def wait_any(
    reads: Iterable[_Fd], writes: Iterable[_Fd] = (), timeout: float | None = None
) -> tuple[list[_Fd], list[_Fd]]:
    """Wait until one of `reads` is readable or one of `writes` writable.

    Returns those that are, as given, in two lists; both are empty if `timeout` seconds pass first.
    """
    reads, writes = list(reads), list(writes)
    wanted = [(_fileno(fd), _core.READ) for fd in reads]
    wanted += [(_fileno(fd), _core.WRITE) for fd in writes]
    ready = dict(_core.wait_fds(wanted, timeout))
    return (
        [fd for fd in reads if ready.get(_fileno(fd), 0) & _core.READ],
        [fd for fd in writes if ready.get(_fileno(fd), 0) & _core.WRITE],
    )
