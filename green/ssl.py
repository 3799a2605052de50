"""``ssl`` whose sockets suspend the greenlet in handshakes, reads, writes and ``unwrap``.

``SSLContext.wrap_socket`` gives an ``SSLSocket`` that is the standard one on a green socket:
the wants of a nonblocking TLS session become waits and never reach the caller, but for a
socket whose timeout is 0. The data is moved in C, by OpenSSL itself, on the session that the
standard module has made; where that cannot be done the session's own methods do it.

Deviations: a context made by the standard module (outside of ``patch_blocking``) wraps sockets in
the standard, blocking class; ``recv`` may return what several records held.
"""

import ssl as _std
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from greenletio import _core
from greenletio.green._std import Deadline, adopt, public
from greenletio.green.socket import create_connection, socket  # noqa: F401

__all__ = public(_std)


class SSLSocket(_core.GreenTlsSocket, _std.SSLSocket, socket):  # type: ignore[misc]
    """``ssl.SSLSocket``. Waits can be cancelled; close it then, for TLS cannot resume midway."""

    # What moves the data; None: Python's own session does, over the descriptor.
    _tls: _core.TlsSession | None = None
    _sslobj: Any
    # Received, but after the end of TLS.
    _rest = b""

    def _until_done(
        self, what: str, timeout: float | None, step: Callable[..., Any], *args: Any
    ) -> Any:
        deadline = None
        while True:
            tls, want, result = self._tls, None, None
            try:
                result = step(*args) if tls is None else tls.call(step, *args)
            except (_std.SSLWantReadError, _std.SSLWantWriteError) as error:
                want = error
            except BaseException:
                if tls is not None:
                    with suppress(OSError):
                        tls.flush(self.fileno())  # the alert
                raise
            try:
                flushed = tls is None or tls.flush(self.fileno())
            except OSError:
                if want is not None or what == "shutdown":
                    raise
                flushed = True  # the peer is gone, which is for the next read or write to tell
            if want is None and (flushed or (timeout == 0 and what != "handshake")):
                return result
            events = 0 if flushed else _core.WRITE
            if isinstance(want, _std.SSLWantReadError):
                if tls is not None and tls.fill(self.fileno()):
                    continue
                events |= _core.READ
            if timeout == 0:
                if want is None:
                    self._want_write()
                raise want
            deadline = deadline or Deadline(timeout)
            self._wait(events or _core.WRITE, deadline, f"The {what} operation timed out")

    def _want_write(self) -> NoReturn:
        number = _std.SSL_ERROR_WANT_WRITE
        raise _std.SSLWantWriteError(number, "The operation did not complete (write)")

    # What the methods in C leave to Python.

    def _slow_recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        if self._rest and flags == 0 and self._sslobj is None:
            data, self._rest = self._rest[:buflen], self._rest[buflen:]
            return data
        return _std.SSLSocket.recv(self, buflen, flags)

    def _slow_recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        if self._rest and flags == 0 and self._sslobj is None:
            with memoryview(buffer) as view, view.cast("B") as plain:
                data = self._slow_recv(min(nbytes or len(plain), len(plain)))
                plain[: len(data)] = data
                return len(data)
        return _std.SSLSocket.recv_into(self, buffer, nbytes, flags)

    def _slow_read(self, len: int = 1024, buffer: Any = None) -> Any:
        return self._until_done("read", self._timeout, _std.SSLSocket.read, self, len, buffer)

    def _slow_write(self, data: Any) -> int:
        count: int = self._until_done("write", self._timeout, _std.SSLSocket.write, self, data)
        return count

    def _slow_send(self, data: Any, flags: int = 0) -> int:
        if self._tls is not None and flags == 0:
            return self.send(data)
        send = _std.SSLSocket.send
        count: int = self._until_done("write", self._timeout, send, self, data, flags)
        return count

    def _slow_sendall(self, data: Any, flags: int = 0) -> None:
        if self._tls is not None and flags == 0:
            self.sendall(data)
        else:
            _std.SSLSocket.sendall(self, data, flags)

    # A session's beginning and end.

    def _real_connect(self, addr: Any, connect_ex: bool) -> Any:
        try:
            return super()._real_connect(addr, connect_ex)  # type: ignore[misc]
        finally:
            if self._sslobj is None:
                self._tls = None

    def do_handshake(self, block: bool = False) -> None:
        timeout = None if block and self._timeout == 0 else self._timeout
        self._until_done("handshake", timeout, super().do_handshake)

    def unwrap(self) -> Any:
        tls = self._tls
        result = self._until_done("shutdown", self._timeout, super().unwrap)
        if tls is not None:
            self._tls, self._rest = None, tls.rest()
        return result

    def shutdown(self, how: int) -> None:
        self._tls = None
        super().shutdown(how)

    def _real_close(self, *args: Any) -> None:
        self._tls = None
        super()._real_close(*args)


class SSLContext(_std.SSLContext):
    """``ssl.SSLContext`` whose sockets are green."""

    sslsocket_class = SSLSocket

    def _wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> Any:
        std: Any = super()
        session = std._wrap_socket(sock, *args, **kwargs)
        # What these two are called for keeps its exceptions for Python's own methods to raise.
        plain = std.keylog_filename is None and std._msg_callback is None
        if plain and isinstance(sock, SSLSocket):
            with suppress(NotImplementedError):
                sock._tls = _core.TlsSession(session)
        return session


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
