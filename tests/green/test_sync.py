"""The C half of green.threading and green.queue: who waits in which order, and odd moments."""

from __future__ import annotations

import asyncio
import gc
import os
import queue as std_queue
import signal
import threading as std
from typing import Any

import pytest

from greenletio import WouldBlockError, async_, spawn
from greenletio.green import queue, threading, time

pytestmark = pytest.mark.leaks

WAITS: list[Any] = [
    lambda: (lock := threading.Lock(), lock.acquire(), (lock.acquire, lock.release))[2],
    lambda: (semaphore := threading.Semaphore(0), (semaphore.acquire, semaphore.release))[1],
    lambda: (q := queue.SimpleQueue(), (q.get, lambda: q.put(True)))[1],
    lambda: (q := queue.Queue(), (q.get, lambda: q.put(True)))[1],
    lambda: (q := queue.Queue(1), q.put(0), (lambda: q.put(0) or True, lambda: q.get()))[2],
    lambda: (q := queue.PriorityQueue(), (q.get, lambda: q.put(True)))[1],
    lambda: (event := threading.Event(), (event.wait, event.set))[1],
]
KINDS = ["lock", "semaphore", "simple queue", "queue", "full queue", "priority queue", "event"]
ONE_BY_ONE = WAITS[:-1]


def let_others_run(times: int = 5) -> None:
    for _ in range(times):
        time.sleep(0)


@pytest.mark.parametrize("make", ONE_BY_ONE, ids=KINDS[:-1])
def test_who_waits_is_served_in_turn(green: Any, make: Any) -> None:
    def main() -> None:
        wait, give = make()
        order: list[int] = []

        def work(me: int) -> None:
            assert wait() is True
            order.append(me)

        workers = []
        for n in range(10):
            workers.append(spawn(work, n))
            let_others_run(2)
        workers[3].kill()
        for n in range(9):
            give()
            let_others_run(2)
            assert len(order) == n + 1
        assert order == [0, 1, 2, 4, 5, 6, 7, 8, 9]

    green(main)


@pytest.mark.parametrize("make", ONE_BY_ONE, ids=KINDS[:-1])
def test_a_turn_that_came_with_a_cancellation_goes_to_the_next(run: Any, make: Any) -> None:
    async def main() -> None:
        for _ in range(10):
            wait, give = make()
            first, second = (asyncio.ensure_future(async_(wait)()) for _ in range(2))
            for _ in range(3):
                await asyncio.sleep(0)
            await async_(give)()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert await asyncio.wait_for(second, 30) is True

    run(main())


@pytest.mark.parametrize("make", WAITS, ids=KINDS)
def test_directly_in_the_loop_a_wait_is_refused_and_leaves_nothing(run: Any, make: Any) -> None:
    async def main() -> None:
        wait, give = make()
        with pytest.raises(WouldBlockError):
            wait()
        waiting = asyncio.ensure_future(async_(wait)())
        for _ in range(3):
            await asyncio.sleep(0)
        give()
        assert await asyncio.wait_for(waiting, 30) is True

    run(main())


@pytest.mark.parametrize("make", WAITS, ids=KINDS)
def test_without_a_loop_the_thread_blocks_and_another_wakes_it(make: Any) -> None:
    wait, give = make()
    got: list[Any] = []
    threads = [std.Thread(target=lambda: got.append(wait())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        give()
    for thread in threads:
        thread.join(30)
    assert got == [True] * 3


@pytest.mark.parametrize("make", WAITS, ids=KINDS)
def test_ctrl_c_interrupts_a_thread_that_blocks(make: Any) -> None:
    wait, give = make()
    main = std.get_ident()
    ready = std.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ready.start()
        wait()
    ready.join()
    give()  # the interrupted one has left the line
    assert wait() is True


def test_a_queue_that_nobody_reads_while_the_loop_puts(run: Any) -> None:
    """A thread is in the middle of a comparison, with the mutex: the loop's put waits for it."""

    class Slow:
        def __init__(self, n: int) -> None:
            self.n = n

        def __lt__(self, other: Slow) -> bool:
            inside.set()
            os.sched_yield()
            return self.n < other.n

    inside = std.Event()
    q: Any = queue.PriorityQueue()

    async def main() -> None:
        q.put_nowait(Slow(0))
        thread = std.Thread(target=lambda: [q.put(Slow(n)) for n in range(1, 30)])
        thread.start()
        inside.wait()
        for n in range(30, 60):
            q.put_nowait(Slow(n))
        thread.join()

    run(main())
    assert [q.get_nowait().n for _ in range(60)] == list(range(60))


def test_hooks_of_a_class_made_from_queue(green: Any) -> None:
    class Unique(queue.Queue[int]):
        def _init(self, maxsize: int) -> None:
            self.queue = dict[int, None]()

        def _put(self, item: int) -> None:
            self.queue[item] = None

        def _get(self) -> int:
            item: int = next(iter(self.queue))
            del self.queue[item]
            return item

    class Plain(queue.LifoQueue[int]):
        pass

    def main() -> None:
        q = Unique(2)
        for n in (1, 1, 2):
            q.put(n)
        assert q.full() and q.qsize() == 2
        with pytest.raises(queue.Full):
            q.put_nowait(3)
        putting = spawn(q.put, 3)
        let_others_run(2)
        assert [q.get(), q.get(), q.get()] == [1, 2, 3]
        putting.get()
        plain = Plain()
        plain.put(1)
        plain.put(2)
        assert (plain.get(), plain.get()) == (2, 1)
        assert isinstance(plain, std_queue.LifoQueue) and isinstance(q, std_queue.Queue)

    green(main)


def test_hooks_that_wait_hold_nobody_up(green: Any) -> None:
    class Slow(queue.Queue[int]):
        def _put(self, item: int) -> None:
            time.sleep(0.001)
            super()._put(item)

    def main() -> None:
        q = Slow()
        workers = [spawn(q.put, n) for n in range(5)]
        before = green.ticker.steps
        assert sorted(q.get() for _ in workers) == list(range(5))
        assert green.ticker.steps > before

    green(main)


def test_a_queue_whose_hook_waits_for_the_loop_that_puts() -> None:
    class Slow(queue.Queue[int]):
        def _put(self, item: int) -> None:
            time.sleep(0.001)
            super()._put(item)

    async def main() -> None:
        q = Slow()
        stuck = asyncio.ensure_future(async_(q.put)(5))
        await asyncio.sleep(0)
        with pytest.raises(WouldBlockError, match="hooks wait"):
            q.put_nowait(6)
        await stuck
        assert q.get_nowait() == 5 and q.empty()

    asyncio.run(main())


def test_what_people_do_to_the_inside_of_a_queue(green: Any) -> None:
    def main() -> None:
        q: Any = queue.Queue()
        for n in range(5):
            q.put(n)
        with q.mutex:
            assert list(q.queue) == [0, 1, 2, 3, 4]
            q.queue.clear()
            q.unfinished_tasks = 0
            q.all_tasks_done.notify_all()
            q.not_full.notify_all()
        assert q.empty() and q.qsize() == 0
        q.join()
        q.put(1)
        # join() with a timeout, as everybody writes it
        with q.all_tasks_done:
            while q.unfinished_tasks and q.all_tasks_done.wait(0.01):
                pass
        assert q.unfinished_tasks == 1
        q.get()
        joining = spawn(q.join)
        let_others_run(2)
        q.task_done()
        joining.get()
        with pytest.raises(ValueError):
            q.task_done()
        q.not_empty = None
        with pytest.raises(TypeError, match="not_empty of a green queue"):
            q.get()
        with pytest.raises(RuntimeError, match="not called"):
            queue.Queue.__new__(queue.Queue).get()

    green(main)


def test_a_late_comer_does_not_cost_a_waiter_its_place(green: Any) -> None:
    def main() -> None:
        q: Any = queue.Queue()
        order: list[str] = []

        def get(name: str) -> None:
            q.get()
            order.append(name)

        first, second = spawn(get, "first"), spawn(get, "second")
        let_others_run(2)
        q.put(1)  # wakes the first, who finds that we have been quicker
        q.get_nowait()
        let_others_run(2)
        q.put(2)
        first.get()
        q.put(3)
        second.get()
        assert order == ["first", "second"]

    green(main)


def test_puts_from_a_finalizer_and_a_signal_handler_amid_a_get() -> None:
    q: Any = queue.SimpleQueue()

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            q.put("finalizer")

    before = signal.signal(signal.SIGALRM, lambda *_: q.put("signal"))
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1000, 1000)
    try:
        for _ in range(100):
            Cycle()
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        got = [q.get(timeout=30)]
        while "signal" not in got or got.count("finalizer") < 99:
            if q.empty():
                gc.collect()  # some may have grown old while they were made
            got.append(q.get(timeout=30))
    finally:
        gc.set_threshold(*threshold)
        signal.signal(signal.SIGALRM, before)


def test_locks_in_signal_handlers_and_finalizers() -> None:
    lock, seen = threading.RLock(), []

    def handle(*_: object) -> None:
        with lock:
            seen.append(lock._recursion_count())

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with lock:
            os.kill(os.getpid(), signal.SIGUSR1)
            while not seen:
                time.sleep(0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [2] and not lock.locked()


def test_condition_over_other_locks(green: Any) -> None:
    class Own:
        def __init__(self) -> None:
            self.lock, self.calls = threading.Lock(), []

        def acquire(self, *args: Any, **kwargs: Any) -> bool:
            self.calls.append("acquire")
            return self.lock.acquire(*args, **kwargs)

        def release(self) -> None:
            self.calls.append("release")
            self.lock.release()

        def __enter__(self) -> bool:
            return self.acquire()

        def __exit__(self, *exc_info: object) -> None:
            self.release()

    def main() -> None:
        for lock in (threading.Lock(), threading.RLock(), Own(), std.Lock(), std.RLock()):
            condition = threading.Condition(lock)
            assert isinstance(condition, std.Condition)

            def wait(condition: Any = condition) -> bool:
                with condition:
                    return bool(condition.wait(30))

            waiting = spawn(wait)
            let_others_run(2)
            assert ", 1)>" in repr(condition)
            with condition:
                condition.notify()
            assert waiting.get()
            with pytest.raises(RuntimeError):
                condition.notify_all()
        nested = threading.Condition()
        with nested, nested:
            assert not nested.wait(0.001)
            assert nested._lock._recursion_count() == 2

    green(main)


def test_bad_input_is_refused() -> None:
    lock, q = threading.Lock(), queue.SimpleQueue()
    for call, error in (
        (lambda: threading.Lock(1), TypeError),  # type: ignore[call-arg]
        (lambda: lock.acquire(True, 1, 2), TypeError),  # type: ignore[call-arg]
        (lambda: lock.acquire(nothing=1), TypeError),  # type: ignore[call-arg]
        (lambda: lock.acquire(True, blocking=True), TypeError),  # type: ignore[misc]
        (lambda: lock.acquire(timeout="1"), TypeError),  # type: ignore[arg-type]
        (lambda: lock.acquire(timeout=float("nan")), ValueError),
        (lambda: q.put(), TypeError),  # type: ignore[call-arg]
        (lambda: q.get(timeout=float("nan")), ValueError),
        (lambda: threading.Event().wait("1"), TypeError),  # type: ignore[arg-type]
        (lambda: threading.Semaphore(0).acquire(timeout="1"), TypeError),  # type: ignore[arg-type]
        (lambda: threading.RLock()._acquire_restore(1), TypeError),
        (lambda: threading.RLock()._release_save(), RuntimeError),
        (lambda: threading.Condition.__new__(threading.Condition).wait(), RuntimeError),
        (lambda: queue.Queue("1").put(1), TypeError),  # type: ignore[arg-type]
    ):
        with pytest.raises(error):
            call()
