"""Code that switches greenlets by hand, and drops the call that it runs in, gets errors: no crash.

Prints:
    coroutine: RuntimeError
    arguments: kept
    reparented: RuntimeError RuntimeError
    reused: 5
"""

import asyncio
import gc
import sys

import greenlet

import greenletio
from greenletio import async_, await_, timeout

main = greenlet.getcurrent()
workers = []
log = []
sys.unraisablehook = lambda _: None  # each call that can't be unwound is reported


def leave():
    """Out of the call, past what drives it."""
    workers.append(greenlet.getcurrent())
    main.switch()


def drop(call):
    """Give up a call whose function has left: closing it reaches leave() once more."""
    try:
        call.send(None)
    except RuntimeError:
        pass
    del call
    gc.collect()


async def leaving():
    leave()
    leave()
    await asyncio.sleep(0)


def awaits():
    try:
        await_(leaving())
    except BaseException as exc:
        log.append(type(exc).__name__)


drop(async_(awaits)())
workers[-1].switch()
print("coroutine:", *log)


class Item:
    left = 0

    def __lt__(self, other):
        if Item.left < 2:
            Item.left += 1
            leave()
        return True


# A C function borrows its arguments from the call.
drop(async_(list.sort)([Item() for _ in range(10)]))
others = [[object() for _ in range(10)] for _ in range(100)]
workers[-1].switch()
print("arguments: kept")


def waits():
    for _ in range(2):
        try:
            with timeout(50):
                greenletio.sleep(1000)
        except BaseException as exc:
            log.append(type(exc).__name__.replace("WouldBlockError", "RuntimeError"))


def starts():
    workers.append(greenlet.getcurrent())
    children.append(greenlet.greenlet(waits))
    children[0].switch()


def sleeps():
    for _ in range(3):
        greenletio.sleep(0.001)
    return 5


children = []
log.clear()


async def reparented():
    call = async_(starts)()
    call.send(None)
    worker = workers.pop()
    worker.parent = children[0].parent = greenlet.getcurrent()
    worker.switch()  # it ends, while its child waits in its name
    del worker
    try:
        call.send(None)
    except StopIteration:
        pass
    del call
    gc.collect()
    calls = [async_(sleeps)() for _ in range(3)]
    for call in calls:
        call.send(None)
    children.pop().switch()
    print("reparented:", *log)
    for call in calls:
        call.close()
    print("reused:", await async_(sleeps)())


asyncio.run(reparented())
