"""Greenlets without a task: seen from other threads, by the thousand, and at odd moments."""

import asyncio
import contextvars
import gc
import threading
import weakref
from random import Random

import pytest
from fix_taskless import green_test, has_task, lazy

from greenletio import Green, async_, await_, debug, new_event_loop, sleep, spawn, timeout
from greenletio._core import Waiter

pytestmark = pytest.mark.leaks


@pytest.fixture
def loop_kind():
    return "greenletio"


# -- other threads, and looking at it


@lazy
def test_another_thread_gets_no_task_of_it(run):
    async def main():
        loop = asyncio.get_running_loop()
        green = spawn(sleep, 60)
        await asyncio.sleep(0)
        errors = []

        def other():
            assert asyncio.current_task(loop) is None or not has_task(green)
            asyncio.all_tasks(loop)
            assert green.ready is False
            for ask in (lambda: green.task, green.cancel):
                try:
                    ask()
                except RuntimeError as e:
                    errors.append(str(e))

        thread = threading.Thread(target=other)
        thread.start()
        await asyncio.sleep(0.001)
        thread.join()
        assert len(errors) == 2 and not has_task(green)
        green.cancel()

    run(main())


@lazy
def test_the_stacks_show_it(run):
    def sleeper():
        sleep(60)

    async def main():
        green = spawn(sleeper)
        await asyncio.sleep(0)
        (stack,) = [s for s in debug.stacks() if s.call is green._call]
        assert stack.task is green.task and stack.state == "waiting"
        assert [f.function.rpartition(".")[2] for f in stack.frames] == ["sleeper"]
        green.cancel()

    run(main())


@lazy
def test_generic_and_isinstance(run):
    async def main():
        green: Green[int] = spawn(int)
        assert isinstance(green, Green) and Green[int] is not None
        assert not isinstance(green, asyncio.Future)
        await green

    run(main())


@lazy
@green_test
def test_thousands_in_every_state():
    waiter = [Waiter() for _ in range(300)]
    greens = [spawn(w.wait) for w in waiter] + [spawn(sleep, i / 1e5) for i in range(300)]
    sleep(0)
    for g in greens[::7]:
        assert g.task
    for g in greens[::13]:
        g.cancel()
    for w in waiter:
        w.set()
    for g in greens:
        g.join()
    assert sum(not g.successful for g in greens) == len(greens[::13])


@lazy
@pytest.mark.parametrize("seed", range(6))
@green_test
def test_asked_for_at_random(seed):
    """Whatever happens to it, and whoever asks when, each ends once, as it should."""
    random = Random(seed)
    alive, ends, waiters = set(), [], []
    var = contextvars.ContextVar("var", default=None)

    async def limited():
        try:
            async with asyncio.timeout(0.0005):
                await asyncio.sleep(60)
        except TimeoutError:
            return

    def joins_a_child():
        spawn(sleep, 0).join()

    def runs_out_of_time():
        try:
            with timeout(0.0005):
                sleep(60)
        except TimeoutError:
            pass

    def waits_for_a_waiter():
        waiters.append(Waiter())
        waiters[-1].wait(0.01)

    steps = [
        lambda: sleep(0),
        lambda: sleep(0.0002),
        lambda: await_(asyncio.sleep(0)),
        lambda: await_(asyncio.sleep(0.0002)),
        lambda: await_(limited()),
        asyncio.current_task,
        joins_a_child,
        runs_out_of_time,
        waits_for_a_waiter,
    ]

    def work(n, todo, fails):
        alive.add(n)
        var.set(n)
        try:
            for step in todo:
                step()
                assert var.get() == n
                if has_task(greens[n]):
                    assert asyncio.current_task() is greens[n].task
            if fails:
                raise LookupError(n)
            return n
        finally:
            try:
                sleep(0)
            finally:
                alive.discard(n)
                ends.append(n)

    greens, cancelled, failing = [], set(), set()
    for n in range(200):
        todo = random.choices(steps, k=random.randrange(8))
        if random.random() < 0.1:
            failing.add(n)
        greens.append(spawn(work, n, todo, n in failing))
        match random.randrange(12):
            case 0:
                assert greens[random.randrange(n + 1)].task is not None
            case 1:
                asyncio.all_tasks()
            case 2 | 3:
                k = random.randrange(n + 1)
                if greens[k].cancel():
                    cancelled.add(k)
            case 4 | 5 | 6:
                sleep(random.choice((0, 0.0003)))
            case 7:
                for waiter in waiters:
                    waiter.set()
    for n, green in enumerate(greens):
        assert green.join(60)
        if n in cancelled and not green.successful and n not in failing:
            assert green.task.cancelled()
        elif n in failing:
            assert green.task.cancelled() or isinstance(green.exception, LookupError)
        else:
            assert green.get() == n
    assert not alive and len(ends) == len(set(ends))
    assert set(range(200)) - set(ends) <= cancelled  # those that were cancelled before they began
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- at odd moments


@lazy
@green_test
def test_nobody_finds_a_greenlet_that_is_half_made():
    class Prying:
        def __call__(self):
            return 3

        def __getattribute__(self, name):
            if name == "__qualname__":
                for green in gc.get_objects():
                    if isinstance(green, Green):
                        repr(green), green.cancel(), green.task
            return object.__getattribute__(self, name)

    assert spawn(Prying()).get() == 3


@lazy
@green_test
def test_a_greenlet_that_is_woken_inside_another_has_its_own_turn():
    waiter, order = Waiter(), []

    def wait():
        waiter.wait()
        order.append("woken")

    def wake():
        waiter._wake(None)
        order.append("waking")
        assert asyncio.current_task() is waking.task

    waiting = spawn(wait)
    sleep(0)
    waking = spawn(wake)
    assert waking.join() and waiting.join()
    assert order == ["waking", "woken"]
    assert waking.successful


@pytest.mark.parametrize("with_task", [False, True])
@pytest.mark.parametrize("joins_in", [spawn, None])
def test_joining_what_another_thread_runs(run, joins_in, with_task):
    go, made, joined = Waiter(), [], threading.Event()
    spawned = threading.Event()

    async def other():
        green = spawn(go.wait)
        await asyncio.sleep(0)
        if with_task:
            assert green.task is not None
        made.append(green)
        spawned.set()
        while not joined.is_set():
            await asyncio.sleep(0.001)

    def join():
        go.set()
        assert made[0].join()
        return threading.get_ident()

    loop = new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(other(),))
    thread.start()
    spawned.wait()
    try:
        work = join if joins_in is None else lambda: spawn(join).get()
        assert run(async_(work)()) == threading.get_ident()
    finally:
        joined.set()
        thread.join()
        loop.close()


@lazy
def test_another_thread_makes_no_task_while_the_loop_runs():
    errors = []

    async def main():
        green = spawn(lambda: None)
        await asyncio.sleep(0)
        assert green.ready and not has_task(green)

        def ask():
            try:
                assert green.task is None
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert green.task.done()

    asyncio.Runner(loop_factory=new_event_loop).run(main())
    assert len(errors) == 1 and "thread" in errors[0]


@lazy
@green_test
def test_unlinking_finds_what_its_comparison_gave_to_a_task():
    green = spawn(sleep, 0.001)
    called = []

    class Asks:
        def __call__(self, _):
            called.append(1)

        def __eq__(self, other):
            assert green.task is not None
            return self is other

        __hash__ = None

    fn = Asks()
    green.link(Asks())
    green.link(fn)
    green.unlink(fn)
    green.get()
    for _ in range(5):
        sleep(0)
    assert called == [1]


@lazy
@green_test
def test_tasks_asked_for_as_garbage_goes():
    found, asked = [], []

    class Finalized:
        def __init__(self, green):
            self.green, self.me = green, self

        def __del__(self):  # a weak reference that the garbage collector has not seen
            found.append(weakref.ref(self.green, lambda _: asked.append(asyncio.all_tasks())))

    for _ in range(10):
        waiter = Waiter()
        Finalized(spawn(Waiter.wait, waiter))
        sleep(0)
        del waiter
        gc.collect()
    assert asked == [{asyncio.current_task()}] * 10
    assert [ref() for ref in found] == [None] * 10
