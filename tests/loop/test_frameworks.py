"""What people run loops with, started as they start it, on our loop."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fix_missing import missing
from fix_servers import COMMANDS, LIMIT_S, LOOP, name_of

LoopClass = type[asyncio.AbstractEventLoop]
every_server = pytest.mark.parametrize("name", list(COMMANDS))


@every_server
def test_a_server_serves_on_the_loop(
    name: str, server: Any, ask: Any, loop_class: LoopClass
) -> None:
    async def main(client: Any, url: str) -> None:
        assert type(asyncio.get_running_loop()) is loop_class
        async with client.get(f"{url}/loop") as response:
            assert response.status == 200
            assert await response.text() == name_of(loop_class)

    ask(server(name), main)


@every_server
def test_bodies_both_ways(name: str, server: Any, ask: Any) -> None:
    async def main(client: Any, url: str) -> None:
        for size in (0, 1, 100_000, 5_000_000):
            body = bytes(range(256)) * (size // 256 + 1)
            async with client.post(f"{url}/echo", data=body[:size]) as response:
                assert await response.read() == body[:size]
        async with client.get(f"{url}/stream") as response:
            assert await response.read() == b"".join(b"%07d\n" % n for n in range(1000))

    ask(server(name), main)


@every_server
def test_many_requests_at_once(name: str, server: Any, ask: Any) -> None:
    async def main(client: Any, url: str) -> None:
        async def one(n: int) -> bytes:
            async with client.post(f"{url}/echo", data=b"%d" % n) as response:
                body: bytes = await response.read()
                return body

        for _ in range(3):  # the connections are used again
            got = await asyncio.gather(*(one(n) for n in range(100)))
            assert got == [b"%d" % n for n in range(100)]

    ask(server(name), main)


@every_server
def test_websocket(name: str, server: Any, ask: Any) -> None:
    async def main(client: Any, url: str) -> None:
        async with client.ws_connect(f"{url}/ws", max_msg_size=0) as ws:
            for size in (1, 1000, 300_000):
                await ws.send_bytes(b"x" * size)
                assert await ws.receive_bytes(timeout=LIMIT_S) == b"x" * size

    ask(server(name), main)


# Not hypercorn: it cancels the handlers of streams, which CPython's streams report as failures of a
# callback (3.11.7, on any loop).
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "hypercorn"])
def test_a_client_that_goes_away_in_the_middle(name: str, server: Any, ask: Any) -> None:
    async def main(client: Any, url: str) -> None:
        for _ in range(20):
            async with client.get(f"{url}/stream") as response:
                await response.content.readexactly(8)
                response.close()
        async with client.get(f"{url}/loop") as response:
            assert response.status == 200

    ask(server(name), main)


def test_uvicorn_over_tls(server: Any, ask: Any, tmp_path: Path, loop_class: LoopClass) -> None:
    import trustme

    ca = trustme.CA()
    issued = ca.issue_cert("localhost")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(cert))
    context = ssl.create_default_context()
    ca.configure_trust(context)

    async def main(client: Any, url: str) -> None:
        async with client.get(f"{url}/loop") as response:
            assert await response.text() == name_of(loop_class)
        body = b"x" * 5_000_000
        async with client.post(f"{url}/echo", data=body) as response:
            assert await response.read() == body

    options = ("--ssl-keyfile", str(key), "--ssl-certfile", str(cert))
    ask(server("uvicorn", *options), main, ssl=context)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner needs Python 3.11")
def test_asyncio_runner(loop_class: LoopClass) -> None:
    async def main() -> type[Any]:
        await asyncio.sleep(0)
        return type(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=loop_class) as runner:
        assert runner.run(main()) is loop_class
        assert runner.run(main()) is loop_class
        loop = runner.get_loop()
    assert loop.is_closed()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run takes it since Python 3.12")
def test_asyncio_run(loop_class: LoopClass) -> None:
    async def main() -> type[Any]:
        return type(asyncio.get_running_loop())

    assert asyncio.run(main(), loop_factory=loop_class) is loop_class


def test_anyio(loop_class: LoopClass) -> None:
    import anyio
    import anyio.to_thread

    async def serve(stream: Any) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    async def main() -> tuple[type[Any], bytes, bool, bytes]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, serve)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"hello")
                got = await stream.receive()
            with anyio.move_on_after(0.01) as scope:
                await anyio.sleep_forever()
            group.cancel_scope.cancel()
        done = await anyio.run_process([sys.executable, "-c", "print('hello')"])
        kind = type(asyncio.get_running_loop())
        return await anyio.to_thread.run_sync(
            lambda: (kind, got, scope.cancelled_caught, done.stdout)
        )

    result = anyio.run(main, backend="asyncio", backend_options={"loop_factory": loop_class})
    assert result == (loop_class, b"hello", True, b"hello\n")


SUITE = """
import asyncio
import pytest

@pytest.fixture
async def echo():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()

async def serve(reader, writer):
    writer.write(await reader.readline())
    writer.close()

async def test_on_the_loop():
    kind = type(asyncio.get_running_loop())
    assert f"{{kind.__module__}}.{{kind.__qualname__}}" == {name!r}

@pytest.mark.parametrize("n", range(3))
async def test_streams(echo, n):
    reader, writer = await asyncio.open_connection("127.0.0.1", echo)
    writer.write(b"%d\\n" % n)
    assert await reader.readline() == b"%d\\n" % n
    writer.close()
    await writer.wait_closed()
"""


def run_pytest(folder: Path, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *options, str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


@pytest.fixture
def suite(tmp_path: Path, loop_class: LoopClass) -> Callable[[str], Path]:
    """Writes tests for a plugin, with the conftest that has it use the loop under test."""

    def write(conftest: str) -> Path:
        module, _, attribute = LOOP.partition(":")
        imported = f"from {module} import {attribute} as Loop\n"
        (tmp_path / "conftest.py").write_text("import pytest\n" + imported + conftest)
        (tmp_path / "test_it.py").write_text(SUITE.format(name=name_of(loop_class)))
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
            if "asyncio_" in conftest
            else "[pytest]\n"
        )
        return tmp_path

    return write


def test_pytest_asyncio(suite: Any) -> None:
    folder = suite(
        "def pytest_asyncio_loop_factories(config, item):\n    return {'chosen': Loop}\n"
    )
    run_pytest(folder, "--asyncio-mode=auto", "-p", "no:anyio")


def test_anyios_pytest_plugin(suite: Any) -> None:
    folder = suite(
        "pytestmark = pytest.mark.anyio\n"
        "@pytest.fixture(autouse=True)\n"
        "def anyio_backend():\n    return 'asyncio', {'loop_factory': Loop}\n"
    )
    with (folder / "test_it.py").open("a") as tests:
        tests.write("\npytestmark = pytest.mark.anyio\n")
    run_pytest(folder, "-p", "no:asyncio")


def test_the_program_that_these_tests_start_knows_no_other_loop(loop_class: LoopClass) -> None:
    # They would all pass on asyncio's loop if the name got lost on the way.
    if LOOP == "asyncio:SelectorEventLoop":
        missing("a loop that is not asyncio's")
    assert name_of(loop_class) != name_of(asyncio.SelectorEventLoop)
