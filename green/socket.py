"""``socket`` that suspends the greenlet where the standard one blocks the thread.

The class is a ``socket.socket`` whose descriptor is always nonblocking; ``settimeout``,
``setblocking`` and their getters keep their meaning. Names are resolved in a small thread pool.
Closing a socket wakes the greenlets that wait on it with ``OSError`` (EBADF); a thread without a
loop that waits plainly is not woken, as with the standard class: ``shutdown`` wakes both.

Deviations: ``MSG_WAITALL`` is honoured by ``recv`` and ``recv_into`` alone; another process that
shares the descriptor finds it nonblocking.
"""

from __future__ import annotations

import errno
import os
import socket as _std
from contextlib import suppress
from operator import index
from typing import Any

from greenletio import _core
from greenletio._patch import green_builtins
from greenletio._threads import run_in_thread
from greenletio.green import selectors  # noqa: F401  (for the same, before Python 3.14)
from greenletio.green._std import Deadline, adopt, public, rebind

__all__ = public(_std)

globals()["__builtins__"] = green_builtins()  # for what is rebound: sendfile() imports selectors

_DONTWAIT = getattr(_std, "MSG_DONTWAIT", 0)


def getaddrinfo(
    host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> Any:
    """``socket.getaddrinfo``, waiting for the name service in a thread. Can be cancelled."""
    try:
        return _std.getaddrinfo(host, port, family, type, proto, flags | _std.AI_NUMERICHOST)
    except _std.gaierror:
        if host is None or flags & _std.AI_NUMERICHOST:
            raise
    return run_in_thread(_std.getaddrinfo, host, port, family, type, proto, flags)


def gethostbyname(hostname: Any, /) -> str:
    """``socket.gethostbyname``, waiting for the name service in a thread."""
    address: str = run_in_thread(_std.gethostbyname, hostname)
    return address


def gethostbyname_ex(hostname: Any, /) -> Any:
    """``socket.gethostbyname_ex``, waiting for the name service in a thread."""
    return run_in_thread(_std.gethostbyname_ex, hostname)


def gethostbyaddr(address: Any, /) -> Any:
    """``socket.gethostbyaddr``, waiting for the name service in a thread."""
    return run_in_thread(_std.gethostbyaddr, address)


def getnameinfo(sockaddr: Any, flags: int, /) -> Any:
    """``socket.getnameinfo``, waiting for the name service in a thread."""
    return run_in_thread(_std.getnameinfo, sockaddr, flags)


def _cooperative(name: str, events: int, flags_at: int | None) -> Any:
    """The method ``name`` of a nonblocking socket, waiting as its timeout says."""
    plain = getattr(_std.socket, name)

    def method(self: socket, *args: Any, **kwargs: Any) -> Any:
        deadline = None
        while True:
            try:
                return plain(self, *args, **kwargs)
            except BlockingIOError:
                if self._timeout == 0:
                    raise
                if flags_at is not None and _DONTWAIT & kwargs.get(
                    "flags", args[flags_at] if len(args) > flags_at else 0
                ):
                    raise
            deadline = deadline or Deadline(self._timeout)
            self._wait(events, deadline)

    method.__name__ = name
    method.__qualname__ = f"socket.{name}"
    method.__doc__ = plain.__doc__
    return method


_sendto = _cooperative("sendto", _core.WRITE, 1)
_sendmsg = _cooperative("sendmsg", _core.WRITE, 2)


class socket(_core.GreenSocket, _std.socket):
    """``socket.socket``. Waits can be cancelled; a socket may be used from any thread."""

    __slots__ = ("_timeout",)

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        super().__init__(family, type, proto, fileno)
        self._timeout = super().gettimeout()
        super().settimeout(0.0)

    # The timeout is ours: the descriptor and the base class stay nonblocking.

    def gettimeout(self) -> float | None:
        return self._timeout

    def settimeout(self, value: float | None, /) -> None:
        if value is not None:
            value = value if isinstance(value, float) else float(index(value))
            if value != value:
                raise ValueError("Invalid value NaN (not a number)")
            if value < 0:
                raise ValueError("Timeout value out of range")
        super().settimeout(0.0)  # refused if it is closed; detach() may have made it blocking
        self._timeout = value

    def getblocking(self) -> bool:
        return self._timeout != 0

    def setblocking(self, flag: bool, /) -> None:
        super().setblocking(False)  # refused if it is closed
        self._timeout = None if flag else 0.0

    timeout = property(gettimeout, doc="The socket timeout in seconds, None: no limit.")

    def _wait(self, events: int, deadline: Deadline, message: str = "timed out") -> None:
        if not _core.wait_fd(self.fileno(), events | _core.KEEP, deadline.left()):
            raise TimeoutError(message)

    # Receiving and sending.

    _accept = _cooperative("_accept", _core.READ, None)
    accept = rebind(_std.socket.accept, globals())
    recvfrom = _cooperative("recvfrom", _core.READ, 1)
    recvfrom_into = _cooperative("recvfrom_into", _core.READ, 2)
    recvmsg = _cooperative("recvmsg", _core.READ, 2)
    recvmsg_into = _cooperative("recvmsg_into", _core.READ, 2)

    def sendto(self, data: Any, *args: Any) -> int:
        if args:
            args = (*args[:-1], self._resolved(args[-1]))
        count: int = _sendto(self, data, *((0, *args) if len(args) == 1 else args))
        return count

    def sendmsg(
        self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        if address is not None:
            address = self._resolved(address)
        count: int = _sendmsg(self, buffers, ancdata, flags, address)
        return count

    _sendfile_use_sendfile = rebind(_std.socket._sendfile_use_sendfile, globals())  # type: ignore[attr-defined]

    # Connecting.

    def _resolved(self, address: Any) -> Any:
        """``address`` with the host as a number, for the base class resolves names blocking."""
        if self.family not in (_std.AF_INET, _std.AF_INET6) or not isinstance(address, tuple):
            return address
        host = address[0] if address else None
        if not host or host == "<broadcast>" or not isinstance(host, (str, bytes, bytearray)):
            return address
        host = bytes(host) if isinstance(host, bytearray) else host
        try:
            _std.getaddrinfo(host, None, self.family, flags=_std.AI_NUMERICHOST)
        except _std.gaierror:
            found = run_in_thread(_std.getaddrinfo, host, None, self.family)[0][4]
            return (found[0], *address[1:2], *(address[2:] or found[2:]))
        return address

    def bind(self, address: Any, /) -> None:
        super().bind(self._resolved(address))

    def _connect(self, address: Any) -> int:
        """Connect: the error number, 0 once connected."""
        address = self._resolved(address)
        deadline = Deadline(self._timeout)
        pause = 0.001
        while True:
            error = super().connect_ex(address)
            if self._timeout == 0:
                return error
            if error == errno.EINPROGRESS:
                self._wait(_core.WRITE, deadline)
                return self.getsockopt(_std.SOL_SOCKET, _std.SO_ERROR)
            if error != errno.EAGAIN:
                return error
            # The backlog of a Unix socket is full, for which no descriptor event exists.
            left = deadline.left()
            if left == 0:
                raise TimeoutError("timed out")
            _core.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 2, 0.1)

    def connect(self, address: Any, /) -> None:
        error = self._connect(address)
        if error:
            raise OSError(error, os.strerror(error))

    def connect_ex(self, address: Any, /) -> int:
        try:
            return self._connect(address)
        except TimeoutError as error:
            return error.errno or errno.EAGAIN

    def detach(self) -> int:
        fd = super().detach()
        if fd >= 0:
            _core.fd_released(fd)
            if self._timeout is None:  # whoever takes it over finds it as it would be
                with suppress(OSError):  # closed by somebody else
                    os.set_blocking(fd, True)
        return fd

    def __del__(self) -> None:
        fd = self.fileno()
        if fd >= 0:
            _core.fd_released(fd)
        super().__del__()  # type: ignore[misc]

    def _real_close(self, _ss: Any = _std.socket) -> None:
        fd = self.fileno()
        if fd >= 0:
            _core.fd_closing(fd)
        super()._real_close()  # type: ignore[misc]


adopt(
    globals(),
    _std,
    rebound=(
        "_fallback_socketpair",
        "create_connection",
        "create_server",
        "fromfd",
        "fromshare",
        "getfqdn",
        "has_dualstack_ipv6",
        "socketpair",
    ),
)


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
