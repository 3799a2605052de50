"""greenletio.green.threading, between greenlets, between threads, and between both."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading as std
import weakref
from typing import Any

import pytest

import greenletio
from greenletio import WouldBlockError, async_, await_, spawn
from greenletio.green import threading, time

LOCKS = [threading.Lock, threading.RLock, threading.Semaphore, threading.BoundedSemaphore]


def let_others_run(times: int = 5) -> None:
    for _ in range(times):
        time.sleep(0)


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


# Threads.


def test_a_thread_is_a_greenlet_where_a_loop_runs(green: Any) -> None:
    seen: dict[str, Any] = {}

    def work(a: int, b: int = 0) -> None:
        seen["args"] = (a, b)
        seen["thread"] = threading.current_thread()
        seen["ident"] = threading.get_ident()
        seen["os thread"] = std.get_ident()
        seen["listed"] = seen["thread"] in threading.enumerate()
        event.wait()

    event = threading.Event()

    def main() -> None:
        thread = threading.Thread(target=work, args=(1,), kwargs={"b": 2}, name="worker")
        assert thread.ident is None and not thread.is_alive()
        assert "initial" in repr(thread)
        with pytest.raises(RuntimeError, match="before it is started"):
            thread.join()
        thread.start()
        assert thread.is_alive() and thread.ident is not None
        with pytest.raises(RuntimeError, match="only be started once"):
            thread.start()
        let_others_run()
        assert seen["args"] == (1, 2) and seen["thread"] is thread
        assert seen["ident"] == thread.ident != threading.get_ident()
        assert seen["os thread"] == std.get_ident()
        assert seen["listed"] and threading.active_count() == len(threading.enumerate())
        assert "started" in repr(thread)
        thread.join(0.01)
        assert thread.is_alive()
        thread.join(0)
        event.set()
        thread.join()
        assert not thread.is_alive() and "stopped" in repr(thread)
        assert thread not in threading.enumerate()
        thread.join()

    green(main)


def test_a_thread_may_be_started_directly_in_the_loop(run: Any) -> None:
    async def main() -> None:
        ran: list[int] = []
        thread = threading.Thread(target=ran.append, args=(1,))
        thread.start()
        await async_(thread.join)()
        assert ran == [1]

    run(main())


def test_a_thread_is_real_where_no_loop_runs() -> None:
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(threading.current_thread()))
    thread.start()
    thread.join()
    assert seen == [thread] and not thread.is_alive()
    assert thread.ident != std.get_ident()


def test_a_green_place_joins_a_real_thread_without_blocking(green: Any) -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()  # no loop runs here

    def main() -> None:
        joining = spawn(thread.join)
        before = green.ticker.steps
        while green.ticker.steps < before + 50:
            time.sleep(0)
        assert not joining.ready
        release.set()
        joining.get()
        assert not thread.is_alive()

    green(main)


def test_a_real_thread_joins_a_green_one(green: Any) -> None:
    def main() -> None:
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        joined: list[bool] = []
        real = std.Thread(target=lambda: (thread.join(30), joined.append(thread.is_alive())))
        real.start()
        let_others_run()
        release.set()
        while real.is_alive():
            time.sleep(0.001)
        assert joined == [False]

    green(main)


def test_a_thread_cancelled_before_it_started_can_be_joined(green: Any) -> None:
    def main() -> None:
        ran: list[int] = []
        thread = threading.Thread(target=ran.append, args=(1,))
        thread.start()
        (task,) = (t for t in asyncio.all_tasks() if "_run_green" in t.get_name())
        task.cancel()
        thread.join()
        assert not thread.is_alive() and ran == []

    green(main)


def test_subclasses_and_timers(green: Any) -> None:
    class Worker(threading.Thread):
        def __init__(self) -> None:
            super().__init__(daemon=True)
            self.ran = False

        def run(self) -> None:
            time.sleep(0)
            self.ran = True

    def main() -> None:
        worker = Worker()
        worker.start()
        worker.join()
        assert worker.ran and worker.daemon
        fired: list[Any] = []
        timer = threading.Timer(0.001, lambda *args, **kw: fired.append((args, kw)), (1,), {"a": 2})
        timer.start()
        timer.join()
        assert fired == [((1,), {"a": 2})]
        cancelled = threading.Timer(3600, fired.append)
        cancelled.start()
        cancelled.cancel()
        cancelled.join()
        assert len(fired) == 1

    green(main)


@pytest.mark.parametrize("place", ["green", "plain"])
def test_excepthook(
    green: Any, place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reports.append)

    def fail() -> None:
        raise ValueError("in a thread")

    def main() -> None:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
        monkeypatch.setattr(std, "excepthook", std.__excepthook__)
        leaving = threading.Thread(target=sys.exit)
        leaving.start()
        leaving.join()
        (report,) = reports
        assert report.exc_type is ValueError and report.thread is thread

    green(main) if place == "green" else main()
    assert capfd.readouterr().err == ""  # SystemExit is not reported


def test_the_default_excepthook_is_the_standard_one(
    green: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Any] = []
    monkeypatch.setattr(std, "excepthook", reports.append)

    def main() -> None:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        assert reports[0].exc_type is ZeroDivisionError

    green(main)


def test_identity_under_async_(green: Any) -> None:
    def main() -> None:
        me = threading.current_thread()
        assert me is threading.current_thread()
        assert me.ident == threading.get_ident() != std.get_ident()
        assert me is not threading.main_thread()
        idents = {spawn(lambda: (time.sleep(0), threading.get_ident())[1]) for _ in range(10)}
        assert len({g.get() for g in idents} | {me.ident}) == 11

    assert threading.current_thread() is std.current_thread() is threading.main_thread()
    assert threading.get_ident() == std.get_ident()
    green(main)


# local


def test_local_is_per_greenlet(green: Any) -> None:
    local = threading.local()
    local.name = "main thread"

    def work(name: str) -> None:
        assert not hasattr(local, "name") and vars(local) == {}
        local.name = name
        time.sleep(0)
        assert local.name == name and vars(local) == {"name": name}

    def main() -> None:
        assert not hasattr(local, "name")
        local.name = "main greenlet"
        workers = [spawn(work, str(n)) for n in range(10)]
        thread = std.Thread(target=work, args=("real",))
        thread.start()
        thread.join()
        for worker in workers:
            worker.get()
        assert local.name == "main greenlet"

    green(main)
    assert local.name == "main thread"


def test_a_recycled_greenlet_inherits_nothing(green: Any) -> None:
    local = threading.local()

    def work() -> None:
        assert not hasattr(local, "left")
        local.left = 1

    def main() -> None:
        for _ in range(100):
            spawn(work).get()

    green(main)


def test_local_lets_go_of_what_it_holds(green: Any) -> None:
    class Value:
        pass

    values: list[Any] = []
    kept: list[Any] = []
    local = threading.local()

    def work() -> None:
        local.value = Value()
        values.append(weakref.ref(local.value))

    def main() -> None:
        for _ in range(3):
            kept.append(spawn(work))
            kept[-1].get()
            kept.append(threading.Thread(target=work))
            kept[-1].start()
            kept[-1].join()

    green(main)
    gc.collect()
    assert [ref() for ref in values] == [None] * 6

    short_lived = threading.local()
    short_lived.value = Value()
    ref = weakref.ref(short_lived.value)
    del short_lived
    gc.collect()
    assert ref() is None


def test_local_subclasses(green: Any) -> None:
    class Local(threading.local):
        kind = "class attribute"
        calls = 0

        def __init__(self, start: int, *, step: int = 1) -> None:
            type(self).calls += 1
            self.n, self.step = start, step

        @property
        def next(self) -> int:
            self.n += self.step
            return self.n

        @next.setter
        def next(self, value: int) -> None:
            self.n = value

        def __getattr__(self, name: str) -> str:
            if name.startswith("any_"):
                return name
            raise AttributeError(name)

    local = Local(10, step=2)

    def work() -> None:
        assert (local.n, local.step) == (10, 2)
        assert local.next == 12
        local.next = 3
        assert local.n == 3 and "next" not in vars(local)
        assert local.kind == "class attribute" and local.any_thing == "any_thing"
        local.kind = "own"
        assert local.kind == "own"
        del local.kind
        assert local.kind == "class attribute"
        with pytest.raises(AttributeError):
            del local.kind
        with pytest.raises(AttributeError):
            local.nothing  # noqa: B018
        with pytest.raises(AttributeError):
            local.__dict__ = {}

    work()
    green(work)
    assert Local.calls == 2  # here, and in the greenlet
    with pytest.raises(TypeError, match="Initialization arguments"):
        threading.local(1)


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


# _thread


def test_start_new_thread(
    green: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from greenletio.green import _thread

    def main() -> None:
        seen: dict[str, Any] = {}
        done = threading.Event()

        def work(a: int, *, b: int) -> None:
            seen.update(a=a, b=b, ident=_thread.get_ident(), count=_thread._count())
            done.set()

        before = _thread._count()
        ident = _thread.start_new_thread(work, (1,), {"b": 2})
        done.wait()
        assert seen == {"a": 1, "b": 2, "ident": ident, "count": before + 1}
        unraisable: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        _thread.start_new_thread(divmod, (1, 0))
        _thread.start_new_thread(_thread.exit, ())
        while not unraisable or _thread._count() != before:
            time.sleep(0)
        (args,) = unraisable
        assert args.exc_type is ZeroDivisionError and args.object in (divmod, None)
        for wrong in ((None, ()), (work, []), (work, (), 5)):
            with pytest.raises(TypeError):
                _thread.start_new_thread(*wrong)

    green(main)


def test_a_cancelled_join_does_not_make_a_thread_look_ended(green: Any) -> None:
    def main() -> None:
        go = threading.Event()
        thread = threading.Thread(target=go.wait)
        thread.start()
        joining = spawn(thread.join)
        let_others_run()
        joining.kill()
        assert thread.is_alive()
        go.set()
        thread.join()
        assert not thread.is_alive()

    green(main)


def test_threads_inherit_being_daemons_from_the_green_thread_that_makes_them(green: Any) -> None:
    def main() -> None:
        seen: list[bool] = []
        outer = threading.Thread(target=lambda: seen.append(threading.Thread().daemon), daemon=True)
        outer.start()
        outer.join()
        assert seen == [True]

    green(main)


def test_a_local_in_a_cycle_is_garbage(green: Any) -> None:
    class Node:
        local: Any

    def main() -> None:
        node = Node()
        node.local = threading.local()
        node.local.node = node
        gone = weakref.ref(node)
        del node
        gc.collect()
        assert gone() is None

    green(main)
    main()


def tasks_alive() -> int:
    return sum(isinstance(each, asyncio.Task) for each in gc.get_objects())


@pytest.mark.skipif(
    not (3, 11) <= sys.version_info < (3, 14), reason="there a spawned greenlet has a task"
)
def test_a_thread_has_no_task_on_our_loop() -> None:
    async def main() -> None:
        before = tasks_alive()
        go = threading.Event()
        local = threading.local()

        def work() -> None:
            local.me = threading.current_thread()
            go.wait()

        def start_and_join() -> None:
            threads = [threading.Thread(target=work) for _ in range(10)]
            for thread in threads:
                thread.start()
            let_others_run()
            alive.append(tasks_alive())
            go.set()
            for thread in threads:
                thread.join()
            alive.append(tasks_alive())

        alive: list[int] = []
        await async_(start_and_join)()
        assert alive == [before, before]

    greenletio.run(main())


def test_a_thread_that_never_began_has_ended(run: Any) -> None:
    from greenletio.green import _thread

    before = _thread._count()
    ran: list[int] = []
    threads = [threading.Thread(target=ran.append, args=(1,)) for _ in range(3)]

    async def main() -> None:
        for thread in threads:
            thread.start()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    run(main())
    gc.collect()
    assert ran == [] and _thread._count() == before
    for thread in threads:
        assert not thread.is_alive() and thread not in threading.enumerate()
        thread.join()
