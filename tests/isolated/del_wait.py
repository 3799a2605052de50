"""Waits in __del__: wherever the object dies, the program goes on.

Prints:
    plain: deleted
    green: deleted
    task: deleted
    collected in the loop: deleted
    collected in green code: deleted
    callback: deleted
    ok
Stderr: WouldBlockError|never awaited
"""

import asyncio
import gc

from _loop import run

import greenletio
from greenletio import async_, await_


class Dies:
    def __init__(self, where):
        self.where = where

    def __del__(self):
        try:
            for wait in (
                lambda: greenletio.sleep(0.001),
                lambda: await_(asyncio.sleep(0)),
                lambda: greenletio.spawn(int).join(),
            ):
                try:
                    wait()
                except RuntimeError:
                    pass
        finally:
            print(f"{self.where}: deleted")


def make_cycle(where):
    cycle = [Dies(where)]
    cycle.append(cycle)


def green():
    Dies("green")
    greenletio.sleep(0)


def collect():
    make_cycle("collected in green code")
    gc.collect()
    greenletio.sleep(0)


async def main():
    await async_(green)()
    Dies("task")
    await asyncio.sleep(0)
    make_cycle("collected in the loop")
    gc.collect()
    await async_(collect)()
    for _ in range(5):
        await asyncio.sleep(0.001)
    asyncio.get_running_loop().call_soon(Dies, "callback")
    for _ in range(5):
        await asyncio.sleep(0.001)


Dies("plain")
run(main())
print("ok")
