"""Random interleavings of set, cancel, timeout, switch and close on waiters, against a model.

The model knows for each wait which things happened to it before it was seen to end. Its claims:
a wait that nothing happened to has not ended; one that something happened to has, after the loop
had its turns, ended exactly once and in a way that one of those things allows; and at the end
nothing is registered anywhere.
"""

import asyncio
import gc
import os
import threading

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from greenletio import Green, _core, async_, await_, spawn
from greenletio import timeout as limit
from greenletio._core import Waiter

LONG = 3600.0


class Wait:
    """One wait under way, what happened to it, and what came of it."""

    def __init__(self, how):
        self.waiter = Waiter()
        self.how = how
        self.happened = []  # in order
        self.outcomes = []
        self.task = None
        self.call = None

    def note(self, outcome):
        self.outcomes.append(outcome)

    def allowed(self):
        """Outcomes that what happened permits."""
        kinds = set(self.happened)
        if "task cancel" in kinds:
            # a cancellation accepted before the end is never lost, as for a coroutine
            return {"cancelled"}
        got = set()
        if "close" in kinds:
            got.add("closed")
        if "set" in kinds:
            got.add("set")
        if "error" in kinds:
            got.add("error")
        if "cancel" in kinds:
            got.add("cancelled")
        if "time" in kinds:
            got.add("time")
        return got


def record(wait, body):
    """Run body and note how it ended, exactly as the waiting code sees it."""
    try:
        wait.note("set" if body() else "time")
    except LookupError:
        wait.note("error")
    except TimeoutError:
        wait.note("time")
    except asyncio.CancelledError:
        wait.note("cancelled")
        raise
    except BaseException:
        wait.note("closed")
        raise


class WaiterMachine(RuleBasedStateMachine):
    kind = "asyncio"

    waits = Bundle("waits")

    def __init__(self):
        super().__init__()
        if self.kind == "uvloop":
            import uvloop

            self.loop = uvloop.new_event_loop()
        else:
            self.loop = asyncio.SelectorEventLoop()
        self.loop.set_exception_handler(lambda loop, context: None)
        self.all = []

    def turns(self, n):
        async def pass_by():
            for _ in range(n):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pass_by())

    # -- beginning a wait

    def begin(self, how, seconds):
        wait = Wait(how)

        def body():
            waiter = wait.waiter
            if how == "await_":
                return record(wait, lambda: (await_(waiter), True)[1])
            if how == "limit":

                def limited():
                    with limit(seconds):
                        waiter.wait()
                        waiter.result()
                    return True

                return record(wait, limited)

            def waited():
                ended = waiter.wait(seconds)
                if ended:
                    waiter.result()
                return ended

            return record(wait, waited)

        async def coroutine():
            try:
                await wait.waiter
                wait.note("set")
            except LookupError:
                wait.note("error")
            except asyncio.CancelledError:
                wait.note("cancelled")
                raise
            except BaseException:
                wait.note("closed")
                raise

        async def start():
            if how == "spawn":
                return spawn(body)
            if how == "task":
                return asyncio.ensure_future(coroutine())
            return asyncio.ensure_future(async_(body)())

        handle = self.loop.run_until_complete(start())
        wait.task = handle.task if isinstance(handle, Green) else handle
        if seconds == 0 and how not in ("task", "await_"):
            wait.happened.append("time")
        self.all.append(wait)
        return wait

    @rule(
        target=waits,
        how=st.sampled_from(["async_", "await_", "spawn", "task", "limit"]),
        seconds=st.sampled_from([None, LONG, 0]),
        count=st.integers(1, 3),
        turns=st.integers(0, 2),
    )
    def new(self, how, seconds, count, turns):
        made = [self.begin(how, seconds) for _ in range(count)]
        self.turns(turns)
        return multiple(*made)

    @rule(target=waits, turns=st.integers(0, 1))
    def by_hand(self, turns):
        """Driven with send(None), as a loop of someone else's would."""
        wait = Wait("hand")

        async def make():
            def body():
                ended = wait.waiter.wait()
                wait.waiter.result()
                return ended

            wait.call = async_(
                lambda: record(wait, lambda: wait.waiter.wait() and (wait.waiter.result(), True)[1])
            )()
            wait.call.send(None)

        self.loop.run_until_complete(make())
        self.all.append(wait)
        self.turns(turns)
        return wait

    # -- things that happen to it

    def happen(self, wait, what, accepted):
        if accepted:
            wait.happened.append(what)

    @rule(wait=waits)
    def set(self, wait):
        self.happen(wait, "set", wait.waiter.set("v"))

    @rule(wait=waits)
    def set_error(self, wait):
        self.happen(wait, "error", wait.waiter.set_exception(LookupError("e")))

    @rule(wait=waits)
    def set_in_a_callback(self, wait):
        accepted = []
        self.loop.call_soon(lambda: accepted.append(wait.waiter.set("v")))
        done_before = bool(wait.outcomes)
        self.turns(1)
        if accepted == [True] and not done_before:
            wait.happened.append("set")

    @rule(waits=st.lists(waits, min_size=1, max_size=4), error=st.booleans())
    def set_in_threads(self, waits, error):
        accepted = {}
        barrier = threading.Barrier(len(waits))

        def work(i, wait):
            barrier.wait(30)
            accepted[i] = (
                wait.waiter.set_exception(LookupError("e")) if error else wait.waiter.set("v")
            )

        threads = [threading.Thread(target=work, args=x) for x in enumerate(waits)]
        for t in threads:
            t.start()
        # the loop turns while they set
        self.turns(1)
        for t in threads:
            t.join()
        for i, wait in enumerate(waits):
            if accepted[i]:
                wait.happened.append("error" if error else "set")

    @rule(wait=waits, msg=st.sampled_from([None, "why"]))
    def cancel_waiter(self, wait, msg):
        self.happen(wait, "cancel", wait.waiter.cancel(msg))

    @rule(wait=waits)
    def cancel_task(self, wait):
        if wait.task is None:
            return
        begun = bool(wait.outcomes)
        self.happen(wait, "task cancel", wait.task.cancel() and not begun)

    @rule(first=waits, second=waits)
    def set_one_and_cancel_the_other(self, first, second):
        self.set(first)
        self.cancel_task(second)

    @rule(wait=waits)
    def close(self, wait):
        if wait.call is None:
            return
        running = not wait.outcomes
        wait.call.close()
        if running:
            wait.happened.append("close")
            assert wait.outcomes == ["closed"]

    @rule(wait=waits)
    def resume_by_hand(self, wait):
        """What a loop does once the waiter it was handed is done."""
        if wait.call is None or wait.outcomes or not wait.happened:
            return

        async def send():
            try:
                wait.call.send(None)
            except (StopIteration, asyncio.CancelledError, LookupError):
                pass

        self.loop.run_until_complete(send())

    @rule(n=st.integers(1, 4))
    def turn(self, n):
        self.turns(n)

    # -- the model's claims

    @invariant()
    def at_most_one_end_and_a_permitted_one(self):
        for wait in self.all:
            assert len(wait.outcomes) <= 1, f"{wait.how} ended {wait.outcomes}"
            if wait.outcomes:
                assert wait.outcomes[0] in wait.allowed(), (
                    f"{wait.how}: {wait.happened} happened, but it ended {wait.outcomes}"
                )

    @rule()
    def settle(self):
        """After some turns everything that something happened to has ended."""

        async def pass_by():
            await asyncio.sleep(0.002)
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pass_by())
        for wait in self.all:
            if wait.call is not None:
                self.resume_by_hand(wait)
            before_it_began = wait.task is not None and wait.task.cancelled()
            if wait.happened and not before_it_began:
                assert wait.outcomes, f"{wait.how}: {wait.happened} happened and it still waits"
            if not wait.happened:
                assert not wait.outcomes

    def teardown(self):
        self.settle()
        for wait in self.all:
            if wait.task is not None:
                wait.task.cancel()
                wait.call = None
            elif not wait.outcomes:
                wait.call.close()
        self.turns(4)
        pending = asyncio.all_tasks(self.loop)
        assert not pending, pending
        for wait in self.all:
            if wait.task is not None:
                assert wait.task.done()
                if not wait.task.cancelled():
                    wait.task.exception()
        assert list(_core.calls()) == []
        self.all.clear()
        self.loop.close()


class UvloopMachine(WaiterMachine):
    kind = "uvloop"


CHECKS = settings(
    max_examples=int(os.environ.get("GREENLETIO_EXAMPLES", "60")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

TestOnAsyncio = WaiterMachine.TestCase
TestOnAsyncio.settings = CHECKS
TestOnUvloop = UvloopMachine.TestCase
TestOnUvloop.settings = CHECKS


@pytest.fixture(autouse=True)
def nothing_left():
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 2
