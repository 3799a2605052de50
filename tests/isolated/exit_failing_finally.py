"""A finally block that fails, and one that waits, while the program ends: reported, no crash.

Prints:
    end of main
    ...
    still here
Stderr: LookupError|would|Error
"""

import types

import greenletio
from greenletio import async_, await_


@types.coroutine
def trap():
    yield


def failing():
    try:
        await_(trap())
    finally:
        raise LookupError("in finally")


def waiting():
    try:
        await_(trap())
    finally:
        greenletio.sleep(0.001)


calls = [async_(failing)(), async_(waiting)()]
for call in calls:
    call.send(None)


class Last:
    def __del__(self):
        print("still here")


last = Last()
print("end of main")
