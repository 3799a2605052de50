"""What a lease does to a session is gone before the next one has it: pgTAP says so, too."""

import asyncio
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_postgres import tell

from greenletio import pg
from greenletio.pg import aio

SCRIPT = Path(__file__).with_name("pool_reset.pgtap")

OTHER = f"gio_other_{os.getpid()}"

MESS = {
    "settings": (
        "SET search_path = pg_catalog; SET TimeZone = 'Asia/Tokyo'; SET statement_timeout = '1h';"
        "SET session_replication_role = replica; SELECT set_config('gio.tenant', 'theirs', false);"
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY,"
        " DEFERRABLE"
    ),
    "a role": f"SET ROLE {OTHER}",
    "another user": f"SET SESSION AUTHORIZATION {OTHER}; SET ROLE {OTHER}",
    "temporary objects": (
        "CREATE TEMP TABLE t AS SELECT 1 AS a; CREATE TEMP VIEW v AS SELECT 2;"
        "CREATE TEMP SEQUENCE s; SELECT nextval('s')"
    ),
    "PREPARE": "PREPARE theirs AS SELECT 1; EXECUTE theirs",
    "a holdable cursor": "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "advisory locks": (
        "SELECT pg_advisory_lock(1); SELECT pg_advisory_lock(1); SELECT pg_advisory_lock_shared(2)"
    ),
    "LISTEN": "LISTEN one; LISTEN two",
    "sequences": "SELECT nextval('public.gio_numbers')",
    "a transaction": "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT 1",
    "a cursor": "BEGIN; DECLARE c CURSOR FOR SELECT 1; SAVEPOINT s",
    "LISTEN that was not committed": "BEGIN; LISTEN three; SELECT pg_advisory_lock(3)",
}
#: The last word of a transaction that has failed.
FAILED = f"BEGIN; SET ROLE {OTHER}; SELECT pg_advisory_lock(4); SELECT 1/0"


@contextmanager
def with_what_messes_need(url):
    tell(url, "CREATE SEQUENCE gio_numbers")
    tell(url, f"CREATE ROLE {OTHER}")
    yield url
    tell(url, f"DROP ROLE {OTHER}")
    tell(url, "DROP SEQUENCE gio_numbers")


@pytest.fixture(scope="module")
def url(dsn):
    with with_what_messes_need(dsn) as url:
        yield url


@pytest.fixture
def url_with_pgtap(pgtap_url):
    with with_what_messes_need(pgtap_url) as url:
        yield url


async def check(pool, mess):
    """Run the script in the pool's one session; what did not hold."""
    async with pool.acquire() as c:
        pid = c.get_server_pid()
        if mess == FAILED:
            with pytest.raises(aio.DivisionByZeroError):
                await c.execute(mess)
        else:
            await c.execute(mess)
    async with pool.acquire() as c:
        assert c.get_server_pid() == pid  # it was not just replaced
        if c.is_in_transaction():
            return ["a transaction is open"]
        lines = []
        for statement in SCRIPT.read_text().split(";\n"):
            if statement.strip():
                lines += [row[0] for row in await c.fetch(statement)]
    assert lines[0] == "1..18"
    return [line for line in lines[1:] if not line.startswith("ok ")]


def test_pgtap_says_that_the_reset_is_complete(run, url_with_pgtap):
    async def main():
        async with aio.create_pool(url_with_pgtap, min_size=1, max_size=1) as pool:
            assert await check(pool, "SELECT 'a fresh session'") == []
            for name, mess in MESS.items():
                assert await check(pool, mess) == [], name
            assert await check(pool, FAILED) == []
            together = [
                mess for name, mess in MESS.items() if name not in ("sequences", "a cursor")
            ]
            assert await check(pool, "; ".join(together)) == []

    run(main())
    assert all("an active transaction" in report["message"] for report in run.reported)
    run.reported.clear()


def test_pgtap_would_say_if_it_were_not(run, url_with_pgtap):
    """The script fails after each mess that is left: what proves nothing is no proof."""

    async def keep(c):
        pass

    async def main():
        for name, mess in MESS.items():
            async with aio.create_pool(url_with_pgtap, min_size=1, max_size=1, reset=keep) as pool:
                try:
                    assert await check(pool, mess) != [], name
                except aio.PostgresError:
                    pass  # it cannot even run

    run(main())
    run.reported.clear()  # transactions that were left open


def look(connection):
    """What of a session may differ, by one query."""
    return connection.execute(
        "SELECT current_user::text, session_user::text, current_setting('role'),"
        " ARRAY(SELECT name || setting FROM pg_settings WHERE source = 'session'"
        "  AND setting IS DISTINCT FROM reset_val AND name NOT LIKE 'transaction%'),"
        " coalesce(current_setting('gio.tenant', true), ''),"
        " ARRAY(SELECT relname::text FROM pg_class WHERE relnamespace = pg_my_temp_schema()),"
        " ARRAY(SELECT name FROM pg_prepared_statements WHERE from_sql),"
        " ARRAY(SELECT name FROM pg_cursors WHERE is_holdable),"
        " ARRAY(SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
        " ARRAY(SELECT pg_listening_channels())"
    ).fetchone()


def test_sync_code_finds_nothing_of_the_one_before(url):
    """The same without pgTAP, and without a loop."""
    with pg.Pool(url, min_size=1, max_size=1, kwargs={"autocommit": True}) as pool:
        with pool.connection() as c:
            fresh, pid = look(c), c.raw.get_server_pid()
        assert fresh[3:] == ([], "", [], [], [], [], [])
        for name, mess in [*MESS.items(), ("failed", FAILED)]:
            with pool.connection() as c:
                try:
                    c.execute(mess)
                    seen = look(c) != fresh or c.raw.is_in_transaction()
                    assert seen or name == "sequences", name
                except pg.DatabaseError:
                    c.rollback()
            with pool.connection() as c:
                assert (look(c), c.raw.get_server_pid()) == (fresh, pid), name
                with pytest.raises(pg.DatabaseError):
                    c.execute("SELECT lastval()")


def test_the_drivers_own_statements_are_kept(run, url):
    async def main():
        async with aio.create_pool(url, min_size=1, max_size=1) as pool:
            async with pool.acquire() as c:
                await c.fetchval("SELECT $1::int + 1", 1)
                cached = "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql"
                await c.fetchval(cached)
                assert await c.fetchval(cached) == 2
            async with pool.acquire() as c:
                assert await c.fetchval(cached) == 2
                await c.execute("PREPARE theirs AS SELECT 1")
            async with pool.acquire() as c:  # with PREPARE's they all went
                assert await c.fetchval(cached) == 1
                assert await c.fetchval("SELECT $1::int + 1", 1) == 2

    run(main())


def test_listeners_of_a_lease_get_the_lease(run, url):
    async def main():
        heard = []

        def listener(connection, *args):
            heard.append(connection)

        async with aio.create_pool(url, min_size=1, max_size=1) as pool:
            for _ in range(2):
                async with pool.acquire() as c:
                    await c.add_listener("one", listener)
                    c.add_log_listener(listener)
                    await c.execute("NOTIFY one; DO 'BEGIN RAISE NOTICE ''x''; END'")
                    while len(heard) < 2:
                        await c.execute("")
                    assert heard[0] is c and heard[1] is c
                    heard.clear()
                    await c.remove_listener("one", listener)
                    c.remove_log_listener(listener)

    run(main())


def test_a_warning_that_is_an_error_costs_no_place_of_the_pool(run, url):
    async def main():
        async with aio.create_pool(url, min_size=1, max_size=1) as pool:
            c = await pool.acquire()
            await c.add_listener("one", print)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(aio.InterfaceWarning):
                    await pool.release(c)
            assert await asyncio.wait_for(pool.fetchval("SELECT 1"), 30) == 1

    run(main())


def test_what_a_lease_has_left_in_python_is_dropped(run, url):
    async def main():
        heard = []
        async with aio.create_pool(url, min_size=1, max_size=1) as pool:
            async with pool.acquire() as c:
                await c.add_listener("one", lambda *args: heard.append(args))
                c.add_log_listener(lambda *args: heard.append(args))
                tx = c.transaction()
                await tx.start()
                with pytest.warns(
                    aio.InterfaceWarning, match="1 active (notification|log) listener"
                ):
                    await pool.release(c)
            async with pool.acquire() as c:
                await c.execute("NOTIFY one; DO 'BEGIN RAISE NOTICE ''x''; END'")
                async with c.transaction():
                    pass
            await asyncio.sleep(0.01)
        assert heard == []

    run(main())
    assert "an active transaction" in run.reported.pop()["message"]
