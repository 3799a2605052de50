"""Event loops: `loop_kind` runs a test once per kind of loop, `run` runs a coroutine on one.

    def test_it(run):
        assert run(main()) == 42        # once on asyncio's loop, on uvloop's, and on ours

What a loop reports to its exception handler ("exception was never retrieved", a failed callback)
fails the test, unless the test expects it and empties `run.reported`.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

import greenletio

T = TypeVar("T")


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    if kind == "greenletio":
        return greenletio.new_event_loop()
    return asyncio.SelectorEventLoop()


# For tests of what a loop of ours does as asyncio's. Before Python 3.11 asyncio's transports and
# TLS behaved differently, and are no measure.
_MEASURE = ["asyncio"] if sys.version_info >= (3, 11) else []
LIKE_ASYNCIO = pytest.mark.parametrize("loop_kind", [*_MEASURE, "greenletio"], indirect=True)
OURS = pytest.mark.parametrize("loop_kind", ["greenletio"], indirect=True)


class Run:
    """Calls are like asyncio.run: each has a loop of its own, closed at the end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.reported: list[dict[str, Any]] = []

    def __call__(self, main: Coroutine[Any, Any, T], *, debug: bool = False) -> T:
        loop = new_loop(self.kind)
        loop.set_debug(debug)
        loop.set_exception_handler(lambda _, context: self.reported.append(context))
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(main)
        finally:
            try:
                cancel_all(loop)
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(loop.shutdown_default_executor())
            finally:
                asyncio.set_event_loop(None)
                loop.close()


def cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


@pytest.fixture(params=["asyncio", "uvloop", "greenletio"])
def loop_kind(request: pytest.FixtureRequest) -> str:
    """The kind of loop this run of the test uses."""
    kind: str = request.param
    return kind


@pytest.fixture
def make_loop(loop_kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes loops of this kind; whoever makes one closes it."""
    return lambda: new_loop(loop_kind)


@pytest.fixture
def run(loop_kind: str) -> Iterator[Run]:
    """Runs a coroutine to its end on a new loop of this kind."""
    run = Run(loop_kind)
    yield run
    # With a test that already failed, its own failure is the one to read.
    if run.reported and sys.exc_info()[0] is None:
        pytest.fail(f"the loop reported: {run.reported}", pytrace=False)
