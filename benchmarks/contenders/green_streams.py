"""asyncio's own: streams, tasks, locks and queues. It has no blocking code, so no http.client."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.contenders._sync import CONNECTIONS, SIZE, SLEEPS
from benchmarks.meter import Meter, check


async def empty() -> None:
    pass


class Contender:
    packages: tuple[str, ...] = ()

    async def _echo(self, meter: Meter, n: int, tls: bool) -> None:
        serving = calling = None
        if tls:
            serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            serving.load_cert_chain(os.environ["BENCH_CERT"])
            calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            calling.check_hostname = False
            calling.verify_mode = ssl.CERT_NONE
        data = b"x" * SIZE

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while got := await reader.read(4096):
                writer.write(got)
                await writer.drain()
            writer.close()

        async def talk(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int
        ) -> None:
            for _ in range(count):
                writer.write(data)
                await writer.drain()
                await reader.readexactly(SIZE)

        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=serving) as server:
            port = server.sockets[0].getsockname()[1]
            pairs = [
                await asyncio.open_connection("127.0.0.1", port, ssl=calling)
                for _ in range(CONNECTIONS)
            ]
            for count in meter.phases(n):
                await asyncio.gather(*(talk(*pair, count // CONNECTIONS) for pair in pairs))
            for _, writer in pairs:
                writer.close()
            await asyncio.sleep(0.01)

    async def echo(self, meter: Meter, n: int) -> None:
        await self._echo(meter, n, tls=False)

    async def tls(self, meter: Meter, n: int) -> None:
        await self._echo(meter, n, tls=True)

    async def _ping_pong(
        self,
        meter: Meter,
        n: int,
        make: Callable[[], Any],
        give: Callable[[Any], object],
        take: Callable[[Any], Awaitable[object]],
    ) -> None:
        there, back = make(), make()
        turns = 0

        async def first(count: int) -> None:
            for _ in range(count):
                give(there)
                await take(back)

        async def second(count: int) -> None:
            nonlocal turns
            for _ in range(count):
                await take(there)
                turns += 1
                give(back)

        for count in meter.phases(n):
            turns = 0
            await asyncio.gather(second(count), first(count))
        check(turns == n, "each has its turns")

    async def semaphore(self, meter: Meter, n: int) -> None:
        def make() -> asyncio.Semaphore:
            return asyncio.Semaphore(0)

        await self._ping_pong(meter, n, make, lambda x: x.release(), lambda x: x.acquire())

    lock = semaphore  # a Lock of asyncio's that nobody holds yet can't be handed over

    async def event(self, meter: Meter, n: int) -> None:
        async def take(event: asyncio.Event) -> None:
            await event.wait()
            event.clear()

        await self._ping_pong(meter, n, asyncio.Event, lambda x: x.set(), take)

    async def queue(self, meter: Meter, n: int) -> None:
        await self._ping_pong(meter, n, asyncio.Queue, lambda x: x.put_nowait(1), lambda x: x.get())

    async def spawn(self, meter: Meter, n: int) -> None:
        for count in meter.phases(n):
            for _ in range(count):
                await asyncio.create_task(empty())

    async def sleepers(self, meter: Meter, n: int) -> None:
        async def sleep(seconds: float) -> None:
            for _ in range(SLEEPS):
                await asyncio.sleep(seconds)

        for count in meter.phases(n):
            times = [0.01 + i * 7919 % count / count * 0.1 for i in range(count)]
            await asyncio.gather(*map(sleep, times))
