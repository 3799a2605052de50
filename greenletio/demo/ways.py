"""The three ways to call synchronous code from asynchronous code.

This is all that differs between the demo's modes: how a function is called, how
computing gives way, and which pool hands out connections.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy.pool import Pool, QueuePool

from greenletio.demo.program import Courtesy

__all__ = ("WAYS", "Way")


@dataclass(frozen=True)
class Way:
    call: Callable[..., Coroutine[Any, Any, Any]]
    courtesy: Courtesy
    poolclass: type[Pool]


def _blocking() -> Way:
    """Call it straight away: the loop stands still until it returns."""

    async def call(fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    return Way(call, Courtesy(turn=nullcontext, rest=lambda: None), QueuePool)


def _threads() -> Way:
    """Call it in Starlette's thread pool, at its default size: 40 threads."""
    from starlette.concurrency import run_in_threadpool

    return Way(run_in_threadpool, Courtesy(turn=nullcontext, rest=lambda: None), QueuePool)


def _greenletio() -> Way:
    """Call it in a greenlet: where it waits for PostgreSQL, the loop goes on."""
    from greenletio import async_, await_, patch_psycopg2, sleep
    from greenletio.integrations.sqlalchemy import GreenQueuePool

    patch_psycopg2()
    computing = asyncio.Lock()

    async def call(fn: Callable[..., Any], *args: Any) -> Any:
        return await async_(fn)(*args)

    # Each task that is ready runs once per round of the loop. If all of them
    # computed, a round would last as long as all their steps together.
    @contextmanager
    def turn() -> Iterator[None]:
        await_(computing.acquire())
        try:
            yield
        finally:
            computing.release()

    return Way(call, Courtesy(turn=turn, rest=lambda: sleep(0)), GreenQueuePool)


WAYS: dict[str, Callable[[], Way]] = {
    "blocking": _blocking,
    "threads": _threads,
    "greenletio": _greenletio,
}
