"""What debug.detect_blocking costs: CPU time of the process, with it and without.

    python -m benchmarks.blocking [--threshold 0.1] [--rounds 5]

`idle` is a loop that waits, in CPU microseconds a second; `busy` one that does as many turns as it
can, in CPU nanoseconds a turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import statistics
import time
from collections.abc import Callable

from greenletio.debug import detect_blocking

TURNS = 100_000


async def idle() -> float:
    began = time.process_time()
    await asyncio.sleep(2)
    return (time.process_time() - began) / 2 * 1e6


async def busy() -> float:
    began = time.process_time()
    for _ in range(TURNS):
        await asyncio.sleep(0)
    return (time.process_time() - began) / TURNS * 1e9


async def measure(work: Callable[[], object], threshold: float | None) -> float:
    watch = detect_blocking(threshold, mode="count") if threshold else contextlib.nullcontext()
    with watch:
        await asyncio.sleep(0.01)
        return await work()  # type: ignore[misc, no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threshold", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    uvloop = importlib.import_module("uvloop")
    for kind, new_loop in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
        with contextlib.closing(new_loop()) as loop:
            for work, unit in ((idle, "us/s"), (busy, "ns/turn")):
                without, watched = [], []
                for _ in range(options.rounds):  # by turns, so that the machine's moods are shared
                    without.append(loop.run_until_complete(measure(work, None)))
                    watched.append(loop.run_until_complete(measure(work, options.threshold)))
                print(
                    f"{kind:8} {work.__name__:5} without {statistics.median(without):8.0f} {unit}, "
                    f"with {statistics.median(watched):8.0f} {unit}"
                )


if __name__ == "__main__":
    main()
