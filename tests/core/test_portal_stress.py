"""Hundreds of tasks under a portal that wait, are cancelled and run out of time at random."""

import asyncio
import contextvars
import random

import pytest

from greenletio import _core, async_, await_, portal, sleep, timeout

seed_var = contextvars.ContextVar("seed_var")
TASKS = 600


class Work:
    """One task's random walk through every kind of wait, in sync and in async code by turns."""

    def __init__(self, seed, events, started, ended):
        self.rng = random.Random(seed)
        self.seed, self.events, self.started, self.ended = seed, events, started, ended

    async def __call__(self):
        me = asyncio.current_task()
        seed_var.set(self.seed)
        self.started.append(self.seed)
        try:
            for _ in range(self.rng.randrange(1, 8)):
                if self.rng.random() < 0.5:
                    self.sync(self.rng.randrange(4))
                else:
                    await self.coro(self.rng.randrange(4))
                assert asyncio.current_task() is me
                assert seed_var.get() == self.seed
            return self.seed
        finally:
            self.ended.append(self.seed)
            sleep(0)
            assert asyncio.current_task() is me

    def sync(self, depth):
        what = self.rng.randrange(6)
        if depth:
            await_(self.coro(depth - 1))
        if what == 0:
            sleep(0)
        elif what == 1:
            await_(asyncio.sleep(self.rng.random() / 100))
        elif what == 2:
            await_(self.rng.choice(self.events).wait())
        elif what == 3:
            self.limited()
        elif what == 4:
            await_(async_(sleep)(0))
        else:
            await_(asyncio.gather(self.child(), self.child()))

    async def coro(self, depth):
        what = self.rng.randrange(5)
        if depth:
            self.sync(depth - 1)
        if what == 0:
            await asyncio.sleep(0)
        elif what == 1:
            await self.rng.choice(self.events).wait()
        elif what == 2:
            await asyncio.create_task(self.child())
        elif what == 3:
            try:
                await asyncio.wait_for(self.child(), self.rng.random() / 100)
            except asyncio.TimeoutError:
                pass
        else:
            self.limited()

    def limited(self):
        try:
            with timeout(self.rng.random() / 100):
                sleep(self.rng.random() / 50)
                await_(asyncio.sleep(self.rng.random() / 50))
        except TimeoutError:
            pass

    async def child(self):
        assert seed_var.get() == self.seed
        sleep(self.rng.random() / 100)


@pytest.mark.parametrize("seed", range(3))
def test_random_parks_cancels_and_timeouts(run, seed):
    rng = random.Random(seed)

    async def main():
        started, ended = [], []
        events = [asyncio.Event() for _ in range(20)]
        with await portal():
            tasks = [
                asyncio.create_task(Work(1000 * seed + n, events, started, ended)())
                for n in range(TASKS)
            ]
            pending, turn = set(tasks), 0
            while pending:
                for task in rng.sample(sorted(pending, key=id), min(len(pending), 10)):
                    task.cancel()
                for event in events if turn > 30 else events[turn % 20 :][:1]:
                    event.set()
                    if turn <= 30:
                        event.clear()
                turn += 1
                sleep(0.001)
                pending = {task for task in pending if not task.done()}
        finished = [n for n, task in enumerate(tasks) if not task.cancelled()]
        assert [tasks[n].result() for n in finished] == [1000 * seed + n for n in finished]
        assert sorted(ended) == sorted(started) == sorted(set(started))
        assert len(finished) <= len(started) < TASKS  # some were cancelled before they began
        assert 0 < len(finished) < TASKS
        while len(asyncio.all_tasks()) > 1:  # children of those that were cancelled
            await asyncio.sleep(0.001)
        assert _core.calls() == [asyncio.current_task().get_coro()]

    run(main())
