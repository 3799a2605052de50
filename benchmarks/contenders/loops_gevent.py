"""gevent's hub by gevent's own API, where that does the same work as asyncio's."""

from __future__ import annotations

import contextlib
import gc
import importlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from benchmarks.contenders import _load
from benchmarks.contenders._load import ACTIVE, IDLE, IDLE_ACTIVE, LARGEST, Listener, Load
from benchmarks.meter import Meter, check, rss

gevent = importlib.import_module("gevent")
gevent_socket = importlib.import_module("gevent.socket")
gevent_ssl = importlib.import_module("gevent.ssl")

BATCH = 1000
GREENS = 100  # at a time


def returns() -> int:
    return 1


class Contender:
    packages: ClassVar[tuple[str, ...]] = ("gevent", "greenlet")

    def __init__(self) -> None:
        _load.raise_limit()

    @contextlib.contextmanager
    def _serving(self, family: str, size: int) -> Iterator[Callable[..., Any]]:
        context = _load.server_context(gevent_ssl) if family == "tls" else None
        greens: list[Any] = []
        loads: list[Load] = []

        def serve(conn: Any) -> None:
            try:
                if conn.family == socket.AF_INET:
                    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if context is not None:
                    conn = context.wrap_socket(conn, server_side=True)
                while data := conn.recv(LARGEST):
                    conn.sendall(data)
            except OSError:
                pass  # the load is killed
            finally:
                conn.close()

        def accept() -> None:
            while True:
                conn, _ = listening.accept()
                greens.append(gevent.spawn(serve, conn))

        def told(load: Load) -> None:
            gevent_socket.wait_read(load.fd)
            load.hear()

        def connect(active: int, idle: int = 0) -> Callable[[int], None]:
            load = Load(listener.address, family == "tls", size, active, idle)
            loads.append(load)
            told(load)

            def exchange(count: int) -> None:
                load.send(count)
                told(load)

            return exchange

        with Listener(family) as listener:
            listening = gevent_socket.socket(fileno=listener.sock.detach())
            greens.append(gevent.spawn(accept))
            try:
                yield connect
            finally:
                for load in loads:
                    load.close()
                gevent.killall(greens)
                listening.close()

    def echo(self, meter: Meter, n: int, server: str, family: str, size: int) -> None:
        with self._serving(family, size) as connect:
            exchange = connect(ACTIVE)
            for count in meter.phases(n):
                exchange(count)

    def green_echo(self, meter: Meter, n: int, family: str, size: int) -> None:
        self.echo(meter, n, "green", family, size)

    def idle_rss(self, meter: Meter, n: int, server: str, family: str) -> float:
        with self._serving(family, 64) as connect:
            connect(0, 50)
            gc.collect()
            before = rss()
            connect(0, n)
            gc.collect()
            return (rss() - before) / n

    def idle_active(self, meter: Meter, n: int, server: str, family: str) -> None:
        with self._serving(family, 1024) as connect:
            exchange = connect(IDLE_ACTIVE, IDLE - IDLE_ACTIVE)
            for count in meter.phases(n):
                exchange(count)

    def call_soon(self, meter: Meter, n: int) -> None:
        run_callback = gevent.get_hub().loop.run_callback
        called = 0

        def count_it() -> None:
            nonlocal called
            called += 1

        for count in meter.phases(n):
            called = 0
            for start in range(0, count, BATCH):
                for _ in range(min(BATCH, count - start)):
                    run_callback(count_it)
                gevent.sleep(0)
        while called < n:  # it runs only so many at a time
            gevent.sleep(0)

    def timers(self, meter: Meter, n: int) -> None:
        make = gevent.get_hub().loop.timer
        fired = 0

        def fire() -> None:
            nonlocal fired
            fired += 1
            if fired == total:
                done.set()

        for total in meter.phases(n):
            fired, done = 0, importlib.import_module("gevent.event").Event()
            timers = [make((i * 7919 % total) / total * 0.05) for i in range(total)]
            for timer in timers:
                timer.start(fire)
            done.wait()
            for timer in timers:
                timer.close()
        check(fired == n, "every timer fires")

    def create_task(self, meter: Meter, n: int) -> None:
        spawn = gevent.spawn
        done = 0
        for count in meter.phases(n):
            done = 0
            for _ in range(count):
                done += spawn(returns).get()
        check(done == n, "every greenlet runs")

    def spawn(self, meter: Meter, n: int) -> None:
        done = 0

        def work() -> None:
            nonlocal done
            gevent.sleep(0)
            done += 1

        for count in meter.phases(n):
            done = 0
            for start in range(0, count, GREENS):
                greens = [gevent.spawn(work) for _ in range(min(GREENS, count - start))]
                for green in greens:
                    green.join()
        check(done == n, "every greenlet runs")

    def sleep0(self, meter: Meter, n: int) -> None:
        sleep = gevent.sleep
        turned = 0

        def beside() -> None:
            nonlocal turned
            while True:
                sleep(0)
                turned += 1

        other = gevent.spawn(beside)
        for count in meter.phases(n):
            turned = 0
            for _ in range(count):
                sleep(0)
        other.kill()
        check(n <= turned + 1, "others run meanwhile")

    def future(self, meter: Meter, n: int) -> None:
        AsyncResult = importlib.import_module("gevent.event").AsyncResult
        run_callback = gevent.get_hub().loop.run_callback
        got = 0
        for count in meter.phases(n):
            got = 0
            for _ in range(count):
                result = AsyncResult()
                run_callback(result.set, 1)
                got += result.get()
        check(got == n, "every result wakes its waiter")

    def gather(self, meter: Meter, n: int) -> None:
        got = 0
        for count in meter.phases(n):
            got = 0
            for _ in range(count):
                greens = [gevent.spawn(returns) for _ in range(10)]
                gevent.joinall(greens)
                got += sum(green.value for green in greens)
        check(got == 10 * n, "every greenlet is joined")

    def queue(self, meter: Meter, n: int) -> None:
        Queue = importlib.import_module("gevent.queue").Queue
        got = 0
        for count in meter.phases(n):
            queue = Queue(10)

            def put(count: int = count, queue: Any = queue) -> None:
                for _ in range(count):
                    queue.put(1)

            putting = gevent.spawn(put)
            got = 0
            for _ in range(count):
                got += queue.get()
            putting.join()
        check(got == n, "everything that is put is got")
