"""Locks, conditions, events and barriers between greenlets, between threads, and between both."""

from __future__ import annotations

import asyncio
import threading as std
from typing import Any

import pytest
from fix_progress import let_others_run

from greenletio import WouldBlockError, async_, await_, spawn
from greenletio.green import threading, time

LOCKS = [threading.Lock, threading.RLock, threading.Semaphore, threading.BoundedSemaphore]

pytestmark = pytest.mark.leaks


@pytest.mark.parametrize("make", LOCKS)
def test_a_lock_excludes_greenlets(green: Any, make: Any) -> None:
    lock = make()
    inside = 0
    turns: list[int] = []

    def work(me: int) -> None:
        nonlocal inside
        for _ in range(200):
            with lock:
                inside += 1
                assert inside == 1
                turns.append(me)
                time.sleep(0)
                inside -= 1

    def main() -> None:
        for worker in [spawn(work, n) for n in range(5)]:
            worker.get()

    green(main)
    # FIFO: no worker gets the lock twice while the others wait.
    middle = turns[10:-10]
    assert len(turns) == 1000
    assert all(a != b for a, b in zip(middle, middle[1:], strict=False))
    assert green.ticker.steps > 0


@pytest.mark.parametrize("make", LOCKS)
def test_a_lock_excludes_greenlets_and_threads(green: Any, make: Any) -> None:
    lock = make()
    inside = 0
    done: list[str] = []

    def work(kind: str) -> None:
        nonlocal inside
        for _ in range(250):
            with lock:
                inside += 1
                assert inside == 1
                time.sleep(0)
                inside -= 1
                done.append(kind)

    def main() -> None:
        threads = [std.Thread(target=work, args=("thread",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for worker in [spawn(work, "greenlet") for _ in range(2)]:
            worker.get()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.001)

    green(main)
    assert done.count("thread") == done.count("greenlet") == 500


def test_two_loops_in_two_threads_share_a_lock(make_loop: Any) -> None:
    lock, counter = threading.Lock(), [0]

    def work() -> None:
        for _ in range(200):
            with lock:
                before = counter[0]
                time.sleep(0)
                counter[0] = before + 1

    async def main() -> None:
        await asyncio.gather(*(async_(work)() for _ in range(3)))

    def thread() -> None:
        loop = make_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    threads = [std.Thread(target=thread) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert counter == [1200]


def test_a_thread_hands_a_lock_to_a_greenlet_and_back(green: Any) -> None:
    there, back = threading.Lock(), threading.Lock()
    there.acquire()
    back.acquire()

    def thread() -> None:
        for _ in range(1000):
            there.acquire()
            back.release()

    def main() -> None:
        other = std.Thread(target=thread)
        other.start()
        for _ in range(1000):
            there.release()
            back.acquire()
        other.join()

    green(main)


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_trying_and_timing_out(green: Any, make: Any) -> None:
    lock = make()

    def main() -> None:
        assert lock.acquire()

        def other() -> None:
            assert not lock.acquire(False)
            assert not lock.acquire(timeout=0)
            before = green.ticker.steps
            assert not lock.acquire(timeout=0.01)
            assert green.ticker.steps > before

        spawn(other).get()
        lock.release()
        assert spawn(lock.acquire, timeout=1).get()

    green(main)


def test_arguments_are_judged_as_in_the_standard_library() -> None:
    for lock in (threading.Lock(), threading.RLock()):
        lock.acquire()
    for theirs, ours in ((std.Lock(), threading.Lock()),):
        for call in (
            lambda lock: lock.acquire(False, 1),
            lambda lock: lock.acquire(timeout=-2),
            lambda lock: lock.acquire(timeout=1e20),
            lambda lock: lock.release(),
        ):
            outcomes = []
            for lock in (theirs, ours):
                with pytest.raises(Exception) as raised:
                    call(lock)
                outcomes.append(raised.type)
            assert outcomes[0] is outcomes[1]
    with pytest.raises(RuntimeError):
        threading.RLock().release()
    with pytest.raises(ValueError):
        threading.Semaphore(-1)
    with pytest.raises(ValueError):
        threading.Semaphore().acquire(False, 1)
    with pytest.raises(ValueError):
        threading.Semaphore().release(0)
    with pytest.raises(ValueError):
        threading.BoundedSemaphore().release()
    with pytest.raises(RuntimeError):
        threading.Condition().wait()
    with pytest.raises(RuntimeError):
        threading.Condition().notify()


@pytest.mark.parametrize("make", LOCKS)
def test_a_cancelled_waiter_leaves_the_queue(run: Any, make: Any) -> None:
    async def main() -> None:
        lock, release = make(), threading.Event()

        def hold() -> None:
            with lock:
                release.wait()

        first, second, third = (asyncio.ensure_future(async_(hold)()) for _ in range(3))
        for _ in range(3):
            await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        await asyncio.wait_for(asyncio.gather(first, third), 30)

    run(main())


@pytest.mark.parametrize("make", LOCKS)
def test_handing_over_and_cancelling_in_the_same_turn(run: Any, make: Any) -> None:
    async def main() -> None:
        lock = make()
        for _ in range(50):
            owner = spawn(cycle, lock)
            while not owner_has_it:
                await asyncio.sleep(0)
            waiting = asyncio.ensure_future(async_(lock.acquire)())
            for _ in range(3):
                await asyncio.sleep(0)
            victims.append(waiting)  # cycle() releases, then cancels it at once
            go.set()
            await owner
            with pytest.raises(asyncio.CancelledError):
                await waiting
            # Had the waiter kept it, nobody could take it now.
            assert await async_(lambda: lock.acquire(timeout=30) and (lock.release() or True))()
            go.clear()
            owner_has_it.clear()

    owner_has_it: list[int] = []
    victims: list[Any] = []
    go = threading.Event()

    def cycle(lock: Any) -> None:
        with lock:
            owner_has_it.append(1)
            go.wait()
        victims.pop().cancel()

    run(main())


def test_rlock_belongs_to_a_greenlet(green: Any) -> None:
    lock = threading.RLock()

    def other() -> None:
        assert not lock.acquire(False)
        with pytest.raises(RuntimeError):
            lock.release()

    def main() -> None:
        with lock, lock:
            spawn(other).get()
            thread = std.Thread(target=other)
            thread.start()
            thread.join()
        assert not lock.locked()

    green(main)


def test_a_contended_lock_in_the_loop_itself_is_refused(run: Any) -> None:
    async def main() -> None:
        lock = threading.Lock()
        with lock:
            assert not lock.acquire(False)
            with pytest.raises(WouldBlockError):
                lock.acquire()
        assert lock.acquire()  # the refused one left nothing in the queue
        lock.release()

    run(main())


def test_condition(green: Any) -> None:
    condition = threading.Condition()
    items: list[int] = []

    def consume() -> int:
        with condition:
            condition.wait_for(lambda: items)
            return items.pop(0)

    def main() -> None:
        consumers = [spawn(consume) for _ in range(10)]
        for n in range(10):
            with condition:
                items.append(n)
                condition.notify()
            time.sleep(0)
        assert sorted(c.get() for c in consumers) == list(range(10))
        with condition:
            assert not condition.wait(0.01)
            assert not condition.wait(-1)
            assert not condition.wait_for(lambda: False, 0.01)
            assert condition._is_owned()
        waiting = [spawn(consume) for _ in range(3)]
        let_others_run()
        with condition:
            items.extend(range(3))
            condition.notify_all()
        assert sorted(c.get() for c in waiting) == [0, 1, 2]

    green(main)


def test_a_cancelled_condition_wait_holds_the_lock_and_passes_its_notification_on(
    run: Any,
) -> None:
    condition = threading.Condition()
    held: list[bool] = []

    def wait() -> str:
        with condition:
            try:
                condition.wait()
            except asyncio.CancelledError:
                held.append(condition._is_owned())
                raise
        return "notified"

    def notify_then_cancel(task: Any) -> None:
        with condition:
            condition.notify()
            task.cancel()

    async def main() -> None:
        for _ in range(20):
            first, second = (asyncio.ensure_future(async_(wait)()) for _ in range(2))
            for _ in range(3):
                await asyncio.sleep(0)
            await async_(notify_then_cancel)(first)
            with pytest.raises(asyncio.CancelledError):
                await first
            assert await asyncio.wait_for(second, 30) == "notified"

    run(main())
    assert held == [True] * 20


def test_event(green: Any) -> None:
    event = threading.Event()

    def main() -> None:
        assert not event.wait(0.01)
        assert not event.wait(0)
        waiting = [spawn(event.wait) for _ in range(10)]
        thread_saw: list[bool] = []
        thread = std.Thread(target=lambda: thread_saw.append(event.wait(30)))
        thread.start()
        let_others_run()
        event.set()
        assert all(w.get() for w in waiting)
        thread.join()
        assert thread_saw == [True]
        assert event.is_set() and event.wait()
        event.clear()
        assert not event.is_set()

    green(main)


def test_an_event_set_by_a_thread_wakes_a_greenlet(green: Any) -> None:
    def main() -> None:
        for _ in range(200):
            event = threading.Event()
            thread = std.Thread(target=event.set)
            thread.start()
            assert event.wait(30)
            thread.join()

    green(main)


def test_set_and_release_work_directly_in_the_loop(run: Any) -> None:
    async def main() -> None:
        event, semaphore = threading.Event(), threading.Semaphore(0)
        lock = threading.Lock()
        lock.acquire()
        tasks = [
            asyncio.ensure_future(async_(wait)())
            for wait in (event.wait, semaphore.acquire, lock.acquire)
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        event.set()
        semaphore.release()
        lock.release()
        assert await asyncio.gather(*tasks) == [True, True, True]

    run(main())


def test_semaphore_counts(green: Any) -> None:
    semaphore = threading.BoundedSemaphore(3)
    inside = most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with semaphore:
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    def main() -> None:
        for worker in [spawn(work) for _ in range(10)]:
            worker.get()
        assert [semaphore.acquire() for _ in range(3)] == [True] * 3
        assert not semaphore.acquire(False)
        assert not semaphore.acquire(timeout=0.01)
        semaphore.release(3)
        with pytest.raises(ValueError):
            semaphore.release()

    green(main)
    assert most == 3


def test_barrier(green: Any) -> None:
    acted: list[int] = []
    barrier = threading.Barrier(4, action=lambda: acted.append(1))

    def main() -> None:
        greenlets = [spawn(barrier.wait) for _ in range(3)]
        thread = std.Thread(target=barrier.wait)
        thread.start()
        assert len({g.get() for g in greenlets}) == 3
        thread.join()
        assert acted == [1]
        with pytest.raises(threading.BrokenBarrierError):
            barrier.wait(0.01)
        assert barrier.broken
        barrier.reset()
        waiting = spawn(barrier.wait)
        let_others_run()
        barrier.abort()
        with pytest.raises(threading.BrokenBarrierError):
            waiting.get()

    green(main)


def test_after_fork_locks_are_open() -> None:
    for lock in (threading.Lock(), threading.RLock()):
        lock.acquire()
        lock._at_fork_reinit()
        assert not lock.locked() and lock.acquire(False)


def test_await_inside_a_lock(green: Any) -> None:
    lock = threading.Lock()
    order: list[str] = []

    async def step(name: str) -> None:
        order.append(f"{name} in")
        await asyncio.sleep(0)
        order.append(f"{name} out")

    def work(name: str) -> None:
        with lock:
            await_(step(name))

    def main() -> None:
        for worker in [spawn(work, name) for name in "ab"]:
            worker.get()

    green(main)
    assert order == ["a in", "a out", "b in", "b out"]
