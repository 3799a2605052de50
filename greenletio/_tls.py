"""TLS connections of our loop: what is not hot of them, which is all but moving data.

`SSLTransport` is both sides of asyncio's SSLProtocol in one: the protocol of a StreamTransport
and the transport of the user's protocol. Handshake and shutdown are done by the session that
Python's ssl module made, so that its exceptions, callbacks and checks are what they always are.
Where OpenSSL cannot be used directly, asyncio's SSLProtocol does it all.
"""

# asyncio's own names below are not in its stubs.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import asyncio
import ssl
from asyncio import constants, sslproto
from asyncio.log import logger
from typing import TYPE_CHECKING, Any

from greenletio import _core

if TYPE_CHECKING:
    from greenletio._event_loop import EventLoop

# Of GioTlsState in tls.h.
UNWRAPPED, HANDSHAKE, WRAPPED, FLUSHING, SHUTDOWN = range(5)

_AGAIN = (ssl.SSLWantReadError, ssl.SSLSyscallError)
_SHUTDOWN_TIMEOUT = getattr(constants, "SSL_SHUTDOWN_TIMEOUT", 30.0)  # since 3.11


class SSLTransport(_core.TlsTransport):
    """The transport of a TLS connection. Some look for "ssl" in its name, asyncio's tests do."""

    __slots__ = (
        "_began",
        "_eof",
        "_handshake_timeout",
        "_shutdown_timeout",
        "_ssl_object",
        "_timer",
        "_told_eof",
        "_told_made",
        "_waiter",
    )

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    def __init__(
        self,
        sslcontext: ssl.SSLContext,
        ssl_object: ssl.SSLObject,
        waiter: asyncio.Future[None] | None,
        call_connection_made: bool,
        handshake_timeout: float,
        shutdown_timeout: float,
    ) -> None:
        self._extra: dict[str, Any] = {"sslcontext": sslcontext}
        self._ssl_object = ssl_object
        self._waiter = waiter
        self._told_made = not call_connection_made
        self._told_eof = self._eof = False
        self._handshake_timeout = handshake_timeout
        self._shutdown_timeout = shutdown_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._began = 0.0

    @property
    def _ssl_protocol(self) -> SSLTransport:
        """For those who look for asyncio's SSLProtocol behind the transport."""
        return self

    # --- the transport ---------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known about the connection: as of TCP, and 'sslcontext'; after the handshake
        'ssl_object', 'peercert', 'cipher', 'compression'.
        """
        if name in self._extra:
            return self._extra[name]
        if "ssl_object" in self._extra:
            if name == "peercert":
                return self._ssl_object.getpeercert()
            if name == "cipher":
                return self._ssl_object.cipher()
            if name == "compression":
                return self._ssl_object.compression()
        stream = self._stream
        return default if stream is None else stream.get_extra_info(name, default)

    def abort(self) -> None:
        """Close at once; what is left to be sent is lost."""
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        self._closed = True
        self._state = UNWRAPPED
        if self._stream is not None:
            self._stream._force_close(exc)

    def _resume(self) -> None:
        if self._state == WRAPPED and self._stream is not None:
            self._stream.resume_reading()
        self._loop.call_soon(self._resumed)

    def _resumed(self) -> None:
        if not self._read_paused:
            self._advance()

    # --- the stream's protocol -------------------------------------------------------------

    def connection_made(self, stream: _core.StreamTransport) -> None:
        """The stream is there: begin the handshake."""
        self._take_over(stream)
        if self._loop.get_debug():
            logger.debug("%r starts SSL handshake", self)
            self._began = self._loop.time()
        self._state = HANDSHAKE
        self._timer = self._loop.call_later(self._handshake_timeout, self._handshake_timed_out)
        self._do_handshake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is gone."""
        loop, protocol = self._loop, self._protocol
        if self._told_made and self._state != HANDSHAKE and protocol is not None:
            loop.call_soon(protocol.connection_lost, exc)
        self._let_go()
        self._stop_timer()
        self._wake_waiter(exc or ConnectionAbortedError("closed during the TLS handshake"))

    def eof_received(self) -> bool | None:
        """The peer has ended the stream, perhaps without a close_notify."""
        self._eof = True
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        if self._state == HANDSHAKE:
            self._handshake_done(ConnectionResetError())
        elif self._state == WRAPPED:
            self._state = FLUSHING
            if self._read_paused:
                return True
            self._do_flush()
        elif self._state == FLUSHING:
            self._do_flush()
        elif self._state == SHUTDOWN:
            self._do_shutdown()
        return self._state == FLUSHING

    def _advance(self) -> None:
        """Go on: something has arrived, has been sent, or may be read again."""
        if self._state == HANDSHAKE:
            self._do_handshake()
        elif self._state == WRAPPED:
            self._read()
        elif self._state == FLUSHING:
            self._do_flush()
        elif self._state == SHUTDOWN:
            self._do_shutdown()

    # --- the handshake ---------------------------------------------------------------------

    def _do_handshake(self) -> None:
        try:
            self._ssl_object.do_handshake()
        except _AGAIN:
            self._flush()
        except ssl.SSLError as exc:
            self._flush()  # the alert
            self._handshake_done(exc)
        else:
            self._flush()
            self._handshake_done(None)

    def _handshake_timed_out(self) -> None:
        if self._state == HANDSHAKE:
            self._fatal_error(
                ConnectionAbortedError(
                    f"SSL handshake is taking longer than {self._handshake_timeout} seconds: "
                    f"aborting the connection"
                )
            )

    def _handshake_done(self, exc: Exception | None) -> None:
        self._stop_timer()
        if exc is not None:
            self._state = UNWRAPPED
            verifying = " on verifying the certificate" * isinstance(exc, ssl.CertificateError)
            self._fatal_error(exc, "SSL handshake failed" + verifying)
            self._wake_waiter(exc)
            return
        self._state = WRAPPED
        if self._loop.get_debug():
            took = (self._loop.time() - self._began) * 1e3
            logger.debug("%r: SSL handshake took %.1f ms", self, took)
        self._extra["ssl_object"] = self._ssl_object
        if not self._told_made:
            self._told_made = True
            try:
                self._protocol.connection_made(self)
            except (KeyboardInterrupt, SystemExit):
                self._loop.call_soon(self._begin)  # the loop may be run again
                raise
        self._begin()

    def _begin(self) -> None:
        self._wake_waiter(None)
        if self._read_paused and self._stream is not None:
            self._stream.pause_reading()  # it was needed for the handshake
        self._read()

    def _wake_waiter(self, exc: Exception | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if exc is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(exc)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- the shutdown ----------------------------------------------------------------------

    def _closed_by_peer(self) -> None:
        self._call_eof_received()
        self._start_shutdown()

    def _start_shutdown(self) -> None:
        self._closed = True
        if self._state == HANDSHAKE:
            self._force_close(None)
        elif self._state == WRAPPED:
            self._state = FLUSHING
            self._start_shutdown_timer()
            if self._read_paused and self._stream is not None:
                self._stream.resume_reading()  # for the peer's close_notify
            self._do_flush()
        elif self._state == FLUSHING and self._timer is None:
            self._start_shutdown_timer()  # the peer has ended the stream; it may never read again

    def _start_shutdown_timer(self) -> None:
        self._timer = self._loop.call_later(self._shutdown_timeout, self._shutdown_timed_out)

    def _shutdown_timed_out(self) -> None:
        if self._state in (FLUSHING, SHUTDOWN) and self._stream is not None:
            self._stream._force_close(asyncio.TimeoutError("SSL shutdown timed out"))

    def _do_flush(self) -> None:
        try:
            if self._closed:
                self._discard()
            else:
                self._read()
            if self._state != FLUSHING or not self._flush():
                return  # the rest follows when the stream takes more
        except ssl.SSLError as exc:
            self._fatal_error(exc, "Fatal error on SSL protocol")
            return
        self._state = SHUTDOWN
        self._do_shutdown()

    def _do_shutdown(self) -> None:
        try:
            if not self._eof:
                self._discard()
                self._ssl_object.unwrap()
        except _AGAIN:
            self._flush()
        except ssl.SSLError as exc:
            self._stop_timer()
            self._fatal_error(exc)
        else:
            self._flush()
            self._call_eof_received()
            self._stop_timer()
            if self._stream is not None:
                self._loop.call_soon(self._stream.close)

    def _call_eof_received(self) -> None:
        if self._told_eof or self._protocol is None:
            return
        self._told_eof = True
        try:
            keep_open = self._protocol.eof_received()
        except Exception as exc:
            self._fatal_error(exc, "Error calling eof_received()")
        else:
            if keep_open:
                logger.warning("returning true from eof_received() has no effect when using ssl")

    # --- errors and flow control -----------------------------------------------------------

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        stream = self._stream
        if stream is not None:
            stream._force_close(exc)
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=exc)
        elif not isinstance(exc, asyncio.CancelledError):
            self._report(message, exc, stream)

    def _report(self, message: str, exc: BaseException, transport: object) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": transport, "protocol": self}
        )

    def _pause_protocol(self) -> None:
        try:
            self._protocol.pause_writing()
        except Exception as exc:
            self._report("protocol.pause_writing() failed", exc, self)

    def _resume_protocol(self) -> None:
        try:
            self._protocol.resume_writing()
        except Exception as exc:
            self._report("protocol.resume_writing() failed", exc, self)

    def _log_lost_write(self) -> None:
        logger.warning("SSL connection is closed")


def is_context(obj: object) -> bool:
    return isinstance(obj, ssl.SSLContext)


def new_transport(
    loop: EventLoop,
    protocol: asyncio.BaseProtocol,
    sslcontext: Any,
    waiter: asyncio.Future[None] | None,
    *,
    server_side: bool,
    server_hostname: str | None,
    call_connection_made: bool = True,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> SSLTransport | None:
    """A transport that is to be the protocol of a stream; None: asyncio's has to do it."""
    for name, value in (
        ("ssl_handshake_timeout", ssl_handshake_timeout),
        ("ssl_shutdown_timeout", ssl_shutdown_timeout),
    ):
        if value is not None and value <= 0:
            raise ValueError(f"{name} should be a positive number, got {value}")
    context: Any = sslcontext or sslproto._create_transport_context(server_side, server_hostname)
    if context.keylog_filename is not None or context._msg_callback is not None:
        return None  # they keep their exceptions for Python's own methods to raise
    ssl_object = context.wrap_bio(
        ssl.MemoryBIO(),
        ssl.MemoryBIO(),
        server_side=server_side,
        server_hostname=None if server_side else server_hostname or None,
    )
    transport = SSLTransport(
        context,
        ssl_object,
        waiter,
        call_connection_made,
        ssl_handshake_timeout or constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout or _SHUTDOWN_TIMEOUT,
    )
    return transport if transport._attach(loop, protocol, ssl_object) else None
