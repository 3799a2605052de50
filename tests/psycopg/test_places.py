"""Directly in a running loop psycopg refuses what would wait, and loses nothing by it."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fix_loops import Run
from psycopg import pq

from greenletio import WouldBlockError, async_, patch_psycopg, unpatch_psycopg

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def load_the_report(connection: Connection) -> object:
    return connection.execute("SELECT 1").fetchone()


def test_the_error_names_the_frame_that_lacks_async(run: Run, connect: Connect) -> None:
    async def handler() -> None:
        with pytest.raises(WouldBlockError, match=r"load_the_report .*test_places.py.*handler"):
            load_the_report(connection)

    connection = connect()
    run(handler())


def test_nothing_was_sent_and_the_connection_goes_on(run: Run, connect: Connect) -> None:
    async def main() -> None:
        for refused in (
            lambda: connection.execute("INSERT INTO t VALUES (1)"),
            lambda: connection.cursor("c").execute("SELECT 1"),
            lambda: connection.cursor().executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)]),
            lambda: connection.cursor().copy("COPY t FROM STDIN").__enter__(),
            lambda: connection.transaction().__enter__(),
            lambda: next(connection.notifies()),
            connection.cancel,
            connection.cancel_safe,
        ):
            with pytest.raises(WouldBlockError):
                refused()
            assert connection.info.transaction_status == pq.TransactionStatus.IDLE
        count = await async_(connection.execute)("SELECT count(*), pg_backend_pid() FROM t")
        assert count.fetchone() == (0, pid)

    connection = connect(autocommit=True)
    pid = connection.info.backend_pid
    connection.execute("CREATE TEMP TABLE t (n int)")
    run(main())


def test_an_open_transaction_survives_the_error(run: Run, connect: Connect) -> None:
    async def main() -> None:
        await async_(connection.execute)("CREATE TEMP TABLE t (n int)")
        for refused in (connection.commit, connection.rollback):
            with pytest.raises(WouldBlockError):
                refused()
        assert connection.info.transaction_status == pq.TransactionStatus.INTRANS
        await async_(connection.commit)()
        assert (await async_(connection.execute)("SELECT * FROM t")).fetchall() == []

    connection = connect()
    run(main())


def test_what_sends_nothing_works_in_a_loop(run: Run, connect: Connect) -> None:
    async def main() -> None:
        connection.commit()
        connection.rollback()
        connection.autocommit = True
        connection.read_only = True
        assert connection.cursor().fetchone is not None
        connection.close()

    connection = connect()
    run(main())
    assert connection.closed


def test_connecting_is_refused(run: Run, patched: None, pg_dsn: str) -> None:
    async def main() -> None:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(WouldBlockError):
                psycopg.connect(pg_dsn, host=host)

    run(main())


def test_a_connection_in_use_by_a_greenlet_is_refused(run: Run, connect: Connect) -> None:
    async def main() -> None:
        task = asyncio.create_task(async_(connection.execute)("SELECT pg_sleep(0.5), 7"))
        await asyncio.sleep(0.05)
        with pytest.raises(WouldBlockError):
            connection.commit()  # it would wait for its turn
        assert (await task).fetchone() == ("", 7)

    connection = connect()
    run(main())


def test_an_unpatched_connection_blocks_as_ever(run: Run, pg_dsn: str) -> None:
    async def main() -> tuple[Any, ...] | None:
        with psycopg.connect(pg_dsn) as connection:
            return connection.execute("SELECT 1").fetchone()

    patch_psycopg()
    unpatch_psycopg()
    assert run(main()) == (1,)
