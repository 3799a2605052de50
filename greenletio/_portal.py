"""portal: every task of a loop may wait in sync code, without async_ around it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from greenletio import _core

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ("Portal", "portal")

_PyTask: type[asyncio.Task[Any]] = getattr(asyncio.tasks, "_PyTask", asyncio.Task)
_CTask: type[asyncio.Task[Any]] | None = getattr(asyncio.tasks, "_CTask", None)


class _Factory:
    """The task factory of a loop of others while portals are open; `before` is the one it had."""

    __slots__ = ("before", "portals")

    def __init__(self, before: Callable[..., asyncio.Future[Any]] | None) -> None:
        self.before = before
        self.portals = 0  # at none, left in a factory that the user put around it, it does nothing

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **kwargs: Any
    ) -> asyncio.Future[Any]:
        if self.portals:
            coro = _core._portal(coro)
        if self.before is not None:
            return self.before(loop, coro, **kwargs)
        return asyncio.Task(coro, loop=loop, **kwargs)


class Portal:
    """An open portal of a loop, see `portal`. Leaving its block closes it."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._factory: _Factory | None = None
        if isinstance(loop, _core.Loop):  # which sees to it itself
            loop._open_portal()
            return
        before: Any = loop.get_task_factory()
        factory: Any = before if isinstance(before, _Factory) else _Factory(before)
        if factory is not before:
            loop.set_task_factory(factory)
        factory.portals += 1
        self._factory = factory

    def close(self) -> None:
        """Tasks that are made from now on wait as they did before; those there are keep theirs."""
        loop, self._loop = self._loop, None
        if isinstance(loop, _core.Loop):
            loop._close_portal()
        if loop is None or self._factory is None:
            return
        factory = self._factory
        factory.portals -= 1
        there: Any = loop.get_task_factory()
        if factory.portals == 0 and there is factory:
            loop.set_task_factory(factory.before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __await__(self) -> Generator[None, None, Self]:
        yield  # the next step of this task is the portal's
        return self


def portal(loop: asyncio.AbstractEventLoop | None = None) -> Portal:
    """Let sync code wait in every task of `loop` (the running one) without `async_` around it.

    From now on each task that the loop creates may call `await_`, green functions and patched
    drivers in sync code at any depth: the task is suspended there, and the loop goes on. Use it
    as a plain call at the start of the program, or as a block that ends it; several may be open.
    The task that opens it takes part from its next step; ``await portal()`` makes that the next
    line. Other tasks that exist already, and those made by ``asyncio.Task(...)`` instead of
    ``create_task``, do not take part.

    It changes what async code may rely on: any call of sync code may now let other tasks run, where
    before only `await` did. A lock of the standard library's `threading` that is held across
    such a call does not keep tasks apart (RLock) or stops the loop (Lock); use green ones.

    `WouldBlockError` remains for what is no task: callbacks of the loop, methods of protocols,
    finalizers that the garbage collector calls. A cancellation, or `asyncio.timeout`, ends the wait
    in the sync code with `CancelledError`.
    """
    if loop is None:
        loop = asyncio.get_running_loop()
    if _core._gc_phase not in gc.callbacks:
        gc.callbacks.append(_core._gc_phase)
    opened = Portal(loop)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        task = None
    if task is not None and task.get_loop() is loop:
        _adopt(task)
    return opened


def _adopt(task: asyncio.Task[Any]) -> None:
    """From its next step on, the coroutine of `task` is stepped by a portal, if it can be."""
    coro = task.get_coro()
    if not asyncio.iscoroutine(coro):
        return
    by = _core._portal(coro)
    if not isinstance(by, _core.PortalCoroutine) or by is coro:
        return
    if isinstance(task, _PyTask):
        task._coro = by  # type: ignore[attr-defined]
    elif _CTask is not None and isinstance(task, _CTask):
        _core._portal_adopt(_CTask, task, by)
