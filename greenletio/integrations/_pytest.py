"""The loop of a run of pytest, in which tests and fixtures run green, one after the other."""

from __future__ import annotations

import asyncio
import contextvars
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from greenletio import _core, _program

__all__ = ("Loop",)

_GREEN = 1  # _core.place(): in a greenlet of a running loop
_CLEAN_UP_S = 5.0  # for what a test has left running


class Loop:
    """One for all of them, made when it is first asked for.

    All that `run` is given runs in the same greenlet, one after the other: so a test finds the
    context variables and the thread-locals as its fixtures have set them, and counts as code of
    the main thread. What pytest itself and other plugins do runs outside, while the loop rests.
    """

    def __init__(self, name: str) -> None:
        self._new_loop = _program.load_loop(name)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._job: Callable[[], None] | None = None
        self._waiter: _core.Waiter[None] = _core.Waiter()
        self._late: BaseException | None = None
        self._ends = False
        self._kept: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._seen = contextvars.Context()

    def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call `fn(*args)` green, and return or raise what it does. For plain and green code."""
        __tracebackhide__ = True
        if _core.place() == _GREEN:
            return fn(*args)
        from greenletio.green import _std

        loop = self._loop if self._loop is not None else self._start()
        done = loop.create_future()
        result: list[Any] = []
        raised: list[BaseException] = []
        news = self._news()

        def job() -> None:
            __tracebackhide__ = True
            for variable, value in news:
                variable.set(value)
            try:
                result.append(fn(*args))
            except BaseException as error:
                raised.append(_std.interruption(error))
            finally:
                done.set_result(None)

        self._job = job
        self._waiter.set()
        with self._as_main():
            while not done.done():
                try:
                    loop.run_until_complete(done)
                except BaseException as error:  # a signal handler's: pytest-timeout's, for one
                    if done.done():
                        raise
                    _std.interrupt(error)  # the test raises it, where it waits
        if self._late is not None:
            late, self._late = self._late, None
            raise late
        if raised:
            raise raised.pop()
        return result.pop()

    def _news(self) -> list[tuple[contextvars.ContextVar[Any], Any]]:
        """The context variables that have been set outside since the last time."""
        now, before = contextvars.copy_context(), self._seen
        self._seen = now
        none = object()
        return [(each, value) for each, value in now.items() if before.get(each, none) is not value]

    # The greenlet.

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = self._new_loop()
        self._call = _core.async_(self._serve)()
        self._task: asyncio.Task[None] = loop.create_task(self._call, name="pytest")
        self._loop = loop
        return loop

    def _serve(self) -> None:
        while not self._ends:
            job, self._job = self._job, None
            if job is None:
                try:
                    self._waiter.wait()
                except asyncio.CancelledError:  # asked for by a test that has ended since
                    pass
                except BaseException as error:  # what interrupts a test that has just ended
                    self._late = error
                if self._waiter.done():
                    self._waiter = _core.Waiter()
                continue
            job()
            del job  # and all that the test's exception holds
            while hasattr(self._task, "uncancel") and self._task.cancelling():
                self._task.uncancel()

    @contextmanager
    def _as_main(self) -> Iterator[None]:
        from greenletio.green import _std

        plain = asyncio.run
        _std.become_main(self._task, self._call)
        asyncio.run = _program.nested(plain)
        try:
            yield
        finally:
            asyncio.run = plain
            _std.become_main(None)

    # What tests leave behind.

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """The tasks that are made in this block may outlive the test."""
        before = self._tasks()
        try:
            yield
        finally:
            self._kept.update(self._tasks() - before)

    def _tasks(self) -> set[asyncio.Task[Any]]:
        return set() if self._loop is None else asyncio.all_tasks(self._loop)

    def cancel_rest(self) -> None:
        """Cancel the tasks and greenlets that a test has left running, and wait for their end."""
        if self._loop is None:
            return
        self._cancel(self._tasks() - set(self._kept) - {self._task})

    def _cancel(self, tasks: set[asyncio.Task[Any]]) -> None:
        assert self._loop is not None
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=_CLEAN_UP_S))
        for task in tasks:
            if not task.done():
                self._kept.add(task)
                warnings.warn(f"cancelled, but does not end: {task!r}", RuntimeWarning, 2)

    def close(self) -> None:
        """The end of all that runs in it, and of the loop."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self._loop = loop
        try:
            self._ends = True
            self._waiter.set()
            self._cancel(self._tasks() - {self._task})
            loop.run_until_complete(self._task)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            self._loop = None
            loop.close()
