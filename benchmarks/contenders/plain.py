"""No bridge: the same work with asyncio alone, all of it asynchronous functions."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Coroutine
from typing import Any, ClassVar

from benchmarks.contenders._bridge import DEPTH, MARK, SLEEPS, immediate, pause
from benchmarks.meter import Meter, check, rss


class Contender:
    packages: ClassVar[tuple[str, ...]] = ("uvloop",)

    async def call(self, meter: Meter, n: int) -> None:
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await immediate()
        check(got is MARK, "an empty call")

    immediate = call

    async def suspend(self, meter: Meter, n: int) -> None:
        sleep = asyncio.sleep
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await sleep(0, MARK)
        check(got is MARK, "a suspended wait")

    async def deep(self, meter: Meter, n: int) -> None:
        async def chain(depth: int) -> None:
            if depth:
                await chain(depth - 1)
            else:
                await self.suspend(meter, n)

        await chain(DEPTH)

    async def tasks(self, meter: Meter, n: int) -> None:
        sleep = asyncio.sleep

        async def work() -> int:
            for _ in range(SLEEPS):
                await sleep(0)
            return 1

        done = [0]
        for count in meter.phases(n):
            running = [asyncio.ensure_future(work()) for _ in range(count)]
            done = await asyncio.gather(*running)
        check(sum(done) == n, "all tasks finish")

    async def spawn(self, meter: Meter, n: int) -> None:
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await asyncio.ensure_future(immediate())
        check(got is MARK, "a spawned call")

    async def fd(self, meter: Meter, n: int) -> None:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        fd, send, recv = here.fileno(), there.send, here.recv

        async def readable() -> None:
            ready = loop.create_future()
            loop.add_reader(fd, ready.set_result, None)
            try:
                await ready
            finally:
                loop.remove_reader(fd)

        with here, there:
            here.setblocking(False)
            got = 0
            for count in meter.phases(n):
                got = 0
                for _ in range(count):
                    loop.call_soon(send, b"x")
                    await readable()
                    got += len(recv(8))
            check(got == n, "every byte is waited for and read")

    async def rss(self, meter: Meter, n: int) -> float:
        held: list[Coroutine[Any, Any, Any]] = []

        async def work() -> None:
            await pause()

        def suspend(count: int) -> None:
            for _ in range(count):
                call = work()
                call.send(None)
                held.append(call)

        suspend(10)
        gc.collect()
        before = rss()
        suspend(n)
        used = rss() - before
        finished = 0
        for call in held:
            try:
                call.send(None)
            except StopIteration:
                finished += 1
        check(finished == n + 10, "every suspended coroutine finishes")
        return used / n

    async def rss_task(self, meter: Meter, n: int) -> float:
        event = asyncio.Event()

        async def work() -> int:
            await event.wait()
            return 1

        async def suspend(count: int) -> list[asyncio.Task[int]]:
            tasks = [asyncio.ensure_future(work()) for _ in range(count)]
            await asyncio.sleep(0)
            return tasks

        warm = await suspend(10)
        gc.collect()
        before = rss()
        tasks = await suspend(n)
        used = rss() - before
        event.set()
        check(sum(await asyncio.gather(*warm, *tasks)) == n + 10, "every task finishes")
        return used / n
