"""spawn and Green: sync functions that run concurrently, each in a greenlet."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Generator
from typing import Any, Generic, ParamSpec, TypeVar

from greenletio import _core, _loops
from greenletio._core import spawn

__all__ = ("Green", "spawn")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Green(_core.Green[_T]):
    """A sync function running in a greenlet: what `spawn` returns.

    Sync code uses its methods; async code can await it. It belongs to the thread that spawned it.
    An exception that nobody retrieves is reported by the loop when the object goes, as a task's is.

    On a loop of greenletio's it has no asyncio task until one is needed: asked for by its `task`,
    by ``asyncio.current_task()`` in it or ``asyncio.all_tasks()``, to await it or to cancel it, or
    because it awaits a future of asyncio's or fails. Nothing else tells the difference.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        if self._taskless:
            name, cancelled = self._call.__qualname__, False
        else:
            name, cancelled = self.task.get_name(), self.task.cancelled()
        state = "running" if not self.ready else "cancelled" if cancelled else "finished"
        return f"<Green {name} {state}>"

    def __await__(self) -> Generator[Any, None, _T]:
        if self._taskless and self.ready:
            return self._result()
        return (yield from self.task)

    @property
    def successful(self) -> bool:
        """Whether it has returned."""
        return self.ready and self.exception is None

    @property
    def exception(self) -> BaseException | None:
        """What it failed with (CancelledError if cancelled); None if it did not, or still runs."""
        if self._taskless or not self.ready:
            return None
        if self.task.cancelled():
            return asyncio.CancelledError()
        return self.task.exception()

    def get(self, timeout: float | None = None) -> _T:
        """Wait for the result and return it, or raise what it failed with.

        TimeoutError if `timeout` seconds pass first; it goes on running.
        """
        if not self.join(timeout):
            raise TimeoutError(f"{self!r} has not finished after {timeout} seconds")
        return self._result()

    def kill(self, block: bool = True, timeout: float | None = None) -> None:
        """Cancel it; unless `block` is false, wait for its end, at most `timeout` seconds."""
        self.cancel()
        if block:
            self.join(timeout)

    def link(self, fn: Callable[[Green[_T]], object]) -> None:
        """Call `fn(self)` in a greenlet of its own once this one has ended (at once if it has)."""
        if self.ready:
            spawn(fn, self)
            return
        self._on_end(_Link(self, fn))

    def unlink(self, fn: Callable[[Green[_T]], object]) -> None:
        """Undo link(fn)."""
        self._forget(_Link(self, fn))


class _Link(Generic[_T]):
    """A done callback that equals another one for the same function."""

    def __init__(self, green: Green[_T], fn: Callable[[Green[_T]], object]) -> None:
        self.green, self.fn = green, fn

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Link) and self.fn == other.fn and self.green is other.green

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, _: object) -> None:
        spawn(self.fn, self.green)


# --- what the C half calls -----------------------------------------------------------------------


def spawn_task(fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Green[_T]:
    """spawn where the greenlet is a task from the beginning: on loops of others, among others."""
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


class _Asker(weakref.ref[type]):
    """Stands among asyncio's weak references to tasks; called as the tasks are listed."""

    __slots__ = ()

    def __call__(self) -> None:
        # If this makes tasks, the listing notices that it is out of date, and begins again.
        _core._greens_ask()


def tell_all_tasks() -> None:
    """Have asyncio.all_tasks() know of the greenlets that have no task."""
    tasks: Any = asyncio.tasks
    listed = tasks._all_tasks if hasattr(tasks, "_all_tasks") else tasks._scheduled_tasks
    listed.data.add(_Asker(Green))
