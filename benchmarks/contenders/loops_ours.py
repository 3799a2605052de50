"""greenletio's own loop, and greenlets on it."""

from __future__ import annotations

import importlib
import socket as plain_socket
import ssl as plain_ssl
from typing import Any, ClassVar

from benchmarks.contenders import loops
from benchmarks.contenders._load import LARGEST, server_context
from benchmarks.meter import Meter

greenletio = importlib.import_module("greenletio")


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

    async def green_echo(self, meter: Meter, n: int, family: str, size: int) -> None:
        await self.echo(meter, n, "green", family, size)
