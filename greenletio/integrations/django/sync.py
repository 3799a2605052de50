"""asgiref's ``sync_to_async`` and ``async_to_sync`` on greenlets: what Django's ASGI is made of.

    patch_asgiref()    # the application "greenletio.integrations.django" does it

What Django hands to a thread (sync views, middleware, signal receivers, what the ORM's ``aget()``
and its kin do) then runs in a greenlet of the loop's own thread. Whatever waits cooperatively in it
lets the other requests go on. Code that blocks the thread now holds all requests up:
``greenletio.debug`` finds it, and ``sync_to_async(function, thread_sensitive=False)`` runs it in a
thread, as ever.
"""

from __future__ import annotations

import contextvars
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync

import greenletio
from greenletio import _core, async_, await_
from greenletio.integrations.django import _connections

__all__ = ("patch_asgiref", "unpatch_asgiref")

_in_threads: Any = SyncToAsync.__call__
_in_loops: Any = AsyncToSync.__call__


async def _sync_to_async(self: Any, *args: Any, **kwargs: Any) -> Any:
    """SyncToAsync.__call__ in a greenlet."""
    if not self._thread_sensitive or getattr(self, "context", None) is not None:
        return await _in_threads(self, *args, **kwargs)
    scope = _connections.scope()
    if scope is None:
        return await async_(self.func)(*args, **kwargs)
    return await async_(_in_turn)(scope, self.func, *args, **kwargs)


def _in_turn(scope: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    with scope.lock:
        return function(*args, **kwargs)


def _async_to_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
    """AsyncToSync.__call__: in the greenlet that it is called in, or in a loop of this thread."""
    place = _core.place()
    if place > 0 and not self.force_new_loop:
        return await_(_awaited(self.awaitable, args, kwargs))
    if place < 0 or getattr(SyncToAsync.threadlocal, "main_event_loop", None) is not None:
        return _in_loops(self, *args, **kwargs)
    return _run(self.awaitable, args, kwargs)


async def _awaited(function: Any, args: Any, kwargs: Any) -> Any:
    return await function(*args, **kwargs)


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    after = contextvars.copy_context()

    async def main() -> Any:
        nonlocal after
        try:
            return await function(*args, **kwargs)
        finally:
            after = contextvars.copy_context()

    with _connections.joined():
        before = contextvars.copy_context()
        try:
            return greenletio.run(main())
        finally:
            for var, value in after.items():
                if before.get(var, after) is not value:
                    var.set(value)


def patch_asgiref() -> None:
    """Have asgiref run sync code in greenlets, and coroutines in the greenlet that waits for them.

    For the whole process, at any time. Does nothing if it was called before; `unpatch_asgiref`
    undoes it.
    """
    SyncToAsync.__call__ = _sync_to_async  # type: ignore[method-assign]
    AsyncToSync.__call__ = _async_to_sync  # type: ignore[method-assign]


def unpatch_asgiref() -> None:
    """Undo patch_asgiref()."""
    SyncToAsync.__call__ = _in_threads  # type: ignore[method-assign]
    AsyncToSync.__call__ = _in_loops  # type: ignore[method-assign]
