"""The server's side of load.c: where it listens, and the program that talks to it."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import subprocess
import tempfile
from types import TracebackType
from typing import Any

from benchmarks.meter import check

ACTIVE = 10  # connections that talk at once
IDLE = 10_000
IDLE_ACTIVE = 100
LARGEST = 64 * 1024  # what a server asks for at once


def raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def server_context(module: Any = ssl) -> ssl.SSLContext:
    """A context of that ssl module."""
    context: ssl.SSLContext = module.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["BENCH_CERT"])
    return context


class Listener:
    """A listening socket, TCP or Unix; `address` is what load.c takes."""

    def __init__(self, family: str) -> None:
        self._folder: str | None = None
        if family == "unix":
            self._folder = tempfile.mkdtemp()
            self.address = f"{self._folder}/socket"
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.bind(self.address)
        else:
            self.sock = socket.create_server(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.sock.listen(4096)
        self.sock.setblocking(False)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, typ: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.sock.close()
        if self._folder is not None:
            os.unlink(self.address)
            os.rmdir(self._folder)


class Load:
    """A running load.c. Its `fd` becomes readable when it has something to `hear`."""

    def __init__(self, address: str, tls: bool, size: int, active: int, idle: int = 0) -> None:
        self._process = subprocess.Popen(
            [
                os.environ["BENCH_LOAD"],
                address,
                "tls" if tls else "plain",
                *map(str, (size, active, idle)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.fd = self._stdout.fileno()

    def send(self, count: int) -> None:
        self._stdin.write(b"%d\n" % count)

    def hear(self) -> None:
        said = self._stdout.readline()
        check(said in (b"ready\n", b"done\n"), f"the load said {said!r}")

    def close(self) -> None:
        self._stdin.close()
        self._stdout.close()
        self._process.kill()
        self._process.wait()
