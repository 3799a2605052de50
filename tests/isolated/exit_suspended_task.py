"""The program ends with a loop that was never closed and tasks in the middle of waits.

Prints:
    end of main
    finally
    finally
    finally
Stderr: Task was destroyed but it is pending|unclosed event loop
"""

import asyncio
import os

from _loop import new_loop

import greenletio
from greenletio import async_, await_, spawn
from greenletio.io import wait_readable


def sync(wait):
    try:
        wait()
    finally:
        print("finally")


async def main():
    global kept
    event = asyncio.Event()
    kept = [
        asyncio.ensure_future(async_(sync)(lambda: greenletio.sleep(3600))),
        asyncio.ensure_future(async_(sync)(lambda: await_(event.wait()))),
        spawn(sync, lambda: wait_readable(0)),
    ]
    for _ in range(3):
        await asyncio.sleep(0)


reader, writer = os.pipe()
os.dup2(reader, 0)
loop = new_loop()
loop.run_until_complete(main())
print("end of main")
