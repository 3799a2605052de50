"""greenletio's own loop, and greenlets on it."""

from __future__ import annotations

import importlib
import socket as plain_socket
import ssl as plain_ssl
from typing import Any, ClassVar

from benchmarks.contenders import loops
from benchmarks.contenders._load import LARGEST, server_context
from benchmarks.meter import Meter, check

greenletio = importlib.import_module("greenletio")

GREENS = 100  # at a time


async def _green(sock: plain_socket.socket, context: plain_ssl.SSLContext | None, size: int) -> Any:
    socket: Any = importlib.import_module("greenletio.green.socket")
    ssl: Any = importlib.import_module("greenletio.green.ssl")
    listener = socket.socket(fileno=sock.detach())
    greens: list[Any] = []
    if context is not None:
        context = server_context(ssl)

    def serve(conn: Any) -> None:
        try:
            if conn.family == plain_socket.AF_INET:
                conn.setsockopt(plain_socket.IPPROTO_TCP, plain_socket.TCP_NODELAY, 1)
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
            conn, _ = listener.accept()
            greens.append(greenletio.spawn(serve, conn))

    greens.append(greenletio.spawn(accept))

    def close() -> None:
        for green in greens:
            green.cancel()
        listener.close()

    return close


class Contender(loops.Contender):
    servers: ClassVar[dict[str, loops.Server]] = {**loops.SERVERS, "green": _green}

    async def spawn(self, meter: Meter, n: int) -> None:
        spawn, sleep = greenletio.spawn, greenletio.sleep
        done = 0

        def work() -> None:
            nonlocal done
            sleep(0)
            done += 1

        def batches(count: int) -> None:
            for start in range(0, count, GREENS):
                greens = [spawn(work) for _ in range(min(GREENS, count - start))]
                for green in greens:
                    green.join()

        for count in meter.phases(n):
            done = 0
            await greenletio.async_(batches)(count)
        check(done == n, "every greenlet runs")

    async def green_echo(self, meter: Meter, n: int, family: str, size: int) -> None:
        await self.echo(meter, n, "green", family, size)
