"""Starlette and FastAPI: ``def`` endpoints and dependencies run as greenlets, not in threads.

    patch_starlette()    # once, anywhere before the first request

What Starlette gives to its thread pool (plain functions as endpoints, dependencies, background
tasks, exception handlers, and iterators as bodies) then runs in the loop's own thread, each in a
greenlet. Whatever waits cooperatively in it (psycopg2 once it is patched, ``greenletio.green``,
what was imported under ``patch_blocking``) lets the other requests go on, without the pool's
limit of 40 threads. Code that blocks the thread now holds all requests up: ``greenletio.debug``
finds it, and ``await asyncio.to_thread(...)`` runs it in a thread. Files stay with the threads.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
import types
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import starlette.concurrency

from greenletio import async_

__all__ = ("patch_starlette", "unpatch_starlette")

T = TypeVar("T")


async def _run_sync(func: Callable[..., T], *args: Any, **options: Any) -> T:
    """anyio.to_thread.run_sync without the thread; its limiter and its options have no meaning."""
    if _is_of_a_file(func):
        return await anyio.to_thread.run_sync(func, *args, **options)
    return await async_(func)(*args)


def _is_of_a_file(func: Callable[..., Any]) -> bool:
    """An upload's read(), for one: it waits for a disk, and cannot do so cooperatively."""
    while isinstance(func, functools.partial):
        func = func.func
    return inspect.isbuiltin(func) or isinstance(
        getattr(func, "__self__", None), tempfile.SpooledTemporaryFile
    )


class _Anyio(types.ModuleType):
    """What the patched modules see as anyio."""

    def __init__(self) -> None:
        super().__init__("anyio")
        self.to_thread = types.SimpleNamespace(**vars(anyio.to_thread))
        self.to_thread.run_sync = _run_sync

    def __getattr__(self, name: str) -> Any:
        return getattr(anyio, name)


def _modules() -> list[types.ModuleType]:
    """Those that call anyio.to_thread.run_sync for whatever the application gave them."""
    modules = [starlette.concurrency]
    try:
        import fastapi.concurrency
    except ImportError:
        pass
    else:
        modules.append(fastapi.concurrency)
    return modules


def patch_starlette() -> None:
    """Run the plain functions of all Starlette and FastAPI applications as greenlets.

    What they set of context variables is seen by the rest of the request, as with ``async def``.
    Does nothing if it was called before; `unpatch_starlette` undoes it.
    """
    for module in _modules():
        if not isinstance(vars(module)["anyio"], _Anyio):
            vars(module)["anyio"] = _Anyio()


def unpatch_starlette() -> None:
    """Undo patch_starlette()."""
    for module in _modules():
        vars(module)["anyio"] = anyio
