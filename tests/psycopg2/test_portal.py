"""Patched psycopg2 in plain `async def` handlers, under portal()."""

import asyncio

import psycopg2.extensions
import pytest
from sqlalchemy import create_engine, make_url, text

from greenletio import WouldBlockError, portal
from greenletio.integrations.sqlalchemy import GreenQueuePool


def test_queries_in_async_handlers_wait_at_once(run, connect, fetch, ticking):
    """Each query sleeps until it sees that all the others have started."""
    tasks = 8
    conns = []  # each keeps its lock until all have seen it

    async def handler(number):
        conn = connect()
        conns.append(conn)
        conn.autocommit = True
        fetch(conn, "SELECT pg_advisory_lock_shared(%s)", number)
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
        held += "(SELECT oid FROM pg_database WHERE datname = current_database())"
        while fetch(conn, f"SELECT ({held}) FROM pg_sleep(0.01)") < tasks:
            await asyncio.sleep(0)
        return number

    async def main():
        with portal():
            async with ticking() as ticker:
                assert await asyncio.gather(*map(handler, range(tasks))) == [*range(tasks)]
            return ticker.steps

    assert run(main()) > 5


def test_a_cancelled_query_leaves_its_connection_usable(run, connect, fetch):
    async def handler(conn):
        return fetch(conn, "SELECT 1 FROM pg_sleep(100)")

    async def main():
        with await portal():
            conn = connect()
            task = asyncio.create_task(handler(conn))
            while conn.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_ACTIVE:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(handler_again(conn), 0.05)
            conn.rollback()
            assert fetch(conn, "SELECT 2") == 2

    async def handler_again(conn):
        conn.rollback()
        fetch(conn, "SELECT 1 FROM pg_sleep(100)")

    run(main())


def test_without_the_portal_the_handler_is_told(run, connect, fetch):
    conn = connect()

    async def main():
        with pytest.raises(WouldBlockError):
            fetch(conn, "SELECT 1")

    run(main())


def test_an_engine_in_async_handlers(run, patched, pg_dsn, ticking):
    engine = create_engine(
        make_url(pg_dsn).set(drivername="postgresql+psycopg2"),
        poolclass=GreenQueuePool,
        pool_size=3,
    )

    async def handler(number):
        with engine.connect() as connection:
            return connection.execute(
                text("SELECT :n FROM pg_sleep(0.01)"), {"n": number}
            ).scalar_one()

    async def main():
        with await portal():
            async with ticking() as ticker:
                assert await asyncio.gather(*map(handler, range(20))) == [*range(20)]
            engine.dispose()
            return ticker.steps

    assert run(main()) > 5
