"""Resident memory stays where it is through rounds of everything, C stacks included.

Prints:
    ok
"""

import asyncio
import gc
import itertools
import os
import sys
import types

from _loop import run

import greenletio
from greenletio import Group, async_, await_, spawn, timeout


@types.coroutine
def trap():
    yield


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def job(n):
    try:
        if n % 5 == 0:
            with timeout(0):
                greenletio.sleep(1)
        elif n % 5 == 1:
            await_(asyncio.Event().wait())
        elif n % 5 == 2:
            with Group() as group:
                group.spawn(greenletio.sleep, 0)
        elif n % 5 == 3:
            await_(async_(greenletio.sleep)(0))
        else:
            spawn(greenletio.sleep, 0).get()
    except TimeoutError:
        pass


async def round_of_jobs():
    tasks = [asyncio.ensure_future(async_(job)(n)) for n in range(1000)]
    for _ in range(8):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _ in range(300):
        call = async_(lambda: await_(trap()))()
        call.send(None)
        del call


# AddressSanitizer keeps what was freed for a while: of no use here.
options = os.environ.get("ASAN_OPTIONS", "quarantine_size_mb")
if "quarantine_size_mb" not in options:
    os.environ["ASAN_OPTIONS"] = options + ":quarantine_size_mb=1"
    os.execv(sys.executable, sys.orig_argv)

sizes = []
for _ in range(12):
    run(round_of_jobs())
    gc.collect()
    sizes.append(resident())
steps = [b - a for a, b in itertools.pairwise(sizes[4:])]
assert min(steps) < 256 * 1024, steps
print("ok")
