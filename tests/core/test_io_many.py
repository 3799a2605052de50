"""Waiting for many file descriptors at once, and many times."""

import asyncio
import gc
import os
import resource
import sys
import tempfile

import pytest
from fix_progress import settle
from fix_sockets import drain, fill, stream_pair

import greenletio
from greenletio import Group, _core, async_, await_, io, sleep, spawn

R, W = _core.READ, _core.WRITE

pytestmark = pytest.mark.leaks


def fd_count():
    return len(os.listdir("/proc/self/fd"))


# -- wait_any / wait_fds


def as_sets(answer):
    """(ready to read, ready to write)."""
    reads, writes = answer
    return set(reads), set(writes)


def test_wait_any(call):
    def sync():
        a, b = stream_pair()
        c, d = stream_pair()
        fill(a)
        answer = io.wait_any([a, c], [a], timeout=0.001)
        assert not answer or as_sets(answer) == (set(), set())
        spawn(d.send, b"x")
        assert as_sets(io.wait_any([a, c], [a])) == ({c}, set())
        drain(b)
        assert as_sets(io.wait_any([a, c], [a], timeout=60)) == ({c}, {a})
        for s in (a, b, c, d):
            s.close()

    call(sync)


def test_wait_fds(call):
    def sync():
        a, b = stream_pair()
        c, d = stream_pair()
        fds = [(a.fileno(), R), (c.fileno(), R)]
        assert _core.wait_fds(fds, 0.001) == []
        assert _core.wait_fds(fds, 0) == []
        b.send(b"x")
        assert _core.wait_fds(fds) == [(a.fileno(), R)]
        d.send(b"x")
        assert _core.wait_fds(fds, 60) == [(a.fileno(), R), (c.fileno(), R)]
        assert _core.wait_fds([(a.fileno(), R | W)], 60) == [(a.fileno(), R | W)]
        for s in (a, b, c, d):
            s.close()

    call(sync)


def test_wait_any_of_nothing(call):
    def sync():
        answer = io.wait_any([], [], timeout=0.001)
        assert not answer or as_sets(answer) == (set(), set())

    call(sync)


def test_wait_any_of_one_fd_twice(call, pair):
    a, b = pair

    def sync():
        b.send(b"x")
        assert as_sets(io.wait_any([a, a], [a], timeout=60)) == ({a}, {a})

    call(sync)


def test_wait_any_of_a_thousand(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("needs 4096 file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))

    def sync():
        pairs = [stream_pair() for _ in range(1000)]
        try:
            reads = [a for a, _ in pairs]
            for i in (0, 500, 999):
                spawn(pairs[i][1].send, b"x").get()
                assert as_sets(io.wait_any(reads, [], timeout=60)) == ({pairs[i][0]}, set())
                pairs[i][0].recv(1)
            assert not any(as_sets(io.wait_any(reads, [], timeout=0) or ((), ())))
        finally:
            for a, b in pairs:
                a.close()
                b.close()

    run(async_(sync)())


def test_wait_any_cancelled_leaves_nothing(run):
    async def main():
        pairs = [stream_pair() for _ in range(10)]
        for _ in range(20):
            task = asyncio.ensure_future(async_(io.wait_any)([a for a, _ in pairs], []))
            await settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for a, b in pairs:
            b.send(b"x")
            assert await async_(io.wait_readable)(a, timeout=60)
            a.close()
            b.close()

    run(main())


def test_wait_any_with_a_bad_fd_among_good_ones(call, pair):
    a, b = pair

    def sync():
        for _ in range(5):
            with pytest.raises(OSError):
                io.wait_any([a, 99_999], [], timeout=60)
        b.send(b"x")
        assert io.wait_readable(a, timeout=60)

    call(sync)


def test_wait_any_with_a_regular_file(call, pair):
    def sync():
        with tempfile.TemporaryFile() as file:
            assert as_sets(io.wait_any([pair[0], file], [], timeout=60)) == ({file}, set())

    call(sync)


# -- much of it


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.leaks(False)  # counts for itself
def test_ten_thousand_waits_with_flat_refcounts_and_fds(run, pair, plain):
    a, b = pair

    def ping_pong(count):
        def side(mine, theirs, first):
            for _ in range(count):
                if first:
                    mine.send(b"x")
                io.wait_readable(mine)
                mine.recv(1)
                if not first:
                    mine.send(b"x")

        with Group() as group:
            group.spawn(side, a, b, True)
            group.spawn(side, b, a, False)

    def measured():
        ping_pong(100)
        gc.collect()
        counts = [sys.getrefcount(x) for x in (a, b, None, io.wait_readable)], fd_count()
        blocks = sys.getallocatedblocks()
        ping_pong(5000)
        gc.collect()
        after = [sys.getrefcount(x) for x in (a, b, None, io.wait_readable)], fd_count()
        assert after[1] == counts[1]
        for before, now in zip(counts[0], after[0], strict=True):
            assert abs(now - before) < 50
        assert sys.getallocatedblocks() - blocks < 500

    if plain:
        measured()
    else:
        run(async_(measured)())


def test_ten_thousand_timeouts_and_cancels_leave_nothing(run, pair, aflat):
    a, b = pair

    async def once():
        tasks = [asyncio.ensure_future(async_(io.wait_readable)(a)) for _ in range(10)]
        tasks += [asyncio.ensure_future(async_(io.wait_readable)(a, timeout=0)) for _ in range(10)]
        await settle(2)
        for t in tasks[:10]:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(aflat(once, repeat=50))


def test_a_thousand_fds_at_once(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("needs 4096 file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))

    async def main():
        pairs = [stream_pair() for _ in range(1000)]
        tasks = [asyncio.ensure_future(async_(io.wait_readable)(a)) for a, _ in pairs]
        await settle()
        for _, b in reversed(pairs):
            b.send(b"x")
        assert await asyncio.gather(*tasks) == [True] * 1000
        for a, b in pairs:
            a.close()
            b.close()

    run(main())


def test_fork_leaves_the_parent_unharmed(run, pair):
    """A child that exits without a word does not take the parent's registrations with it."""
    a, b = pair

    async def main():
        task = asyncio.ensure_future(async_(io.wait_readable)(a))
        await settle()
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        b.send(b"x")
        assert await asyncio.wait_for(task, 30) is True

    run(main())


@pytest.mark.leaks(False)  # uses its sockets up
def test_sleep_and_fd_wait_side_by_side(call, pair):
    a, b = pair

    def sync():
        order = []

        def late():
            sleep(0.005)
            b.send(b"x")
            order.append("sent")

        def reader():
            io.wait_readable(a)
            order.append("read")

        with Group() as group:
            group.spawn(reader)
            group.spawn(late)
        assert order == ["sent", "read"]

    call(sync)


def test_a_stream_of_data_between_two_greens(call, pair):
    a, b = pair
    total = 1 << 20

    def sync():
        def writer():
            view = memoryview(bytes(total))
            while view:
                io.wait_writable(a)
                view = view[a.send(view) :]

        green = spawn(writer)
        got = 0
        while got < total:
            assert io.wait_readable(b, timeout=60)
            got += len(b.recv(65536))
        green.get()
        assert got == total

    call(sync)


def test_await_inside_and_fd_wait_inside_one_function(run, pair):
    a, b = pair

    def sync():
        await_(asyncio.sleep(0))
        spawn(b.send, b"1")
        io.wait_readable(a)
        await_(asyncio.sleep(0))
        return a.recv(1)

    assert run(async_(sync)()) == b"1"


def test_the_module_has_what_it_says():
    for name in io.__all__:
        assert callable(getattr(io, name))
    assert greenletio.io is io
