"""Nested bridges in threads with small C stacks: a RecursionError at worst.

Prints:
    256 KiB: ok
    512 KiB: ok
    1024 KiB: ok
    8192 KiB: ok
"""

import asyncio
import threading

from greenletio import async_, await_


def down(n):
    await_(asyncio.sleep(0))
    return 0 if n == 0 else 1 + await_(up(n - 1))


async def up(n):
    return await async_(down)(n)


def work():
    for depth in (5, 100, 1000):
        try:
            assert asyncio.run(up(depth)) == depth
        except RecursionError:
            assert depth > 5 or size < 512  # less than any platform gives by default
    ended.append(1)


ended = []
for size in (256, 512, 1024, 8192):
    threading.stack_size(size * 1024)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    print(f"{size} KiB:", "ok" if ended.pop() else "")
