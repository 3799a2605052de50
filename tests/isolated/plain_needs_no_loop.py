"""With nothing spawned a plain wait is a plain poll(2): no loop is made for it.

Prints:
    ok
"""

import asyncio
import socket

import greenletio
from greenletio import _core, io, timeout


def forbidden(*args, **kwargs):
    raise AssertionError("a loop was made")


asyncio.BaseEventLoop.__init__ = forbidden
a, b = socket.socketpair()
b.send(b"x")
assert io.wait_readable(a) is True
assert io.wait_writable(a, timeout=1) is True
assert greenletio.io.wait_any([a], [], timeout=1)
greenletio.sleep(0)
greenletio.sleep(0.001)
assert _core.Waiter().wait(0.001) is False
try:
    with timeout(0.001):
        greenletio.sleep(60)
except TimeoutError:
    pass
else:
    raise AssertionError
print("ok")
