"""The event loop: asyncio's own, with everything hot replaced by C on libevent.

`EventLoop` stands before `asyncio.SelectorEventLoop` with the methods of `_core.Loop`; what is not
hot (servers, signals, executors, exception handling, debug mode) is asyncio's code as it is.
"""

# asyncio's own names below are not in its stubs.
# mypy: disable-error-code="attr-defined, misc"

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import threading
import warnings
from asyncio import base_events, constants, sslproto, trsock, unix_events
from asyncio import format_helpers as _format
from asyncio.log import logger
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar

from greenletio import _core

if TYPE_CHECKING:
    import ssl

__all__ = ("EventLoop", "EventLoopPolicy", "install", "new_event_loop", "run")

_T = TypeVar("_T")


class _NoSelector:
    """Stands where asyncio's loop keeps its selector; _core.Loop polls instead."""

    def close(self) -> None:
        pass

    def get_key(self, fd: Any) -> Any:
        """Asked by the repr of asyncio's transports."""
        raise KeyError(fd)


class EventLoop(_core.Loop, asyncio.SelectorEventLoop):
    """An asyncio event loop on libevent, written in C. Use it as any other:

    >>> greenletio.run(main())
    >>> with asyncio.Runner(loop_factory=greenletio.new_event_loop) as runner: ...

    Each loop belongs to the thread that runs it; `call_soon_threadsafe` is the door for others.
    """

    _current_handle: asyncio.Handle | None

    def __init__(self) -> None:
        selector: Any = _NoSelector()
        super().__init__(selector)

    def close(self) -> None:
        """Close the loop, which must not run; what is still scheduled will not happen."""
        if not self.is_closed():
            super().close()
            self._release()

    def run_forever(self) -> None:
        """Run until stop() is called."""
        self._check_closed()
        self._check_running()  # asyncio of 3.13.0 ends the outer run if it finds out itself
        if threading.current_thread() is not threading.main_thread():
            super().run_forever()
            return
        # A signal has to end the poll: libevent itself would go on after EINTR.
        try:
            before = signal.set_wakeup_fd(self._csock.fileno(), warn_on_full_buffer=False)
        except ValueError:  # of a subinterpreter
            super().run_forever()
            return
        try:
            super().run_forever()
        finally:
            try:
                signal.set_wakeup_fd(before)
            except (OSError, ValueError):  # it was closed meanwhile
                signal.set_wakeup_fd(-1)

    def remove_signal_handler(self, sig: int) -> bool:
        """Undo add_signal_handler; whether there was one."""
        removed = super().remove_signal_handler(sig)
        if removed and self.is_running():
            signal.set_wakeup_fd(self._csock.fileno(), warn_on_full_buffer=False)
        return removed

    def _make_self_pipe(self) -> None:
        super()._make_self_pipe()
        self._wake_fd = self._csock.fileno()

    def _close_self_pipe(self) -> None:
        self._wake_fd = -1
        super()._close_self_pipe()

    def _renew_self_pipe(self) -> None:
        """In a forked child: the one we have is the parent's, too, and would wake the parent."""
        inherited = self._csock.fileno()
        self._close_self_pipe()
        self._make_self_pipe()
        if self.is_running():
            # Nor are the child's signals the parent's.
            before = signal.set_wakeup_fd(-1)
            if before == inherited:
                before = self._csock.fileno()
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)

    def _ensure_fd_no_transport(self, fd: Any) -> None:
        transport = self._transport_of(fd)
        if (
            transport is not None
            and not transport.is_closing()
            and transport._empty_waiter is None  # else loop.sendfile() has borrowed it
        ):
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {transport!r}")
        if self._transports:  # asyncio's own
            super()._ensure_fd_no_transport(fd)

    # --- transports -----------------------------------------------------------------------

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: asyncio.AbstractServer | None = None,
        **timeouts: Any,
    ) -> asyncio.Transport:
        from greenletio import _tls  # not every Python has ssl

        tls: Any = _tls.new_transport(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side=server_side,
            server_hostname=server_hostname,
            **timeouts,
        )
        transport = tls
        if tls is None:
            tls = sslproto.SSLProtocol(
                self, protocol, sslcontext, waiter, server_side, server_hostname, **timeouts
            )
            transport = tls._app_transport
        self._make_socket_transport(rawsock, tls, extra=extra, server=server)
        tls_transport: asyncio.Transport = transport
        return tls_transport

    async def start_tls(
        self,
        transport: asyncio.BaseTransport,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport | None:
        """Go on with TLS on a transport; returns the transport to use instead."""
        from greenletio import _tls

        options: dict[str, Any] = {
            "server_side": server_side,
            "server_hostname": server_hostname,
            "ssl_handshake_timeout": ssl_handshake_timeout,
        }
        if ssl_shutdown_timeout is not None:  # asyncio takes it since 3.11
            options["ssl_shutdown_timeout"] = ssl_shutdown_timeout
        tls: Any = None
        if isinstance(transport, _core.StreamTransport) and _tls.is_context(sslcontext):
            waiter = self.create_future()
            tls = _tls.new_transport(
                self, protocol, sslcontext, waiter, call_connection_made=False, **options
            )
        if tls is None:  # TLS in TLS, a transport of somebody else's, or no way to do it here
            return await super().start_tls(transport, protocol, sslcontext, **options)
        if transport.is_closing():
            raise ConnectionAbortedError("start_tls() comes too late: the transport is closing")
        transport.pause_reading()  # what comes is not for the protocol any more
        transport.set_protocol(tls)
        made = self.call_soon(tls.connection_made, transport)
        resumed = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            made.cancel()
            resumed.cancel()
            raise
        upgraded: asyncio.Transport = tls
        return upgraded

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: ssl.SSLContext | None = None,
        server: asyncio.AbstractServer | None = None,
        backlog: int = 100,
        *timeouts: Any,
        **named_timeouts: Any,
    ) -> None:
        backlog = max(backlog, 1)  # as many are taken in a turn: with none it would turn for ever
        if sslcontext is not None:
            super()._start_serving(
                protocol_factory, sock, sslcontext, server, backlog, *timeouts, **named_timeouts
            )
        elif sock.fileno() >= 0:  # else closed while it waited to be tried again
            self._add_reader(sock, self._accept, protocol_factory, sock, server, backlog)

    def _accept_failed(
        self, exc: OSError, protocol_factory: Any, sock: socket.socket, server: Any, backlog: int
    ) -> None:
        if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            raise exc
        self.call_exception_handler(
            {
                "message": "socket.accept() out of system resource",
                "exception": exc,
                "socket": trsock.TransportSocket(sock),
            }
        )
        self._remove_reader(sock)  # it stays readable
        self.call_later(
            constants.ACCEPT_RETRY_DELAY,
            self._start_serving,
            protocol_factory,
            sock,
            None,
            server,
            backlog,
        )

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: Any = None,
        extra: dict[str, Any] | None = None,
    ) -> Any:
        if sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            return self._make_datagram(sock, protocol, address, waiter, extra)
        return super()._make_datagram_transport(sock, protocol, address, waiter, extra)

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int) -> int:
        other = transp._empty_waiter
        if other is not None:
            raise RuntimeError("another sendfile() is in progress")
        self._transports[transp._sock_fd] = transp  # asyncio's method takes it out
        reading = transp.is_reading()
        try:
            sent: int = await super()._sendfile_native(transp, file, offset, count)
            return sent
        finally:
            self._transports.pop(transp._sock_fd, None)
            if transp._empty_waiter is not None:  # cancelled while it waited for what was queued
                transp._reset_empty_waiter()
                if reading:
                    transp.resume_reading()

    # --- what the C half calls ------------------------------------------------------------

    def _callback_failed(
        self, handle: object, callback: Any, args: tuple[Any, ...], exc: BaseException
    ) -> None:
        source = _format._format_callback_source(callback, args)
        context = {
            "message": f"Exception in callback {source}",
            "exception": exc,
            "handle": handle,
        }
        self.call_exception_handler(context)

    def _run_handle(self, handle: asyncio.Handle) -> None:
        if handle._cancelled:
            return
        self._current_handle = handle
        try:
            handle._run()
        finally:
            self._current_handle = None

    def _took(self, what: object, seconds: float) -> None:
        if seconds >= self.slow_callback_duration:
            name = base_events._format_handle(what) if hasattr(what, "_callback") else repr(what)
            base_events.logger.warning("Executing %s took %.3f seconds", name, seconds)

    def _call_soon(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if handle._source_traceback:
            del handle._source_traceback[-1]
        self._add_callback(handle)
        return handle

    # --- subprocesses -----------------------------------------------------------------------

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: Any = None,
        **kwargs: Any,
    ) -> asyncio.SubprocessTransport:
        """Start a process and watch it by its pidfd."""
        waiter = self.create_future()
        transport: Any = unix_events._UnixSubprocessTransport(
            self,
            protocol,
            args,
            shell,
            stdin,
            stdout,
            stderr,
            bufsize,
            waiter=waiter,
            extra=extra,
            **kwargs,
        )
        _watch_child(self, transport)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await transport._wait()
            raise
        started: asyncio.SubprocessTransport = transport
        return started


class _PidFd:
    """A child's pidfd, closed when nobody watches it any more: the loop may be closed before."""

    _fd = -1

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._fd >= 0:
            close(self._fd)


def _watch_child(loop: EventLoop, transport: Any) -> None:
    """Have the transport told when its process ends."""
    pid: int = transport.get_pid()
    try:
        pidfd = _PidFd(pid)
    except (AttributeError, OSError):  # Python or the kernel has none, or may not open them
        threading.Thread(
            target=_wait_in_thread,
            args=(loop, transport, pid),
            name=f"greenletio-waitpid-{pid}",
            daemon=True,
        ).start()
        return

    def ended() -> None:
        loop._remove_reader(pidfd)
        _process_exited(transport, _reap(pid))

    loop._add_reader(pidfd, ended)


def _wait_in_thread(loop: EventLoop, transport: Any, pid: int) -> None:
    returncode = _reap(pid)
    try:
        loop.call_soon_threadsafe(_process_exited, transport, returncode)
    except RuntimeError:
        logger.warning("the loop was closed before its child process %d ended", pid)


def _process_exited(transport: Any, returncode: int | None) -> None:
    if returncode is None and transport._proc is not None:
        returncode = transport._proc.returncode  # somebody has called its poll()
    if returncode is None:
        logger.warning(
            "the exit status of child process %d was read by somebody else: reporting 255",
            transport.get_pid(),
        )
        returncode = 255
    transport._process_exited(returncode)


def _reap(pid: int) -> int | None:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status)


# --- debug mode ----------------------------------------------------------------------------------

# There, the C half leaves these to asyncio, whose checks and tracebacks are meant to be seen; and
# wherever arguments are given by keyword, or are wrong.
call_soon = base_events.BaseEventLoop.call_soon
create_task = base_events.BaseEventLoop.create_task
add_reader = unix_events.SelectorEventLoop.add_reader
add_writer = unix_events.SelectorEventLoop.add_writer


def call_soon_threadsafe(
    self: EventLoop,
    callback: Callable[..., object],
    *args: Any,
    context: Context | None = None,
) -> asyncio.Handle:
    # asyncio's own puts it into a queue that is not ours, since Python 3.14.
    if self._debug:
        self._check_callback(callback, "call_soon_threadsafe")
    handle = self._call_soon(callback, args, context)
    if handle._source_traceback:
        del handle._source_traceback[-1]
    self._write_to_self()
    return handle


def call_later(
    self: EventLoop,
    delay: float,
    callback: Callable[..., object],
    *args: Any,
    context: Context | None = None,
) -> asyncio.TimerHandle | _core.TimerHandle:
    timer: Any = self.call_at(self.time() + delay, callback, *args, context=context)
    if isinstance(timer, asyncio.TimerHandle) and timer._source_traceback:
        del timer._source_traceback[-1]
    made: asyncio.TimerHandle | _core.TimerHandle = timer
    return made


def call_at(
    self: EventLoop,
    when: float,
    callback: Callable[..., object],
    *args: Any,
    context: Context | None = None,
) -> asyncio.TimerHandle:
    if self._debug:
        self._check_thread()
        self._check_callback(callback, "call_at")
    timer = asyncio.TimerHandle(when, callback, args, self, context)
    if timer._source_traceback:
        del timer._source_traceback[-1]
    self._add_timer(timer, when)
    timer._scheduled = True
    return timer


def log_transport(transport: object, what: str, exc: BaseException | None) -> None:
    logger.debug("%r: %s", transport, what, exc_info=exc)


def describe_handle(handle: Any) -> str:
    """The repr of a handle of ours."""
    info = [type(handle).__name__]
    if handle.cancelled():
        info.append("cancelled")
    if isinstance(handle, _core.TimerHandle):
        info.append(f"when={handle.when()}")
    if handle._callback is not None:
        info.append(_format._format_callback_source(handle._callback, handle._args))
    return f"<{' '.join(info)}>"


# --- using it ------------------------------------------------------------------------------------


def new_event_loop() -> EventLoop:
    """A new event loop of ours: a loop_factory for asyncio.Runner and whoever else takes one."""
    return EventLoop()


async def _under_portal(main: Coroutine[Any, Any, _T]) -> _T:
    from greenletio._portal import portal

    with await portal():
        return await main


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None, portal: bool = False) -> _T:
    """Run a coroutine to its end on a new EventLoop, as asyncio.run does on its own.

    With `portal` sync code waits in all of its tasks without `async_`, see `greenletio.portal`.
    """
    if portal:
        if not asyncio.iscoroutine(main):
            raise ValueError(f"a coroutine was expected, got {main!r}")
        main = _under_portal(main)
    if sys.version_info >= (3, 11):
        with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
            return runner.run(main)
    else:
        before = asyncio.get_event_loop_policy()
        asyncio.set_event_loop_policy(_policy())
        try:
            return asyncio.run(main, debug=debug)
        finally:
            asyncio.set_event_loop_policy(before)


def install() -> None:
    """Make every event loop that asyncio makes from now on an EventLoop.

    Event loop policies are deprecated since Python 3.14: where you can, hand `new_event_loop`
    to whoever runs the loop instead.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(_policy())


def _policy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return _policy_class()()


def _policy_class() -> Any:
    """EventLoopPolicy, made when it is asked for: its base is deprecated."""
    found = globals().get("EventLoopPolicy")
    if found is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)

            class EventLoopPolicy(asyncio.DefaultEventLoopPolicy):
                """asyncio's policy, but each loop that it makes is an `EventLoop`."""

                _loop_factory = EventLoop

        EventLoopPolicy.__qualname__ = "EventLoopPolicy"
        found = globals()["EventLoopPolicy"] = EventLoopPolicy
    return found


if TYPE_CHECKING:

    class EventLoopPolicy(asyncio.DefaultEventLoopPolicy):
        """asyncio's policy, but each loop that it makes is an `EventLoop`."""

else:

    def __getattr__(name: str) -> Any:
        if name == "EventLoopPolicy":
            return _policy_class()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
