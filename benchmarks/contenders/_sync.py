"""The same blocking code for every contender: what differs is whose modules it uses."""

from __future__ import annotations

import contextlib
import functools
import os
import socket as plain_socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from benchmarks.meter import Meter, check

CONNECTIONS = 10
SIZE = 1024
SLEEPERS = 10_000
SLEEPS = 5


def empty() -> None:
    pass


@contextlib.contextmanager
def http_server() -> Iterator[int]:
    """A server in a process of its own that answers every request alike; its port."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("_http_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


class Sync:
    """The benches. `_of` has the modules: socket, ssl, threading, queue and http_client."""

    packages: tuple[str, ...] = ()
    _of: Any

    def _sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def _spawn(self, fn: Callable[..., object], *args: Any) -> Any:
        """Run it beside the others; what is returned has a join()."""
        raise NotImplementedError

    def _all(self, fn: Callable[..., object], each: list[tuple[Any, ...]]) -> None:
        for running in [self._spawn(fn, *args) for args in each]:
            running.join()

    # --- sockets ---

    def _contexts(self) -> tuple[Any, Any]:
        server = self._of.ssl.SSLContext(self._of.ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(os.environ["BENCH_CERT"])
        client = self._of.ssl.SSLContext(self._of.ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = self._of.ssl.CERT_NONE
        return server, client

    def _echo(self, meter: Meter, n: int, tls: bool) -> None:
        serving, calling = self._contexts() if tls else (None, None)
        data = b"x" * SIZE

        def serve(conn: Any) -> None:
            conn.setsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY, 1)
            if serving is not None:
                conn = serving.wrap_socket(conn, server_side=True)
            while got := conn.recv(4096):
                conn.sendall(got)
            conn.close()

        def accept() -> None:
            self._all(serve, [(listener.accept()[0],) for _ in range(CONNECTIONS)])

        def connect() -> Any:
            sock = self._of.socket.socket()
            sock.connect(address)
            sock.setsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY, 1)
            return sock

        def talk(sock: Any, count: int) -> None:
            for _ in range(count):
                sock.sendall(data)
                left = SIZE
                while left:
                    left -= len(sock.recv(4096))

        listener = self._of.socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(CONNECTIONS)
        address = listener.getsockname()
        accepting = self._spawn(accept)
        socks = [connect() for _ in range(CONNECTIONS)]
        if calling is not None:
            socks = [calling.wrap_socket(sock) for sock in socks]
        for count in meter.phases(n):
            self._all(talk, [(sock, count // CONNECTIONS) for sock in socks])
        for sock in socks:
            sock.close()
        accepting.join()
        listener.close()

    def echo(self, meter: Meter, n: int) -> None:
        self._echo(meter, n, tls=False)

    def tls(self, meter: Meter, n: int) -> None:
        self._echo(meter, n, tls=True)

    def http(self, meter: Meter, n: int) -> None:
        got = 0

        def ask(conn: Any, count: int) -> None:
            nonlocal got
            for _ in range(count):
                conn.request("GET", "/")
                body = conn.getresponse().read()
                got += len(body)  # nobody comes in between

        with http_server() as port:
            conns = [
                self._of.http_client.HTTPConnection("127.0.0.1", port) for _ in range(CONNECTIONS)
            ]
            for count in meter.phases(n):
                got = 0
                self._all(ask, [(conn, count // CONNECTIONS) for conn in conns])
            for conn in conns:
                conn.close()
        check(got == n // CONNECTIONS * CONNECTIONS * SIZE, "every answer is read")

    # --- one waits for another ---

    def _ping_pong(
        self,
        meter: Meter,
        n: int,
        make: Callable[[], Any],
        give: Callable[[Any], object],
        take: Callable[[Any], object],
    ) -> None:
        there, back = make(), make()
        turns = 0

        def first(count: int) -> None:
            for _ in range(count):
                give(there)
                take(back)

        def second(count: int) -> None:
            nonlocal turns
            for _ in range(count):
                take(there)
                turns += 1
                give(back)

        for count in meter.phases(n):
            turns = 0
            beside = self._spawn(second, count)
            self._spawn(first, count).join()
            beside.join()
        check(turns == n, "each has its turns")

    def lock(self, meter: Meter, n: int) -> None:
        def make() -> Any:
            lock = self._of.threading.Lock()
            lock.acquire()
            return lock

        self._ping_pong(meter, n, make, lambda x: x.release(), lambda x: x.acquire())

    def semaphore(self, meter: Meter, n: int) -> None:
        make = functools.partial(self._of.threading.Semaphore, 0)
        self._ping_pong(meter, n, make, lambda x: x.release(), lambda x: x.acquire())

    def event(self, meter: Meter, n: int) -> None:
        def take(event: Any) -> None:
            event.wait()
            event.clear()

        self._ping_pong(meter, n, self._of.threading.Event, lambda x: x.set(), take)

    def queue(self, meter: Meter, n: int) -> None:
        make = self._of.queue.Queue
        self._ping_pong(meter, n, make, lambda x: x.put(1), lambda x: x.get())

    def simple_queue(self, meter: Meter, n: int) -> None:
        make = self._of.queue.SimpleQueue
        self._ping_pong(meter, n, make, lambda x: x.put(1), lambda x: x.get())

    def condition(self, meter: Meter, n: int) -> None:
        condition = self._of.threading.Condition()
        turn, turns = 0, 0

        def take_turns(me: int, count: int) -> None:
            nonlocal turn, turns
            for _ in range(count):
                with condition:
                    while turn != me:
                        condition.wait()
                    turn = 1 - me
                    turns += 1
                    condition.notify()

        for count in meter.phases(n):
            turns = 0
            self._all(take_turns, [(0, count), (1, count)])
        check(turns == 2 * n, "each has its turns")

    def spawn(self, meter: Meter, n: int) -> None:
        for count in meter.phases(n):
            for _ in range(count):
                self._spawn(empty).join()

    def thread(self, meter: Meter, n: int) -> None:
        ran: list[int] = []
        for count in meter.phases(n):
            ran.clear()
            for _ in range(count):
                thread = self._of.threading.Thread(target=ran.append, args=(1,))
                thread.start()
                thread.join()
        check(len(ran) == n, "every thread runs")

    def sleepers(self, meter: Meter, n: int) -> None:
        awake = 0

        def sleep(seconds: float) -> None:
            nonlocal awake
            for _ in range(SLEEPS):
                self._sleep(seconds)
            awake += 1

        for count in meter.phases(n):
            awake = 0
            self._all(sleep, [(0.01 + i * 7919 % count / count * 0.1,) for i in range(count)])
        check(awake == n, "all wake up")

    # --- nobody waits ---

    def _with(self, meter: Meter, n: int, lock: Any) -> None:
        for count in meter.phases(n):
            for _ in range(count):
                with lock:
                    pass

    def lock_free(self, meter: Meter, n: int) -> None:
        self._with(meter, n, self._of.threading.Lock())

    def rlock_free(self, meter: Meter, n: int) -> None:
        self._with(meter, n, self._of.threading.RLock())

    def queue_free(self, meter: Meter, n: int) -> None:
        queue = self._of.queue.Queue()
        for count in meter.phases(n):
            for _ in range(count):
                queue.put(1)
                queue.get()

    def local(self, meter: Meter, n: int) -> None:
        local = self._of.threading.local()
        got = None
        for count in meter.phases(n):
            for i in range(count):
                local.value = i
                got = local.value
        check(got == n - 1, "it has its value")


class InLoop(Sync):
    """The same, each bench in a greenlet of the asyncio loop that runs."""

    def _enter(self, fn: Callable[..., None], *args: Any) -> Coroutine[Any, Any, None]:
        raise NotImplementedError


def _entered(bench: Callable[..., None]) -> Callable[..., Coroutine[Any, Any, None]]:
    async def in_loop(self: InLoop, meter: Meter, n: int) -> None:
        await self._enter(bench, self, meter, n)

    return in_loop


for _name, _bench in list(vars(Sync).items()):
    if not _name.startswith("_") and callable(_bench):
        setattr(InLoop, _name, _entered(_bench))
