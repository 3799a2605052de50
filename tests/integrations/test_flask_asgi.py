"""examples/flask_asgi.py: Flask and the ORM by as_asgi, asked over HTTP by 200 at once."""

import asyncio
import random
from collections.abc import Callable

import aiohttp
import pytest

LIMIT_S = 60  # against a hang, not a measure


@pytest.fixture
def url(serve_example: Callable[[str], str]) -> str:
    return serve_example("flask_asgi")


def test_200_clients_some_of_which_go_away(url: str) -> None:
    async def main() -> None:
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as client:

            async def post(n: int) -> None:
                async with client.post("/notes", json={"text": f"note {n}"}) as answer:
                    assert answer.status == 200

            async def leave(n: int) -> None:
                how = aiohttp.ClientTimeout(total=0.01 + random.random() / 4)
                with pytest.raises(asyncio.TimeoutError):
                    async with client.get("/sleep/30.0", timeout=how):
                        pass

            async def leave_in_the_middle(n: int) -> None:
                async with client.get("/export") as answer:
                    assert (await answer.content.readline()) == b"1\n"
                    answer.close()

            async def export(n: int) -> None:
                async with client.get("/export") as answer:
                    assert (await answer.text()).splitlines()[-1] == "100000"

            kinds = [post] * 120 + [leave] * 50 + [leave_in_the_middle] * 25 + [export] * 5
            random.shuffle(kinds)
            await asyncio.gather(*(kind(n) for n, kind in enumerate(kinds)))
            async with client.get("/notes") as answer:
                notes = await answer.json()
            expected = {f"note {n}" for n, kind in enumerate(kinds) if kind is post}
            assert {note["text"] for note in notes} == expected
            # What was left is over: all connections are free, and wait for the database at once.

            async def sleep() -> int:
                async with client.get("/sleep/0.5") as answer:
                    in_use: int = (await answer.json())["connections_in_use"]
                    return in_use

            assert max(await asyncio.gather(*(sleep() for _ in range(10)))) == 10

    asyncio.run(main())
