"""A bit of everything, for runs under other settings of the interpreter.

Prints:
    ok
"""

import asyncio
import gc
import socket

from _loop import run

from greenletio import Group, async_, await_, io, sleep, spawn, timeout


def job(a, b, n):
    sleep(0)
    await_(asyncio.sleep(0))
    try:
        with timeout(0.001):
            sleep(10)
    except TimeoutError:
        pass
    with Group() as group:
        group.spawn(b.send, b"x")
        group.spawn(io.wait_readable, a)
    a.recv(1)
    try:
        spawn(lambda: 1 / 0).get()
    except ZeroDivisionError:
        pass
    if n:
        return await_(async_(job)(a, b, n - 1))


async def main():
    pairs = [socket.socketpair() for _ in range(10)]
    await asyncio.gather(*[async_(job)(a, b, 3) for a, b in pairs])
    task = asyncio.ensure_future(async_(sleep)(10))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for a, b in pairs:
        a.close()
        b.close()
    gc.collect()


run(main())
sleep(0)
assert spawn(int).get() == 0
print("ok")
