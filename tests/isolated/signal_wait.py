"""A signal handler that waits, wherever the signal hits: it blocks plainly or raises.

Prints:
    in green code: handled
    in the loop: handled
    in plain code: handled
    in a plain wait: handled
    ok
"""

import asyncio
import os
import signal

from _loop import run

import greenletio
from greenletio import async_, await_

log = []


def handler(*args):
    for wait in (lambda: greenletio.sleep(0.001), lambda: await_(asyncio.sleep(0))):
        try:
            wait()
        except RuntimeError:
            pass
    log.append(1)


def hit():
    os.kill(os.getpid(), signal.SIGUSR1)
    for _ in range(100):
        pass


async def said(where):
    while not log:
        await asyncio.sleep(0.001)
    log.clear()
    print(f"{where}: handled")


def green():
    greenletio.sleep(0)
    hit()
    greenletio.sleep(0)
    return 5


async def main():
    assert await async_(green)() == 5
    await said("in green code")
    asyncio.get_running_loop().call_soon(hit)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    await asyncio.sleep(0.05)
    await said("in the loop")
    assert await async_(green)() == 5


signal.signal(signal.SIGUSR1, handler)
signal.signal(signal.SIGALRM, handler)
run(main())
log.clear()
hit()
assert log
print("in plain code: handled")
log.clear()
signal.setitimer(signal.ITIMER_REAL, 0.01)
greenletio.sleep(0.05)
assert log
print("in a plain wait: handled")
print("ok")
