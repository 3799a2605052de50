"""patch_starlette: FastAPI's plain functions as greenlets, asked over HTTP."""

import asyncio
import contextvars
import functools
import gc
import importlib.util
import io
import sys
import tempfile
import threading
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import starlette.concurrency
from fastapi import BackgroundTasks, Body, Depends, FastAPI, HTTPException, Request
from fix_asgi import status_of
from fix_progress import Ticker
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import StreamingResponse

from greenletio import async_, sleep
from greenletio.green import threading as green
from greenletio.integrations.starlette import (
    CancelOnDisconnect,
    LimitRequests,
    patch_starlette,
    unpatch_starlette,
)

LIMIT_S = 30  # against a hang, not a measure


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    patch_starlette()
    patch_starlette()
    yield
    unpatch_starlette()


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


def test_functions_run_side_by_side_in_the_loops_thread(run: Any) -> None:
    app = FastAPI()
    together = green.Barrier(100)  # more than the pool has threads

    @app.get("/")
    def wait() -> bool:
        together.wait(LIMIT_S)
        sleep(0.1)
        return threading.current_thread() is threading.main_thread()

    async def main() -> None:
        async with client_of(app) as client, Ticker():
            answers = await asyncio.gather(*(client.get("/") for _ in range(100)))
            assert [answer.json() for answer in answers] == [True] * 100

    run(main())


def test_all_that_starlette_gives_to_threads(run: Any) -> None:
    app = FastAPI()
    said: list[str] = []
    where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")

    def note(text: str) -> None:
        sleep(0)
        assert threading.current_thread() is threading.main_thread()
        said.append(text)

    def plain() -> str:
        note("dependency")
        return "plain"

    def session() -> Iterator[str]:
        token = where.set("here")
        note("enter")
        try:
            yield "session"
        except LookupError:
            note("failed")
            raise
        finally:
            note("exit")
            where.reset(token)

    @app.exception_handler(LookupError)
    def failed(request: Any, exc: LookupError) -> Any:
        note("handler")
        return StreamingResponse(iter(["sorry"]), status_code=503)

    @app.get("/")
    def get(
        later: BackgroundTasks, a: str = Depends(plain), b: str = Depends(session)
    ) -> dict[str, str]:
        later.add_task(note, "background")
        return {"a": a, "b": b, "where": where.get()}

    @app.get("/fails")
    def fails(b: str = Depends(session)) -> None:
        raise LookupError("no")

    @app.get("/missing")
    def missing() -> None:
        raise HTTPException(404, "not here")

    @app.get("/rows")
    def rows() -> StreamingResponse:
        def some() -> Iterator[str]:
            for n in range(3):
                note("row")
                yield str(n)

        return StreamingResponse(some())

    async def main() -> None:
        async with client_of(app) as client:
            answer = await client.get("/")
            assert answer.json() == {"a": "plain", "b": "session", "where": "here"}
            assert sorted(said) == ["background", "dependency", "enter", "exit"]
            said.clear()
            answer = await client.get("/fails")
            assert (answer.status_code, answer.text) == (503, "sorry")
            assert said == ["enter", "failed", "exit", "handler"]
            assert (await client.get("/missing")).status_code == 404
            said.clear()
            assert (await client.get("/rows")).text == "012"
            assert said == ["row"] * 3

    run(main())


def test_rows_that_nobody_wants_any_more(run: Any) -> None:
    """What a generator does at its end may wait, although nobody takes it there."""
    ended = green.Event()
    unraisable: list[Any] = []

    def rows() -> Iterator[str]:
        try:
            yield "first"
        finally:
            sleep(0.01)
            ended.set()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(LIMIT_S)

    async def main() -> None:
        response = StreamingResponse(rows())
        scope = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.3"}}
        answering = asyncio.ensure_future(response(scope, asyncio.Event().wait, send))
        await asyncio.sleep(0.02)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        del response, answering
        gc.collect()
        assert await async_(ended.wait)(LIMIT_S)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", unraisable.append)
        run(main())
    assert unraisable == []


def test_files_stay_in_threads(run: Any, tmp_path: Path) -> None:
    """They cannot wait cooperatively. An upload of some size is a file."""
    threads: list[threading.Thread] = []

    class File(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            threads.append(threading.current_thread())
            return super().read(size)

    async def main() -> None:
        spooled = tempfile.SpooledTemporaryFile(max_size=1)
        spooled.write(b"xx")
        spooled._file = File(b"content")
        assert await UploadFile(spooled, size=2).read() == b"content"
        with (tmp_path / "file").open("wb") as file:
            assert await run_in_threadpool(functools.partial(file.write, b"x")) == 1

    run(main())
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_unpatched_they_are_threads_again(run: Any) -> None:
    app = FastAPI()
    unpatch_starlette()

    @app.get("/")
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    async def main() -> None:
        async with client_of(app) as client:
            assert (await client.get("/")).json() is False
            patch_starlette()
            assert (await client.get("/")).json() is True

    run(main())


def test_patching_loads_no_module_that_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "lazy_and_broken.py").write_text("raise OSError('loaded')")
    spec = importlib.util.spec_from_file_location("lazy", tmp_path / "lazy_and_broken.py")
    assert spec is not None and spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    lazy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lazy)
    own = types.ModuleType("own")
    vars(own)["by_another_name"] = starlette.concurrency.iterate_in_threadpool
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lazy", lazy)
        patch.setitem(sys.modules, "own", own)
        for change, name in (
            (unpatch_starlette, "iterate_in_threadpool"),
            (patch_starlette, "_iterate"),
        ):
            change()
            assert own.by_another_name.__name__ == name
            assert own.by_another_name is starlette.concurrency.iterate_in_threadpool
    with pytest.raises(OSError, match="loaded"):
        getattr(lazy, "anything", None)


def test_a_request_that_is_cancelled_ends_its_function(run: Any) -> None:
    app = FastAPI()
    ended: list[str] = []

    @app.get("/")
    def wait() -> None:
        try:
            sleep(LIMIT_S)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def main() -> None:
        async with client_of(app) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.get("/"), 0.05)
            assert ended == ["cancelled"]

    run(main())


uvicorn = pytest.mark.parametrize("serving", ["uvicorn"], indirect=True)


@uvicorn
def test_a_client_that_goes_away_ends_its_request(run: Any, serving: Any) -> None:
    """With the middleware; in plain functions, coroutines, and what they depend on."""
    app = FastAPI()
    app.add_middleware(CancelOnDisconnect)
    said: list[str] = []
    here = green.Semaphore(0)

    def session() -> Iterator[str]:
        try:
            yield "session"
        except BaseException as exc:
            said.append(f"left by {type(exc).__name__}")
            raise
        finally:
            here.release()

    @app.post("/plain")
    def plain(s: str = Depends(session)) -> None:
        here.release()
        sleep(LIMIT_S)

    @app.post("/async")
    async def awaited(request: Request, s: str = Depends(session)) -> None:
        assert len(await request.body()) == 1000
        here.release()
        await asyncio.sleep(LIMIT_S)

    @app.post("/unread")
    async def unread(request: Request, s: str = Depends(session)) -> None:
        here.release()
        await asyncio.sleep(LIMIT_S)

    async def main() -> None:
        async with serving(app) as (client, url):
            for path in ("/plain", "/async", "/unread"):
                asked = asyncio.ensure_future(client.post(f"{url}{path}", data=b"x" * 1000))
                await async_(here.acquire)()
                asked.cancel()
                await async_(here.acquire)()
                assert said.pop() == "left by CancelledError"

    run(main())


@uvicorn
def test_the_middleware_changes_nothing_else(run: Any, serving: Any) -> None:
    app = FastAPI()
    app.add_middleware(CancelOnDisconnect)
    done = green.Event()

    @app.post("/echo")
    def echo(data: bytes = Body(media_type="application/octet-stream")) -> int:
        sleep(0.01)
        return len(data)

    @app.post("/parts")
    async def parts(request: Request) -> StreamingResponse:
        taken = []
        async for part in request.stream():
            await asyncio.sleep(0.001)
            taken.append(part)
        return StreamingResponse(iter(taken))

    @app.get("/connected")
    async def connected(request: Request) -> bool:
        return not await request.is_disconnected()

    @app.get("/fails")
    def fails() -> None:
        raise HTTPException(404, "not here")

    @app.get("/later")
    def later(tasks: BackgroundTasks) -> str:
        def work() -> None:
            sleep(0.2)
            done.set()

        tasks.add_task(work)
        return "later"

    async def main() -> None:
        async with serving(app) as (client, url):
            big = bytes(range(256)) * 8192
            async with client.post(f"{url}/echo", data=big) as answer:
                assert await answer.json() == len(big)
            async with client.post(f"{url}/parts", data=big) as answer:
                assert await answer.read() == big
            async with client.get(f"{url}/connected") as answer:
                assert await answer.json() is True
            async with client.get(f"{url}/fails") as answer:
                assert answer.status == 404
            # The client is gone before the task is done, and has its answer.
            async with aiohttp.ClientSession() as own, own.get(f"{url}/later") as answer:
                assert await answer.json() == "later"
            assert await async_(done.wait)(LIMIT_S)

    run(main())


def test_who_else_wants_the_request_to_end_is_heard(run: Any) -> None:
    """A cancel of the server's own goes through, also when the client has gone as well."""
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append("asked")
        await asyncio.sleep(LIMIT_S)

    async def main() -> None:
        for gone in (False, True):
            left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            async def receive(left: asyncio.Future[None] = left) -> Any:
                await left
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                raise AssertionError("nothing is sent")

            task = asyncio.ensure_future(CancelOnDisconnect(app)({"type": "http"}, receive, send))
            await asyncio.sleep(0.01)
            if gone:
                left.set_result(None)
                await task
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert asked == ["asked"] * 2

    run(main())


def test_a_file_that_the_server_sends_ends_an_answer(run: Any) -> None:
    """That the client goes after it is not too early, and what follows is not cancelled."""
    went_on: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/file"})
        await asyncio.sleep(0.01)  # a background task
        went_on.append("to the end")

    async def main() -> None:
        answered = asyncio.Event()

        async def receive() -> Any:
            await answered.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.pathsend":
                answered.set()

        await CancelOnDisconnect(app)({"type": "http"}, receive, send)
        assert went_on == ["to the end"]

    run(main())


@uvicorn
def test_so_many_at_once_and_no_more(run: Any, serving: Any) -> None:
    app = FastAPI()
    app.add_middleware(LimitRequests, limit=2)
    app.add_middleware(CancelOnDisconnect)
    inside: set[str] = set()
    order: list[str] = []
    go_on = green.Event()

    @app.get("/{name}")
    def get(name: str) -> str:
        inside.add(name)
        order.append(name)
        try:
            assert len(inside) <= 2
            if name == "held":
                go_on.wait(LIMIT_S)
            sleep(0)
            if name == "fails":
                raise HTTPException(404, "not here")
            return name
        finally:
            inside.discard(name)

    async def main() -> None:
        async with serving(app) as (client, url):

            async def ask(name: str) -> int:
                return await status_of(client, f"{url}/{name}")

            held = [asyncio.ensure_future(ask("held")) for _ in range(2)]
            while len(order) < 2:
                await asyncio.sleep(0.01)
            left = [asyncio.ensure_future(ask("left")) for _ in range(5)]
            waiting = [asyncio.ensure_future(ask(str(n))) for n in range(50)]
            fails = asyncio.ensure_future(ask("fails"))
            await asyncio.sleep(0.2)
            assert order == ["held"] * 2
            for one in left:
                one.cancel()
            await asyncio.sleep(0.1)
            go_on.set()
            assert await asyncio.gather(*held, *waiting) == [200] * 52
            assert await fails == 404
            assert "left" not in order
            assert await asyncio.gather(*(ask(f"again {n}") for n in range(20))) == [200] * 20

    run(main())


def test_a_place_is_lost_by_nobody(run: Any) -> None:
    """Whoever is cancelled as its turn comes hands it on; websockets need none."""
    entered: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        entered.append(scope["type"])
        await receive()

    async def main() -> None:
        limited = LimitRequests(app, limit=1)
        go_on = asyncio.Event()

        def ask(kind: str = "http") -> asyncio.Task[None]:
            return asyncio.ensure_future(limited({"type": kind}, go_on.wait, go_on.wait))

        first = ask()
        await asyncio.sleep(0)
        waiting = [ask() for _ in range(3)]
        await asyncio.sleep(0)
        socket = ask("websocket")
        await asyncio.sleep(0)
        assert entered == ["http", "websocket"]
        socket.cancel()
        first.cancel()
        # It leaves in its next step, and in the same turn the one after it is cancelled.
        asyncio.get_running_loop().call_soon(waiting[0].cancel)
        go_on.set()
        await asyncio.wait([socket, first, *waiting])
        assert [task.cancelled() for task in waiting] == [True, False, False]
        await asyncio.wait_for(ask(), LIMIT_S)
        assert entered == ["http", "websocket", "http", "http", "http"]
        with pytest.raises(ValueError, match="limit is a number of requests, at least 1, not 0"):
            LimitRequests(app, limit=0)

    run(main())
