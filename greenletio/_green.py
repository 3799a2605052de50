"""spawn and Green: sync functions that run concurrently, each in a greenlet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, ParamSpec, TypeVar

from greenletio import _core, _loops

__all__ = ("Green", "spawn")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Green(Generic[_T]):
    """A sync function running in a greenlet: what `spawn` returns.

    Sync code uses its methods; async code can await it. It belongs to the thread that spawned it.
    An exception that nobody retrieves is reported by the loop when the object goes, as a task's is.
    """

    __slots__ = ("__weakref__", "task")

    #: The asyncio task that drives the greenlet.
    task: asyncio.Task[_T]

    def __init__(self, task: asyncio.Task[_T]) -> None:
        self.task = task

    def __repr__(self) -> str:
        state = (
            "running" if not self.ready else "cancelled" if self.task.cancelled() else "finished"
        )
        return f"<Green {self.task.get_name()} {state}>"

    def __await__(self) -> Generator[Any, None, _T]:
        return self.task.__await__()

    @property
    def ready(self) -> bool:
        """Whether it has ended: returned, failed, or been cancelled."""
        return self.task.done()

    @property
    def successful(self) -> bool:
        """Whether it has returned."""
        return self.ready and not self.task.cancelled() and self.exception is None

    @property
    def exception(self) -> BaseException | None:
        """What it failed with (CancelledError if cancelled); None if it did not, or still runs."""
        if not self.task.done():
            return None
        if self.task.cancelled():
            return asyncio.CancelledError()
        return self.task.exception()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; False if `timeout` seconds pass first.

        For sync code, in a greenlet or where no loop runs. Being cancelled here, or
        running out of time, does not cancel what is waited for.
        """
        if self.task.done():
            return True
        if self.task is _loops.current_task():
            raise RuntimeError(f"{self!r} can't wait for itself")
        waiter: _core.Waiter[None] = _core.Waiter()
        wake = lambda _: waiter.set()  # noqa: E731  (removed by identity)
        self.task.add_done_callback(wake)
        try:
            return waiter.wait(timeout) or self.task.done()
        finally:
            self.task.remove_done_callback(wake)

    def get(self, timeout: float | None = None) -> _T:
        """Wait for the result and return it, or raise what it failed with.

        TimeoutError if `timeout` seconds pass first; it goes on running.
        """
        if not self.join(timeout):
            raise TimeoutError(f"{self!r} has not finished after {timeout} seconds")
        return self.task.result()

    def cancel(self, msg: object = None) -> bool:
        """Raise CancelledError at its wait (or before it starts). False if it had ended.

        Does not wait for it to end: join() does.
        """
        return self.task.cancel(msg)

    def kill(self, block: bool = True, timeout: float | None = None) -> None:
        """Cancel it; unless `block` is false, wait for its end, at most `timeout` seconds."""
        self.task.cancel()
        if block:
            self.join(timeout)

    def link(self, fn: Callable[[Green[_T]], object]) -> None:
        """Call `fn(self)` in a greenlet of its own once this one has ended (at once if it has)."""
        if self.task.done():
            spawn(fn, self)
            return
        self.task.add_done_callback(_Link(self, fn))

    def unlink(self, fn: Callable[[Green[_T]], object]) -> None:
        """Undo link(fn)."""
        self.task.remove_done_callback(_Link(self, fn))


class _Link(Generic[_T]):
    """A done callback that equals another one for the same function."""

    def __init__(self, green: Green[_T], fn: Callable[[Green[_T]], object]) -> None:
        self.green, self.fn = green, fn

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Link) and self.fn == other.fn and self.green is other.green

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, task: asyncio.Task[_T]) -> None:
        spawn(self.fn, self.green)


def spawn(fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Green[_T]:
    """Start `fn(*args, **kwargs)` in a greenlet that runs concurrently, and return its handle.

    It may use await_, green functions and patched psycopg2 at any depth. It starts at the next
    turn of the loop, with a copy of the current context variables, as create_task does. With no
    loop running, it belongs to the thread's own loop, and makes progress whenever plain code waits.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        if _core.place() < 0:
            raise RuntimeError(
                "spawn() needs an asyncio loop: under trio start async_(fn) in a nursery"
            ) from None
        loop = _loops.own_loop()
    call = _core.async_(fn)(*args, **kwargs)
    task = loop.create_task(call)
    task.set_name(f"{call.__qualname__}-{task.get_name()}")
    return Green(task)
