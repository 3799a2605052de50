"""The loop that frameworks are tested on, and their servers as programs of their own.

    def test_it(server, ask):
        ask(server("uvicorn"), main)    # main(session, url) with aiohttp's client

The loop is greenletio's; GREENLETIO_TEST_LOOP=module:Class puts another in its place.
"""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_missing import missing
from fix_programs import ServerProgram

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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., ServerProgram]]:
    """Starts servers of COMMANDS. Each must end by SIGTERM, and must have reported nothing."""
    started: list[ServerProgram] = []

    def start(name: str, *options: str) -> ServerProgram:
        if importlib.util.find_spec(name) is None:
            missing(f"{name} is not installed")

        def command(fd: int) -> list[str]:
            values = {"python": sys.executable, "fd": str(fd)}
            return [*(part.format(**values) for part in COMMANDS[name]), *options]

        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        env = {"PYTHONPATH": path, "GREENLETIO_TEST_LOOP": LOOP}
        log = tmp_path / f"{name}-{len(started)}.log"
        started.append(ServerProgram(command, log, env, HERE))
        return started[-1]

    yield start
    for program in started:
        said = program.end()
        assert "Traceback" not in said, said
        assert "Warning" not in said, said


@pytest.fixture
def ask(loop_class: type[asyncio.AbstractEventLoop]) -> Callable[..., None]:
    """Runs main(session, url) with aiohttp's client, it too on the loop under test."""
    if importlib.util.find_spec("aiohttp") is None:
        missing("aiohttp is not installed")
    aiohttp: Any = importlib.import_module("aiohttp")

    def ask(
        server: ServerProgram, main: Callable[..., Coroutine[Any, Any, None]], **options: Any
    ) -> None:
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
