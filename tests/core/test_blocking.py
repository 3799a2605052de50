"""detect_blocking: what holds a loop is named, what waits is not."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import threading
import time

import pytest

import greenletio
from greenletio import async_, await_, portal, spawn
from greenletio.debug import Detector, detect_blocking
from greenletio.errors import BlockingError, GreenletioError

SHORT = 0.05


def hold(detector):
    """Blocks until the detector has noticed."""
    while detector._held is None:
        time.sleep(0.005)


def compute(detector):
    while detector._held is None:
        pass


async def go_on(detector, count):
    """Lets the loop go on until so many reports were made."""
    while detector.count < count:
        await asyncio.sleep(0.001)


def functions(report):
    return [(f.function.rpartition(".")[2], f.kind) for f in report.stack.frames]


def watchdogs():
    return [t for t in threading.enumerate() if "detect_blocking" in t.name]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert watchdogs() == []


@pytest.mark.parametrize("block", [hold, compute])
def test_a_task_that_blocks(run, block):
    async def main():
        with detect_blocking(SHORT, mode="count") as detector:
            await asyncio.sleep(0)
            block(detector)
            await go_on(detector, 1)
        assert detector.count == 1
        assert functions(detector.last)[-2:] == [("main", "async"), (block.__name__, "sync")]
        assert functions(detector.last)[0] == ("main", "async")  # none of the loop's own frames
        assert detector.last.stack.task is asyncio.current_task()
        assert detector.last.duration == detector.longest >= SHORT

    run(main())


def test_sync_code_below_async_shows_both_sides(run):
    def view(detector):
        greenletio.sleep(0)
        await_(inner(detector))

    async def inner(detector):
        await asyncio.sleep(0)
        hold(detector)

    async def handler(detector):
        await async_(view)(detector)

    async def main():
        with detect_blocking(SHORT, mode="count") as detector:
            task = asyncio.create_task(handler(detector), name="the handler")
            await task
            await go_on(detector, 1)
        assert functions(detector.last) == [
            ("handler", "async"),
            ("view", "sync"),
            ("inner", "async"),
            ("hold", "sync"),
        ]
        text = str(detector.last)
        assert f"by task 'the handler', green call {view.__qualname__}, in hold (" in text
        last = detector.last.stack.frames[-1]
        assert f", in hold ({__file__}:{last.lineno})" in text
        assert last.line in ("while detector._held is None:", "time.sleep(0.005)")
        assert all(frame.line in text for frame in detector.last.stack.frames)

    run(main())


def test_a_spawned_call_and_a_task_under_a_portal(run):
    async def handler(detector):
        greenletio.sleep(0)
        hold(detector)

    async def main():
        with detect_blocking(SHORT, mode="count") as detector:
            await spawn(hold, detector)
            await go_on(detector, 1)
            assert functions(detector.last) == [("hold", "sync")]
            assert "hold" in detector.last.stack.task.get_name()
            with portal():
                await asyncio.create_task(handler(detector))
            await go_on(detector, 2)
            assert functions(detector.last) == [("handler", "async"), ("hold", "sync")]
            assert "green call" not in str(detector.last)

    run(main())


def test_a_callback_that_blocks(run):
    async def main():
        with detect_blocking(SHORT, mode="count") as detector:
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(hold, detector)
            await go_on(detector, 1)
        assert functions(detector.last) == [("hold", "sync")]
        assert detector.last.stack.task is None
        assert "by a callback, in hold" in str(detector.last)

    run(main())


def test_a_call_that_holds_the_gil(run):
    usleep = ctypes.PyDLL(None).usleep

    def holds_the_gil():
        usleep(300_000)

    async def main():
        with detect_blocking(SHORT, mode="count") as detector:
            await asyncio.sleep(0.05)
            holds_the_gil()
            await go_on(detector, 1)
        assert functions(detector.last)[-2:] == [("main", "async"), ("holds_the_gil", "sync")]

    run(main())


def test_what_waits_is_not_reported(run):
    """Of two that wait and one that blocks, for as long, the one is reported."""

    def waits():
        greenletio.sleep(0.2)
        await_(asyncio.sleep(0.2))

    async def main():
        with detect_blocking(0.15, mode="count") as detector:
            await asyncio.gather(async_(waits)(), asyncio.sleep(0.4))
            hold(detector)
            await go_on(detector, 1)
        assert {functions(detector.last)[-1]} == {("hold", "sync")}
        assert detector.count == 1

    run(main())


def test_once_per_block_with_its_whole_duration(run):
    async def main():
        with detect_blocking(SHORT, mode="count") as detector:
            for n in range(1, 4):
                began = time.monotonic()
                await asyncio.sleep(0)
                hold(detector)
                seen = detector.current.duration
                time.sleep(0.05)
                await go_on(detector, n)
                assert detector.count == n
                assert seen + 0.05 <= detector.last.duration <= time.monotonic() - began
                assert detector.last.duration <= detector.longest
                assert detector.current is None

    run(main())


def test_what_is_under_way_at_the_end_is_reported(run):
    async def main():
        with detect_blocking(SHORT, mode="count") as detector:
            hold(detector)  # before the loop has answered at all
        assert detector.count == 1
        assert functions(detector.last)[-2:] == [("main", "async"), ("hold", "sync")]

    run(main())


def test_log_is_the_default(run, caplog):
    async def main():
        with detect_blocking(SHORT) as detector:
            hold(detector)
            await go_on(detector, 1)
        with detect_blocking(SHORT, logger=logging.getLogger("mine")) as detector:
            hold(detector)
            await go_on(detector, 1)

    with caplog.at_level(logging.WARNING):
        run(main())
    records = [r for r in caplog.records if "was held for" in r.getMessage()]
    assert [(r.name, r.levelname) for r in records] == [
        ("greenletio.debug", "WARNING"),
        ("mine", "WARNING"),
    ]
    assert "in hold [sync]" in records[0].getMessage()


def test_raise_breaks_off_a_loop_that_computes(run):
    def for_ever():
        while True:
            pass

    async def main():
        with detect_blocking(SHORT, mode="raise") as detector:
            with pytest.raises(BlockingError, match="the event loop was held for") as caught:
                await async_(for_ever)()
            await go_on(detector, 1)
            assert isinstance(caught.value, GreenletioError)
            assert caught.value.report.stack == detector.last.stack
            assert caught.traceback[-1].name == "for_ever"
            await asyncio.sleep(0)  # the loop is as well as before

    run(main())


def test_raise_waits_for_a_call_of_c_to_return(run):
    def sleeps(detector):
        began = time.monotonic()
        with pytest.raises(BlockingError):
            while detector._held is None:
                time.sleep(0.05)
            time.sleep(0)
        assert time.monotonic() - began >= 0.05

    async def main():
        with detect_blocking(SHORT, mode="raise") as detector:
            await async_(sleeps)(detector)

    run(main())


def test_nested(run, caplog):
    async def main():
        with detect_blocking(SHORT, mode="count") as outer:
            with detect_blocking(60) as long, detect_blocking(2 * SHORT, mode="count") as inner:
                hold(inner)
                await go_on(inner, 1)
            assert len(watchdogs()) == 1
            await go_on(outer, 1)
        assert (outer.count, inner.count, long.count) == (1, 1, 0)

    run(main())
    assert caplog.records == []


def test_several_loops_in_several_threads(make_loop):
    results = {}

    def thread(name):
        async def main():
            with detect_blocking(SHORT, mode="count") as detector:
                if name == "idle":
                    while "busy" not in results:
                        await asyncio.sleep(0.01)
                else:
                    await asyncio.sleep(0)
                    hold(detector)
                    await go_on(detector, 1)
            results[name] = detector

        with contextlib.closing(make_loop()) as loop:
            loop.run_until_complete(main())

    threads = [threading.Thread(target=thread, args=(name,)) for name in ("idle", "busy")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results["busy"].count == 1
    assert functions(results["busy"].last)[-1] == ("hold", "sync")
    reports = [results["idle"].last] if results["idle"].last else []  # a machine may stand still
    assert [r for r in reports if ("hold", "sync") in functions(r)] == []


def test_a_loop_that_starts_later_and_ends_before(make_loop):
    async def main(detector):
        hold(detector)
        await go_on(detector, 1)

    loop = make_loop()
    detector = detect_blocking(SHORT, mode="count", loop=loop)
    assert isinstance(detector, Detector)
    time.sleep(5 * SHORT)
    assert detector.count == 0  # a loop that does not run is not held
    loop.run_until_complete(main(detector))
    assert detector.count == 1
    time.sleep(5 * SHORT)
    assert (detector.count, detector.current) == (1, None)
    loop.close()
    detector._thread.join()  # it ends with the loop
    detector.stop()


def test_an_idle_loop_is_not_woken():
    turns = []

    class Counting(asyncio.SelectorEventLoop):
        def _run_once(self):
            turns.append(1)
            super()._run_once()

    async def main():
        with detect_blocking(SHORT, mode="count"):
            await asyncio.sleep(0.05)
            before = len(turns)
            await asyncio.sleep(50 * SHORT)
            assert len(turns) - before <= 5  # of some 200 looks

    with contextlib.closing(Counting()) as loop:
        loop.run_until_complete(main())


def test_no_loop_and_wrong_arguments(run):
    with pytest.raises(RuntimeError, match="no running event loop"):
        detect_blocking()

    async def main():
        for threshold in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="threshold"):
                detect_blocking(threshold)
        with pytest.raises(ValueError, match="mode"):
            detect_blocking(mode="print")

    run(main())


def test_detectors_leave_nothing_behind(run, aflat):
    async def once():
        with detect_blocking(60):
            await asyncio.sleep(0)

    async def main():
        await aflat(once, 30)
        gc.collect()

    run(main())
