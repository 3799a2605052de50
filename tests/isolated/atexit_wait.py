"""Waits in atexit handlers: they block plainly or raise, after a loop has come and gone too.

Prints:
    end of main
    sleep blocked | sleep raised
    wait_readable blocked | wait_readable raised
    await_ blocked | await_ raised
    spawn blocked | spawn raised
"""

import asyncio
import atexit
import socket

from _loop import run

import greenletio
from greenletio import async_, await_, io, spawn

a, b = socket.socketpair()
b.send(b"x")
WAITS = [
    ("spawn", lambda: spawn(greenletio.sleep, 0).get()),
    ("await_", lambda: await_(asyncio.sleep(0))),
    ("wait_readable", lambda: io.wait_readable(a)),
    ("sleep", lambda: greenletio.sleep(0.001)),
]


def at_exit(name, wait):
    try:
        wait()
    except Exception:
        print(name, "raised")
    else:
        print(name, "blocked")


for name, wait in WAITS:
    atexit.register(at_exit, name, wait)
run(async_(greenletio.sleep)(0))
spawn(greenletio.sleep, 0).get()
print("end of main")
