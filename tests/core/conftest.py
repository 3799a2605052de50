"""Fixtures of the core's tests."""

import asyncio
import contextlib
import socket

import pytest

from greenletio import async_


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


@pytest.fixture(params=["green", "plain"])
def call(request, run):
    """Call fn in green code under each loop, or in a plain program."""
    if request.param == "plain":
        return lambda fn: fn()
    return lambda fn: run(async_(fn)())
