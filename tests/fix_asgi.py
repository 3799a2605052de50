"""ASGI servers in the test's own loop: uvicorn, hypercorn and granian.

def test_it(run, serving):
    async with serving(app) as (client, url):    # app: WSGI or ASGI
"""

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from greenletio.integrations.asgi import as_asgi

LIMIT_S = 30  # against a hang, not a measure


async def status_of(client: aiohttp.ClientSession, url: str) -> int:
    """The status of an answer that was read to its end."""
    async with client.get(url) as answer:
        await answer.read()
        return answer.status


@pytest.fixture(params=["uvicorn", "hypercorn", "granian"])
def serving(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """`async with serving(wsgi_app) as (client, url)`: it is served, in this loop."""

    @contextlib.asynccontextmanager
    async def uvicorn(app: Any, listener: socket.socket) -> AsyncIterator[None]:
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
        with_signals, server.capture_signals = server.capture_signals, contextlib.nullcontext
        assert with_signals  # pytest keeps its own
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, LIMIT_S)

    @contextlib.asynccontextmanager
    async def hypercorn(app: Any, listener: socket.socket) -> AsyncIterator[None]:
        import hypercorn.asyncio

        config = hypercorn.Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.errorlog = None
        end = asyncio.Event()
        task = asyncio.ensure_future(
            hypercorn.asyncio.serve(app, config, shutdown_trigger=end.wait)
        )
        try:
            yield
        finally:
            end.set()
            await asyncio.wait_for(task, LIMIT_S)

    @contextlib.asynccontextmanager
    async def granian(app: Any, listener: socket.socket) -> AsyncIterator[None]:
        from granian.constants import Interfaces
        from granian.server.embed import Server

        # It binds by itself, beside the socket that keeps the port for it and is never listened on.
        port = listener.getsockname()[1]
        server = Server(
            app,
            port=port,
            interface=Interfaces.ASGI,
            backlog=1024,
            backpressure=1000,  # requests at once
            log_enabled=False,
        )
        task = asyncio.ensure_future(server.serve())
        give_up = asyncio.get_running_loop().time() + LIMIT_S
        while True:
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            except OSError:
                assert asyncio.get_running_loop().time() < give_up
                await asyncio.sleep(0.01)
        try:
            yield
        finally:
            server.stop()
            await asyncio.wait_for(task, LIMIT_S)
            listener.close()

    @contextlib.asynccontextmanager
    async def serving(
        app: Any, name: str = request.param
    ) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # granian's do the same
        listener.bind(("127.0.0.1", 0))
        if name != "granian":
            listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = {"uvicorn": uvicorn, "hypercorn": hypercorn, "granian": granian}[name]
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        if not (inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(app.__call__)):
            app = as_asgi(app)
        async with server(app, listener):
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
                yield client, url

    return serving
