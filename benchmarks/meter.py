"""What the worker processes measure with: CPU and wall time of a phase, and resident memory."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator


class Meter:
    """The clocks of one sample; `phases` runs them around the second, measured phase only."""

    WARM_UP = 50

    def __init__(self) -> None:
        self.cpu_ns = 0
        self.wall_ns = 0

    def phases(self, n: int) -> Iterator[int]:
        """Yield a small count to warm up with, then `n` with the clocks running.

        The garbage collector is in the same state for every contender: all that was imported is
        frozen (the worker did that), the rest has just been collected, and it stays enabled.
        """
        yield min(n, self.WARM_UP)
        gc.collect()
        wall = time.perf_counter_ns()
        cpu = time.process_time_ns()
        yield n
        self.cpu_ns = time.process_time_ns() - cpu
        self.wall_ns = time.perf_counter_ns() - wall


def rss() -> int:
    """The resident memory of this process in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check(ok: object, what: str) -> None:
    """A contender that does not do the work must not be measured."""
    if not ok:
        raise RuntimeError(f"the bench did not do its work: {what}")
