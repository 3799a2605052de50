"""A small pool of threads for calls that no file descriptor can wait for (name resolution)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from greenletio import _core

__all__ = ("run_in_thread",)

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: How many such calls run at once in the whole process; further ones queue.
MAX_THREADS = 8

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # a forked child has none of the threads


os.register_at_fork(after_in_child=_forget_pool)


def run_in_thread(fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `fn` in a thread of a bounded pool and wait for it without blocking the loop.

    Where a wait would block the thread anyway, `fn` is called right here. Cancellation and timeouts
    abandon the call: the thread finishes it, its result is dropped. Directly in a running
    loop: WouldBlockError.
    """
    global _pool
    if _core.place() == 0:
        return fn(*args, **kwargs)
    if _pool is None:
        _pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="greenletio")
    waiter: _core.Waiter[None] = _core.Waiter()
    future: Future[_T] = _pool.submit(fn, *args, **kwargs)
    future.add_done_callback(lambda _: waiter.set())
    try:
        waiter.wait()
    except BaseException:
        future.cancel()
        raise
    return future.result()
