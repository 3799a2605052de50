"""The program ends while daemon threads are in the middle of green and plain waits.

Prints:
    end of main
"""

import asyncio
import socket
import threading

from _loop import run

import greenletio
from greenletio import async_, await_, io, spawn


def in_a_loop():
    async def main():
        greens = [spawn(greenletio.sleep, 3600) for _ in range(5)]
        waiting.append(1)
        await asyncio.gather(async_(lambda: await_(asyncio.Event().wait()))(), *greens)

    run(main())


def busy():
    waiting.append(1)

    async def main():
        while True:
            await async_(greenletio.sleep)(0)

    run(main())


def plain():
    waiting.append(1)
    io.wait_readable(a)


def plain_with_greens():
    spawn(greenletio.sleep, 3600)
    waiting.append(1)
    greenletio.sleep(3600)


waiting = []
a, b = socket.socketpair()
targets = [in_a_loop, busy, plain, plain_with_greens] * 2
for target in targets:
    threading.Thread(target=target, daemon=True).start()
while len(waiting) < len(targets):
    greenletio.sleep(0.001)
greenletio.sleep(0.02)
print("end of main")
