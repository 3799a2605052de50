"""Several greenlets, or threads, on one connection: they take turns, in the order they came."""

import asyncio
import threading

import psycopg2
import pytest

from greenletio import async_


def test_queries_of_many_greenlets_are_served_in_order(run, connect, fetch):
    async def main():
        conn = await async_(connect)()
        served = []

        def query(number):
            got = fetch(conn, "SELECT %s FROM pg_sleep(0.002)", number)
            served.append(got)
            return got

        answers = await asyncio.gather(*(async_(query)(n) for n in range(30)))
        assert answers == served == [*range(30)]

    run(main())


def test_what_would_deadlock_on_psycopg2s_mutex(run, connect, fetch, ticking):
    """commit, rollback, close, properties and iteration of named cursors, during a query."""

    async def main():
        conn = await async_(connect)()
        conn.autocommit = True
        named = conn.cursor("named", withhold=True)
        await async_(named.execute)("SELECT generate_series(1, 5)")
        conn.autocommit = False
        async with ticking() as ticker:
            query = asyncio.ensure_future(async_(fetch)(conn, "SELECT 1 FROM pg_sleep(0.1)"))
            await asyncio.sleep(0.01)
            others = [
                async_(lambda: [row[0] for row in named])(),
                async_(conn.commit)(),
                async_(conn.rollback)(),
                async_(conn.set_client_encoding)("UTF8"),
                async_(lambda: setattr(conn, "autocommit", True))(),
                async_(conn.poll)(),
            ]
            rows, *_ = await asyncio.gather(*others)
            assert rows == [1, 2, 3, 4, 5]
            assert await query == 1
            query = asyncio.ensure_future(async_(fetch)(conn, "SELECT 2 FROM pg_sleep(0.1)"))
            await asyncio.sleep(0.01)
            await async_(conn.close)()
            assert await query == 2
        assert conn.closed
        return ticker.steps

    assert run(main()) > 3


def test_cancelled_in_the_queue(run, connect, fetch):
    """Whoever leaves the queue, also with the turn just handed over, blocks nobody."""

    async def main():
        conn = await async_(connect)()
        conn.autocommit = True
        for turn in range(30):
            tasks = [
                asyncio.ensure_future(async_(fetch)(conn, "SELECT %s FROM pg_sleep(0.001)", n))
                for n in range(6)
            ]
            for _ in range(turn % 10):
                await asyncio.sleep(0.0005)
            for task in tasks[turn % 3 :: 2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(
                answer == n or isinstance(answer, asyncio.CancelledError)
                for n, answer in enumerate(done)
            )
            assert await async_(fetch)(conn, "SELECT %s", turn) == turn
        assert conn.closed == 0

    run(main())


def test_threads_on_one_connection(connect, fetch):
    conn = connect()
    wrong = []

    def work(number):
        for n in range(50):
            if fetch(conn, "SELECT %s", number * 1000 + n) != number * 1000 + n:
                wrong.append((number, n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_thread_and_greenlets_on_one_connection(run, connect, fetch):
    conn = connect()
    conn.autocommit = True
    answers = []

    def in_thread():
        for n in range(50):
            answers.append(fetch(conn, "SELECT %s", n))

    async def main():
        thread = threading.Thread(target=in_thread)
        thread.start()
        queries = (async_(fetch)(conn, "SELECT %s", n) for n in range(50))
        assert await asyncio.gather(*queries) == [*range(50)]
        while thread.is_alive():
            await asyncio.sleep(0.001)
        assert answers == [*range(50)]

    run(main())


def test_an_operation_may_use_the_connection_between_its_queries(run, connect, fetch):
    """executemany with an iterable that asks the same connection, as psycopg2 allows."""

    def work():
        conn = connect()
        cursor = conn.cursor()
        cursor.execute("CREATE TEMPORARY TABLE numbers (n int)")
        items = ((fetch(conn, "SELECT %s", n),) for n in range(5))
        cursor.executemany("INSERT INTO numbers VALUES (%s)", items)
        with pytest.raises(psycopg2.Error):
            cursor.executemany("INSERT INTO numbers VALUES (%s)", [("x",)])
        conn.rollback()
        return fetch(conn, "SELECT 42")

    async def main():
        return await async_(work)()

    assert run(main()) == 42
