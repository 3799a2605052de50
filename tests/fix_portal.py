"""What the tests of portal() share: `prun` runs a coroutine as a task under one."""

import asyncio

import pytest

import greenletio
from greenletio import await_, portal


def wait(seconds=0.0, result=None):
    """Sync code, some calls deep, that waits in three ways."""

    def deeper():
        greenletio.sleep(seconds)
        assert await_(asyncio.sleep(seconds, "slept")) == "slept"
        return result

    return deeper()


def park(future):
    """Sync code that waits for a future."""
    return await_(future)


@pytest.fixture
def prun(run):
    """Runs main(*args) as a task under a portal."""

    def run_it(main, *args, **options):
        async def outer():
            with portal():
                return await asyncio.create_task(main(*args))

        return run(outer(), **options)

    return run_it


async def parked(coro, **kwargs):
    """A task that has come to its first wait."""
    task = asyncio.create_task(coro, **kwargs)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    return task
