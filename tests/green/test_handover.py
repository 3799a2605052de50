"""A turn that comes to somebody who fails, or has gone, is not lost: the next one has it."""

from __future__ import annotations

import asyncio
import collections
import gc
import itertools
import random
import sys
import threading as std
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import greenletio
from greenletio import async_, spawn
from greenletio.green import queue, threading, time


async def let_others_run(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.mark.leaks
@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_a_notification_passes_by_who_is_cancelled_taking_the_lock(run: Any, make: Any) -> None:
    condition = threading.Condition(make())

    def wait() -> bool:
        with condition:
            return condition.wait()

    def notify(first: asyncio.Task[bool]) -> None:
        with condition:
            condition.notify()
            for _ in range(5):
                time.sleep(0)  # it wakes, and waits for the lock
            first.cancel()
            for _ in range(5):
                time.sleep(0)

    async def main() -> None:
        first, second = (asyncio.ensure_future(async_(wait)()) for _ in range(2))
        await let_others_run()
        await async_(notify)(first)
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await asyncio.wait_for(second, 30)

    run(main())


@pytest.mark.leaks
def test_a_notification_passes_by_whose_lock_fails(green: Any) -> None:
    class Odd:
        """Notifies somebody, and fails, in the middle of its release."""

        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.acquire = self.lock.acquire
            self.odd = False

        def release(self) -> None:
            if self.odd:
                self.odd = False
                condition.notify(10**30)
                raise ValueError("odd")
            self.lock.release()

    lock = Odd()
    condition: Any = threading.Condition(lock)

    def wait() -> bool:
        lock.acquire()
        try:
            return bool(condition.wait())
        finally:
            lock.release()

    def main() -> None:
        waiting = spawn(wait)
        time.sleep(0)
        lock.acquire()
        lock.odd = True
        with pytest.raises(ValueError, match="odd"):
            condition.wait()
        lock.release()
        assert waiting.get()

    green(main)


@pytest.mark.leaks
@pytest.mark.parametrize("make", [queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def test_an_item_passes_by_who_is_cancelled_taking_the_mutex(run: Any, make: Any) -> None:
    async def main() -> None:
        q = make()
        first, second = (asyncio.ensure_future(async_(q.get)()) for _ in range(2))
        await let_others_run()
        q.put_nowait(1)
        with q.mutex:
            await let_others_run()  # it has been woken, and finds the mutex taken
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        assert await asyncio.wait_for(second, 30) == 1

    run(main())


@pytest.mark.leaks
def test_an_item_passes_by_whose_hook_fails(green: Any) -> None:
    class Picky(queue.Queue[int]):
        fails = 1

        def _get(self) -> int:
            if self.fails:
                self.fails -= 1
                raise ValueError("picky")
            return super()._get()

    def main() -> None:
        q = Picky()
        first, second = spawn(q.get), spawn(q.get)
        for _ in range(3):
            time.sleep(0)
        q.put(1)
        with pytest.raises(ValueError, match="picky"):
            first.get()
        assert second.get() == 1

    green(main)


def test_a_look_at_a_flag_waits_for_nothing(run: Any) -> None:
    """Also where nothing may wait."""

    async def main() -> None:
        event = threading.Event()
        assert not event.wait(0) and not event.wait(-1)
        with pytest.raises(greenletio.WouldBlockError):
            event.wait(30)
        event.set()
        assert event.wait(0) and event.wait()

    run(main())


class Number:
    """Says what it is the second time it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __float__(self) -> float:
        self.asked += 1
        if self.asked == 1:
            raise ArithmeticError("not yet")
        return 0.0


class NoBool:
    def __bool__(self) -> bool:
        raise ArithmeticError("neither")


@pytest.mark.leaks
def test_an_argument_that_fails_fails_the_call() -> None:
    lock, semaphore, event, q = (
        threading.Lock(),
        threading.Semaphore(),
        threading.Event(),
        queue.SimpleQueue[int](),
    )
    condition = threading.Condition()
    calls: tuple[Callable[[], object], ...] = (
        lambda: lock.acquire(timeout=Number()),  # type: ignore[arg-type]
        lambda: lock.acquire(NoBool(), Number()),  # type: ignore[arg-type]
        lambda: semaphore.acquire(timeout=Number()),  # type: ignore[arg-type]
        lambda: semaphore.acquire(NoBool()),  # type: ignore[arg-type]
        lambda: event.wait(Number()),  # type: ignore[arg-type]
        lambda: q.get(timeout=Number()),  # type: ignore[arg-type]
        lambda: condition.wait(Number()),  # type: ignore[arg-type]
        lambda: queue.Queue(Number()).put(1),  # type: ignore[arg-type]
    )
    with condition:
        for call in calls:
            with pytest.raises(ArithmeticError):
                call()
    assert not lock.locked() and semaphore._value == 1
    for endless in (float("nan"), float("-inf"), -(10**30)):
        unbounded: Any = queue.Queue(endless)  # type: ignore[arg-type]
        unbounded.put_nowait(1)
        unbounded.put_nowait(2)


def test_an_item_that_is_dropped_takes_the_queue_apart() -> None:
    class Item:
        def __del__(self) -> None:
            q.not_empty = q.queue = q.mutex = None

    q: Any = queue.Queue(7)
    q.queue = collections.deque(maxlen=1)
    q.put(Item())
    q.put(1)
    assert q.queue is None and q.unfinished_tasks == 2
    with pytest.raises((TypeError, AttributeError)):
        q.put(2)


# -- at random: two loops in two threads and two plain threads, cancellations, timeouts, collections


def by_queue(q: Any) -> tuple[Any, Any]:
    return q.put, q.get


def by_condition(lock: Any) -> tuple[Any, Any]:
    """One notification for each item, as in a textbook."""
    items = collections.deque[int]()
    condition = threading.Condition(lock)

    def put(item: int, timeout: float | None = None) -> None:
        with condition:
            items.append(item)
            condition.notify()

    def get(timeout: float | None = None) -> int:
        with condition:
            while not items:
                if not condition.wait(timeout) and not items:
                    raise queue.Empty
            return items.popleft()

    return put, get


def by_semaphores(size: int) -> tuple[Any, Any]:
    items = collections.deque[int]()
    there, room = threading.Semaphore(0), threading.Semaphore(size)

    def put(item: int, timeout: float | None = None) -> None:
        if not room.acquire(timeout=timeout):
            raise queue.Full
        items.append(item)
        there.release()

    def get(timeout: float | None = None) -> int:
        if not there.acquire(timeout=timeout):
            raise queue.Empty
        item = items.popleft()
        room.release()
        return item

    return put, get


class Hooked(queue.Queue[int]):
    def _put(self, item: int) -> None:
        super()._put(item)


WAYS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "queue": lambda: by_queue(queue.Queue()),
    "full queue": lambda: by_queue(queue.Queue(1)),
    "stack": lambda: by_queue(queue.LifoQueue(2)),
    "heap": lambda: by_queue(queue.PriorityQueue(3)),
    "hooks": lambda: by_queue(Hooked(2)),
    "simple queue": lambda: by_queue(queue.SimpleQueue()),
    "condition": lambda: by_condition(None),
    "condition, lock": lambda: by_condition(threading.Lock()),
    "semaphores": lambda: by_semaphores(2),
}
ITEMS = 300


class Traffic:
    """Everybody puts and gets until all has been put and got; who is stopped tries again."""

    def __init__(self, put: Any, get: Any) -> None:
        self.put, self.get = put, get
        self.puts: Iterator[int] = itertools.islice(itertools.count(), ITEMS)
        self.gets: Iterator[int] = itertools.islice(itertools.count(), ITEMS)
        self.got: list[int] = []
        self.stopped = 0

    def deliver(self, item: int, timeout: float | None) -> None:
        self.put(item, timeout=timeout)

    def collect(self, _: int, timeout: float | None) -> None:
        self.got.append(self.get(timeout=timeout))

    def jobs(self, seed: int) -> Iterator[tuple[Any, int]]:
        """One does the putting or the getting, and none of them both: so there is always one who
        can go on."""
        job, numbers = (self.deliver, self.puts) if seed % 2 else (self.collect, self.gets)
        return ((job, n) for n in numbers)

    def thread(self, seed: int) -> None:
        dice = random.Random(seed)
        for job, n in self.jobs(seed):
            while True:
                try:
                    job(n, dice.choice((None, 0.0005, 0.002, 30)))
                    break
                except (queue.Empty, queue.Full):
                    self.stopped += 1

    async def worker(self, seed: int) -> None:
        dice = random.Random(seed)
        for job, n in self.jobs(seed):
            while True:
                timeout = dice.choice((None, 0.0005, 0.002, 30))
                task = asyncio.ensure_future(async_(job)(n, timeout))
                for _ in range(dice.randrange(6)):
                    await asyncio.sleep(0)
                if dice.random() < 0.5:
                    task.cancel()
                await asyncio.wait([task])
                if not task.cancelled() and task.exception() is None:
                    break
                self.stopped += 1

    def loop(self, make_loop: Any, seed: int) -> None:
        async def main() -> None:
            await asyncio.gather(*(self.worker(seed + n) for n in range(8)))

        loop = make_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_and_nobody_left_waiting(way: str, seed: int) -> None:
    put, get = WAYS[way]()
    traffic = Traffic(put, get)
    q = getattr(put, "__self__", None)
    done = std.Event()

    def meddle() -> None:
        """Holds the mutex at odd moments, and has the garbage collector come at others."""
        while not done.wait(0.0005):
            gc.collect(0)
            if isinstance(q, queue.Queue):
                with q.mutex:
                    done.wait(0.0002)

    threads = [
        std.Thread(target=traffic.loop, args=(asyncio.SelectorEventLoop, seed * 1000)),
        std.Thread(target=traffic.loop, args=(greenletio.new_event_loop, seed * 1000 + 100)),
        *(std.Thread(target=traffic.thread, args=(seed * 1000 + 200 + n,)) for n in range(2)),
    ]
    meddler = std.Thread(target=meddle)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.00005)
    try:
        for thread in (meddler, *threads):
            thread.daemon = True  # one that hangs shall not hang the tests
            thread.start()
        for thread in threads:
            thread.join(60)
        left = [thread for thread in threads if thread.is_alive()]
    finally:
        done.set()
        meddler.join()
        sys.setswitchinterval(interval)
    assert not left
    assert sorted(traffic.got) == list(range(ITEMS))
    assert traffic.stopped > 0
