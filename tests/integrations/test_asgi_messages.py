"""as_asgi, message by message: this test is the server."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from greenletio import sleep, spawn
from greenletio.integrations.asgi import as_asgi

LIMIT_S = 30  # against a hang, not a measure
GONE = {"type": "http.disconnect"}


def scope(**others: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [],
        **others,
    }


def part(body: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Server:
    """Gives messages one by one, then waits; an exception among them is raised."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)
        self.sent: list[Any] = []
        self.left = asyncio.Event()

    async def receive(self) -> Any:
        if not self.messages:
            await self.left.wait()
            return GONE
        message = self.messages.pop(0)
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def ask(self, app: Any, **others: Any) -> Awaitable[None]:
        asked = as_asgi(app)(scope(**others), self.receive, self.send)
        return asyncio.wait_for(asked, LIMIT_S)


def ok(start_response: Callable[..., Any], *headers: tuple[str, str]) -> list[bytes]:
    start_response("200 OK", list(headers))
    return [b"ok"]


def test_no_reader_waits_for_what_never_comes(run: Any) -> None:
    said: list[BaseException] = []

    def read(environ: Any) -> None:
        try:
            environ["wsgi.input"].read()
        except Exception as exc:
            said.append(exc)

    def reading(environ: Any, start_response: Any) -> Any:
        read(environ)
        return ok(start_response)

    class Late(list[bytes]):
        env: Any = None

        def close(self) -> None:
            read(self.env)

    def late(environ: Any, start_response: Any) -> Any:
        answer = Late(ok(start_response))
        answer.env = environ
        return answer

    def elsewhere(environ: Any, start_response: Any) -> Any:
        thread = threading.Thread(target=read, args=[environ])
        thread.start()
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        return ok(start_response)

    def beside(environ: Any, start_response: Any) -> Any:
        spawn(read, environ)
        sleep(0)
        return ok(start_response)

    async def main() -> None:
        for app, messages, expected in (
            (reading, [part(b"x", True), LookupError("the server's")], "the server's"),
            (late, [part(b"x", True)], "the request is answered"),
            (elsewhere, [part(b"x", True)], "thread of the server's loop"),
            (beside, [part(b"", True)], "the request is answered"),
        ):
            server = Server(*messages)
            await server.ask(app)
            await asyncio.sleep(0)
            assert expected in str(said.pop())
            assert server.sent[-1] == {
                "type": "http.response.body",
                "body": b"ok",
                "more_body": False,
            }

    run(main())


def test_what_had_come_before_the_client_went_can_be_read(run: Any) -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        try:
            sleep(LIMIT_S)
        finally:
            body = environ["wsgi.input"]
            seen.extend((body.readline(), body.read(), body.read()))

    async def main() -> None:
        await Server(part(b"one\nt", True), part(b"wo"), GONE).ask(app)
        assert seen == [b"one\n", b"two", b""]

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks do not count who cancels them")
@pytest.mark.parametrize("how", ["at once", "swallowed", "another exception", "by both"])
def test_a_client_that_goes_away_ends_nothing_but_its_request(run: Any, how: str) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        try:
            sleep(LIMIT_S)
        except asyncio.CancelledError:
            if how == "another exception":
                raise LookupError from None
            if how != "swallowed":
                raise
        return ok(start_response)

    async def main() -> None:
        went_on: list[Any] = []
        server = Server(part())

        async def around() -> None:
            task = asyncio.current_task()
            assert task is not None
            try:
                await as_asgi(app)(scope(), server.receive, server.send)
            except LookupError as exc:
                went_on.append(exc)
            went_on.append(task.cancelling())
            await asyncio.sleep(0.001)

        task = asyncio.ensure_future(around())
        await asyncio.sleep(0.01)
        if how == "by both":
            server.left.set()
            task.cancel()  # the listener will do so before the task has heard of it
            with pytest.raises(asyncio.CancelledError):
                await task
            assert went_on == []
            return
        server.left.set()
        await task
        assert went_on[-1] == 0
        assert (how == "another exception") == (len(went_on) == 2)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
def test_a_server_of_eager_tasks(run: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        return ok(start_response)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        server = Server(part(), GONE)

        async def around() -> int:
            await as_asgi(app)(scope(), server.receive, server.send)
            await asyncio.sleep(0.001)
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

        assert await asyncio.ensure_future(around()) == 0
        assert server.sent[-1]["body"] == b"ok"

    run(main())


@pytest.mark.parametrize(
    "header", [("Location", "/\r\nSet-Cookie: a=b"), ("X\n", "y"), ("X", "\0"), ("X", "\u20ac")]
)
def test_a_header_is_one_line(run: Any, header: tuple[str, str]) -> None:
    async def main() -> None:
        server = Server(part())
        with pytest.raises(ValueError):
            await server.ask(lambda environ, start_response: ok(start_response, header))
        assert server.sent == []

    run(main())


def test_what_an_application_may_not_say(run: Any) -> None:
    class Late(list[bytes]):
        write: Any

        def close(self) -> None:
            self.write(b"late")

    def late(environ: Any, start_response: Any) -> Any:
        answer = Late([b"ok"])
        answer.write = start_response("200 OK", [])
        return answer

    def says(status: Any, headers: Any) -> Any:
        return lambda environ, start_response: start_response(status, headers) and []

    async def main() -> None:
        for app, error, expected, sent in (
            (says(200, []), ValueError, "a status is like '200 OK', and final, not 200", 0),
            (says("100 Continue", []), ValueError, "and final, not '100 Continue'", 0),
            (says("2000 OK", []), ValueError, "not '2000 OK'", 0),
            (says("200 OK", [(b"a", "b")]), TypeError, "headers are pairs of str", 0),
            (late, AssertionError, "has written after its answer's end", 2),
        ):
            server = Server(part())
            with pytest.raises(error, match=expected):
                await server.ask(app)
            assert len(server.sent) == sent

    run(main())


def test_bodies_that_are_none(run: Any) -> None:
    """The length is that of the body, where the answer has one."""

    async def main() -> None:
        for method, status, body, length in (
            ("GET", "200 OK", [], b"0"),
            ("GET", "200 OK", iter([b"", b""]), b"0"),
            ("GET", "200 OK", [b"four"], b"4"),
            ("HEAD", "200 OK", [], None),
            ("GET", "204 None", [], None),
            ("GET", "304 As Before", [], None),
        ):

            def app(
                environ: Any, start_response: Any, line: str = status, chunks: Any = body
            ) -> Any:
                start_response(line, [])
                return chunks

            server = Server(part())
            await server.ask(app, method=method)
            start, *rest = server.sent
            assert dict(start["headers"]).get(b"content-length") == length, (method, status)
            assert [message["more_body"] for message in rest] == [False]

    run(main())


def test_paths(run: Any) -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.append((environ["SCRIPT_NAME"], environ["PATH_INFO"]))
        return ok(start_response)

    async def main() -> None:
        for root, path, raw, expected in (
            ("", "/a", b"/a", ("", "/a")),
            ("/x", "/x/a", b"/x/a", ("/x", "/a")),
            ("/x", "/x", b"/x", ("/x", "")),
            ("/x", "/xa", None, ("/x", "/xa")),
            ("/x/", "/x/a", None, ("/x", "/a")),
            ("", "/\u20ac", b"/%E2%82%AC", ("", "/\xe2\x82\xac")),
            ("", "/\ufffd", b"/%FF", ("", "/\xff")),
            ("", "/\ufffd", b"/%EF%BF%BD", ("", "/\xef\xbf\xbd")),
        ):
            await Server(part()).ask(app, root_path=root, path=path, raw_path=raw)
            assert seen.pop() == expected

    run(main())
