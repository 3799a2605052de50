"""Starlette and FastAPI: ``def`` endpoints and dependencies run as greenlets, not in threads.

    patch_starlette()    # once, anywhere before the first request

What Starlette gives to its thread pool (plain functions as endpoints, dependencies, background
tasks, exception handlers, and iterators as bodies) then runs in the loop's own thread, each in a
greenlet. Whatever waits cooperatively in it (psycopg2 once it is patched, ``greenletio.green``,
what was imported under ``patch_blocking``) lets the other requests go on, without the pool's
limit of 40 threads. Code that blocks the thread now holds all requests up: ``greenletio.debug``
finds it, and ``await asyncio.to_thread(...)`` runs it in a thread. Files stay with the threads.

    app.add_middleware(LimitRequests, limit=40)    # if the others are to wait outside
    app.add_middleware(CancelOnDisconnect)    # if a client that goes away is to end its request
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import tempfile
import types
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import starlette.concurrency
from anyio.lowlevel import checkpoint

from greenletio import async_
from greenletio.integrations._disconnect import READ_AHEAD, Watch
from greenletio.integrations._places import Places

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ("CancelOnDisconnect", "LimitRequests", "patch_starlette", "unpatch_starlette")

T = TypeVar("T")

#: A module's own names. To ask a lazy one for its __dict__ would import it.
_names_of: Callable[[Any], dict[str, Any]] = vars(types.ModuleType)["__dict__"].__get__


class _Once:
    """A call in a scope of anyio's, which cancels it once.

    What waits in a scope that is cancelled is cancelled again and again: a `finally` that waits
    would be cut short. Code that was written for threads, where anyio cancels nothing, knows no
    shield.
    """

    def __init__(self, call: Any, scope: anyio.CancelScope) -> None:
        self._call = call
        self._scope = scope
        self.send, self.close = call.send, call.close

    def __await__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def throw(self, *exc: Any) -> Any:
        self._scope.shield = True
        return self._call.throw(*exc)


async def _run_sync(func: Callable[..., T], *args: Any, **options: Any) -> T:
    """anyio.to_thread.run_sync without the thread; its limiter and its options have no meaning."""
    if _is_of_a_file(func):
        return await anyio.to_thread.run_sync(func, *args, **options)
    return await _green(func, *args)


async def _green(func: Callable[..., T], *args: Any, shield: bool = False) -> T:
    with anyio.CancelScope(shield=shield) as scope:
        result: T = await _Once(async_(func)(*args), scope)
    return result


def _is_of_a_file(func: Callable[..., Any]) -> bool:
    """An upload's read(), for one: it waits for a disk, and cannot do so cooperatively."""
    while isinstance(func, functools.partial):
        func = func.func
    return inspect.isbuiltin(func) or isinstance(
        getattr(func, "__self__", None), tempfile.SpooledTemporaryFile
    )


def _next(steps: Any, end: Any) -> Any:
    return next(steps, end)


async def _iterate(iterator: Iterable[T]) -> AsyncIterator[T]:
    """starlette.concurrency.iterate_in_threadpool; a generator that is left before its end is
    closed in a greenlet, too: its own finalization could not wait for what it does then.
    """
    steps: Any = iter(iterator)
    end: Any = object()
    try:
        while (item := await _green(_next, steps, end)) is not end:
            yield item
            # Servers take parts without a wait once the client has gone: who never waits either
            # would hold the loop, and never be told.
            await checkpoint()
    finally:
        if inspect.isgenerator(steps):
            await _green(steps.close, shield=True)


@contextlib.asynccontextmanager
async def _context(manager: contextlib.AbstractContextManager[T]) -> AsyncGenerator[T, None]:
    """fastapi.concurrency.contextmanager_in_threadpool; a dependency is also left by a request that
    is cancelled. FastAPI's own left it to the garbage collector for long, where it cannot wait.
    """
    value = await _green(manager.__enter__)
    try:
        yield value
    except BaseException as exc:
        if not await _green(manager.__exit__, type(exc), exc, exc.__traceback__, shield=True):
            raise
    else:
        await _green(manager.__exit__, None, None, None, shield=True)


_iterate_in_threads = starlette.concurrency.iterate_in_threadpool
_context_in_threads: Any = None  # FastAPI's, once it is replaced


def _replace(old: Any, new: Any) -> None:
    """In all modules but this that have it, under whichever name."""
    for module in list(sys.modules.values()):
        if issubclass(type(module), types.ModuleType) and module is not sys.modules[__name__]:
            names = _names_of(module)
            for name in [name for name, value in list(names.items()) if value is old]:
                names[name] = new


class _Anyio(types.ModuleType):
    """What starlette.concurrency sees as anyio."""

    def __init__(self) -> None:
        super().__init__("anyio")
        self.to_thread = types.SimpleNamespace(**vars(anyio.to_thread))
        self.to_thread.run_sync = _run_sync

    def __getattr__(self, name: str) -> Any:
        return getattr(anyio, name)


def patch_starlette() -> None:
    """Run the plain functions of all Starlette and FastAPI applications as greenlets.

    What they set of context variables is seen by the rest of the request, as with ``async def``.
    Does nothing if it was called before; `unpatch_starlette` undoes it.
    """
    global _context_in_threads
    vars(starlette.concurrency)["anyio"] = _Anyio()
    _replace(_iterate_in_threads, _iterate)
    try:
        from fastapi.concurrency import contextmanager_in_threadpool
    except ImportError:
        return
    if _context_in_threads is None:
        _context_in_threads = contextmanager_in_threadpool
    _replace(_context_in_threads, _context)


def unpatch_starlette() -> None:
    """Undo patch_starlette()."""
    vars(starlette.concurrency)["anyio"] = anyio
    _replace(_iterate, _iterate_in_threads)
    if _context_in_threads is not None:
        _replace(_context, _context_in_threads)


class CancelOnDisconnect:
    """Middleware that cancels a request whose client has gone away before it is answered.

    Starlette goes on with it until it wants to send. Here CancelledError is raised where it waits,
    in a plain function that runs as a greenlet as in a coroutine: what it asked of the database is
    ended there, its dependencies are left, and nothing is logged. What comes after the answer
    (background tasks) is not cancelled. For any ASGI application; the outermost middleware, which
    with Starlette is the one that was added last. Of a body, 64 KiB are taken before somebody reads
    them; while more waits to be read, that the client has gone is not noticed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ahead = _Ahead(receive)
        watch = Watch(ahead.listen)

        async def tell(message: Message) -> None:
            kind = message["type"]
            if kind == "http.response.pathsend" or (
                kind == "http.response.body" and not message.get("more_body", False)
            ):
                watch.stop()
            await send(message)

        await watch.over(self._app(scope, ahead.receive, tell))


class LimitRequests:
    """Middleware that has at most `limit` requests in the application at once.

    The others wait in a line outside, for some KiB each instead of what a request that has begun
    takes; those that came first come first. A request has its place until all of it is over, the
    background tasks included. Websockets are not counted. For any ASGI application;
    CancelOnDisconnect, if both are used, is added after it: then who waits may leave the line.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._places = Places(limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._places.hold(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _Ahead:
    """What the server has for the application, taken before that asks for it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._ended = False  # of the listening: the application asks the server itself
        self._change = asyncio.Event()

    async def listen(self) -> bool:
        """Take message after message; True once the client has gone away."""
        try:
            while True:
                while self._bytes >= READ_AHEAD:
                    await self._changed()
                message = await self._receive()
                self._messages.append(message)
                self._bytes += len(message.get("body", b""))
                self._change.set()
                if message["type"] == "http.disconnect":
                    return True
        except Exception:
            return False  # the application asks, and is told
        finally:
            self._ended = True
            self._change.set()

    async def receive(self) -> Message:
        while not (self._messages or self._ended):
            await self._changed()
        if not self._messages:
            return await self._receive()
        message = self._messages.popleft()
        self._bytes -= len(message.get("body", b""))
        self._change.set()
        return message

    async def _changed(self) -> None:
        self._change.clear()
        await self._change.wait()
