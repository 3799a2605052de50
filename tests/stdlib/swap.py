"""What child.py tests: a loop in the place of asyncio's, counted; or the green modules in the
place of the standard ones."""

import asyncio
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# asyncio's selector loop under every name that its tests take it by.
NAMES = ("SelectorEventLoop", "EventLoop", "_UnixSelectorEventLoop")


def load(name: str) -> type[asyncio.AbstractEventLoop]:
    """The class that `module:Class` names; `asyncio` is asyncio's own."""
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    module, _, attribute = name.partition(":")
    loop_class: type[asyncio.AbstractEventLoop] = getattr(
        importlib.import_module(module), attribute
    )
    return loop_class


@dataclass
class Counts:
    made: int = 0  # loops of the class
    ran: int = 0  # those of them that ran something
    runs: int = 0  # how often one did

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(self.made - other.made, self.ran - other.ran, self.runs - other.runs)


def counting(loop_class: Any, counts: Counts) -> Any:
    class Counting(loop_class):  # type: ignore[misc]
        # Tests hand a selector to asyncio's loop: there is none here, so it is dropped.
        def __new__(cls, selector: object = None) -> Any:
            return super().__new__(cls)

        def __init__(self, selector: object = None) -> None:
            super().__init__()
            counts.made += 1
            self._counted_run = False

        def _count_run(self) -> None:
            counts.runs += 1
            if not self._counted_run:
                self._counted_run = True
                counts.ran += 1

        def run_forever(self) -> None:
            self._count_run()
            super().run_forever()

        def run_until_complete(self, future: Any) -> Any:
            self._count_run()
            return super().run_until_complete(future)

    if not hasattr(loop_class, "_default_executor"):
        Counting._default_executor = None  # every tearDown looks at it
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):  # for their reprs
        setattr(Counting, attribute, getattr(loop_class, attribute))
    return Counting


def install(name: str) -> Counts:
    """Make asyncio and its tests use the loop `name`. Before the tests are imported."""
    from asyncio import unix_events

    counts = Counts()
    loop_class = counting(load(name), counts)
    for module in (asyncio, unix_events):
        for attribute in NAMES:
            if hasattr(module, attribute):
                setattr(module, attribute, loop_class)
    # The class of the policy, not a policy: the tests reset the latter all the time.
    policy: Any = asyncio.DefaultEventLoopPolicy
    policy._loop_factory = loop_class

    # test_runners makes a bare BaseEventLoop and fakes a selector on it.
    if name != "asyncio":
        asyncio.BaseEventLoop = loop_class

    from test.test_asyncio import utils

    # The loop with a scripted clock stays where a test scripts it; elsewhere it is only the
    # nearest loop at hand, and a real one will do.
    scripted = utils.TestCase.new_test_loop
    real_will_do = ("test_tasks", "test_futures", "test_queues")

    def new_test_loop(self: Any, gen: Any = None) -> Any:
        case = type(self)
        real = case.__module__.rpartition(".")[2] in real_will_do
        if gen is not None or not real or "Gather" in case.__name__:  # these look at _ready
            return scripted(self, gen)
        loop = loop_class()
        self.set_event_loop(loop)
        return loop

    utils.TestCase.new_test_loop = new_test_loop
    return counts


def install_green() -> None:
    """Patch the whole process. Before the tests are imported."""
    import greenletio

    greenletio.patch_all()
    for name in ("socket", "threading", "time"):
        assert sys.modules[name].__name__ == f"greenletio.green.{name}"


def run_green(work: Callable[[], None], loop_class: str) -> None:
    """Call `work` in a greenlet of a loop."""
    from greenletio._program import run_green as run

    run(work, load(loop_class))
