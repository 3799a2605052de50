"""Many of everything at once, with cancellations at random. Each is accounted for."""

import asyncio
import random
import sys
import threading

import pytest

from greenletio import Group, _core, async_, await_, io, sleep, spawn, timeout


@pytest.mark.parametrize("count", [10_000])
def test_ten_thousand_tasks_with_random_cancels(run, count):
    rng = random.Random(7)

    async def main():
        ended = []
        events = [asyncio.Event() for _ in range(20)]

        def work(seed):
            mine = random.Random(seed)
            try:
                for _ in range(mine.randrange(1, 5)):
                    what = mine.randrange(5)
                    if what == 0:
                        sleep(0)
                    elif what == 1:
                        await_(asyncio.sleep(mine.random() / 100))
                    elif what == 2:
                        await_(events[mine.randrange(20)].wait())
                    elif what == 3:
                        try:
                            with timeout(mine.random() / 100):
                                sleep(mine.random() / 50)
                        except TimeoutError:
                            pass
                    else:
                        await_(inner(mine.randrange(3)))
                return seed
            finally:
                ended.append(seed)
                sleep(0)

        async def inner(n):
            await asyncio.sleep(0)
            return await async_(lambda: n and await_(inner(n - 1)))()

        tasks = [asyncio.ensure_future(async_(work)(i)) for i in range(count)]
        cancelled_before_start = 0
        pending = set(tasks)
        turn = 0
        while pending:
            for t in rng.sample(sorted(pending, key=id), min(len(pending), 150)):
                if turn == 0:
                    cancelled_before_start += t.cancel()
                else:
                    t.cancel()
            events[turn % 20].set()
            events[turn % 20] = asyncio.Event()
            turn += 1
            if turn > 30:
                for e in events:
                    e.set()
            await asyncio.sleep(0.001)
            pending = {t for t in pending if not t.done()}
        finished = [t for t in tasks if not t.cancelled()]
        assert sorted(t.result() for t in finished) == [
            i for i, t in enumerate(tasks) if not t.cancelled()
        ]
        assert len(ended) == count - cancelled_before_start
        assert len(set(ended)) == len(ended)
        assert list(_core.calls()) == []

    run(main())


def test_sockets_with_random_cancels_and_timeouts(run):
    """No byte is lost or seen twice by the readers that were not cancelled."""
    import socket

    rng = random.Random(3)

    async def main():
        pairs = []
        for _ in range(50):
            a, b = socket.socketpair()
            a.setblocking(False)
            b.setblocking(False)
            pairs.append((a, b))
        got = [bytearray() for _ in pairs]
        sent = [bytearray() for _ in pairs]

        def reader(i):
            a = pairs[i][0]
            while True:
                if io.wait_readable(a, timeout=rng.choice([None, 0.0005, 5])):
                    got[i] += a.recv(3)

        tasks = {}
        for turn in range(150):
            for i in range(50):
                if i not in tasks or tasks[i].done():
                    tasks[i] = asyncio.ensure_future(async_(reader)(i))
            for i in rng.sample(range(50), 20):
                data = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 6)))
                pairs[i][1].send(data)
                sent[i] += data
            for i in rng.sample(range(50), 5):
                tasks[i].cancel()
            await asyncio.sleep(0 if turn % 3 else 0.001)
        for _ in range(2000):
            if got == sent:
                break
            for i in range(50):
                if tasks[i].done():
                    tasks[i] = asyncio.ensure_future(async_(reader)(i))
            await asyncio.sleep(0.001)
        assert got == sent
        for t in tasks.values():
            t.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for a, b in pairs:
            a.close()
            b.close()
        assert list(_core.calls()) == []

    run(main())


def test_waiters_set_from_threads(run):
    async def main():
        waiters = [_core.Waiter() for _ in range(2000)]
        tasks = [asyncio.ensure_future(async_(await_)(w)) for w in waiters]
        order = list(range(2000))
        random.Random(5).shuffle(order)
        chunks = [order[i::4] for i in range(4)]

        def setter(chunk):
            for i in chunk:
                waiters[i].set(i)

        threads = [threading.Thread(target=setter, args=(c,)) for c in chunks]
        old = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for t in threads:
                t.start()
            assert await asyncio.wait_for(asyncio.gather(*tasks), 60) == list(range(2000))
        finally:
            sys.setswitchinterval(old)
        for t in threads:
            t.join()

    run(main())


def test_a_tree_of_groups(run):
    def tree(depth):
        if depth == 0:
            sleep(0)
            return 1
        with Group() as group:
            greens = [group.spawn(tree, depth - 1) for _ in range(4)]
        return sum(g.get() for g in greens)

    assert run(async_(tree)(5)) == 4**5


def test_loops_in_many_threads(run):
    errors = []

    def work(seed):
        try:
            for _ in range(3):
                asyncio.run(main(seed))
                spawn(sleep, 0).get()
        except BaseException as e:
            errors.append(e)

    async def main(seed):
        got = await asyncio.gather(*[async_(job)(i) for i in range(100)])
        assert got == list(range(100))

    def job(i):
        for _ in range(3):
            sleep(0)
        return await_(asyncio.sleep(0, i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []


def test_gc_at_every_turn(run):
    """The collector may run anywhere: between a switch and what follows, say."""
    import gc

    def work(n):
        for _ in range(5):
            sleep(0)
            await_(asyncio.sleep(0))
        return n

    async def main():
        old = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            assert await asyncio.gather(*[async_(work)(i) for i in range(50)]) == list(range(50))
        finally:
            gc.set_threshold(*old)

    run(main())
