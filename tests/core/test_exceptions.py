"""Exceptions across the bridge: as among coroutines, and with no frame of ours in between."""

import asyncio
import os
import sys
import traceback
import types

import greenlet
import pytest

import greenletio
from greenletio import async_, await_

pytestmark = pytest.mark.leaks

OURS = os.path.dirname(greenletio.__file__)


@types.coroutine
def trap():
    yield "trap"


def drive(coro):
    while True:
        try:
            coro.send(None)
        except StopIteration as e:
            return e.value


def frames(exc):
    return [(f.filename, f.name) for f in traceback.extract_tb(exc.__traceback__)]


def names(exc):
    return [name for _, name in frames(exc)]


@pytest.mark.parametrize("suspend", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 10])
def test_traceback_has_each_frame_of_the_user_once_and_none_of_ours(run, depth, suspend):
    def sync(n):
        return await_(coro(n))

    async def coro(n):
        if suspend:
            await asyncio.sleep(0)
        if n == 0:
            raise ValueError("deep")
        return await async_(sync)(n - 1)

    async def main():
        with pytest.raises(ValueError, match="deep") as info:
            await coro(depth)
        return info.value

    exc = run(main())
    assert names(exc)[1:] == ["coro"] + ["sync", "coro"] * depth
    assert not [f for f, _ in frames(exc) if f.startswith(OURS)]


def test_traceback_from_sync_into_async(run):
    def sync():
        await_(asyncio.sleep(0))
        raise ValueError("from sync")

    async def main():
        with pytest.raises(ValueError) as info:
            await async_(sync)()
        assert names(info.value) == ["main", "sync"]

    run(main())


def test_traceback_through_a_task_and_a_green(run):
    def sync():
        await_(asyncio.sleep(0))
        raise ValueError("from sync")

    async def main():
        with pytest.raises(ValueError) as info:
            await asyncio.create_task(async_(sync)())
        assert names(info.value) == ["main", "sync"]
        with pytest.raises(ValueError) as info:
            await greenletio.spawn(sync)
        assert names(info.value).count("sync") == 1
        assert names(info.value)[0] == "main"

    run(main())


def test_the_same_exception_object_comes_out(run):
    error = KeyError("me")

    def sync():
        with pytest.raises(KeyError) as info:
            await_(coro())
        assert info.value is error
        raise error

    async def coro():
        await asyncio.sleep(0)
        raise error

    async def main():
        with pytest.raises(KeyError) as info:
            await async_(sync)()
        assert info.value is error

    run(main())


def test_a_reraised_exception_does_not_gather_frames(run):
    """One exception raised a hundred times over the bridge keeps a traceback of one pass."""

    def sync():
        raise ValueError("again")

    async def main():
        for _ in range(100):
            try:
                await async_(sync)()
            except ValueError as e:
                assert names(e) == ["main", "sync"]

    run(main())


# -- context and cause, against the same program written in coroutines only


def chain(exc):
    """The shape of an exception's __cause__/__context__ tree."""
    if exc is None:
        return None
    return (
        type(exc).__name__,
        str(exc),
        exc.__suppress_context__,
        chain(exc.__cause__),
        chain(exc.__context__),
    )


async def bottom(suspend, how):
    if suspend:
        await asyncio.sleep(0)
    if how == "plain":
        raise ValueError("bottom")
    try:
        raise LookupError("first")
    except LookupError as e:
        if how == "context":
            raise ValueError("bottom")  # noqa: B904
        if how == "none":
            raise ValueError("bottom") from None
        raise ValueError("bottom") from e


async def pure(suspend, how):
    try:
        raise OSError("outer")
    except OSError:
        try:
            await bottom(suspend, how)
        except ValueError as e:
            raise KeyError("middle") from e


def sync_middle(suspend, how):
    try:
        raise OSError("outer")
    except OSError:
        try:
            await_(bottom(suspend, how))
        except ValueError as e:
            raise KeyError("middle") from e


@pytest.mark.parametrize("suspend", [False, True])
@pytest.mark.parametrize("how", ["plain", "context", "none", "cause"])
def test_cause_and_context_equal_those_of_coroutines(run, suspend, how):
    async def main():
        shapes = []
        for make in (pure, async_(sync_middle)):
            try:
                try:
                    raise RuntimeError("outermost")
                except RuntimeError:
                    await make(suspend, how)
            except KeyError as e:
                shapes.append(chain(e))
        assert shapes[0] == shapes[1]

    run(main())


def test_handled_exception_is_the_greenlets_own(run):
    """sys.exc_info() of one greenlet is not seen by another, nor lost over a wait."""

    def sync(n):
        for _ in range(3):
            assert sys.exc_info() == (None, None, None)
            try:
                raise ValueError(n)
            except ValueError as e:
                await_(asyncio.sleep(0))
                assert sys.exc_info()[1] is e
                await_(asyncio.sleep(0))
                assert sys.exc_info()[1] is e
            await_(asyncio.sleep(0))

    async def main():
        try:
            raise KeyError("of the task")
        except KeyError as mine:
            await asyncio.gather(*[async_(sync)(i) for i in range(5)])
            assert sys.exc_info()[1] is mine

    run(main())


def test_bare_raise_after_a_wait(run):
    def sync():
        try:
            raise ValueError("kept")
        except ValueError:
            await_(asyncio.sleep(0))
            raise

    async def main():
        with pytest.raises(ValueError, match="kept"):
            await async_(sync)()

    run(main())


# -- special exceptions in each direction


SPECIAL = [KeyboardInterrupt, SystemExit, GeneratorExit, greenlet.GreenletExit, StopAsyncIteration]


class Odd(BaseException):
    pass


@pytest.mark.parametrize("suspend", [False, True])
@pytest.mark.parametrize("kind", [*SPECIAL, Odd, asyncio.CancelledError])
def test_special_exception_from_sync_to_async(kind, suspend):
    """By hand, since a Task treats some of these as its own."""
    error = kind("x")

    def sync():
        if suspend:
            await_(trap())
        raise error

    async def coro():
        try:
            await async_(sync)()
        except BaseException as e:
            return e

    assert drive(coro()) is error


@pytest.mark.parametrize("suspend", [False, True])
@pytest.mark.parametrize("kind", [*SPECIAL, Odd, asyncio.CancelledError])
def test_special_exception_from_async_to_sync(kind, suspend):
    error = kind("x")

    async def coro():
        if suspend:
            await trap()
        raise error

    def sync():
        try:
            await_(coro())
        except BaseException as e:
            return e

    got = drive(async_(sync)())
    assert got is error


@pytest.mark.parametrize("suspend", [False, True])
def test_stop_iteration_from_sync_is_a_runtime_error(run, suspend):
    """As in a coroutine; a StopIteration that got through would be taken for the result."""
    error = StopIteration(5)

    def sync():
        if suspend:
            await_(asyncio.sleep(0))
        raise error

    async def main():
        with pytest.raises(RuntimeError, match="StopIteration") as info:
            await async_(sync)()
        assert info.value.__cause__ is error

    run(main())


@pytest.mark.parametrize("suspend", [False, True])
def test_stop_iteration_from_a_coroutine_is_a_runtime_error(run, suspend):
    async def coro():
        if suspend:
            await asyncio.sleep(0)
        raise StopIteration(5)

    def sync():
        with pytest.raises(RuntimeError, match="StopIteration"):
            await_(coro())

    run(async_(sync)())


def test_stop_iteration_of_a_plain_iterator_is_its_result(run):
    class It:
        def __await__(self):
            return self

        def __iter__(self):
            return self

        def __next__(self):
            raise StopIteration((1, 2))

    assert run(async_(lambda: await_(It()))()) == (1, 2)


def test_next_inside_sync_code_is_not_disturbed(run):
    def sync():
        def gen():
            await_(asyncio.sleep(0))
            yield 1
            await_(asyncio.sleep(0))

        return list(gen())

    assert run(async_(sync)()) == [1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_green_task_stops_the_loop_as_in_a_coroutine(loop_kind, kind, run):
    def sync():
        await_(asyncio.sleep(0))
        raise kind("stop")

    with pytest.raises(kind):
        run(async_(sync)())


def test_the_exception_does_not_keep_the_stack_alive(run):
    import gc
    import weakref

    class Local:
        pass

    refs = []

    def sync():
        local = Local()
        refs.append(weakref.ref(local))
        await_(asyncio.sleep(0))
        raise ValueError

    async def main():
        for _ in range(10):
            try:
                await async_(sync)()
            except ValueError:
                pass
        gc.collect()
        assert [r() for r in refs] == [None] * 10

    run(main())
