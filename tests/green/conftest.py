"""Fixtures of the green modules' tests."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import trustme
from fix_loops import Run

from greenletio import async_


class Ticker:
    """A task beside the test: its steps prove that the loop goes on."""

    def __init__(self) -> None:
        self.steps = 0

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.steps += 1


class Green:
    """Calls a function under async_ on a loop of its own, with a ticker beside it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.ticker = Ticker()

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Any:
        async def main() -> Any:
            ticking = asyncio.create_task(self.ticker.tick())
            try:
                return await asyncio.wait_for(async_(fn)(*args), 60)
            finally:
                ticking.cancel()

        return self._run(main())


@pytest.fixture
def green(run: Run) -> Green:
    """green(fn, *args) runs fn under async_; green.ticker.steps counts what others did."""
    return Green(run)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that nobody else knows."""
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> tuple[Any, Any]:
    """Green contexts (server, client) for localhost."""
    from greenletio.green import ssl as green_ssl

    server = green_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = green_ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.fixture
def python() -> Callable[[str], str]:
    """python(script) runs it in a process of its own and returns what it printed."""

    def call(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call
