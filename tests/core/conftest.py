"""Fixtures of the core's tests."""

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import sys

import pytest


def _snapshot():
    gc.collect()
    return (sys.getallocatedblocks(), len(gc.get_objects()), len(os.listdir("/proc/self/fd")))


def _judge(samples, repeat):
    """A leak grows in every round; noise does not."""
    steps = [
        tuple(b - a for a, b in zip(s, t, strict=True)) for s, t in itertools.pairwise(samples)
    ]
    for i, (what, allowed) in enumerate(
        (("memory blocks", repeat // 8), ("gc objects", repeat // 8), ("file descriptors", 0))
    ):
        growth = [step[i] for step in steps]
        assert min(growth) <= allowed, f"{what} grow by {growth} in rounds of {repeat} calls"


@pytest.fixture
def flat():
    """flat(call): repeating the plain call leaves no memory, object or fd behind."""

    def check(call, repeat=200, rounds=5):
        samples = []
        for _ in range(rounds + 2):
            for _ in range(repeat):
                call()
            samples.append(_snapshot())
        _judge(samples[1:], repeat)

    return check


@pytest.fixture
def aflat():
    """The same for a call that returns an awaitable: await aflat(call)."""

    async def check(call, repeat=200, rounds=5):
        samples = []
        for _ in range(rounds + 2):
            for _ in range(repeat):
                await call()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            samples.append(_snapshot())
        _judge(samples[1:], repeat)

    return check


@pytest.fixture
def pair():
    """A pair of connected nonblocking sockets."""
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    with contextlib.closing(a), contextlib.closing(b):
        yield a, b


@pytest.fixture
def ticks():
    """async with ticks() as count: count[0] is the number of turns another task has had."""

    @contextlib.asynccontextmanager
    async def counting():
        count = [0]

        async def tick():
            while True:
                count[0] += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(tick())
        try:
            yield count
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return counting
