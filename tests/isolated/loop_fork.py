"""fork around our loop: the child has epolls and a self-pipe of its own, the parent goes on.

Prints:
    on the parent's loop, stopped: 1 2 3 4 5
    on a loop of its own, in a running one: 1 2 3 4 5
    forked by another thread: 1 2 3 4 5
    a process of multiprocessing: 1 2 3 4 5
    the parent has had the signals ['the parent']
    ok
Stderr: multi-threaded.*fork
"""

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time

import greenletio
from greenletio import async_, io


def pair():
    a, b = socket.socketpair()
    a.setblocking(False)
    return a, b


def waiting(loop):
    """Five things that wait in each other way, of which each has its own socket; and those."""
    pairs = [pair() for _ in range(3)]
    (a, _), (b, _), (c, _) = pairs
    readable = loop.create_future()

    def read():
        loop.remove_reader(c)
        readable.set_result(c.recv(1))

    async def timer():
        await asyncio.sleep(0.05)
        return b"4"

    async def green():
        await async_(io.wait_readable)(a)
        return a.recv(1)

    async def received():
        return await loop.sock_recv(b, 1)

    async def in_thread():
        for _ in range(20):  # each wakes the loop
            await loop.run_in_executor(None, time.sleep, 0)
        return b"5"

    async def start():
        loop.add_reader(c, read)
        tasks = [loop.create_task(green()), loop.create_task(received()), readable]
        tasks.append(loop.create_task(timer()))
        await asyncio.sleep(0.001)
        return tasks

    return start, in_thread, [peer for _, peer in pairs]


async def finish(tasks, in_thread, peers):
    for n, peer in enumerate(peers):
        peer.send(b"%d" % (n + 1))
    got = [await asyncio.wait_for(task, 60) for task in tasks]
    got.append(await asyncio.wait_for(in_thread(), 60))
    return b" ".join(got).decode()


async def all_in_one():
    start, in_thread, peers = waiting(asyncio.get_running_loop())
    return await finish(await start(), in_thread, peers)


def fork(where, fn):
    """Run fn in a child, which prints what it returns."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            print(f"{where}: {fn()}", flush=True)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def stopped():
    """Both parent and child go on with what waits; what is sent in one must not count in the other,
    so the parent's comes from a loop that nobody else uses afterwards."""
    loop = greenletio.new_event_loop()
    start, in_thread, peers = waiting(loop)
    tasks = loop.run_until_complete(start())

    def go_on():
        got = loop.run_until_complete(finish(tasks, in_thread, peers))
        loop.close()
        return got

    fork("on the parent's loop, stopped", go_on)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks))
    assert loop.run_until_complete(all_in_one()) == "1 2 3 4 5"
    loop.close()


def own_loop():
    got = greenletio.run(all_in_one())
    os.kill(os.getpid(), signal.SIGUSR1)
    return got


async def in_a_running_loop():
    loop = asyncio.get_running_loop()
    signals = []
    loop.add_signal_handler(signal.SIGUSR1, signals.append, "the parent")
    start, in_thread, peers = waiting(loop)
    tasks = await start()
    fork("on a loop of its own, in a running one", own_loop)

    forked = loop.run_in_executor(None, fork, "forked by another thread", own_loop)
    await forked

    process = multiprocessing.get_context("fork").Process(
        target=lambda: print(f"a process of multiprocessing: {own_loop()}", flush=True)
    )
    process.start()
    await loop.run_in_executor(None, process.join)
    assert process.exitcode == 0

    assert await finish(tasks, in_thread, peers) == "1 2 3 4 5"
    assert signals == []
    os.kill(os.getpid(), signal.SIGUSR1)
    while not signals:
        await asyncio.sleep(0.001)
    print("the parent has had the signals", signals)
    loop.remove_signal_handler(signal.SIGUSR1)


signal.signal(signal.SIGUSR1, signal.SIG_IGN)
stopped()
greenletio.run(in_a_running_loop())
assert threading.active_count() == 1
print("ok")
