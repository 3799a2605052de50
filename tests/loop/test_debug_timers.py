"""Debug mode, where timers are asyncio's own handles: one that is cancelled is gone at once."""

import asyncio
import random
import weakref

from fix_loops import LIKE_ASYNCIO, OURS


@OURS
def test_a_cancelled_timer_is_let_go_of(run):
    async def main():
        loop = asyncio.get_running_loop()
        timer = loop.call_later(3600, print)
        assert type(timer) is asyncio.TimerHandle
        ref = weakref.ref(timer)
        timer.cancel()
        timer.cancel()
        del timer
        assert ref() is None

    run(main(), debug=True)


@LIKE_ASYNCIO
def test_those_that_are_left_keep_their_order(run):
    chance = random.Random(1)

    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        ran = []
        timers = {}
        for number in chance.sample(range(500), 500):
            timers[number] = loop.call_at(began + number / 100_000, ran.append, number)
        for number in chance.sample(range(500), 250):
            timers.pop(number).cancel()
        while len(ran) < len(timers):
            await asyncio.sleep(0.001)
        assert ran == sorted(timers)

    run(main(), debug=True)
