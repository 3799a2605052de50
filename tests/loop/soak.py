"""A loop under everything at once, for minutes: `make soak`.

Servers and clients of every kind on one loop: connections opened, cut, reset, half-closed and
abandoned in the middle, plain and TLS; timers set and cancelled; threads that call in; bare fds
watched, closed and used again; subprocesses; names resolved; greenlets that wait. Every exchange
is checked. Each second the resident memory, the blocks of Python's allocator and the open fds are
noted once all is at rest; they must not grow in the second half, and the fds end as they began.
"""

import argparse
import asyncio
import contextlib
import gc
import importlib
import logging
import os
import random
import socket
import ssl
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

LINGER_NONE = struct.pack("ii", 1, 0)  # close() resets
MOVES: list[Callable[["Soak"], Awaitable[None]]] = []


def move(fn: Callable[["Soak"], Awaitable[None]]) -> Callable[["Soak"], Awaitable[None]]:
    MOVES.append(fn)
    return fn


class Soak:
    def __init__(self, seed: int, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.reported: list[dict[str, Any]] = []
        self.server_context, self.client_context = contexts
        self.servers: list[asyncio.AbstractServer] = []
        self.addresses: list[tuple[Any, bool]] = []
        self.handlers: set[asyncio.Task[Any]] = set()

    async def start(self, folder: str) -> None:
        for tls in (False, True):
            context = self.server_context if tls else None
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
            self.servers.append(server)
            self.addresses.append((server.sockets[0].getsockname(), tls))
            path = f"{folder}/soak-{tls}"
            self.servers.append(await asyncio.start_unix_server(self.serve, path, ssl=context))
            self.addresses.append((path, tls))

    async def stop(self) -> None:
        for server in self.servers:
            server.close()
        await self.rest()

    async def rest(self) -> None:
        """Until the servers' side of every connection has ended."""
        while self.handlers:
            await asyncio.wait(self.handlers, timeout=30)
        for _ in range(10):
            await asyncio.sleep(0.01)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.handlers.add(task)
        try:
            while data := await reader.read(self.random.choice((1, 1000, 100_000))):
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass  # cut or reset
        finally:
            self.handlers.discard(task)
            if self.random.random() < 0.2:
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        address, tls = self.random.choice(self.addresses)
        options: dict[str, Any] = {}
        if tls:
            options = {"ssl": self.client_context, "server_hostname": "localhost"}
        if isinstance(address, str):
            return *await asyncio.open_unix_connection(address, **options), tls
        return *await asyncio.open_connection(*address, **options), tls


async def exchange(soak: Soak, reader: Any, writer: Any) -> None:
    data = soak.random.randbytes(soak.random.choice((1, 50, 5_000, 200_000)))
    writer.write(data)
    got = await reader.readexactly(len(data))
    assert got == data, "the echo is not what was sent"


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


@move
async def whole(soak: Soak) -> None:
    reader, writer, _ = await soak.connect()
    for _ in range(soak.random.randrange(5)):
        await exchange(soak, reader, writer)
    await closed(writer)


@move
async def half_closed(soak: Soak) -> None:
    reader, writer, tls = await soak.connect()
    data = soak.random.randbytes(30_000)
    writer.write(data)
    if not tls:
        writer.write_eof()
        try:
            assert await reader.read() == data
        except ConnectionResetError:
            pass  # the server aborts some
    await closed(writer)


@move
async def cut(soak: Soak) -> None:
    reader, writer, _ = await soak.connect()
    writer.write(soak.random.randbytes(soak.random.choice((10, 500_000))))
    await asyncio.sleep(soak.random.choice((0, 0.001)))
    writer.transport.abort()
    await closed(writer)


@move
async def reset(soak: Soak) -> None:
    reader, writer, _ = await soak.connect()
    sock = writer.get_extra_info("socket")
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
    await exchange(soak, reader, writer)
    await closed(writer)


@move
async def cancelled(soak: Soak) -> None:
    async def never_answered() -> None:
        reader, writer, _ = await soak.connect()
        try:
            await exchange(soak, reader, writer)
            await reader.read(1)
        finally:
            await closed(writer)

    task = asyncio.ensure_future(never_answered())
    await asyncio.sleep(soak.random.choice((0, 0.001, 0.02)))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@move
async def bare_sockets(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    data = soak.random.randbytes(100_000)

    async def receive() -> bytes:
        got = b""
        while len(got) < len(data):
            got += await loop.sock_recv(b, 30_000)
        return got

    with a, b:
        _, got = await asyncio.gather(loop.sock_sendall(a, data), receive())
        assert got == data
        waiting = asyncio.ensure_future(loop.sock_recv(b, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])


@move
async def watched_fds(soak: Soak) -> None:
    """A number that was watched, closed and given to another pipe at once."""
    loop = asyncio.get_running_loop()
    for _ in range(5):
        r, w = os.pipe()
        ready = loop.create_future()
        loop.add_reader(r, lambda ready=ready: ready.done() or ready.set_result(None))
        os.write(w, b"x")
        await ready
        assert loop.remove_reader(r)
        os.close(w)
        os.close(r)


@move
async def timers(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    fired: list[int] = []
    handles = [loop.call_later(soak.random.random() * 0.05, fired.append, n) for n in range(100)]
    for handle in handles[::2]:
        handle.cancel()
    await asyncio.sleep(0.06)
    assert set(range(1, 100, 2)) >= set(fired)
    while len(fired) < 50:
        await asyncio.sleep(0.01)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(loop.create_future(), 0.001)


@move
async def threads(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    called: list[int] = []

    def call_in() -> None:
        for n in range(50):
            loop.call_soon_threadsafe(called.append, n)
        assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, 7), loop).result(60) == 7

    thread = threading.Thread(target=call_in)
    thread.start()
    await loop.run_in_executor(None, thread.join)
    assert called == list(range(50))


@move
async def datagrams(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    got = loop.create_future()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, address: Any) -> None:
            got.done() or got.set_result(data)

    receiver, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
    address = receiver.get_extra_info("sockname")
    sender, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=address)
    sender.sendto(b"hello")
    assert await got == b"hello"
    sender.close()
    receiver.close()


@move
async def subprocesses(soak: Soak) -> None:
    if soak.random.random() < 0.9:  # they cost much more than the others
        return
    process = await asyncio.create_subprocess_exec(
        "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    if soak.random.random() < 0.3:
        process.kill()
        await process.wait()
    else:
        out, _ = await process.communicate(b"x" * 100_000)
        assert out == b"x" * 100_000
    assert process.returncode in (0, -9)


@move
async def names(soak: Soak) -> None:
    found = await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    assert found


@move
async def greenlets(soak: Soak) -> None:
    import greenletio

    def work() -> bytes:
        time_ = importlib.import_module("greenletio.green.time")
        sock_ = importlib.import_module("greenletio.green.socket")
        time_.sleep(0.001)
        tcp = next(address for address, tls in soak.addresses if not tls)
        with sock_.create_connection(tcp) as sock:
            sock.sendall(b"x" * 1000)
            got = b""
            while len(got) < 1000:
                got += sock.recv(1000)
        return got

    assert await greenletio.spawn(work) == b"x" * 1000


async def worker(soak: Soak, until: float) -> None:
    while time.monotonic() < until:
        chosen = soak.random.choice(MOVES)
        try:
            await chosen(soak)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            soak.done["ended by the other side"] += 1  # what abort() at the server is for
        soak.done[chosen.__name__] += 1


def measure() -> dict[str, int]:
    while gc.collect():
        pass
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return {
        "memory, KiB": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        "blocks": sys.getallocatedblocks(),
        "fds": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
    }


async def main(soak: Soak, minutes: float, workers: int, folder: str) -> list[dict[str, int]]:
    asyncio.get_running_loop().set_exception_handler(lambda _, what: soak.reported.append(what))
    before = measure()
    await soak.start(folder)
    end = time.monotonic() + minutes * 60
    samples = []
    while time.monotonic() < end:
        until = min(end, time.monotonic() + max(1, minutes * 60 / 100))
        await asyncio.gather(*(worker(soak, until) for _ in range(workers)))
        await soak.rest()
        samples.append(measure())
        print(len(samples), samples[-1], sum(soak.done.values()), flush=True)
    await soak.stop()
    samples += [measure(), before]
    return samples


def contexts(folder: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    import trustme

    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    return server, client


def verdict(soak: Soak, samples: list[dict[str, int]]) -> list[str]:
    """What is wrong, if anything."""
    *samples, after, before = samples
    wrong = [f"the loop reported: {what}" for what in soak.reported]
    wrong += [f"never done: {fn.__name__}" for fn in MOVES if not soak.done[fn.__name__]]
    # The default executor's threads stay, and a first TLS connection opens what stays open.
    if after["fds"] > before["fds"] + 2:
        wrong.append(f"fds: {before['fds']} before, {after['fds']} after")
    if after["tasks"] != before["tasks"]:
        wrong.append(f"tasks: {before['tasks']} before, {after['tasks']} after")
    third = len(samples) // 3
    if third < 3:
        return [*wrong, "too short to tell growth: give it more minutes"]
    # A sanitizer notes the stack of each allocation, and meets a new one now and then.
    memory_slack = 1.1 if "ASAN_OPTIONS" in os.environ else 1.03
    for what, slack in (("memory, KiB", memory_slack), ("blocks", 1.01), ("fds", 1.0)):
        middle = statistics.median(sample[what] for sample in samples[third : 2 * third])
        last = statistics.median(sample[what] for sample in samples[2 * third :])
        if last > middle * slack:
            wrong.append(
                f"{what} grows: {middle:,.0f} in the middle third, {last:,.0f} in the last"
            )
    return wrong


def new_loop() -> asyncio.AbstractEventLoop:
    name = os.environ.get("GREENLETIO_TEST_LOOP", "greenletio:EventLoop")
    module, _, attribute = name.partition(":")
    loop: asyncio.AbstractEventLoop = getattr(importlib.import_module(module), attribute)()
    return loop


if __name__ == "__main__":
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writes after the end
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    loop = new_loop()
    asyncio.set_event_loop(loop)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(options.seed, contexts(folder))
        samples = loop.run_until_complete(main(soak, options.minutes, options.workers, folder))
        loop.run_until_complete(loop.shutdown_default_executor())
    asyncio.set_event_loop(None)
    loop.close()
    print(*(f"{count:7} {name}" for name, count in soak.done.most_common()), sep="\n")
    wrong = verdict(soak, samples)
    print(*wrong or ["flat"], sep="\n")
    sys.exit(bool(wrong))
