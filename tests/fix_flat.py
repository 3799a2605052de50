"""Nothing grows: `flat` and `aflat` repeat a call until a round leaves nothing behind."""

import asyncio
import gc
import os
import sys

import pytest

ROUNDS = 14


class Meter:
    """Judges growth from round to round: a leak grows in every one, noise dies away."""

    def __init__(self, repeat):
        self.allowed = {"memory blocks": repeat // 2, "gc objects": repeat // 8, "fds": 0}
        self.growth = {what: [] for what in self.allowed}
        self.before = None

    def flat(self):
        """Note where things stand. True once everything has had a round without growth."""
        gc.collect()
        now = {
            "memory blocks": sys.getallocatedblocks(),
            "gc objects": len(gc.get_objects()),
            "fds": len(os.listdir("/proc/self/fd")),
        }
        if self.before is not None:
            for what, steps in self.growth.items():
                steps.append(now[what] - self.before[what])
        self.before = now
        return all(
            min(steps, default=1 << 30) <= self.allowed[what] for what, steps in self.growth.items()
        )

    def fail(self):
        pytest.fail(f"grows in each of {ROUNDS} rounds: {self.growth}", pytrace=False)


@pytest.fixture
def flat():
    """flat(call): repeating the plain call leaves no memory, object or fd behind."""

    def check(call, repeat=200):
        meter = Meter(repeat)
        for _ in range(ROUNDS):
            for _ in range(repeat):
                call()
            if meter.flat():
                return
        meter.fail()

    return check


@pytest.fixture
def aflat():
    """The same for a call that returns an awaitable: await aflat(call)."""

    async def check(call, repeat=200):
        meter = Meter(repeat)
        for _ in range(ROUNDS):
            for _ in range(repeat):
                await call()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if meter.flat():
                return
        meter.fail()

    return check
