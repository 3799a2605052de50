"""``ssl`` whose sockets suspend the greenlet in handshakes, reads, writes and ``unwrap``.

``SSLContext.wrap_socket`` gives an ``SSLSocket`` that is the standard one on a green socket:
the wants of a nonblocking TLS session become waits and never reach the caller, but for a
socket whose timeout is 0. Deviation: a context made by the standard module (outside of
``patch_blocking``) wraps sockets in the standard, blocking class.
"""

import ssl as _std
from collections.abc import Callable
from typing import Any

from greenletio import _core
from greenletio.green._std import Deadline, adopt, public
from greenletio.green.socket import create_connection, socket  # noqa: F401

__all__ = public(_std)


class SSLSocket(_std.SSLSocket, socket):  # type: ignore[misc]
    """``ssl.SSLSocket``. Waits can be cancelled; close it then, for TLS cannot resume midway."""

    def _until_done(
        self, what: str, timeout: float | None, step: Callable[..., Any], *args: Any
    ) -> Any:
        deadline = None
        while True:
            try:
                return step(*args)
            except _std.SSLWantReadError:
                events = _core.READ
                if timeout == 0:
                    raise
            except _std.SSLWantWriteError:
                events = _core.WRITE
                if timeout == 0:
                    raise
            deadline = deadline or Deadline(timeout)
            self._wait(events, deadline, f"The {what} operation timed out")

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        return self._until_done("read", self._timeout, super().read, len, buffer)

    def write(self, data: Any) -> int:
        count: int = self._until_done("write", self._timeout, super().write, data)
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        count: int = self._until_done("write", self._timeout, super().send, data, flags)
        return count

    def do_handshake(self, block: bool = False) -> None:
        timeout = None if block and self._timeout == 0 else self._timeout
        self._until_done("handshake", timeout, super().do_handshake)

    def unwrap(self) -> Any:
        return self._until_done("shutdown", self._timeout, super().unwrap)


class SSLContext(_std.SSLContext):
    """``ssl.SSLContext`` whose sockets are green."""

    sslsocket_class = SSLSocket


adopt(
    globals(),
    _std,
    rebound=(
        "_create_stdlib_context",
        "_create_unverified_context",
        "create_default_context",
        "get_server_certificate",
        "wrap_socket",
    ),
)
_create_default_https_context = create_default_context  # type: ignore[name-defined]  # noqa: F821
_create_stdlib_context = _create_unverified_context  # type: ignore[name-defined]  # noqa: F821


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
