"""WSGI in ASGI: ``as_asgi`` serves Flask, Django or any WSGI application by an ASGI server.

    app = as_asgi(flask_app)    # uvicorn module:app

Every request runs in a greenlet of its own, in the server's loop: whatever in it waits
cooperatively (psycopg2 once it is patched, ``greenletio.green``, what was imported under
``patch_blocking``) lets the other requests go on; there are no threads. Bodies stream both ways,
and a client that goes away cancels its request. Code that blocks the thread holds all requests up:
``greenletio.debug`` finds it.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from greenletio import async_, await_, sleep
from greenletio.integrations._disconnect import READ_AHEAD, Watch
from greenletio.integrations._places import Places

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ("as_asgi",)

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
RawHeaders: TypeAlias = list[tuple[bytes, bytes]]
ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType]

#: Said between two machines, so of no meaning here: the server has its own (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-connection te trailer transfer-encoding upgrade".split()
)
STATUS = re.compile(r"[2-9][0-9]{2}( |$)")
#: What would end a header before its time: servers differ in whether they look for it.
ENDS_HEADER = re.compile(r"[\r\n\0]")


def as_asgi(
    app: WSGIApplication,
    *,
    limit: int | None = None,
    on_startup: Callable[[], object] | None = None,
    on_shutdown: Callable[[], object] | None = None,
) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """The ASGI application that runs a WSGI one, with a greenlet for each request.

    The environ is PEP 3333's, with ``wsgi.input_terminated``, and ``asgi.scope`` for what WSGI has
    no name for. A request that its client has left is cancelled: CancelledError is raised where it
    waits, and what it returns is closed. At most `limit` requests are in the application at once;
    the others wait their turn, those that came first come first. `on_startup` and `on_shutdown` run
    in a greenlet, too, before the first request and after the last. Websockets are refused. Needs a
    server on an asyncio loop.
    """
    if not callable(app):
        raise TypeError(f"as_asgi() needs a WSGI application, not {app!r}")
    places = None if limit is None else Places(limit)
    hooks = {"lifespan.startup": on_startup, "lifespan.shutdown": on_shutdown}

    async def asgi(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Request(scope, receive, send).answer(app, places)
        elif scope["type"] == "lifespan":
            await _live(receive, send, hooks)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise NotImplementedError(f"as_asgi() does not serve {scope['type']!r}")

    return asgi


async def _live(
    receive: Receive, send: Send, hooks: dict[str, Callable[[], object] | None]
) -> None:
    while True:
        kind = (await receive())["type"]
        hook = hooks[kind]
        try:
            if hook is not None:
                await async_(hook)()
        except Exception:
            await send({"type": f"{kind}.failed", "message": traceback.format_exc()})
            return
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


class _Request:
    """One request: what comes in, in the loop, and its answer, from the greenlet."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self._body = _Body(receive)
        self._watch = Watch(self._body.listen)
        self._scope = scope
        self._send = send
        self._status: int | None = None
        self._headers: RawHeaders = []
        self._started = False  # the status and the headers are sent
        self._ended = False  # the last of the body, too

    async def answer(self, app: WSGIApplication, places: Places | None) -> None:
        await self._body.take()
        if self._body.gone:
            return
        run = async_(self._run)
        try:
            await self._watch.over(run(app) if places is None else places.hold(run, app))
        finally:
            self._answered()

    def _answered(self) -> None:
        self._watch.stop()
        self._body.end(OSError("the request is answered: what is left of its body is not read"))

    def _run(self, app: WSGIApplication) -> None:
        self._write_all(app(_environ(self._scope, self._body.file()), self._start_response))

    def _write_all(self, chunks: Iterable[bytes]) -> None:
        try:
            if isinstance(chunks, (list, tuple)) and len(chunks) == 1:
                self._write(chunks[0], last=True)
                return
            for chunk in chunks:
                if chunk:
                    self._write(chunk)
            self._write(b"", last=True)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def _start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | tuple[None, None, None] | None = None,
        /,
    ) -> Callable[[bytes], object]:
        if exc_info is not None and exc_info[1] is not None:
            try:
                if self._started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # PEP 3333: no cycle through the traceback
        elif self._status is not None:
            raise AssertionError("start_response() was called already, and there is no exc_info")
        if not isinstance(status, str) or STATUS.match(status) is None:
            raise ValueError(f"a status is like '200 OK', and final, not {status!r}")
        self._status, self._headers = int(status[:3]), _encoded(headers)
        return self._write

    def _write(self, data: bytes, last: bool = False) -> None:
        if not isinstance(data, bytes):
            raise TypeError(f"a WSGI application gives bytes, not {type(data).__name__}")
        if self._ended:
            raise AssertionError("the application has written after its answer's end")
        if not self._started:
            self._start(len(data) if last else None)
        if last:
            self._ended = True
            self._answered()
        if data or last:
            await_(self._send({"type": "http.response.body", "body": data, "more_body": not last}))
        if not last:
            # Servers take parts without a wait once the client has gone: an application that never
            # waits either would hold the loop, and never be told.
            sleep(0)

    def _start(self, length: int | None) -> None:
        if self._status is None:
            raise AssertionError("the application has sent a body before it called start_response")
        self._started = True
        headers = self._headers
        if (
            length is not None
            and self._status >= 200
            and self._status not in (204, 304)
            and self._scope["method"] != "HEAD"
            and all(name != b"content-length" for name, _ in headers)
        ):
            headers = [*headers, (b"content-length", b"%d" % length)]
        await_(
            self._send({"type": "http.response.start", "status": self._status, "headers": headers})
        )


class _Body(io.RawIOBase):
    """The request's body: the greenlet reads what the loop has taken from the server.

    Some is taken ahead of the reader: then a client that goes away is noticed also while nobody
    reads. The server holds the rest back, and with it the news of the client.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone = False  # the client has left
        self._receive = receive
        self._ahead = bytearray()
        self._more = True
        self._failed: Exception | None = None  # why there is no more, and what is missing
        self._change: asyncio.Future[None] | None = None  # the reader or the listener waits for it
        self._thread = threading.get_ident()

    async def take(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            self.end(ConnectionResetError("the client went away before the body's end"))
        else:
            self._ahead += message.get("body", b"")
            self._more = message.get("more_body", False)

    async def listen(self) -> bool:
        """Take message after message; True once the client has gone away."""
        while not self.gone:
            if self._more and len(self._ahead) >= READ_AHEAD:
                await self._changed()
                continue
            try:
                await self.take()
            except Exception as exc:
                self.end(exc)
                return False
            self._tell()
        return True

    def end(self, why: Exception) -> None:
        """Nothing comes any more: who wants more than is here is told why."""
        if self._more:
            self._more, self._failed = False, why
        self._tell()

    async def _changed(self) -> None:
        self._change = asyncio.get_running_loop().create_future()
        await self._change

    def file(self) -> io.BufferedIOBase:
        """What the application reads; most requests have no body."""
        if self._more or self._ahead:
            return io.BufferedReader(self, READ_AHEAD)
        return io.BytesIO()

    def _tell(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if threading.get_ident() != self._thread:
            raise RuntimeError("wsgi.input can be read in the thread of the server's loop alone")
        while not self._ahead and self._more:
            await_(self._changed())
        if not self._ahead and self._failed is not None:
            raise self._failed
        n = min(len(buffer), len(self._ahead))
        buffer[:n] = self._ahead[:n]
        del self._ahead[:n]
        self._tell()
        return n


def _encoded(headers: list[tuple[str, str]]) -> RawHeaders:
    """As ASGI has them, without those that are of no meaning here."""
    encoded = []
    for name, value in headers:
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"headers are pairs of str, not {(name, value)!r}")
        if ENDS_HEADER.search(name) or ENDS_HEADER.search(value):
            raise ValueError(f"a header is one line of text, not {(name, value)!r}")
        if name.lower() not in HOP_BY_HOP:
            encoded.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    return encoded


def _environ(scope: Message, body: Any) -> dict[str, Any]:
    """PEP 3333's environ of an ASGI HTTP scope."""
    root = _native(scope.get("root_path", "")).rstrip("/")
    path = _path(scope)
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]  # servers differ in whether it is a part of the path
    host, port = scope.get("server") or ("localhost", 80)
    env: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root,
        "PATH_INFO": path,
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or 0),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,  # requests run side by side
        "wsgi.multiprocess": True,  # there may be other workers
        "wsgi.run_once": False,
        "asgi.scope": scope,
    }
    if scope.get("raw_path") is not None:
        raw = scope["raw_path"].decode("latin-1")
        env["RAW_URI"] = env["REQUEST_URI"] = (
            f"{raw}?{env['QUERY_STRING']}" if env["QUERY_STRING"] else raw
        )
    if scope.get("client"):
        env["REMOTE_ADDR"], env["REMOTE_PORT"] = scope["client"][0], str(scope["client"][1])
    _add_headers(env, scope["headers"])
    return env


def _add_headers(env: dict[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    for raw_name, raw_value in headers:
        if b"_" in raw_name:
            continue  # it would pass for the same header with a dash
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        value = raw_value.decode("latin-1")
        if key in env:
            value = f"{env[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{value}"
        env[key] = value


def _path(scope: Message) -> str:
    path: str = scope["path"]
    raw = (scope.get("raw_path") or b"").decode("latin-1")
    if "\ufffd" in path and unquote(raw) == path:  # bytes that are no UTF-8, and lost there
        return unquote_to_bytes(raw).decode("latin-1")
    return _native(path)


def _native(text: str) -> str:
    """Unicode as the bytes that WSGI wants to see in it."""
    return text.encode().decode("latin-1")
