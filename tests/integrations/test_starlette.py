"""patch_starlette: FastAPI's plain functions as greenlets, asked over HTTP."""

import asyncio
import contextvars
import functools
import io
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fix_progress import Ticker
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import StreamingResponse

from greenletio import sleep
from greenletio.green import threading as green
from greenletio.integrations.starlette import patch_starlette, unpatch_starlette

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
