"""gunicorn: a worker class that runs WSGI applications green.

    gunicorn -k greenletio.integrations.gunicorn.Worker app:app

Each connection is a greenlet of one loop per worker process, and so is what the application starts
as a thread. The process is patched (``patch_all``) before the application is imported; psycopg2 and
psycopg, where they are installed, too. The loop is greenletio's; GREENLETIO_LOOP in the environment
names another, as ``greenletio --loop`` does: ``asyncio``, ``uvloop``, ``module:factory``.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType
from typing import Any

from gunicorn.sock import ssl_context  # type: ignore[import-untyped]
from gunicorn.workers.base_async import AsyncWorker  # type: ignore[import-untyped]

import greenletio
from greenletio import _core, _patch_all, _program, spawn

__all__ = ("Worker",)

#: Seconds between two signs of life to the master, at most.
_BEAT_S = 1.0

#: Seconds that a client may take for the handshake of TLS.
_HANDSHAKE_S = 30.0

#: Seconds that a stopping worker leaves idle connections open: a request may be on its way.
_LINGER_S = 1.0

#: Seconds between two attempts to accept a connection after one that failed.
_PAUSE_S = 0.5

_PLAIN = 0  # _core.place(): no loop runs in this thread


class _Named:
    """Stands for a listener, which may be closed, to a connection that asks where it came in."""

    def __init__(self, listener: Any) -> None:
        self._name = listener.getsockname()

    def getsockname(self) -> Any:
        return self._name


class Worker(AsyncWorker):  # type: ignore[misc]
    """Serves every connection in a greenlet, ``worker_connections`` of them at once.

    ``keepalive`` limits, in seconds, the wait for a request; how long the application may take is
    not limited: ``timeout`` is for a loop that is held, whose worker gunicorn ends. A worker that
    stops (SIGTERM, SIGHUP, ``max_requests``, ``reload``) accepts no more, and gives the requests
    that it has ``graceful_timeout`` seconds; SIGINT and SIGQUIT cancel them.
    """

    @classmethod
    def setup(cls) -> None:
        """Called by gunicorn in the master, before anything imports the application."""
        # gunicorn's own classes are right as they are: its reloader stays a thread of the system.
        early = [name for name in _patch_all.take_over() if not name.startswith("gunicorn.")]
        if early:
            warnings.warn(_patch_all.too_late(early), RuntimeWarning, stacklevel=2)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sockets: list[Any]
        self._clients: dict[Any, bool] = {}  # each connection: whether it has a request
        self._scopes: set[greenletio.timeout] = set()  # of those that wait for one, or for TLS
        self._context: Any = None  # of TLS
        self._status = 0

    @property
    def alive(self) -> bool:
        """Whether it is to go on. Any thread, and any signal handler, may set it to False."""
        return self._alive

    @alive.setter
    def alive(self, value: bool) -> None:
        self._alive = value
        if not value:
            self._wake()

    def _wake(self) -> None:
        if self.PIPE:
            with suppress(BlockingIOError):
                os.write(self.PIPE[1], b".")

    # The beginning.

    def init_process(self) -> None:
        """Load the application and serve it, in the loop's main greenlet."""
        # Until then they would go to the handlers that are the master's, and be lost.
        signal.signal(signal.SIGTERM, self.handle_exit)
        signal.signal(signal.SIGINT, self.handle_quit)
        signal.signal(signal.SIGQUIT, self.handle_quit)
        new_loop = _program.load_loop(os.environ.get("GREENLETIO_LOOP", "greenletio"))
        self._patch()
        _program.run_green(super().init_process, new_loop)
        if self._status:
            sys.exit(self._status)

    def _patch(self) -> None:
        from greenletio.green import socket

        self.setup()
        asyncio.run = _program.nested(asyncio.run)
        # Its guard takes a loop that runs for a coroutine that is about to block it.
        os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        for driver in ("psycopg2", "psycopg"):
            if importlib.util.find_spec(driver) is not None:
                try:
                    getattr(greenletio, f"patch_{driver}")()
                except ImportError as error:
                    self.log.warning("%s will block the worker: %s", driver, error)
        self.sockets = [
            socket.socket(each.FAMILY, socket.SOCK_STREAM, fileno=each.sock.detach())
            for each in self.sockets
        ]

    def init_signals(self) -> None:
        """Set the signal handlers."""
        wakeup = signal.set_wakeup_fd(-1)
        super().init_signals()
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)  # it is the loop's
        # The others run in the main greenlet or the loop: this one interrupts who holds that.
        signal.signal(signal.SIGABRT, self.handle_abort)

    # The end.

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGQUIT and SIGINT: stop at once."""
        if _core.place() == _PLAIN:
            super().handle_quit(sig, frame)
        else:
            spawn(self._quit, super().handle_quit, sig, frame)

    def _quit(self, handle: Any, sig: int, frame: FrameType | None) -> None:
        from greenletio.green import _std

        try:
            handle(sig, frame)
        except SystemExit as error:
            _std.interrupt(error)

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        """SIGUSR1: open the log files anew."""
        if _core.place() == _PLAIN:
            super().handle_usr1(sig, frame)
        else:
            spawn(super().handle_usr1, sig, frame)

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """SIGABRT: the master has heard nothing for ``timeout`` seconds; say who holds the loop."""
        stack = "".join(traceback.format_stack(frame))
        self.log.critical("The loop of worker %s is held here:\n%s", self.pid, stack)
        self._status = 1
        super().handle_abort(sig, frame)

    # The life.

    def run(self) -> None:
        """Serve until told to stop, then until the requests have been answered."""
        if self.cfg.is_ssl:
            self._context = ssl_context(self.cfg)
        from greenletio.green import threading

        for listener in self.sockets:
            listener.setblocking(True)
        self._free = threading.Semaphore(self.worker_connections)
        acceptors = [spawn(self._accept_from, listener) for listener in self.sockets]
        while self.alive:
            self.notify()
            if self.ppid != os.getppid():
                self.log.info("Parent changed, shutting down: %s", self)
                break
            self._rest(_BEAT_S)
        for acceptor in acceptors:
            acceptor.cancel()
        for listener in self.sockets:
            listener.close()
        self._drain()

    def _rest(self, seconds: float) -> None:
        """Wait until somebody wakes us, or it is time for the next sign of life."""
        from greenletio.green import select

        limit = min(seconds, self.timeout or seconds)
        if select.select([self.PIPE[0]], [], [], limit)[0]:
            with suppress(BlockingIOError):
                os.read(self.PIPE[0], 4096)

    def _drain(self) -> None:
        began = monotonic()
        end = began + self.cfg.graceful_timeout
        linger = began + min(self.cfg.keepalive, _LINGER_S)
        while self._clients:
            now = monotonic()
            if now >= end:
                self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
                return  # whose loop cancels what is left
            if now >= linger:
                self._hang_up_idle()
            self.notify()
            self._rest(min(_BEAT_S, end - now, linger - now if now < linger else _BEAT_S))

    def _hang_up_idle(self) -> None:
        from greenletio.green import socket

        for scope in list(self._scopes):
            scope.reschedule(0)
        if not self.cfg.keepalive:  # whoever waits for its only request reads the end instead
            for client, has_request in list(self._clients.items()):
                if not has_request:
                    with suppress(OSError):
                        socket.socket.shutdown(client, socket.SHUT_RD)

    def _accept_from(self, listener: Any) -> None:
        name = _Named(listener)
        while True:
            self._free.acquire()
            try:
                client, address = listener.accept()
            except OSError as error:
                self._free.release()
                if error.errno != errno.ECONNABORTED:
                    self.log.error("Cannot accept a connection: %s", error)
                    greenletio.sleep(_PAUSE_S)
                continue
            except BaseException:
                self._free.release()
                raise
            self._clients[client] = False
            spawn(self._serve, name, client, address)
            greenletio.sleep(0)  # other workers, and requests, have their turn

    def _serve(self, listener: _Named, client: Any, address: Any) -> None:
        try:
            client.setblocking(True)
            if self._context is not None:
                client = self._wrapped(client)
                with self._limited(_HANDSHAKE_S):
                    client.do_handshake()
            self.handle(listener, client, address)
        except OSError as error:  # TimeoutError and ssl.SSLError among them
            self.log.debug("No TLS with %s: %s", address, error)
        finally:
            self._clients.pop(client, None)
            client.close()
            self._free.release()
            if not self.alive:
                self._wake()

    def _wrapped(self, accepted: Any) -> Any:
        client = self._context.wrap_socket(
            accepted,
            server_side=True,
            suppress_ragged_eofs=self.cfg.suppress_ragged_eofs,
            do_handshake_on_connect=False,
        )
        del self._clients[accepted]  # which has given its descriptor away
        self._clients[client] = False
        return client

    @contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Around the wait for a request: ends it without a word."""
        scope = None
        try:
            with self._limited(self.cfg.keepalive) as scope:
                yield
        except TimeoutError:
            if scope is None or not scope.expired:
                raise

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[greenletio.timeout]:
        """``timeout`` that a stopping worker may cut short."""
        with greenletio.timeout(seconds) as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Have the application answer one request."""
        self._clients[sock] = True
        try:
            return super().handle_request(listener_name, req, sock, addr)
        except asyncio.CancelledError:  # the worker ends
            raise StopIteration from None
        finally:
            self._clients[sock] = False

    def handle_http2(self, listener: Any, client: Any, addr: Any, **kwargs: Any) -> None:
        """Serve a connection of HTTP/2, which is a long request to whoever stops the worker."""
        self._clients[client] = True
        super().handle_http2(listener, client, addr, **kwargs)
