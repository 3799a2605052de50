"""``select`` that suspends the greenlet: ``select``, ``poll`` and (on Linux) ``epoll``.

Deviation: where there is no epoll, exceptional conditions (the third list of ``select``,
``POLLPRI`` alone) are seen when something else ends the wait. ``kqueue`` and ``devpoll`` are
not offered.
"""

from __future__ import annotations

import select as _std
from collections.abc import Iterable
from contextlib import suppress
from operator import index
from typing import Any

from greenletio import _core
from greenletio.green._std import Deadline, adopt, give_way, public

_INT_MAX = 2**31 - 1
_UNSUPPORTED = ("kqueue", "kevent", "devpoll")

__all__ = tuple(name for name in public(_std) if name not in _UNSUPPORTED)


def _fileno(file: Any) -> int:
    return index(file if isinstance(file, int) else file.fileno())


def _wait(fds: dict[int, int], others: dict[int, int], timeout: float | None) -> None:
    """Wait until one of ``fds`` (fd: READ | WRITE) or ``others`` (fd: poll mask) may be ready."""
    watched = list(fds.items())
    if others and hasattr(_std, "epoll"):
        with _std.epoll() as conditions:  # an epoll is readable when something in it is ready
            for fd, mask in others.items():
                with suppress(PermissionError):  # a regular file, which has no such condition
                    conditions.register(fd, mask)
            try:
                _core.wait_fds([*watched, (conditions.fileno(), _core.READ)], timeout)
            finally:
                _core.fd_closing(conditions.fileno())
    elif watched:
        _core.wait_fds(watched, timeout)
    else:
        never: _core.Waiter[None] = _core.Waiter()
        never.wait(timeout)


def select(
    rlist: Iterable[Any],
    wlist: Iterable[Any],
    xlist: Iterable[Any],
    timeout: float | None = None,
    /,
) -> tuple[list[Any], list[Any], list[Any]]:
    """Wait until some of the files are ready. Can be cancelled; ``timeout`` in seconds."""
    if timeout is not None:
        timeout = timeout if isinstance(timeout, float) else float(index(timeout))
        if timeout < 0:
            raise ValueError("timeout must be non-negative")
    rlist, wlist, xlist = (x if isinstance(x, list) else list(x) for x in (rlist, wlist, xlist))
    files = (rlist, wlist, xlist)
    deadline = Deadline(timeout)
    while True:
        ready = _std.select(*files, 0)
        left = deadline.left()
        if any(ready) or left == 0:
            give_way()
            return ready
        fds: dict[int, int] = {}
        for event, group in ((_core.READ, files[0]), (_core.WRITE, files[1])):
            for file in group:
                fds[_fileno(file)] = fds.get(_fileno(file), 0) | event
        _wait(fds, {_fileno(file): _std.POLLPRI for file in files[2]}, left)


if hasattr(_std, "poll"):

    class _Poll:
        """A polling object: ``register``, ``modify``, ``unregister``, ``poll(timeout_ms)``."""

        def __new__(cls) -> _Poll:
            raise TypeError(f"cannot create '{cls.__module__}.{cls.__qualname__}' instances")

        def _init(self) -> _Poll:
            self._poll = _std.poll()
            self._masks: dict[int, int] = {}
            self._polling = False
            return self

        def register(
            self, fd: Any, eventmask: int = _std.POLLIN | _std.POLLPRI | _std.POLLOUT, /
        ) -> None:
            self._poll.register(fd, eventmask)
            self._masks[_fileno(fd)] = eventmask

        def modify(self, fd: Any, eventmask: int, /) -> None:
            self._poll.modify(fd, eventmask)
            self._masks[_fileno(fd)] = eventmask

        def unregister(self, fd: Any, /) -> None:
            self._poll.unregister(fd)
            self._masks.pop(_fileno(fd), None)

        def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
            """Wait for events; ``timeout`` in milliseconds, None or negative: no limit."""
            if self._polling:
                raise RuntimeError("concurrent poll() invocation")
            if timeout is not None and timeout > _INT_MAX:
                raise OverflowError("timeout is too large")
            self._polling = True
            try:
                return self._wait(timeout)
            finally:
                self._polling = False

        def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
            deadline = Deadline(None if timeout is None or timeout < 0 else timeout / 1000)
            while True:
                ready = self._poll.poll(0)
                left = deadline.left()
                if ready or left == 0:
                    give_way()
                    return ready
                fds: dict[int, int] = {}
                others: dict[int, int] = {}
                for fd, mask in self._masks.items():
                    if mask & (_std.POLLIN | _std.POLLOUT):
                        fds[fd] = (_core.READ if mask & _std.POLLIN else 0) | (
                            _core.WRITE if mask & _std.POLLOUT else 0
                        )
                    if mask & ~(_std.POLLIN | _std.POLLOUT) or not mask:
                        others[fd] = mask & ~(_std.POLLIN | _std.POLLOUT)
                _wait(fds, others, left)

    def poll() -> _Poll:
        """A polling object whose ``poll`` suspends the greenlet."""
        return object.__new__(_Poll)._init()


if hasattr(_std, "epoll"):

    class epoll:
        """``select.epoll`` (which cannot be subclassed) whose ``poll`` suspends the greenlet."""

        def __init__(self, sizehint: int = -1, flags: int = 0) -> None:
            self._epoll = _std.epoll(sizehint, flags)

        @classmethod
        def fromfd(cls, fd: int, /) -> epoll:
            """An epoll object on the descriptor of another."""
            self = cls.__new__(cls)
            self._epoll = _std.epoll.fromfd(fd)
            return self

        @property
        def closed(self) -> bool:
            """Whether it has been closed."""
            return self._epoll.closed

        def fileno(self) -> int:
            """Its descriptor."""
            return self._epoll.fileno()

        def register(
            self,
            fd: Any,
            eventmask: int = _std.EPOLLIN | _std.EPOLLPRI | _std.EPOLLOUT,
        ) -> None:
            """Watch ``fd``."""
            self._epoll.register(fd, eventmask)

        def modify(self, fd: Any, eventmask: int) -> None:
            """Watch ``fd`` for other events."""
            self._epoll.modify(fd, eventmask)

        def unregister(self, fd: Any) -> None:
            """Watch ``fd`` no longer."""
            self._epoll.unregister(fd)

        def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
            """Wait for events; ``timeout`` in seconds, None or negative: no limit."""
            deadline = Deadline(None if timeout is None or timeout < 0 else timeout)
            while True:
                ready = self._epoll.poll(0, maxevents)
                left = deadline.left()
                if ready or left == 0:
                    give_way()
                    return ready
                _core.wait_fd(self.fileno(), _core.READ, left)

        def close(self) -> None:
            """Close it; whoever polls it wakes with an error."""
            if not self.closed:
                _core.fd_closing(self.fileno())
            self._epoll.close()

        def __enter__(self) -> epoll:
            self._epoll.__enter__()
            return self

        def __exit__(self, *exc_info: object) -> None:
            self.close()


adopt(globals(), _std)
for _name in _UNSUPPORTED:
    globals().pop(_name, None)
