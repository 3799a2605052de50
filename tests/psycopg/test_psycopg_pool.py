"""psycopg_pool's sync pool under the patch: clients wait cooperatively, workers are threads."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
from fix_loops import Run
from fix_progress import Ticker
from psycopg_pool import ConnectionPool, NullConnectionPool, PoolTimeout

from greenletio import WouldBlockError, async_
from greenletio.green import threading as green_threading

Pool = ConnectionPool[psycopg.Connection[Any]]


@pytest.fixture(params=[ConnectionPool, NullConnectionPool], ids=lambda kind: kind.__name__)
def pool(request: pytest.FixtureRequest, patched: None, pg_dsn: str) -> Iterator[Pool]:
    sizes = {"min_size": 0, "max_size": 2}
    with request.param(pg_dsn, open=True, **sizes) as pool:
        yield pool


def query(pool: Pool, n: int, seconds: float = 0.02) -> int:
    with pool.connection() as connection:
        row = connection.execute("SELECT %s::int, pg_sleep(%s)", (n, seconds)).fetchone()
        assert row is not None
        return int(row[0])


@asynccontextmanager
async def all_in_use(pool: Pool) -> AsyncIterator[None]:
    """Both connections of the pool are leased as long as the block runs."""
    held = 0
    let_go = green_threading.Event()

    @async_
    def hold() -> None:
        nonlocal held
        with pool.connection():
            held += 1
            let_go.wait()

    holders = [asyncio.create_task(hold()) for _ in range(2)]
    while held < 2:
        await asyncio.sleep(0.001)
    try:
        yield
    finally:
        let_go.set()
        await asyncio.gather(*holders)


def test_clients_wait_for_a_connection_without_holding_the_loop(run: Run, pool: Pool) -> None:
    async def main() -> list[int]:
        async with Ticker():
            return await asyncio.gather(*(async_(query)(pool, n) for n in range(12)))

    assert run(main()) == list(range(12))


def test_a_client_gives_up_at_its_timeout(run: Run, pool: Pool) -> None:
    async def main() -> None:
        async with all_in_use(pool), Ticker():
            with pytest.raises(PoolTimeout):
                await async_(pool.getconn)(timeout=0.2)

    run(main())


def test_cancelled_clients_lose_no_connection(run: Run, pool: Pool) -> None:
    async def main() -> None:
        randomly = random.Random(7)

        async def client(n: int) -> None:
            task = asyncio.create_task(async_(query)(pool, n))
            await asyncio.sleep(randomly.random() * 0.2)
            task.cancel()
            with suppress(asyncio.CancelledError):
                assert await task == n

        await asyncio.gather(*(client(n) for n in range(60)))
        assert await asyncio.gather(*(async_(query)(pool, n) for n in range(4))) == [0, 1, 2, 3]

    run(main())


def test_waiting_for_the_pool_to_fill(run: Run, patched: None, pg_dsn: str) -> None:
    async def main() -> None:
        with ConnectionPool(pg_dsn, min_size=2, open=True) as pool:
            await async_(pool.wait)(timeout=20)
            assert pool.get_stats()["pool_available"] == 2

    run(main())


def test_directly_in_a_loop_waiting_is_refused(run: Run, pool: Pool) -> None:
    async def main() -> None:
        async with all_in_use(pool):
            with pytest.raises(WouldBlockError):
                pool.getconn()
        assert await async_(query)(pool, 3) == 3

    run(main())


def test_threads_use_the_pool_as_before(pool: Pool) -> None:
    assert [query(pool, n) for n in range(3)] == [0, 1, 2]
