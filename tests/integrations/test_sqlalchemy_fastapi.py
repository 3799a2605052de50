"""examples/sqlalchemy_fastapi.py, served by uvicorn, asked over HTTP."""

import asyncio
import random
from collections.abc import Callable

import httpx
import pytest

LIMIT_S = 60  # against a hang, not a measure


@pytest.fixture
def base_url(serve_example: Callable[[str], str]) -> str:
    return serve_example("sqlalchemy_fastapi")


def test_books_are_stored_and_listed(base_url: str) -> None:
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
    async def main() -> None:
        async with httpx.AsyncClient(base_url=base_url, timeout=LIMIT_S) as client:
            answers = await asyncio.gather(*(client.get("/sleep/1.5") for _ in range(8)))
            assert max(answer.json()["connections_in_use"] for answer in answers) == 8

    asyncio.run(main())


def test_a_client_that_goes_away_costs_nothing(base_url: str) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(base_url=base_url, timeout=LIMIT_S) as client:
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    await client.get("/sleep/1", timeout=httpx.Timeout(LIMIT_S, read=0.2))
            answers = await asyncio.gather(*(client.get("/sleep/0.1") for _ in range(30)))
            assert [answer.status_code for answer in answers] == [200] * 30

    asyncio.run(main())


def test_200_clients_some_of_which_go_away(base_url: str) -> None:
    async def main() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=base_url, timeout=LIMIT_S, limits=limits) as client:

            async def post(n: int) -> None:
                book = {"author": f"author {n % 7}", "title": f"title {n}"}
                answer = await client.post("/books", json=book)
                assert answer.status_code == 200

            async def leave(n: int) -> None:
                with pytest.raises(httpx.ReadTimeout):
                    await client.get("/sleep/2", timeout=httpx.Timeout(LIMIT_S, read=0.5))

            await asyncio.gather(*(post(n) for n in range(7)))
            kinds = [post] * 150 + [leave] * 50
            random.shuffle(kinds)
            await asyncio.gather(*(kind(n) for n, kind in enumerate(kinds, 7)))
            expected = {f"title {n}" for n, kind in enumerate(kinds, 7) if kind is post}
            found = [(await client.get(f"/authors/author {n}/books")).json() for n in range(7)]
            assert {title for titles in found for title in titles} >= expected
            # No connection is lost. (FastAPI goes on with a request whose client has gone.)
            answers = await asyncio.gather(*(client.get("/sleep/0.1") for _ in range(40)))
            assert [answer.status_code for answer in answers] == [200] * 40

    asyncio.run(main())
