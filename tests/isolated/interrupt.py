"""Ctrl-C: raised at a plain wait, and out of a loop in which green code waits or computes.

Prints:
    plain sleep: KeyboardInterrupt
    plain fd: KeyboardInterrupt
    plain join: KeyboardInterrupt
    loop wait: KeyboardInterrupt
    loop compute: KeyboardInterrupt
    ok
"""

import asyncio
import os
import signal
import socket
import threading

from _loop import new_loop

import greenletio
from greenletio import async_, io, spawn


def soon():
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()


def attempt(where, fn):
    try:
        soon()
        fn()
    except KeyboardInterrupt:
        print(f"{where}: KeyboardInterrupt")
    else:
        print(f"{where}: went on")


def compute():
    while True:
        pass


def in_loop(fn, *args):
    loop = new_loop()
    task = loop.create_task(async_(fn)(*args))
    try:
        loop.run_until_complete(task)
    finally:
        task.cancel()
        try:
            loop.run_until_complete(asyncio.wait([task]))
        except KeyboardInterrupt:
            pass
        loop.close()


a, b = socket.socketpair()
attempt("plain sleep", lambda: greenletio.sleep(30))
attempt("plain fd", lambda: io.wait_readable(a))
attempt("plain join", lambda: spawn(greenletio.sleep, 30).join())
attempt("loop wait", lambda: in_loop(greenletio.sleep, 30))
attempt("loop compute", lambda: in_loop(compute))
in_loop(greenletio.sleep, 0)
greenletio.sleep(0)
print("ok")
