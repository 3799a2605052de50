"""Work that both faces do: a generator yields what is to be waited for, whoever runs it waits.

What is yielded has ``run()``, for sync code, and can be awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, TypeVar

from greenletio._core import sleep
from greenletio.pg._connect import connect_async, connect_sync

__all__ = ("Connecting", "Pause", "Steps", "run", "wait")

_T = TypeVar("_T")

Steps = Generator[Any, Any, _T]


class Pause:
    """Some seconds in which nothing happens."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def run(self) -> None:
        sleep(self._seconds)

    def __await__(self) -> Generator[Any, Any, None]:
        return asyncio.sleep(self._seconds).__await__()


class Connecting:
    """A connection that is to be opened."""

    def __init__(self, raw: Any, options: dict[str, str], timeout: float | None) -> None:
        self._args = raw, options, timeout

    def run(self) -> None:
        connect_sync(*self._args)

    def __await__(self) -> Generator[Any, Any, None]:
        return connect_async(*self._args).__await__()


def run(steps: Steps[_T]) -> _T:
    """Do it in sync code."""
    try:
        step = next(steps)
        while True:
            try:
                answer = step.run()
            except BaseException as exc:
                step = steps.throw(exc)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        result: _T = stop.value
        return result


async def wait(steps: Steps[_T]) -> _T:
    """Do it in a task."""
    try:
        step = next(steps)
        while True:
            try:
                answer = await step
            except BaseException as exc:
                step = steps.throw(exc)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        result: _T = stop.value
        return result
