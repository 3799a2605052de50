"""examples/django_asgi.py, served by uvicorn, asked over HTTP by 200 at once."""

import asyncio
import random
from collections.abc import Callable

import aiohttp
import pytest
from fix_postgres import Query

LIMIT_S = 60  # against a hang, not a measure
POOL = 10

STATES = (
    "SELECT state, count(*)::int FROM pg_stat_activity"
    " WHERE application_name = 'django_asgi' GROUP BY state"
)


@pytest.fixture
def url(serve_example: Callable[[str], str]) -> str:
    return serve_example("django_asgi")


def session(url: str) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def until(pg_query: Query, ready: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """The states of the server's connections and how many are in each, once they are as wanted."""
    for _ in range(LIMIT_S * 20):
        states = dict(pg_query(STATES))
        if ready(states):
            break
        await asyncio.sleep(0.05)
    return states


def is_idle(states: dict[str, int]) -> bool:
    return set(states) <= {"idle"}


async def fill(client: aiohttp.ClientSession, page: str, pg_query: Query) -> None:
    """As many requests as the pool has connections wait in the database at once, and go away."""
    waiting = [asyncio.ensure_future(client.get(page)) for _ in range(POOL)]
    states = await until(pg_query, lambda states: states.get("active") == POOL)
    assert states == {"active": POOL}
    for request in waiting:
        request.cancel()
    await asyncio.wait(waiting)
    states = await until(pg_query, is_idle)
    assert is_idle(states)
    assert sum(states.values()) <= POOL


def test_sync_middleware_and_views_are_in_the_loop_s_thread(url: str) -> None:
    async def main() -> None:
        async with session(url) as client:
            for page in ("/notes", "/sleep/0", "/sleep_async/0", "/first"):
                async with client.get(page) as answer:
                    assert answer.status == 200
                    assert answer.headers["X-Thread"] == "MainThread"

    asyncio.run(main())


@pytest.mark.parametrize("page", ["/sleep/60", "/sleep_async/60"])
def test_requests_wait_for_the_database_at_once(url: str, page: str, pg_query: Query) -> None:
    async def main() -> None:
        async with session(url) as client:
            for _ in range(3):
                await fill(client, page, pg_query)

    asyncio.run(main())


def test_200_clients_some_of_which_go_away(url: str, pg_query: Query) -> None:
    async def main() -> None:
        async with session(url) as client:

            async def post(n: int) -> None:
                async with client.post("/notes", data={"text": f"note {n}"}) as answer:
                    assert answer.status == 200

            async def read(n: int) -> None:
                async with client.get("/first") as answer:
                    assert answer.status == 200

            async def leave(n: int) -> None:
                how = aiohttp.ClientTimeout(total=0.01 + random.random() / 4)
                page = "/sleep/30" if n % 2 else "/sleep_async/30"
                with pytest.raises(asyncio.TimeoutError):
                    async with client.get(page, timeout=how):
                        pass

            async def leave_in_the_middle(n: int) -> None:
                async with client.get("/export") as answer:
                    await answer.content.readline()
                    answer.close()

            kinds = [post] * 100 + [read] * 20 + [leave] * 60 + [leave_in_the_middle] * 20
            random.shuffle(kinds)
            await asyncio.gather(*(kind(n) for n, kind in enumerate(kinds)))
            async with client.get("/notes") as answer:
                notes = (await answer.json())["notes"]
            expected = {f"note {n}" for n, kind in enumerate(kinds) if kind is post}
            assert len(notes) == 100
            assert set(notes) == expected
            async with client.get("/export") as answer:
                assert (await answer.text()).splitlines() == notes
            # What was left is over: no query runs, no transaction is open, no connection is lost.
            states = await until(pg_query, is_idle)
            assert is_idle(states)
            assert sum(states.values()) <= POOL
            await fill(client, "/sleep/60", pg_query)

    asyncio.run(main())
