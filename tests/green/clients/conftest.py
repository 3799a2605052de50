"""What the tests of other people's clients share.

Each client is imported under patch_blocking in a process of its own, whose script finds:

`together(fn)`   calls fn(0) ... fn(49) at once, each in a greenlet of one loop, and returns what
                 they return; beside them a ticker, which must go on during each call
`meet()`         waits until all of them are there
`timing_out(fn, kinds)`  the same, for what must raise one of kinds
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import trustme
from fix_missing import missing

PRELUDE = """
import asyncio
import greenletio
from greenletio import async_, patch_blocking
from greenletio.green import threading as green_threading

MANY = 50
meet = green_threading.Barrier(MANY, timeout=30).wait

def together(fn, n=MANY):
    async def main():
        steps = waited = 0
        async def tick():
            nonlocal steps
            while True:
                await asyncio.sleep(0)
                steps += 1
        def watched(i):
            nonlocal waited
            before = steps
            answer = fn(i)
            waited += steps > before  # all answers may be there already, on a busy machine
            return answer
        ticking = asyncio.create_task(tick())
        calls = [async_(watched)(i) for i in range(n)]
        answers = await asyncio.wait_for(asyncio.gather(*calls), 50)
        ticking.cancel()
        assert waited > n // 2, "they have held the loop"
        return answers
    return (greenletio if LOOP == "greenletio" else asyncio).run(main())

def timing_out(fn, kinds):
    def attempt(i):
        try:
            fn(i)
        except kinds:
            return True
    assert together(attempt) == [True] * MANY
"""

Client = Callable[..., None]


@pytest.fixture
def client(python: Callable[[str], str]) -> Client:
    """client(packages, script, **names) runs the script with these names, to its end."""

    def call(packages: str, script: str, loop: str = "greenletio", **names: Any) -> None:
        for package in packages.split():
            if importlib.util.find_spec(package) is None:
                missing(f"{package} is not installed")
        values = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        lines = [line[8:] for line in script.splitlines()]
        text = [f"LOOP = {loop!r}", PRELUDE, values, *lines, 'print("at the end")']
        assert python("\n".join(text)).strip() == "at the end"

    return call


@pytest.fixture
def server_of() -> Callable[[str, str], dict[str, Any]]:
    """server_of("VARIABLE", "default URL"): what the URL says, by the names most clients have.

    That the server is there has been seen.
    """

    def look(variable: str, default: str) -> dict[str, Any]:
        parts = urlsplit(os.environ.get(variable, default))
        host, port = parts.hostname or "localhost", parts.port or urlsplit(default).port
        try:
            socket.create_connection((host, port), 5).close()
        except OSError as error:
            missing(f"no server at {host}:{port} (set {variable}): {error}")
        return {
            "url": parts.geturl(),
            "host": host,
            "port": port,
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
        }

    return look


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """The address of a server that lets everybody connect and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        yield server.getsockname()


@pytest.fixture
def silent_udp() -> Iterator[tuple[str, int]]:
    """The address of one that takes datagrams and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")
