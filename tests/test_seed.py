"""The document that the project began with, as tests: its code blocks as written, and each claim.

The blocks are run from the text itself; what the sentences around them promise is asserted below.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import greenletio
from greenletio import async_, await_, patch_blocking, spawn

ASYNC_FUNCTION = """
    import asyncio
    from greenletio import async_

    def sync_function(arg):
        pass

    async def async_function():
        await async_(sync_function)(42)

    asyncio.run(async_function())
"""

ASYNC_DECORATOR = """
    import asyncio
    from greenletio import async_

    @async_
    def sync_function(arg):
        pass

    async def async_function():
        await sync_function(42)

    asyncio.run(async_function())
"""

AWAIT_FUNCTION = """
    from greenletio import await_

    async def async_function():
        pass

    def sync_function():
        await_(async_function())
"""

AWAIT_DECORATOR = """
    from greenletio import await_

    @await_
    async def async_function():
        pass

    def sync_function():
        async_function()
"""


def run_block(source: str) -> dict[str, Any]:
    """Execute a block as a module of its own; its names."""
    names: dict[str, Any] = {"__name__": "a_block_of_the_seed"}
    exec(compile(textwrap.dedent(source), "a block of the seed", "exec"), names)
    return names


class Ticker:
    """A task of the same loop; its steps prove that the loop was not blocked."""

    def __init__(self) -> None:
        self.steps = 0

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.steps += 1


# "The async_ function makes a synchronous function awaitable."


@pytest.mark.parametrize("block", [ASYNC_FUNCTION, ASYNC_DECORATOR])
def test_the_async_blocks_run_as_written(block: str) -> None:
    run_block(block)


@pytest.mark.parametrize("block", [ASYNC_FUNCTION, ASYNC_DECORATOR])
def test_the_async_blocks_run_under_any_loop(block: str, run: Any) -> None:
    run(run_block(block.replace("asyncio.run(async_function())", ""))["async_function"]())


def test_async_passes_arguments_results_and_exceptions(run: Any) -> None:
    def function(a: int, *, b: int) -> float:
        return a / b

    async def main() -> None:
        assert await async_(function)(42, b=2) == 21
        with pytest.raises(ZeroDivisionError):
            await async_(function)(42, b=0)

    run(main())


# "The await_ function can be used to await an asynchronous function in a synchronous one without
# blocking the asyncio loop", and as a decorator.


@pytest.mark.parametrize("block", [AWAIT_FUNCTION, AWAIT_DECORATOR])
def test_the_await_blocks_run_as_written(block: str, run: Any) -> None:
    sync_function = run_block(block)["sync_function"]
    sync_function()  # in a script

    async def main() -> None:
        await async_(sync_function)()  # in an asyncio application

    run(main())


@pytest.mark.parametrize("block", [AWAIT_FUNCTION, AWAIT_DECORATOR])
def test_await_does_not_block_the_loop(block: str, run: Any) -> None:
    # The block as written, but for an async function that takes its time.
    slow = block.replace("pass", "return await wait_for_the_others()")
    assert slow != block
    names = run_block(slow)

    async def main() -> None:
        async with Ticker() as ticker:

            async def wait_for_the_others() -> None:
                while ticker.steps < 100:
                    await asyncio.sleep(0)

            names["wait_for_the_others"] = wait_for_the_others
            await async_(names["sync_function"])()
            assert ticker.steps >= 100

    run(main())


def test_await_gives_the_result_and_the_exception() -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        if n < 0:
            raise ValueError(n)
        return 2 * n

    assert await_(double(21)) == 42
    assert await_(double)(21) == 42
    with pytest.raises(ValueError):
        await_(double(-1))


# "The spawn function launches a synchronous Python function asynchronously as a greenlet. The new
# greenlet (and any function called from it) can use the await_ function."


def test_spawned_greenlets_use_await(run: Any) -> None:
    order: list[str] = []

    async def step(name: str) -> None:
        await asyncio.sleep(0)
        order.append(name)

    def called_from_it(name: str) -> None:
        for _ in range(3):
            await_(step(name))

    def function(name: str) -> str:
        called_from_it(name)
        return name.upper()

    async def main() -> None:
        a, b = spawn(function, "a"), spawn(function, "b")
        order.append("launched")
        assert (await a, await b) == ("A", "B")

    run(main())
    assert order == ["launched", "a", "b", "a", "b", "a", "b"]


# "The modules under greenletio.green are drop-in replacements of the Python standard library
# modules of the same name. Currently implemented modules are socket, ssl, threading, and time."


@pytest.mark.parametrize("name", ["socket", "ssl", "threading", "time"])
def test_green_modules_have_the_names_and_signatures_of_their_namesakes(name: str) -> None:
    standard = importlib.import_module(name)
    green = importlib.import_module(f"greenletio.green.{name}")
    public = getattr(standard, "__all__", None) or [n for n in vars(standard) if n[0] != "_"]
    for each in public:
        theirs, ours = getattr(standard, each), getattr(green, each)
        if inspect.isfunction(theirs) and inspect.isfunction(ours) and theirs is not ours:
            if inspect.getmodule(theirs) is standard and each not in ("RLock", "excepthook"):
                assert list(inspect.signature(theirs).parameters.values()) == [
                    p.replace(annotation=inspect.Parameter.empty)
                    for p in inspect.signature(ours).parameters.values()
                ], each


def test_code_written_as_blocking_can_be_used_asynchronously(run: Any) -> None:
    from greenletio.green import socket, time
    from greenletio.green import threading as green_threading

    ready = green_threading.Event()
    address: list[Any] = []

    def serve() -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            address.append(server.getsockname())
            ready.set()
            connection, _ = server.accept()
            with connection:
                time.sleep(0.01)
                connection.sendall(connection.recv(100).upper())

    def ask() -> bytes:
        ready.wait()
        with socket.create_connection(address[0]) as client:
            client.sendall(b"blocking code")
            return client.recv(100)

    async def main() -> None:
        async with Ticker() as ticker:
            answers = await asyncio.gather(async_(serve)(), async_(ask)())
            assert answers == [None, b"BLOCKING CODE"]
            assert ticker.steps > 0

    run(main())


# "The patch_blocking context manager can be used to import code written for the Python standard
# library with all the blocking functions redirected to their green.* replacements."


class SlowHandler(BaseHTTPRequestHandler):
    """Answers when `release` has been set, from a thread of the system."""

    release: threading.Event

    def do_GET(self) -> None:
        self.release.wait(30)
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def http_server() -> Iterator[ThreadingHTTPServer]:
    SlowHandler.release = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        SlowHandler.release.set()
        server.shutdown()
        thread.join()


def test_patch_blocking(run: Any, http_server: ThreadingHTTPServer) -> None:
    import http.client as blocking

    with patch_blocking():
        import http.client
        from urllib.request import urlopen

        connect = http.client.HTTPConnection

    assert connect is not blocking.HTTPConnection
    port = http_server.server_port

    def by_http_client(n: int) -> bytes:
        connection = connect("127.0.0.1", port)
        try:
            connection.request("GET", f"/{n}")
            return connection.getresponse().read()
        finally:
            connection.close()

    def by_urllib(n: int) -> bytes:
        with urlopen(f"http://127.0.0.1:{port}/{n}") as response:
            body: bytes = response.read()
            return body

    async def release_after(ticker: Ticker) -> None:
        while ticker.steps < 100:  # while all of the requests are waiting
            await asyncio.sleep(0)
        SlowHandler.release.set()

    async def main() -> None:
        async with Ticker() as ticker:
            *answers, _ = await asyncio.gather(
                *(async_(by_http_client)(n) for n in range(10)),
                *(async_(by_urllib)(n) for n in range(10, 20)),
                release_after(ticker),
            )
        assert answers == [b"/%d" % n for n in range(20)]

    run(main())


# "The patch_psycopg2 function configures psycopg2 to access Postgres database in non-blocking
# mode."


def test_patch_psycopg2(run: Any, pg_dsn: str) -> None:
    import psycopg2  # type: ignore[import-untyped]

    def query(sql: str, connection: Any = None) -> Any:
        connection = connection or psycopg2.connect(pg_dsn)
        with connection.cursor() as cursor:
            cursor.execute(sql)
            row = cursor.fetchone()
        return row[0]

    async def main() -> None:
        holder = await async_(psycopg2.connect)(pg_dsn)
        await async_(query)("SELECT pg_advisory_lock(1) IS NULL", holder)
        async with Ticker() as ticker:
            waiting = [
                spawn(query, f"SELECT {n} + length(pg_advisory_lock_shared(1)::text)")
                for n in range(5)
            ]
            while ticker.steps < 100:  # while the server lets all of them wait
                await asyncio.sleep(0)
            assert not any(each.ready for each in waiting)
            await async_(query)("SELECT pg_advisory_unlock(1)", holder)
            assert [await each for each in waiting] == list(range(5))
        holder.close()

    greenletio.patch_psycopg2()
    try:
        run(main())
        assert query("SELECT 42") == 42  # where no loop runs, it blocks as ever
    finally:
        greenletio.unpatch_psycopg2()
