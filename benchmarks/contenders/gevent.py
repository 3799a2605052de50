"""gevent on its own hub, with psycogreen for psycopg2; it has no bridge to asyncio."""

from __future__ import annotations

import gc
import importlib
import socket
from typing import Any, ClassVar

from benchmarks.contenders import _psycopg2
from benchmarks.contenders._bridge import MARK, SLEEPS, empty
from benchmarks.meter import Meter, check, rss

gevent = importlib.import_module("gevent")


class Contender:
    packages: ClassVar[tuple[str, ...]] = (
        "gevent",
        "greenlet",
        "psycogreen",
        "psycopg2",
        "psycopg2-binary",
    )

    def spawn(self, meter: Meter, n: int) -> None:
        spawn = gevent.spawn
        got = None
        for count in meter.phases(n):
            for _ in range(count):
                got = spawn(empty).get()
        check(got is MARK, "a spawned call")

    def suspend(self, meter: Meter, n: int) -> None:
        sleep = gevent.sleep

        def work() -> object:
            for count in meter.phases(n):
                for _ in range(count):
                    sleep(0)
            return MARK

        check(gevent.spawn(work).get() is MARK, "a suspended wait")

    def tasks(self, meter: Meter, n: int) -> None:
        sleep = gevent.sleep

        def work() -> int:
            for _ in range(SLEEPS):
                sleep(0)
            return 1

        done = 0
        for count in meter.phases(n):
            running = [gevent.spawn(work) for _ in range(count)]
            gevent.joinall(running)
            done = sum(task.value for task in running)
        check(done == n, "all tasks finish")

    def fd(self, meter: Meter, n: int) -> None:
        wait_read = importlib.import_module("gevent.socket").wait_read
        soon = gevent.get_hub().loop.run_callback
        here, there = socket.socketpair()
        fd, send, recv = here.fileno(), there.send, here.recv

        def work() -> int:
            got = 0
            for count in meter.phases(n):
                got = 0
                for _ in range(count):
                    soon(send, b"x")
                    wait_read(fd)
                    got += len(recv(8))
            return got

        with here, there:
            here.setblocking(False)
            check(gevent.spawn(work).get() == n, "every byte is waited for and read")

    def rss_task(self, meter: Meter, n: int) -> float:
        event = importlib.import_module("gevent.event").Event()
        waiting = 0

        def work() -> int:
            nonlocal waiting
            waiting += 1
            event.wait()
            return 1

        def suspend(count: int) -> None:
            running.extend(gevent.spawn(work) for _ in range(count))
            while waiting < len(running):
                gevent.sleep(0)

        running: list[Any] = []
        suspend(10)
        gc.collect()
        before = rss()
        suspend(n)
        used = rss() - before
        event.set()
        gevent.joinall(running)
        check(sum(task.value for task in running) == n + 10, "every greenlet finishes")
        return used / n

    def _psycopg2(self, meter: Meter, n: int, tasks: int, rows: int) -> None:
        importlib.import_module("psycogreen.gevent").patch_psycopg()
        conns = [_psycopg2.connect() for _ in range(tasks)]
        got = 0
        for count in meter.phases(n):
            running = [gevent.spawn(_psycopg2.queries, c, count // tasks, rows) for c in conns]
            gevent.joinall(running)
            got = sum(task.value for task in running)
        check(got == n // tasks * tasks * _psycopg2.total(rows), "query results")
        for conn in conns:
            conn.close()

    def pg1(self, meter: Meter, n: int) -> None:
        self._psycopg2(meter, n, 1, 1)

    def pg20(self, meter: Meter, n: int) -> None:
        self._psycopg2(meter, n, 20, 1)

    def pg_rows(self, meter: Meter, n: int) -> None:
        self._psycopg2(meter, n, 1, 1000)
