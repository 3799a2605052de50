"""as_asgi: WSGI applications under uvicorn and hypercorn, asked over HTTP."""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any
from wsgiref.validate import validator

import aiohttp
import pytest
from fix_asgi import status_of
from fix_progress import Ticker

from greenletio import sleep
from greenletio.green import threading
from greenletio.integrations.asgi import as_asgi

LIMIT_S = 30  # against a hang, not a measure
MIB = 1 << 20


def plain(start_response: Any, *chunks: bytes) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return list(chunks)


def test_what_the_application_is_told(run: Any, serving: Any) -> None:
    seen: dict[str, Any] = {}

    @validator
    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.clear()
        seen.update(environ, lines=environ["wsgi.input"].readlines())
        return plain(start_response, b"one ", b"", b"two")

    async def main() -> None:
        async with serving(app) as (client, url):
            async with client.post(
                f"{url}/caf%C3%A9/a%2Fb?q=%20&r",
                data=b"first\nsecond",
                headers={"X-Two": "1", "X_Two": "2", "Cookie": "a=b"},
            ) as response:
                assert (response.status, await response.text()) == (200, "one two")
            assert seen["REQUEST_METHOD"] == "POST"
            assert seen["SCRIPT_NAME"] == ""
            assert seen["PATH_INFO"].encode("latin-1").decode() == "/café/a/b"
            assert seen["QUERY_STRING"] in ("q=%20&r", "q=+&r=")
            assert seen["CONTENT_LENGTH"] == "12"
            assert seen["CONTENT_TYPE"] == "application/octet-stream"
            assert seen["HTTP_X_TWO"] == "1"
            assert seen["HTTP_COOKIE"] == "a=b"
            assert seen["REMOTE_ADDR"] == "127.0.0.1"
            assert seen["SERVER_PORT"] == url.rpartition(":")[2]
            assert seen["asgi.scope"]["type"] == "http"
            assert seen["lines"] == [b"first\n", b"second"]

    run(main())


def test_a_request_waits_while_others_go_on(run: Any, serving: Any) -> None:
    together = threading.Barrier(200)
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        assert name.get(None) is None
        name.set(environ["QUERY_STRING"])
        together.wait(LIMIT_S)
        return plain(start_response, name.get().encode())

    async def main() -> None:
        async with serving(app) as (client, url):

            async def ask(n: int) -> str:
                async with client.get(f"{url}/?{n}") as response:
                    text: str = await response.text()
                    return text

            assert await asyncio.gather(*(ask(n) for n in range(200))) == [
                str(n) for n in range(200)
            ]

    run(main())


def test_a_slow_client_holds_the_application(run: Any, serving: Any) -> None:
    given = 0
    closed = threading.Event()

    class Rows:
        def __iter__(self) -> Any:
            nonlocal given
            for _ in range(64):
                given += 1
                yield b"x" * MIB

        def close(self) -> None:
            sleep(0)
            closed.set()

    def app(environ: Any, start_response: Any) -> Rows:
        plain(start_response)
        return Rows()

    async def main() -> None:
        async with serving(app) as (client, url), client.get(url) as response:
            async with Ticker():
                before = -1
                while before != given:
                    before = given
                    await asyncio.sleep(0.1)
            assert 0 < given < 50
            assert len(await response.read()) == 64 * MIB
            while not closed.is_set():
                await asyncio.sleep(0.001)

    run(main())


def test_a_slow_application_holds_the_client(run: Any, serving: Any) -> None:
    go_on = threading.Event()
    given = 0

    def app(environ: Any, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        first = body.read(10)
        go_on.wait(LIMIT_S)
        size = len(first)
        while chunk := body.read(100_000):
            size += len(chunk)
        return plain(start_response, b"%d" % size)

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(64):
            given += 1
            yield b"x" * MIB

    async def main() -> None:
        async with serving(app) as (client, url):
            asked = asyncio.ensure_future(client.post(url, data=chunks()))
            before = 0
            while before != given or not given:
                before = given
                await asyncio.sleep(0.1)
            assert 0 < given < 50
            go_on.set()
            async with await asked as response:
                assert await response.text() == str(64 * MIB)

    run(main())


@pytest.mark.parametrize(
    "where",
    ["before it answers", "while it reads", "while it streams", "while it streams without a wait"],
)
def test_a_client_that_goes_away_cancels_the_request(run: Any, serving: Any, where: str) -> None:
    # hypercorn does not look at an HTTP/1 connection between the request's end and the answer.
    name = {"name": "uvicorn"} if where == "before it answers" else {}

    async def main() -> None:
        began, ended = asyncio.Event(), asyncio.Event()
        how: list[BaseException] = []

        def work(environ: Any, start_response: Any) -> Any:
            began.set()
            try:
                if where == "while it reads":
                    while environ["wsgi.input"].read(1000):
                        pass
                elif where.startswith("while it streams"):
                    plain(start_response)
                    while True:
                        yield b"x" * 1000
                        if where == "while it streams":
                            sleep(0.001)
                sleep(LIMIT_S)
            except BaseException as exc:
                how.append(exc)
                sleep(0)  # what has been cancelled may wait to clean up
                raise
            finally:
                ended.set()

        def app(environ: Any, start_response: Any) -> Any:
            if environ["PATH_INFO"] == "/well":
                return plain(start_response, b"well")
            return work(environ, start_response)

        async with serving(app, **name) as (client, url):
            reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx")
            if where == "before it answers":
                writer.write(b"x" * 99_999)
            await asyncio.wait_for(began.wait(), LIMIT_S)
            if where.startswith("while it streams"):
                await reader.readexactly(1000)
            writer.transport.abort()
            await asyncio.wait_for(ended.wait(), LIMIT_S)
            assert type(how[0]) in (asyncio.CancelledError, ConnectionResetError, GeneratorExit)
            async with client.get(f"{url}/well") as response:
                assert await response.text() == "well"

    run(main())


def test_what_ends_after_the_answer_is_not_cancelled(run: Any, serving: Any) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        class Answer(list[bytes]):
            def close(self) -> None:
                sleep(0.05)
                ended.set()

        def app(environ: Any, start_response: Any) -> Answer:
            plain(start_response)
            return Answer([b"short"])

        async with serving(app) as (client, url):
            async with client.get(url) as response:
                assert response.headers["Content-Length"] == "5"
                assert await response.text() == "short"
            await client.close()
            await asyncio.wait_for(ended.wait(), LIMIT_S)

    run(main())


def test_so_many_at_once_and_no_more(run: Any, serving: Any) -> None:
    inside: set[str] = set()
    order: list[str] = []
    go_on = threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        name = environ["PATH_INFO"]
        inside.add(name)
        order.append(name)
        try:
            assert len(inside) <= 2
            if name == "/held":
                go_on.wait(LIMIT_S)
            sleep(0)
            assert name != "/fails"
            return plain(start_response, name.encode())
        finally:
            inside.discard(name)

    async def main() -> None:
        async with serving(as_asgi(app, limit=2)) as (client, url):

            async def ask(name: str) -> int:
                return await status_of(client, f"{url}/{name}")

            held = [asyncio.ensure_future(ask("held")) for _ in range(2)]
            while len(order) < 2:
                await asyncio.sleep(0.01)
            left = asyncio.ensure_future(ask("left"))
            waiting = [asyncio.ensure_future(ask(str(n))) for n in range(50)]
            fails = asyncio.ensure_future(ask("fails"))
            await asyncio.sleep(0.2)
            assert order == ["/held"] * 2
            left.cancel()
            await asyncio.sleep(0.1)
            go_on.set()
            assert await asyncio.gather(*held, *waiting) == [200] * 52
            assert await fails == 500
            assert await asyncio.gather(*(ask(f"again {n}") for n in range(20))) == [200] * 20

    run(main())


def test_errors(run: Any, serving: Any) -> None:
    raised: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        case = environ["PATH_INFO"][1:]
        if case == "silent":
            return [b"x"]
        if case == "text":
            plain(start_response)
            return ["x"]
        if case == "status":
            start_response("fine", [])
        if case == "raises":
            raise LookupError("before the start")
        if case == "replaced":
            plain(start_response)
            try:
                raise LookupError("noticed in time")
            except LookupError as exc:
                start_response("503 Later", [], (type(exc), exc, None))
            return [b"later"]
        if case == "twice":
            plain(start_response)
            return plain(start_response, b"x")
        return late(start_response)

    def late(start_response: Any) -> Any:
        write = start_response("200 OK", [("Connection", "close"), ("X-Kept", "yes")])
        write(b"some")
        yield b""
        yield b"more"
        try:
            raise LookupError("too late")
        except LookupError as exc:
            raised.append(exc)
            start_response("500 No", [], (type(exc), exc, exc.__traceback__))

    async def main() -> None:
        async with serving(app) as (client, url):
            for case in ("silent", "text", "status", "raises", "twice"):
                async with client.get(f"{url}/{case}") as response:
                    assert response.status == 500, case
            async with client.get(f"{url}/replaced") as response:
                assert (response.status, await response.text()) == (503, "later")
            with pytest.raises(aiohttp.ClientError):
                async with client.get(f"{url}/late") as response:
                    assert response.headers["X-Kept"] == "yes"
                    assert await response.content.readexactly(8) == b"somemore"
                    await response.read()
            assert [str(exc) for exc in raised] == ["too late"]
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await client.ws_connect(url)

    run(main())


def test_what_runs_before_and_after(run: Any, serving: Any) -> None:
    said: list[str] = []

    def hook(text: str) -> None:
        sleep(0)
        said.append(text)

    async def main() -> None:
        app = as_asgi(
            lambda environ, start_response: plain(start_response, said[-1].encode()),
            on_startup=lambda: hook("up"),
            on_shutdown=lambda: hook("down"),
        )
        async with serving(app) as (client, url), client.get(url) as response:
            assert await response.text() == "up"
        assert said == ["up", "down"]

    run(main())


def test_a_start_that_fails_is_said(run: Any) -> None:
    async def main() -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            sent.append(message)

        await as_asgi(validator, on_startup=lambda: 1 // 0)({"type": "lifespan"}, receive, send)
        assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
        assert "ZeroDivisionError" in sent[0]["message"]

    run(main())


def test_what_is_no_application() -> None:
    with pytest.raises(ValueError, match="limit is a number of requests, at least 1, not 0"):
        as_asgi(plain, limit=0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs a WSGI application, not 'app'"):
        as_asgi("app")  # type: ignore[arg-type]
