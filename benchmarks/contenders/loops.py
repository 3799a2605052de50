"""Event loops with asyncio's interface; which one, the request says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

from benchmarks.contenders import _load
from benchmarks.contenders._load import ACTIVE, IDLE, IDLE_ACTIVE, LARGEST, Listener, Load
from benchmarks.meter import Meter, check, rss

BATCH = 1000  # callbacks scheduled before the loop comes by
Server = Callable[..., Any]


def nothing() -> None:
    pass


async def returns() -> int:
    return 1


# --- echo servers: each starts serving on a listening socket, and returns what ends it -----------


class Echo(asyncio.Protocol):
    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    transport: Any

    def __init__(self) -> None:
        # A view: asyncio's sslproto slices what it is given, and a slice of a bytearray is a copy.
        self._view = memoryview(bytearray(LARGEST))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        # A copy: the buffer is received into again, maybe before this has been sent.
        self.transport.write(bytes(self._view[:nbytes]))


class Pieces(asyncio.Protocol):
    """Answers each message with ten writes that are as long together."""

    transport: Any

    def __init__(self, size: int) -> None:
        self._size, self._got = size, 0
        whole = b"x" * size
        self._pieces = [whole[size * i // 10 : size * (i + 1) // 10] for i in range(10)]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += len(data)
        if self._got == self._size:
            self._got = 0
            write = self.transport.write
            for piece in self._pieces:
                write(piece)


def _protocol(make: Callable[[int], asyncio.BaseProtocol]) -> Server:
    async def start(sock: socket.socket, context: ssl.SSLContext | None, size: int) -> Any:
        loop = asyncio.get_running_loop()
        serve: Any = loop.create_server
        if sock.family == socket.AF_UNIX:
            serve = loop.create_unix_server
        server = await serve(lambda: make(size), sock=sock, ssl=context, backlog=4096)
        return server.close

    return start


def _streams(handler: Callable[[Any, Any, int], Any]) -> Server:
    async def start(sock: socket.socket, context: ssl.SSLContext | None, size: int) -> Any:
        serve: Any = asyncio.start_server
        if sock.family == socket.AF_UNIX:
            serve = asyncio.start_unix_server

        async def connected(reader: Any, writer: Any) -> None:
            with contextlib.suppress(ConnectionError):
                await handler(reader, writer, size)
            writer.close()

        server = await serve(connected, sock=sock, ssl=context, limit=LARGEST, backlog=4096)
        return server.close

    return start


async def _stream_echo(reader: Any, writer: Any, size: int) -> None:
    while data := await reader.read(LARGEST):
        writer.write(data)
        await writer.drain()


async def _stream_pieces(reader: Any, writer: Any, size: int) -> None:
    whole = b"x" * size
    pieces = [whole[size * i // 10 : size * (i + 1) // 10] for i in range(10)]
    got = 0
    while data := await reader.read(LARGEST):
        got += len(data)
        if got == size:
            got = 0
            for piece in pieces:
                writer.write(piece)
            await writer.drain()


async def _sockets(sock: socket.socket, context: ssl.SSLContext | None, size: int) -> Any:
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()

    async def serve(conn: socket.socket) -> None:
        with conn, contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(conn, LARGEST):
                await loop.sock_sendall(conn, data)

    async def accept() -> None:
        while True:
            conn, _ = await loop.sock_accept(sock)
            conn.setblocking(False)
            if conn.family == socket.AF_INET:
                conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(serve(conn))
            running.add(task)
            task.add_done_callback(running.discard)

    accepting = loop.create_task(accept())

    def close() -> None:
        for task in (accepting, *running):
            task.cancel()

    return close


SERVERS: dict[str, Server] = {
    "protocol": _protocol(lambda size: Echo()),
    "buffered": _protocol(lambda size: BufferedEcho()),
    "protocol-pieces": _protocol(Pieces),
    "streams": _streams(_stream_echo),
    "streams-pieces": _streams(_stream_pieces),
    "sockets": _sockets,
}


class Contender:
    packages: ClassVar[tuple[str, ...]] = ("greenletio", "greenlet", "uvloop", "rloop")
    servers: ClassVar[dict[str, Server]] = SERVERS

    def __init__(self) -> None:
        _load.raise_limit()

    @contextlib.asynccontextmanager
    async def _serving(
        self, server: str, family: str, size: int, active: int = ACTIVE
    ) -> AsyncIterator[Callable[..., Any]]:
        """Serve, and give a function that connects a load and returns how to have it send."""
        loop = asyncio.get_running_loop()
        loads: list[Load] = []

        async def told(load: Load) -> None:
            heard = loop.create_future()
            loop.add_reader(load.fd, lambda: heard.done() or heard.set_result(None))
            await heard
            loop.remove_reader(load.fd)
            load.hear()

        async def connect(active: int, idle: int = 0) -> Callable[[int], Any]:
            load = Load(listener.address, family == "tls", size, active, idle)
            loads.append(load)
            await told(load)

            async def exchange(count: int) -> None:
                load.send(count)
                await told(load)

            return exchange

        with Listener(family) as listener:
            context = _load.server_context() if family == "tls" else None
            close = await self.servers[server](listener.sock, context, size)
            try:
                yield connect
            finally:
                for load in loads:
                    load.close()
                close()
                await asyncio.sleep(0.05)  # the ends of the connections are not the next bench's

    async def echo(self, meter: Meter, n: int, server: str, family: str, size: int) -> None:
        async with self._serving(server, family, size) as connect:
            exchange = await connect(ACTIVE)
            for count in meter.phases(n):
                await exchange(count)

    async def idle_rss(self, meter: Meter, n: int, server: str, family: str) -> float:
        async with self._serving(server, family, 64) as connect:
            await connect(0, 50)
            gc.collect()
            before = rss()
            await connect(0, n)
            gc.collect()
            return (rss() - before) / n

    async def idle_active(self, meter: Meter, n: int, server: str, family: str) -> None:
        async with self._serving(server, family, 1024) as connect:
            exchange = await connect(IDLE_ACTIVE, IDLE - IDLE_ACTIVE)
            for count in meter.phases(n):
                await exchange(count)

    # --- the loop itself -------------------------------------------------------------------------

    async def call_soon(self, meter: Meter, n: int) -> None:
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon
        called = 0

        def count_it() -> None:
            nonlocal called
            called += 1

        for count in meter.phases(n):
            called = 0
            for start in range(0, count, BATCH):
                for _ in range(min(BATCH, count - start)):
                    call_soon(count_it)
                await asyncio.sleep(0)
        check(called == n, "every callback is called")

    async def turn(self, meter: Meter, n: int) -> None:
        loop = asyncio.get_running_loop()
        left = 0

        def again() -> None:
            nonlocal left
            left -= 1
            if left:
                loop.call_soon(again)
            else:
                done.set_result(None)

        for count in meter.phases(n):
            left, done = count, loop.create_future()
            loop.call_soon(again)
            await done
        check(left == 0, "every turn is made")

    async def timers(self, meter: Meter, n: int) -> None:
        loop = asyncio.get_running_loop()
        fired = 0

        def fire() -> None:
            nonlocal fired
            fired += 1
            if fired == total:
                done.set_result(None)

        for total in meter.phases(n):
            fired, done = 0, loop.create_future()
            for i in range(total):
                # Out of order, and all within 50 ms.
                loop.call_later((i * 7919 % total) / total * 0.05, fire)
            await done
        check(fired == n, "every timer fires")

    async def cancel(self, meter: Meter, n: int) -> None:
        call_later = asyncio.get_running_loop().call_later
        fired: list[None] = []
        for count in meter.phases(n):
            for start in range(0, count, BATCH):
                for _ in range(min(BATCH, count - start)):
                    call_later(30, fired.append, None).cancel()
                await asyncio.sleep(0)
        check(not fired, "no cancelled timer fires")

    async def create_task(self, meter: Meter, n: int) -> None:
        create_task = asyncio.get_running_loop().create_task
        done = 0
        for count in meter.phases(n):
            done = 0
            for _ in range(count):
                done += await create_task(returns())
        check(done == n, "every task runs")

    async def sleep0(self, meter: Meter, n: int) -> None:
        sleep = asyncio.sleep
        turned = 0

        async def beside() -> None:
            nonlocal turned
            while True:
                await sleep(0)
                turned += 1

        other = asyncio.ensure_future(beside())
        for count in meter.phases(n):
            turned = 0
            for _ in range(count):
                await sleep(0)
        other.cancel()
        check(n <= turned + 1, "others run meanwhile")

    async def future(self, meter: Meter, n: int) -> None:
        loop = asyncio.get_running_loop()
        got = 0
        for count in meter.phases(n):
            got = 0
            for _ in range(count):
                future = loop.create_future()
                loop.call_soon(future.set_result, 1)
                got += await future
        check(got == n, "every future wakes its waiter")

    async def gather(self, meter: Meter, n: int) -> None:
        got = 0
        for count in meter.phases(n):
            got = 0
            for _ in range(count):
                got += sum(await asyncio.gather(*[returns() for _ in range(10)]))
        check(got == 10 * n, "every coroutine is gathered")

    async def queue(self, meter: Meter, n: int) -> None:
        got = 0
        for count in meter.phases(n):
            queue: asyncio.Queue[int] = asyncio.Queue(10)

            async def put(count: int = count, queue: asyncio.Queue[int] = queue) -> None:
                for _ in range(count):
                    await queue.put(1)

            putting = asyncio.ensure_future(put())
            got = 0
            for _ in range(count):
                got += await queue.get()
            await putting
        check(got == n, "everything that is put is got")
