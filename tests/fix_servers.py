"""The loop that frameworks are tested on, and their servers as programs of their own.

    def test_it(server, ask):
        ask(server("uvicorn"), main)    # main(session, url) with aiohttp's client

The loop is greenletio's; GREENLETIO_TEST_LOOP=module:Class puts another in its place.
"""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fix_missing import missing

LOOP = os.environ.get("GREENLETIO_TEST_LOOP", "greenletio:EventLoop")
HERE = Path(__file__).parent / "loop" / "servers"
LIMIT_S = 60  # against a hang, not a measure

COMMANDS = {
    "aiohttp": ["{python}", f"{HERE}/aiohttp_server.py", "{fd}"],
    "hypercorn": ["{python}", f"{HERE}/hypercorn_server.py", "{fd}"],
    "uvicorn": ["{python}", "-m", "uvicorn", "--fd", "{fd}", "--loop", LOOP, "app:app"],
    "gunicorn": [
        *("{python}", "-m", "gunicorn", "--bind", "fd://{fd}", "--workers", "2"),
        *("--worker-class", "app.Worker", "--chdir", str(HERE), "app:app"),
    ],
}


def name_of(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.fixture
def loop_class() -> type[asyncio.AbstractEventLoop]:
    """The class of the loop under test; without arguments it makes a loop."""
    module, _, attribute = LOOP.partition(":")
    found: type[asyncio.AbstractEventLoop] = getattr(importlib.import_module(module), attribute)
    return found


@dataclass
class Server:
    name: str
    port: int


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of COMMANDS. Each must end by SIGTERM, and must have reported nothing."""
    started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(name: str, *options: str) -> Server:
        if importlib.util.find_spec(name) is None:
            missing(f"{name} is not installed")
        # The server inherits the listener: no race for a port, and connections wait for it.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            values = {"python": sys.executable, "fd": str(listener.fileno())}
            command = [part.format(**values) for part in COMMANDS[name]]
            path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
            log = tmp_path / f"{name}-{len(started)}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*command, *options],
                    cwd=HERE,
                    env={**os.environ, "PYTHONPATH": path, "GREENLETIO_TEST_LOOP": LOOP},
                    pass_fds=[listener.fileno()],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            started.append((process, log))
            return Server(name, listener.getsockname()[1])

    yield start
    for process, log in started:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"SIGTERM does not end the server\n{log.read_text()}", pytrace=False)
        said = log.read_text()
        assert status in (0, -signal.SIGTERM), said
        assert "Traceback" not in said, said
        assert "Warning" not in said, said


@pytest.fixture
def ask(loop_class: type[asyncio.AbstractEventLoop]) -> Callable[..., None]:
    """Runs main(session, url) with aiohttp's client, it too on the loop under test."""
    if importlib.util.find_spec("aiohttp") is None:
        missing("aiohttp is not installed")
    aiohttp: Any = importlib.import_module("aiohttp")

    def ask(server: Server, main: Callable[..., Coroutine[Any, Any, None]], **options: Any) -> None:
        scheme = "https" if "ssl" in options else "http"

        async def session() -> None:
            connector = aiohttp.TCPConnector(limit=0, **options)
            timeout = aiohttp.ClientTimeout(total=LIMIT_S)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
                await main(client, f"{scheme}://localhost:{server.port}")

        loop = loop_class()
        try:
            loop.run_until_complete(session())
        finally:
            loop.close()

    return ask
