"""Random cancellations, timeouts and threads against the primitives: nothing is ever lost."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading as std
from collections.abc import Callable
from typing import Any

import pytest

from greenletio import async_, spawn
from greenletio.green import queue, selectors, socket, threading, time

Step = Callable[[random.Random], None]


def lock_step(lock: Any) -> Step:
    def step(dice: random.Random) -> None:
        if lock.acquire(timeout=dice.choice((0, 0.0005, 0.002, 30))):
            try:
                time.sleep(dice.choice((0, 0, 0.0005)))
            finally:
                lock.release()

    return step


def condition_step(condition: Any) -> Step:
    def step(dice: random.Random) -> None:
        with condition:
            if dice.random() < 0.5:
                condition.wait(dice.choice((0, 0.0005, 0.002)))
                assert condition._is_owned()
            else:
                condition.notify(dice.randrange(1, 3))

    return step


def hammer(run: Any, step: Step, seed: int) -> int:
    """1000 steps in greenlets, cancelled at random, and 200 in threads; how many were cancelled."""
    cancelled = 0

    async def one(dice: random.Random) -> None:
        nonlocal cancelled
        task = asyncio.ensure_future(async_(step)(dice))
        for _ in range(dice.randrange(8)):
            await asyncio.sleep(0)
        if dice.random() < 0.4:
            task.cancel()
        try:
            await asyncio.wait_for(task, 30)
        except asyncio.CancelledError:
            cancelled += 1

    async def worker(n: int) -> None:
        dice = random.Random(seed * 100 + n)
        for _ in range(50):
            await one(dice)

    def thread(n: int) -> None:
        dice = random.Random(-seed * 100 - n)
        for _ in range(100):
            step(dice)

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(worker(n) for n in range(20))), 60)

    threads = [std.Thread(target=thread, args=(n,)) for n in range(2)]
    for each in threads:
        each.start()
    run(main())
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    return cancelled


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_a_lock_is_free_at_the_end(run: Any, make: Any, seed: int) -> None:
    lock = make()
    assert hammer(run, lock_step(lock), seed) > 0
    assert not lock.locked() and lock.acquire(False)


@pytest.mark.parametrize("seed", range(3))
def test_a_semaphore_has_its_value_at_the_end(run: Any, seed: int) -> None:
    semaphore = threading.BoundedSemaphore(3)
    assert hammer(run, lock_step(semaphore), seed) > 0
    assert [semaphore.acquire(False) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_a_condition_and_its_lock_survive(run: Any, seed: int) -> None:
    condition = threading.Condition()
    assert hammer(run, condition_step(condition), seed) > 0
    assert condition.acquire(False)
    assert condition._waiters == []


@pytest.mark.parametrize("make", [queue.Queue, queue.SimpleQueue])
def test_an_item_is_got_or_stays(run: Any, make: Any) -> None:
    items = make()
    put, got = [], []

    def step(dice: random.Random) -> None:
        if dice.random() < 0.5:
            item = dice.random()
            put.append(item)
            items.put(item)
        else:
            try:
                got.append(items.get(timeout=dice.choice((0, 0.0005, 0.002))))
            except queue.Empty:
                pass

    assert hammer(run, step, 1) > 0
    while not items.empty():
        got.append(items.get_nowait())
    assert sorted(got) == sorted(put)


def time_out_on_a_lock() -> None:
    lock = threading.Lock()
    with lock:
        assert not spawn(lock.acquire, timeout=0.0001).get()


def close_a_socket_under_its_reader() -> None:
    a, b = socket.socketpair()
    with b:
        reading = spawn(a.recv, 1)
        time.sleep(0)
        a.close()
        with pytest.raises(OSError):
            reading.get()


def select_and_time_out() -> None:
    a, b = socket.socketpair()
    with a, b, selectors.DefaultSelector() as selector:
        selector.register(a, selectors.EVENT_READ)
        assert selector.select(0.0001) == []


def wait_for_an_event() -> None:
    event = threading.Event()
    assert not event.wait(0.0001)
    waiting = spawn(event.wait)
    time.sleep(0)
    event.set()
    assert waiting.get()


def run_a_thread() -> None:
    local = threading.local()

    def work() -> None:
        local.value = threading.current_thread()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "call",
    [
        time_out_on_a_lock,
        close_a_socket_under_its_reader,
        select_and_time_out,
        wait_for_an_event,
        run_a_thread,
    ],
)
def test_two_thousand_waits_leave_nothing(run: Any, call: Callable[[], None]) -> None:
    async def main() -> None:
        blocks, fds = [], []
        for _ in range(7):
            for _ in range(300):
                await async_(call)()
            gc.collect()
            blocks.append(sys.getallocatedblocks())
            fds.append(len(os.listdir("/dev/fd")))
        # A leak grows in every round, by 300 at least; caches that fill up do not.
        assert min(b - a for a, b in zip(blocks, blocks[1:], strict=False)) < 150, blocks
        assert min(b - a for a, b in zip(fds, fds[1:], strict=False)) <= 0, fds

    run(main())


def taken_lock() -> tuple[Callable[[], object], Callable[[], object]]:
    lock = threading.Lock()
    lock.acquire()
    return lambda: lock.acquire(timeout=5), lock.release


def taken_semaphore() -> tuple[Callable[[], object], Callable[[], object]]:
    semaphore = threading.Semaphore(0)
    return lambda: semaphore.acquire(timeout=5), semaphore.release


def lowered_event() -> tuple[Callable[[], object], Callable[[], object]]:
    event = threading.Event()
    return lambda: event.wait(5), event.set


def empty_simple_queue() -> tuple[Callable[[], object], Callable[[], object]]:
    items = queue.SimpleQueue()
    return lambda: items.get(timeout=5), lambda: items.put(True)


def empty_queue() -> tuple[Callable[[], object], Callable[[], object]]:
    items: Any = queue.Queue()
    return lambda: items.get(timeout=5), lambda: items.put(True)


def full_queue() -> tuple[Callable[[], object], Callable[[], object]]:
    items: Any = queue.Queue(1)
    items.put(1)
    return lambda: items.put(2, timeout=5) is None, lambda: items.get()


@pytest.mark.parametrize(
    "make",
    [taken_lock, taken_semaphore, lowered_event, empty_simple_queue, empty_queue, full_queue],
)
def test_what_comes_just_before_the_waiter_stands_in_the_line(make: Any) -> None:
    """Before Python 3.12 the collector may run a finalizer whenever an object is made."""

    class Cycle:
        def __init__(self, give: Callable[[], object]) -> None:
            self.me, self.give = self, give

        def __del__(self) -> None:
            self.give()

    threshold = gc.get_threshold()
    for moment in range(1, 10):
        wait, give = make()
        gc.collect()
        gc.disable()
        Cycle(give)
        gc.set_threshold(moment, 1000, 1000)
        late = std.Timer(0.02, gc.collect)  # where it has not come by itself
        late.start()
        gc.enable()
        try:
            assert wait() is True
        finally:
            gc.set_threshold(*threshold)
            late.cancel()
            late.join()
