"""The program ends while loops of ours are open, with everything pending on them.

Prints:
    end of main
Stderr: unclosed|was never awaited|was destroyed|^$
"""

import asyncio
import socket
import sys
import threading

import greenletio
from greenletio import async_, await_, io


class Protocol(asyncio.Protocol):
    pass


def pair():
    a, b = socket.socketpair()
    a.setblocking(False)
    kept.extend((a, b))
    return a, b


async def start():
    """Everything that can be pending, once."""
    loop = asyncio.get_running_loop()
    loop.add_reader(pair()[0], print)
    loop.add_reader(pair()[0], loop.stop)
    loop.call_later(3600, print, loop)
    tasks = [
        loop.create_task(coro)
        for coro in (
            loop.sock_recv(pair()[0], 1),
            loop.sock_sendall(pair()[0], bytes(1 << 22)),
            asyncio.sleep(3600),
            async_(io.wait_readable)(pair()[0]),
            async_(greenletio.sleep)(3600),
            async_(lambda: await_(asyncio.Event().wait()))(),
        )
    ]
    transport, _ = await loop.create_connection(Protocol, sock=pair()[0])
    transport.write(bytes(1 << 22))
    server = await loop.create_server(Protocol, "127.0.0.1", 0)
    await asyncio.sleep(0.001)
    return tasks, transport, server


def never_closed():
    loop = greenletio.new_event_loop()
    kept.append(loop.run_until_complete(start()))
    loop.call_soon(print, loop)
    loop.call_soon_threadsafe(print, loop)
    kept.append(loop)


def running():
    async def main():
        kept.append(await start())
        begun.release()
        await asyncio.Event().wait()

    greenletio.run(main())


def busy():
    async def main():
        kept.append(await start())
        begun.release()
        while True:
            await asyncio.sleep(0)

    greenletio.run(main())


kept = []
begun = threading.Semaphore(0)
never_closed()
targets = [running, running, busy]
for target in targets:
    threading.Thread(target=target, daemon=True).start()
for _ in targets:
    begun.acquire()
sys.stdout.write("end of main\n")
sys.stdout.flush()
