"""examples/sqlalchemy_fastapi.py, served by uvicorn, asked over HTTP."""

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_missing import missing

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT_S = 60  # against a hang, not a measure


@pytest.fixture
def base_url(pg_dsn: str, tmp_path: Path) -> Iterator[str]:
    for module in ("fastapi", "uvicorn", "httpx", "psycopg2"):
        if importlib.util.find_spec(module) is None:
            missing(f"the example needs {module}: pip install {module}")
    listener = socket.create_server(("127.0.0.1", 0))  # the server inherits it: no race for a port
    port, log = listener.getsockname()[1], tmp_path / "server.log"
    command = [sys.executable, "-m", "uvicorn", "--fd", str(listener.fileno())]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--app-dir", str(EXAMPLES), "sqlalchemy_fastapi:app"],
            env={**os.environ, "DATABASE_URL": pg_dsn},
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    listener.close()
    try:
        give_up = time.monotonic() + LIMIT_S
        while "startup complete" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        assert server.wait(LIMIT_S) in (0, -15), log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()


def test_books_are_stored_and_listed(base_url: str) -> None:
    import httpx

    async def main() -> None:
        async with httpx.AsyncClient(base_url=base_url, timeout=LIMIT_S) as client:
            assert (await client.get("/authors/nobody/books")).status_code == 404
            await client.post("/books", json={"author": "Ada", "title": "first"})
            posts = [
                client.post("/books", json={"author": "Ada", "title": f"title {n}"})
                for n in range(40)
            ]
            answers = await asyncio.gather(*posts)
            assert [answer.status_code for answer in answers] == [200] * 40
            assert len({answer.json()["id"] for answer in answers}) == 40
            books = (await client.get("/authors/Ada/books")).json()
            assert sorted(books) == sorted(["first", *(f"title {n}" for n in range(40))])

    asyncio.run(main())


def test_requests_that_wait_for_the_database_overlap(base_url: str) -> None:
    import httpx

    async def main() -> None:
        async with httpx.AsyncClient(base_url=base_url, timeout=LIMIT_S) as client:
            answers = await asyncio.gather(*(client.get("/sleep/0.5") for _ in range(8)))
            assert max(answer.json()["connections_in_use"] for answer in answers) == 8

    asyncio.run(main())


def test_a_client_that_goes_away_costs_nothing(base_url: str) -> None:
    import httpx

    async def main() -> None:
        async with httpx.AsyncClient(base_url=base_url, timeout=LIMIT_S) as client:
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    await client.get("/sleep/1", timeout=0.2)
            answers = await asyncio.gather(*(client.get("/sleep/0.1") for _ in range(30)))
            assert [answer.status_code for answer in answers] == [200] * 30

    asyncio.run(main())
