"""GreenQueuePool: QueuePool's semantics for greenlets of any loop and for threads, at once."""

import asyncio
import gc
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import sqlalchemy
from fix_loops import Run, new_loop
from fix_postgres import OwnServer, Query
from fix_progress import Ticker, settle
from sqlalchemy import Engine, event, exc, text
from sqlalchemy.pool import QueuePool

from greenletio import WouldBlockError, async_, sleep, timeout
from greenletio.green import threading as green_threading
from greenletio.integrations.sqlalchemy import GreenQueuePool

MakeEngine = Callable[..., Engine]

LIMIT_S = 30  # against a hang, not a measure
ON_SERVER = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pool'"


def query(engine: Engine, n: int, seconds: float = 0.01) -> int:
    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT CAST(:n AS int), pg_sleep(:s)"), {"n": n, "s": seconds}
        )
        return int(row.one()[0])


def pid(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def pool_of(engine: Engine) -> GreenQueuePool:
    assert isinstance(engine.pool, GreenQueuePool)
    return engine.pool


def check_whole(engine: Engine, pg_query: Query) -> None:
    """Nothing is out, and the server holds exactly what is idle in the pool."""
    pool = pool_of(engine)
    assert pool.checkedout() == 0
    assert not pool._pool.turns
    idle = sum(record.dbapi_connection is not None for record in pool._pool._items)
    give_up = time.monotonic() + LIMIT_S
    while pg_query(ON_SERVER) != [(idle,)]:
        assert time.monotonic() < give_up, (pg_query(ON_SERVER), pool.status())


@asynccontextmanager
async def held(engine: Engine) -> AsyncIterator[None]:
    """One of its connections is checked out as long as the block runs."""
    has_one, let_go = asyncio.Event(), green_threading.Event()

    @async_
    def hold() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            has_one.set()
            let_go.wait()

    holder = asyncio.create_task(hold())
    await has_one.wait()
    try:
        yield
    finally:
        let_go.set()
        await holder


def test_checkouts_wait_without_holding_the_loop(
    run: Run, make_engine: MakeEngine, pg_query: Query
) -> None:
    most = 0
    engine = make_engine(pool_size=2, max_overflow=1)

    @event.listens_for(engine, "checkout")
    def count(*_: object) -> None:
        nonlocal most
        most = max(most, pool_of(engine).checkedout())

    async def main() -> list[int]:
        async with Ticker():
            return await asyncio.gather(*(async_(query)(engine, n, 0.05) for n in range(30)))

    assert run(main()) == list(range(30))
    assert most == 3
    assert pool_of(engine).checkedin() == 2
    check_whole(engine, pg_query)


def test_the_first_connections_initialize_at_once(run: Run, make_engine: MakeEngine) -> None:
    """SQLAlchemy's connect event queries the server, under a lock that must not be a thread's."""
    initialized = 0
    engine = make_engine(pool_size=5)

    @event.listens_for(engine, "first_connect")
    def first(*_: object) -> None:
        nonlocal initialized
        initialized += 1

    @event.listens_for(engine, "connect")
    def slow(dbapi_connection: Any, _: object) -> None:
        dbapi_connection.cursor().execute("SELECT pg_sleep(0.1)")
        dbapi_connection.rollback()

    async def main() -> list[int]:
        async with Ticker():
            return await asyncio.gather(*(async_(query)(engine, n) for n in range(5)))

    assert run(main()) == list(range(5))
    assert initialized == 1


def test_it_times_out_as_queue_pool_does(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
        async with held(engine), Ticker():
            with pytest.raises(exc.TimeoutError, match="QueuePool limit of size 1") as caught:
                await async_(query)(engine, 2)
        assert caught.value.code == "3o7r"
        assert await async_(query)(engine, 3) == 3

    run(main())


def test_without_a_timeout_it_waits_on(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=None)
        assert await asyncio.gather(*(async_(query)(engine, n) for n in range(5))) == [*range(5)]

    run(main())


def test_a_timeout_of_zero_does_not_wait(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0)
        async with held(engine):
            with pytest.raises(exc.TimeoutError):
                await async_(query)(engine, 2)

    run(main())


def test_an_unlimited_pool_never_waits(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        for sizes in ({"pool_size": 0}, {"pool_size": 1, "max_overflow": -1}):
            engine = make_engine(**sizes)
            calls = (async_(query)(engine, n, 0.1) for n in range(8))
            assert await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S) == list(range(8))

    run(main())


def test_connections_go_to_who_waited_longest(run: Run, make_engine: MakeEngine) -> None:
    order: list[int] = []

    @async_
    def client(engine: Engine, n: int) -> None:
        with engine.connect() as connection:
            order.append(n)
            connection.execute(text("SELECT pg_sleep(0.01)"))

    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)
        tasks = []
        for n in range(10):
            tasks.append(asyncio.create_task(client(engine, n)))
            await asyncio.sleep(0)
        while len(order) < 3:
            await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(client(engine, 10)))  # must not pass those who wait
        await asyncio.gather(*tasks)

    run(main())
    assert order == list(range(11))


@pytest.mark.parametrize("use_lifo", [False, True])
def test_idle_connections_are_used_in_the_order_asked_for(
    run: Run, make_engine: MakeEngine, use_lifo: bool
) -> None:
    @async_
    def main() -> None:
        engine = make_engine(pool_size=3, pool_use_lifo=use_lifo)
        connections = [engine.connect() for _ in range(3)]
        pids = [c.execute(text("SELECT pg_backend_pid()")).scalar_one() for c in connections]
        for connection in connections:
            connection.close()
        expected = [pids[2]] * 3 if use_lifo else pids
        assert [pid(engine) for _ in range(3)] == expected

    async def outer() -> None:
        await main()

    run(outer())


def test_pre_ping_replaces_a_connection_that_died(
    run: Run, make_engine: MakeEngine, pg_query: Query
) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, pool_pre_ping=True)
        first = await async_(pid)(engine)
        assert await async_(pid)(engine) == first
        pg_query("SELECT pg_terminate_backend($1, 10000)", first)
        assert await async_(pid)(engine) != first

    run(main())


def test_old_connections_are_recycled(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, pool_recycle=0)
        first = await async_(pid)(engine)
        await asyncio.sleep(0.05)
        assert await async_(pid)(engine) != first

    run(main())


def test_events_are_those_of_queue_pool(run: Run, make_engine: MakeEngine) -> None:
    names = ("connect", "checkout", "reset", "checkin", "invalidate", "close")

    def record(engine: Engine) -> list[str]:
        seen: list[str] = []
        for name in names:
            event.listen(engine, name, lambda *_, name=name: seen.append(name))
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        with engine.connect() as connection:
            connection.invalidate()
        engine.dispose()
        return seen

    async def main() -> list[str]:
        return await async_(record)(make_engine())

    url = make_engine().url
    expected = record(sqlalchemy.create_engine(url, poolclass=QueuePool))
    assert run(main()) == expected


def test_loops_and_threads_share_one_pool(
    make_engine: MakeEngine, loop_kind: str, pg_query: Query
) -> None:
    engine = make_engine(pool_size=2, max_overflow=1)
    most = 0

    @event.listens_for(engine, "checkout")
    def count(*_: object) -> None:
        nonlocal most
        most = max(most, pool_of(engine).checkedout())

    def in_a_loop(base: int) -> list[int]:
        async def main() -> list[int]:
            async with Ticker():
                calls = (async_(query)(engine, base + n) for n in range(30))
                return await asyncio.gather(*calls)

        loop = new_loop(loop_kind)
        try:
            return loop.run_until_complete(main())
        finally:
            loop.close()

    def in_a_thread(base: int) -> list[int]:
        return [query(engine, base + n) for n in range(15)]

    with ThreadPoolExecutor(4) as executor:
        jobs = [executor.submit(in_a_loop, 0), executor.submit(in_a_loop, 100)]
        jobs += [executor.submit(in_a_thread, 200), executor.submit(in_a_thread, 300)]
        results = [job.result(timeout=LIMIT_S * 2) for job in jobs]
    assert results == [
        list(range(base, base + n)) for base, n in ((0, 30), (100, 30), (200, 15), (300, 15))
    ]
    assert most == 3
    check_whole(engine, pg_query)


def test_plain_threads_alone(make_engine: MakeEngine) -> None:
    engine = make_engine(pool_size=1, max_overflow=0)
    with ThreadPoolExecutor(3) as executor:
        assert list(executor.map(lambda n: query(engine, n), range(10))) == list(range(10))
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0.2)
    with engine.connect(), ThreadPoolExecutor(1) as executor:
        with pytest.raises(exc.TimeoutError):
            executor.submit(query, engine, 1).result()


def test_cancelled_in_the_queue(run: Run, make_engine: MakeEngine, pg_query: Query) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)
        async with held(engine):
            waiting = [asyncio.create_task(async_(query)(engine, n)) for n in range(1, 4)]
            await settle()
            waiting[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[1]
        assert [await task for task in (waiting[0], waiting[2])] == [1, 3]
        check_whole(engine, pg_query)

    run(main())


def test_cancelled_as_its_turn_comes(run: Run, make_engine: MakeEngine, pg_query: Query) -> None:
    """The connection that was handed over already goes to the next."""

    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)

        @async_
        def hold() -> None:
            connection = engine.connect()
            while not tasks:
                sleep(0)
            sleep(0.02)
            connection.close()
            tasks[0].cancel()

        tasks: list[asyncio.Task[int]] = []
        holder = asyncio.create_task(hold())
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(async_(query)(engine, n)) for n in range(2)]
        await holder
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert await asyncio.wait_for(tasks[1], LIMIT_S) == 1
        check_whole(engine, pg_query)

    run(main())


def test_a_connect_that_fails_hands_its_place_on(
    run: Run, make_engine: MakeEngine, pg_query: Query
) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)
        fails = [ZeroDivisionError, asyncio.CancelledError]

        @event.listens_for(engine, "do_connect")
        def fail(*_: object) -> None:
            sleep(0.02)
            if fails:
                raise fails.pop()

        results = await asyncio.wait_for(
            asyncio.gather(
                *(asyncio.create_task(async_(query)(engine, n)) for n in range(4)),
                return_exceptions=True,
            ),
            LIMIT_S,
        )
        kinds = [type(result) for result in results]
        assert kinds == [asyncio.CancelledError, ZeroDivisionError, int, int]
        check_whole(engine, pg_query)

    run(main())


def test_a_cancelled_query_keeps_its_connection(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)
        first = await async_(pid)(engine)
        for _ in range(3):
            task = asyncio.create_task(async_(query)(engine, 1, 600))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await async_(pid)(engine) == first

        @async_
        def limited() -> None:
            with pytest.raises(TimeoutError), timeout(0.05):
                query(engine, 1, 600)

        await limited()
        assert await async_(pid)(engine) == first

    run(main())


def test_a_cancelled_rollback_gives_its_connection_back(
    run: Run, make_engine: MakeEngine, pg_query: Query
) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)
        reasons: list[BaseException] = []  # with their tracebacks, and all that those hold
        for delay in range(40):
            task = asyncio.create_task(async_(query)(engine, 1, 0))
            for _ in range(delay):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError as ex:
                reasons.append(ex)
            check_whole(engine, pg_query)
        assert reasons

    run(main())


def test_random_cancellations_lose_and_leak_nothing(
    run: Run, make_engine: MakeEngine, pg_query: Query
) -> None:
    ended = {True: 0, False: 0}

    async def main() -> None:
        engine = make_engine(pool_size=3, max_overflow=2)
        randomly = random.Random(7)

        async def client(n: int) -> None:
            task = asyncio.create_task(async_(query)(engine, n, randomly.random() * 0.02))
            await asyncio.sleep(randomly.random() * 1.0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                assert await task == n
            ended[task.cancelled()] += 1

        async with Ticker():
            await asyncio.wait_for(asyncio.gather(*(client(n) for n in range(300))), LIMIT_S * 3)
        check_whole(engine, pg_query)
        assert await asyncio.gather(*(async_(query)(engine, n) for n in range(20))) == [*range(20)]

    run(main())
    assert min(ended.values()) > 10


def test_directly_in_a_loop(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)
        with pytest.raises(WouldBlockError):
            engine.raw_connection()  # there is none yet, and to connect is to wait
        first = await async_(pid)(engine)
        engine.raw_connection().close()  # neither checking out nor in has to wait
        async with held(engine):
            with pytest.raises(WouldBlockError, match="test_sqlalchemy_pool.py"):
                engine.raw_connection()
        with pytest.raises(WouldBlockError, match=r"\bpid\b.*test_sqlalchemy_pool.py"):
            pid(engine)
        assert await async_(pid)(engine) == first

    run(main())


def test_directly_in_a_loop_with_pre_ping(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, pool_pre_ping=True)
        first = await async_(pid)(engine)
        with pytest.raises(WouldBlockError):
            engine.raw_connection()
        assert await async_(pid)(engine) == first

    run(main())


def test_a_forgotten_connection_is_closed(
    run: Run, make_engine: MakeEngine, pg_query: Query
) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)

        @async_
        def forget() -> None:
            connection = engine.raw_connection()
            connection.cursor().execute("SELECT 1")
            cycle: list[Any] = [connection]
            cycle.append(cycle)

        await forget()
        with pytest.warns(exc.SAWarning, match="garbage collector"):
            gc.collect()
        check_whole(engine, pg_query)
        assert await async_(query)(engine, 1) == 1

    run(main())


def test_dispose_lets_those_who_wait_connect(run: Run, make_engine: MakeEngine) -> None:
    async def main() -> None:
        engine = make_engine(pool_size=1, max_overflow=0)
        async with held(engine):
            waiting = asyncio.create_task(async_(query)(engine, 2))
            await settle()
            await async_(engine.dispose)()
            assert await waiting == 2
            assert await async_(query)(engine, 3) == 3

    run(main())


def test_recreating_keeps_the_settings(make_engine: MakeEngine) -> None:
    pool = pool_of(make_engine(pool_size=3, max_overflow=4, pool_timeout=5, pool_use_lifo=True))
    again = pool.recreate()
    assert isinstance(again, GreenQueuePool)
    assert (again.size(), again._max_overflow, again.timeout()) == (3, 4, 5)
    assert again._pool.use_lifo
    assert again._quiet_dialect.dialect is pool._quiet_dialect.dialect


def test_an_asynchronous_engine_is_refused(driver: str) -> None:
    with pytest.raises(exc.ArgumentError):
        sqlalchemy.create_engine("postgresql+asyncpg://", poolclass=GreenQueuePool)


def test_a_frozen_server_and_its_return(
    run: Run, make_engine: MakeEngine, own_server: OwnServer, driver: str
) -> None:
    async def main() -> None:
        engine = make_engine(own_server.url, pool_size=3, max_overflow=0)
        await asyncio.gather(*(async_(query)(engine, n) for n in range(3)))
        tasks = [asyncio.create_task(async_(query)(engine, n, 600)) for n in range(6)]
        await asyncio.sleep(0.1)
        own_server.freeze()
        async with Ticker():
            for task in tasks:
                task.cancel()
            results = await asyncio.wait_for(
                asyncio.gather(*tasks, return_exceptions=True), LIMIT_S
            )
        assert [type(result) for result in results] == [asyncio.CancelledError] * 6
        own_server.thaw()
        ns = await asyncio.wait_for(
            asyncio.gather(*(async_(query)(engine, n) for n in range(6))), LIMIT_S
        )
        assert ns == list(range(6))
        assert pool_of(engine).checkedout() == 0

    run(main())


def test_a_killed_server_and_its_return(
    run: Run, make_engine: MakeEngine, own_server: OwnServer
) -> None:
    async def main() -> None:
        engine = make_engine(own_server.url, pool_size=3, max_overflow=0, pool_pre_ping=True)
        tasks = [asyncio.create_task(async_(query)(engine, n, 600)) for n in range(6)]
        await asyncio.sleep(0.2)
        own_server.kill()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT_S)
        assert all(isinstance(result, exc.OperationalError) for result in results), results
        own_server.start()
        ns = await asyncio.wait_for(
            asyncio.gather(*(async_(query)(engine, n) for n in range(6))), LIMIT_S
        )
        assert ns == list(range(6))
        assert pool_of(engine).checkedout() == 0

    run(main())


def test_threads_that_give_up_race_those_that_give_back(make_engine: MakeEngine) -> None:
    """Time-outs that race a returned connection neither lose it nor use it twice."""
    engine = make_engine(pool_size=2, max_overflow=0, pool_timeout=0.01)
    lock, users = threading.Lock(), set[int]()

    def client(n: int) -> bool:
        try:
            connection = engine.connect()
        except exc.TimeoutError:
            return False
        with connection:
            mine = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with lock:
                assert mine not in users
                users.add(mine)
            time.sleep(0.01)
            with lock:
                users.remove(mine)
        return True

    with ThreadPoolExecutor(6) as executor:
        served = list(executor.map(client, range(200)))
    assert {True, False} == set(served)
    assert pool_of(engine).checkedout() == 0
