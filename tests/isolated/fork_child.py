"""fork in a program that has run loops and greens: the child has its own, and the parent goes on.

Prints:
    child of plain code: [0, 1, 2]
    child of green code: [0, 1, 2]
    parent: x
    ok
Stderr: multi-threaded.*fork
"""

import asyncio
import os
import socket
import sys

from _loop import run

import greenletio
from greenletio import _core, async_, io, spawn


def job(i):
    greenletio.sleep(0.001)
    return i


def check_child(where):
    async def main():
        return await asyncio.gather(*[async_(job)(i) for i in range(3)])

    print(f"{where}: {run(main())}", flush=True)
    assert spawn(job, 5).get() == 5


def fork(where):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check_child(where)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def fork_in_green():
    """Running a loop inside a running one is asyncio's to refuse: the child starts a thread."""
    import threading

    greenletio.sleep(0)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        assert _core.place() == 0, "the loop that was running is the parent's"
        thread = threading.Thread(target=check_child, args=("child of green code",))
        thread.start()
        thread.join()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


async def main():
    waiting = asyncio.ensure_future(async_(io.wait_readable)(a))
    await asyncio.sleep(0.001)
    await async_(fork_in_green)()
    b.send(b"x")
    assert await waiting is True
    print("parent:", a.recv(1).decode())


a, b = socket.socketpair()
greens = [spawn(greenletio.sleep, 0.001) for _ in range(3)]
greenletio.sleep(0.002)
fork("child of plain code")
run(main())
print("ok")
