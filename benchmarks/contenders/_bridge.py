"""The benches of every library that bridges between synchronous and asynchronous code.

A contender says how a synchronous function is entered from asynchronous code and how an
awaitable is waited for inside; the work is the same for all, and is checked.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar

from benchmarks.contenders import _psycopg2
from benchmarks.meter import Meter, check, rss

MARK = object()
SLEEPS = 10
DEPTH = 100


def empty() -> object:
    return MARK


async def immediate() -> object:
    return MARK


class _Pause:
    def __await__(self) -> Any:
        return iter((None,))  # smaller than a generator


_PAUSE = _Pause()


async def pause() -> None:
    """Suspend until whoever drives it sends again; takes as little memory as can be."""
    await _PAUSE


class Bridge:
    """Base of the contenders; `_wait` and `_enter` are the library's own functions."""

    packages: ClassVar[tuple[str, ...]]
    _cannot: ClassVar[tuple[str, ...]] = ()  # benches that the library has no way to do
    _wait: Callable[[Awaitable[Any]], Any]

    def _enter(self, fn: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
        """The coroutine (or coroutine-like object) that runs fn(*args)."""
        raise NotImplementedError

    async def _each_call(self, meter: Meter, n: int) -> object:
        """Enter `empty` n times, spelled as the library's users do."""
        raise NotImplementedError

    async def call(self, meter: Meter, n: int) -> None:
        check(await self._each_call(meter, n) is MARK, "an empty call")

    async def immediate(self, meter: Meter, n: int) -> None:
        wait = self._wait

        def sync() -> object:
            got = None
            for count in meter.phases(n):
                for _ in range(count):
                    got = wait(immediate())
            return got

        check(await self._enter(sync) is MARK, "an immediate coroutine")

    def _suspending(self, meter: Meter, n: int) -> object:
        """n waits that each give the loop one turn; the first is checked to do so."""
        wait, sleep = self._wait, asyncio.sleep
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        got = wait(sleep(0, MARK))
        check(turns, "a suspended wait lets the loop run")
        for count in meter.phases(n):
            for _ in range(count):
                got = wait(sleep(0, MARK))
        return got

    async def suspend(self, meter: Meter, n: int) -> None:
        check(await self._enter(self._suspending, meter, n) is MARK, "a suspended wait")

    async def deep(self, meter: Meter, n: int) -> None:
        """A suspended wait below DEPTH coroutines that await one another."""

        async def chain(depth: int) -> object:
            if depth:
                return await chain(depth - 1)
            return await self._enter(self._suspending, meter, n)

        check(await chain(DEPTH) is MARK, "a wait below a deep chain")

    async def tasks(self, meter: Meter, n: int) -> None:
        wait, sleep = self._wait, asyncio.sleep

        def sync() -> int:
            for _ in range(SLEEPS):
                wait(sleep(0))
            return 1

        done = [0]
        for count in meter.phases(n):
            running = [asyncio.ensure_future(self._enter(sync)) for _ in range(count)]
            done = await asyncio.gather(*running)
        check(sum(done) == n, "all tasks finish")

    async def spawn(self, meter: Meter, n: int) -> None:
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = await asyncio.ensure_future(self._enter(empty))
        check(got is MARK, "a spawned call")

    async def rss(self, meter: Meter, n: int) -> float:
        """Bytes for each suspended greenlet, without a task around it."""
        wait = self._wait

        def sync() -> None:
            wait(pause())

        def suspend(count: int) -> None:
            for _ in range(count):
                call = self._enter(sync)
                call.send(None)
                held.append(call)

        held: list[Coroutine[Any, Any, Any]] = []
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
        check(finished == n + 10, "every suspended greenlet finishes")
        return used / n

    async def rss_task(self, meter: Meter, n: int) -> float:
        """Bytes for each task that is suspended in synchronous code, waiting for an event."""
        wait = self._wait
        event = asyncio.Event()
        waiting = 0

        def sync() -> int:
            nonlocal waiting
            waiting += 1
            wait(event.wait())
            return 1

        async def suspend(count: int) -> None:
            tasks.extend(asyncio.ensure_future(self._enter(sync)) for _ in range(count))
            while waiting < len(tasks):
                await asyncio.sleep(0)

        tasks: list[asyncio.Future[int]] = []
        await suspend(10)
        gc.collect()
        before = rss()
        await suspend(n)
        used = rss() - before
        event.set()
        check(sum(await asyncio.gather(*tasks)) == n + 10, "every suspended task finishes")
        return used / n


class FdBridge(Bridge):
    """A bridge that also waits for file descriptors and makes psycopg2 cooperative."""

    _wait_fd: Callable[[int], Any]

    def _patch_psycopg2(self) -> None:
        raise NotImplementedError

    async def fd(self, meter: Meter, n: int) -> None:
        """A wait for a socket that becomes readable after the wait began."""
        wait_fd = self._wait_fd
        here, there = socket.socketpair()
        soon = asyncio.get_running_loop().call_soon

        def sync() -> int:
            fd, send, recv = here.fileno(), there.send, here.recv
            got = 0
            for count in meter.phases(n):
                got = 0
                for _ in range(count):
                    soon(send, b"x")
                    wait_fd(fd)
                    got += len(recv(8))
            return got

        with here, there:
            here.setblocking(False)
            check(await self._enter(sync) == n, "every byte is waited for and read")

    async def _psycopg2(self, meter: Meter, n: int, tasks: int, rows: int) -> None:
        self._patch_psycopg2()
        conns = [await self._enter(_psycopg2.connect) for _ in range(tasks)]
        got: list[int] = []
        for count in meter.phases(n):
            got = await asyncio.gather(
                *[self._enter(_psycopg2.queries, c, count // tasks, rows) for c in conns]
            )
        check(sum(got) == n // tasks * tasks * _psycopg2.total(rows), "query results")
        for conn in conns:
            await self._enter(conn.close)

    async def pg1(self, meter: Meter, n: int) -> None:
        await self._psycopg2(meter, n, 1, 1)

    async def pg20(self, meter: Meter, n: int) -> None:
        await self._psycopg2(meter, n, 20, 1)

    async def pg_rows(self, meter: Meter, n: int) -> None:
        await self._psycopg2(meter, n, 1, 1000)
