"""pytest plugin: sync tests run green, and what holds a loop fails its test.

    @pytest.mark.greenletio
    def test_it(engine): ...

Such a test, and the fixtures that are made for it, run in a greenlet of a loop that the run of
pytest has for them: they may `spawn`, `await_`, and wait in anything that is cooperative. The
option ``--greenletio``, or ``greenletio = true`` in the configuration, marks all tests that are
plain functions or methods. Asynchronous ones belong to their own plugins.

The fixture ``no_blocking`` fails a test that holds its loop, green or asynchronous, and names the
line. ``docs/pytest.md`` has the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import unittest
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from greenletio.debug import Report
    from greenletio.integrations._pytest import Loop

__all__ = (
    "no_blocking",
    "pytest_addoption",
    "pytest_configure",
    "pytest_fixture_setup",
    "pytest_runtest_call",
    "pytest_runtest_protocol",
    "pytest_runtest_teardown",
)

# Their fixtures, plain functions as they are, run loops of their own.
_OF_LOOPS = ("anyio", "pytest_aiohttp", "pytest_asyncio", "pytest_trio", "pytest_twisted")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option, and what pytest.ini or pyproject.toml may say."""
    group = parser.getgroup("greenletio")
    group.addoption("--greenletio", action="store_true", help="run all sync tests green")
    parser.addini("greenletio", "run all sync tests green", type="bool", default=False)
    parser.addini(
        "greenletio_loop",
        "the loop of green tests: greenletio, asyncio, uvloop, or module:factory",
        default="greenletio",
    )
    parser.addini(
        "greenletio_blocking_threshold",
        "seconds for which a test with no_blocking may hold its loop",
        default="0.1",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    for marker in (
        "greenletio(on=True): run a sync test and its fixtures green; False: as it is, despite "
        "the configuration",
        "no_blocking(threshold): fail the test if it holds its loop for so many seconds",
    ):
        config.addinivalue_line("markers", marker)


# --- green tests ---------------------------------------------------------------------------------

_LOOP = pytest.StashKey["Loop"]()
_RUNS_GREEN = pytest.StashKey[bool]()  # whether the test that runs now does


def _loop_of(config: pytest.Config) -> Loop:
    if _LOOP not in config.stash:
        from greenletio.integrations._pytest import Loop  # only where it is used

        name = config.getini("greenletio_loop")
        try:
            config.stash[_LOOP] = Loop(name)
        except (AttributeError, ImportError, TypeError, ValueError) as exc:
            pytest.exit(f"greenletio_loop = {name}: {exc}", pytest.ExitCode.USAGE_ERROR)
        config.add_cleanup(config.stash[_LOOP].close)
    return config.stash[_LOOP]


def _is_green(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or _coroutine_function(item) is not None:
        return False
    if item.cls is not None and issubclass(item.cls, unittest.IsolatedAsyncioTestCase):
        return False
    marker = item.get_closest_marker("greenletio")
    if marker is None:
        return bool(item.config.getoption("--greenletio") or item.config.getini("greenletio"))
    return bool((*marker.args, *marker.kwargs.values(), True)[0])


def _coroutine_function(item: pytest.Item) -> tuple[Any, str] | None:
    """Where the item has its asynchronous function, if it has one."""
    holder: Any = item
    name = "obj"
    if hasattr(getattr(item, "obj", None), "hypothesis"):
        holder, name = item.obj.hypothesis, "inner_test"  # type: ignore[attr-defined]
    function = getattr(holder, name, None)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return holder, name
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note whether the fixtures to come are those of a green test."""
    item.config.stash[_RUNS_GREEN] = _is_green(item)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """A sync fixture that is made for a green test is made, and ended, green."""
    config, function = request.config, fixturedef.func
    if (
        not config.stash.get(_RUNS_GREEN, False)
        or inspect.iscoroutinefunction(function)
        or inspect.isasyncgenfunction(function)
        or (getattr(function, "__module__", None) or "").partition(".")[0] in _OF_LOOPS
    ):
        return (yield)
    loop = _loop_of(config)
    instance = request.instance
    if inspect.ismethod(function) and isinstance(instance, type(function.__self__)):
        function = function.__func__.__get__(instance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixturedef, "func", _green_fixture(loop, function))
        if request.scope == "function":
            return (yield)
        with loop.keeping():
            return (yield)


def _green_fixture(loop: Loop, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(**kwargs: Any) -> Any:
        return loop.run(functools.partial(function, **kwargs))

    @functools.wraps(function)
    def stepped(**kwargs: Any) -> Generator[Any, None, None]:
        end = object()
        steps = function(**kwargs)
        while (value := loop.run(next, steps, end)) is not end:
            yield value

    return stepped if inspect.isgeneratorfunction(function) else called


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run the test green, if it is to be, and watch its loop, if that is asked for."""
    threshold = _threshold(item)
    with pytest.MonkeyPatch.context() as patch:
        if _is_green(item):
            test = item.runtest if threshold is None else _watched(item, threshold, item.runtest)
            loop = _loop_of(item.config)
            patch.setattr(item, "runtest", lambda: loop.run(test), raising=True)
        elif threshold is not None:
            found = _coroutine_function(item)
            if found is None:
                pytest.fail(
                    "no_blocking watches a loop, and this test has none: mark it "
                    "@pytest.mark.greenletio, or make it asynchronous",
                    pytrace=False,
                )
            function = getattr(*found)
            patch.setattr(*found, _watched_coroutine(item, threshold, function))
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Nothing of a green test goes on in the next one."""
    try:
        return (yield)
    finally:
        if _is_green(item):
            _loop_of(item.config).cancel_rest()


# --- the blocking detector -----------------------------------------------------------------------


@pytest.fixture
def no_blocking() -> None:
    """Fail the test if it holds its loop for longer than `greenletio_blocking_threshold` seconds.

    For green tests, and for asynchronous ones on asyncio's loops. The marker
    ``@pytest.mark.no_blocking(seconds)`` does the same with a threshold of its own.
    """


def _threshold(item: pytest.Item) -> float | None:
    marker = item.get_closest_marker("no_blocking")
    if marker is None and "no_blocking" not in getattr(item, "fixturenames", ()):
        return None
    given = (*marker.args, *marker.kwargs.values()) if marker is not None else ()
    value = given[0] if given else item.config.getini("greenletio_blocking_threshold")
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not seconds > 0:
        pytest.fail(
            f"no_blocking: the threshold is a number of seconds above 0, not {value!r}",
            pytrace=False,
        )
    return seconds


def _watched(item: pytest.Item, threshold: float, test: Callable[[], Any]) -> Callable[[], Any]:
    def watched() -> Any:
        from greenletio.debug import detect_blocking

        with detect_blocking(threshold, mode="count") as detector:
            result = test()
        _judge(item, detector.count, detector.last)
        return result

    return watched


def _watched_coroutine(
    item: pytest.Item, threshold: float, function: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        from greenletio.debug import detect_blocking

        with detect_blocking(threshold, mode="count") as detector:
            result = await function(*args, **kwargs)
        _judge(item, detector.count, detector.last)
        return result

    return watched


def _judge(item: pytest.Item, count: int, last: Report | None) -> None:
    if last is None:
        return
    # From the test on: what is above is pytest.
    frames = last.stack.frames
    own = [n for n, frame in enumerate(frames) if frame.filename == str(item.path)]
    stack = dataclasses.replace(last.stack, frames=frames[own[0] if own else 0 :])
    times = "" if count == 1 else f"{count} times; the last one: "
    pytest.fail(f"{times}{dataclasses.replace(last, stack=stack, call=None)}", pytrace=False)
