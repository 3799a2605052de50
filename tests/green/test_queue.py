"""greenletio.green.queue, between greenlets, threads and the loop itself."""

from __future__ import annotations

import asyncio
import gc
import queue as std
import threading
from typing import Any

import pytest

from greenletio import async_, portal, spawn, timeout
from greenletio.green import queue, time

pytestmark = pytest.mark.leaks

KINDS = [queue.Queue, queue.LifoQueue, queue.PriorityQueue, queue.SimpleQueue]


@pytest.mark.parametrize("make", KINDS)
def test_everything_put_is_got_once(green: Any, make: Any) -> None:
    q = make()
    got: list[int] = []

    def produce(start: int) -> None:
        for n in range(start, start + 250):
            q.put(n)
            if n % 10 == 0:
                time.sleep(0)

    def consume() -> None:
        while (item := q.get()) < 10_000:
            got.append(item)

    def main() -> None:
        consumers = [spawn(consume) for _ in range(3)]
        producers = [spawn(produce, 1000 * n) for n in range(2)]
        threads = [threading.Thread(target=produce, args=(1000 * n,)) for n in range(2, 4)]
        for thread in threads:
            thread.start()
        for producer in producers:
            producer.get()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.001)
        while not q.empty():
            time.sleep(0)
        for _ in consumers:
            q.put(10_000)
        for consumer in consumers:
            consumer.get()

    green(main)
    assert sorted(got) == sorted(n for s in range(0, 4000, 1000) for n in range(s, s + 250))


@pytest.mark.parametrize("make", KINDS)
def test_empty_and_timeouts(green: Any, make: Any) -> None:
    def main() -> None:
        q = make()
        with pytest.raises(std.Empty):
            q.get_nowait()
        with pytest.raises(std.Empty):
            q.get(block=False)
        before = green.ticker.steps
        with pytest.raises(std.Empty):
            q.get(timeout=0.01)
        assert green.ticker.steps > before
        with pytest.raises(ValueError):
            q.get(timeout=-1)
        q.put(1)
        assert q.qsize() == 1 and not q.empty()
        assert q.get(timeout=0.01) == 1

    green(main)


def test_a_full_queue_is_waited_for(green: Any) -> None:
    def main() -> None:
        q: Any = queue.Queue(1)
        q.put(1)
        with pytest.raises(std.Full):
            q.put_nowait(2)
        with pytest.raises(std.Full):
            q.put(2, timeout=0.01)
        putting = spawn(q.put, 2)
        time.sleep(0)
        assert (q.get(), q.get()) == (1, 2)
        putting.get()
        joining = spawn(q.join)
        time.sleep(0)
        q.task_done()
        assert not joining.ready
        q.task_done()
        joining.get()

    green(main)


@pytest.mark.parametrize("make", KINDS)
def test_a_thread_and_the_loop_itself_may_put(run: Any, make: Any) -> None:
    async def main() -> None:
        q = make()
        getting = [asyncio.ensure_future(async_(q.get)()) for _ in range(2)]
        await asyncio.sleep(0)
        q.put_nowait(1)
        thread = threading.Thread(target=q.put, args=(2,))
        thread.start()
        assert sorted(await asyncio.gather(*getting)) == [1, 2]
        thread.join()

    run(main())


@pytest.mark.parametrize("make", KINDS)
def test_a_cancelled_get_loses_nothing(run: Any, make: Any) -> None:
    async def main() -> None:
        q = make()
        for n in range(50):
            first = asyncio.ensure_future(async_(q.get)())
            second = asyncio.ensure_future(async_(q.get)())
            for _ in range(3):
                await asyncio.sleep(0)
            q.put(n)  # wakes the first
            first.cancel()  # in the same turn
            with pytest.raises(asyncio.CancelledError):
                await first
            assert await asyncio.wait_for(second, 30) == n

    run(main())


def test_queues_work_without_a_loop() -> None:
    q: Any = queue.SimpleQueue()
    thread = threading.Thread(target=q.put, args=(1,))
    thread.start()
    assert q.get(timeout=30) == 1
    thread.join()


def own_hooks(maxsize: int = 0) -> Any:
    class Mine(queue.Queue[Any]):  # its methods hold the mutex
        def _get(self) -> Any:
            return super()._get()

    return Mine(maxsize)


def poll(attempt: Any, most: int = 100_000) -> int:
    """Ask until something comes of it; how often that was in vain."""
    for n in range(most):
        try:
            attempt()
        except (std.Empty, std.Full):
            continue
        return n
    pytest.fail("nobody else got a turn")


@pytest.mark.parametrize("make", [*KINDS, own_hooks])
def test_who_asks_on_and_on_lets_the_others_run(green: Any, make: Any) -> None:
    def main() -> None:
        q = make()
        putting = spawn(q.put, 1)
        assert poll(q.get_nowait) > 0
        putting.get()
        if make is not queue.SimpleQueue:
            q = make(1)
            q.put(1)
            getting = spawn(q.get)
            assert poll(lambda: q.put(2, timeout=0)) > 0
            assert getting.get() == 1

    green(main)
    main()  # in plain code, too


def ask(q: Any, times: int) -> None:
    for _ in range(times):
        with pytest.raises(std.Empty):
            q.get_nowait()


@pytest.mark.parametrize("make", KINDS)
def test_who_asks_now_and_then_is_not_switched(green: Any, make: Any) -> None:
    def main() -> None:
        q = make()
        for _ in range(3):
            ran: list[int] = []
            other = spawn(ran.append, 1)
            ask(q, 900)
            assert ran == []
            other.get()  # a wait: the count begins anew

    green(main)
    main()


@pytest.mark.parametrize("make", KINDS)
def test_asking_on_and_on_where_nothing_can_be_switched(run: Any, make: Any) -> None:
    q, asked = make(), []

    class Last:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            ask(q, 2000)
            asked.append(1)

    def collected() -> None:
        Last()
        gc.collect()

    async def main() -> None:
        ask(q, 2000)  # directly in the loop
        with portal():  # where what the collector calls may not wait
            await asyncio.create_task(asyncio.sleep(0))
            await async_(collected)()
        await async_(collected)()

    run(main())
    thread = threading.Thread(target=ask, args=(q, 2000))
    thread.start()
    thread.join()
    assert asked == [1, 1]


@pytest.mark.parametrize("make", KINDS)
def test_who_asks_for_ever_can_be_ended(green: Any, make: Any) -> None:
    def main() -> None:
        asking = spawn(poll, make().get_nowait, 10**9)
        time.sleep(0)
        asking.kill()
        assert isinstance(asking.exception, asyncio.CancelledError)
        with pytest.raises(TimeoutError), timeout(0.01):
            poll(make().get_nowait, 10**9)

    green(main)
