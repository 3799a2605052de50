"""What a mode's process observes of itself: stalls of its loop, its memory, its threads."""

import asyncio
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import psutil

__all__ = ("Watch", "peak_rss_mb")

TICK_S = 0.002
SLOT_S = 0.1


class Watch:
    """A ticker: a task that wants to run every 2 ms, and notes how late it was.

    What makes it late is whatever else the loop did instead: the longest lateness
    is the longest time the loop was blocked. ``slots`` holds the worst of each
    tenth of a second, in ms. It stands still between ``pause`` and ``resume``.

    ``own_ms`` is the longest lateness without the time in which this thread could run
    but the kernel ran others: on a busy machine, that part is not the loop's doing.
    """

    def __init__(self, each_slot: Callable[[], None]) -> None:
        self.threads = 1
        self.slots: list[float] = [0.0]
        self._each_slot = each_slot
        self._process = psutil.Process()
        self._queue = RunQueue()
        self.own_ms = 0.0
        self._active_s = self._since = self._due = self._queued_s = 0.0
        self._ticker: asyncio.Task[None] | None = None

    def resume(self) -> tuple[float, float]:
        """Begin to tick; returns the clock, and for how long this has ticked before."""
        self._since = perf_counter()
        self._ticker = asyncio.create_task(self._tick())
        return self._since, self._active_s

    def pause(self) -> None:
        # A stall that is under way ends here, and counts.
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
            self._note()
            self._active_s += perf_counter() - self._since

    async def _tick(self) -> None:
        while True:
            self._due = perf_counter() + TICK_S
            self._queued_s = self._queue.waited_s()
            await asyncio.sleep(TICK_S)
            self._note()

    def _note(self) -> None:
        now = perf_counter()
        late_s = now - self._due
        self.own_ms = max(self.own_ms, (late_s - self._queue.waited_s() + self._queued_s) * 1e3)
        slot = int((self._active_s + now - self._since) / SLOT_S)
        if slot >= len(self.slots):
            # It was late for all of the slots that it did not see.
            self.slots += [late_s * 1e3] * (slot + 1 - len(self.slots))
            self.threads = max(self.threads, self._process.num_threads())
            self._each_slot()
        self.slots[slot] = max(self.slots[slot], late_s * 1e3)


class RunQueue:
    """For how long this thread has waited for a CPU; 0 where the kernel does not say."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1

    def waited_s(self) -> float:
        return int(os.pread(self._file, 99, 0).split()[1]) / 1e9 if self._file >= 0 else 0.0


def peak_rss_mb() -> float:
    """The most memory this process ever held.

    On Linux ru_maxrss begins with the size of the process that started this one,
    so the kernel's own figure for this program is preferred.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
