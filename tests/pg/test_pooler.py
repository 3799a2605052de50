"""Through PgBouncer, which gives a session to a client for a transaction, or a statement, only."""

import asyncio
import random

import pytest

from greenletio import pg
from greenletio.pg import aio

MODES = pytest.mark.parametrize("mode", ["transaction", "statement"])


@pytest.fixture
def many_types(dsn):
    with pg.connect(dsn) as c:
        c.execute("DROP TABLE IF EXISTS pooled; DROP TYPE IF EXISTS pooled_mood")
        c.execute("CREATE TYPE pooled_mood AS ENUM ('sad', 'happy')")
        c.execute("CREATE TABLE pooled (a int, b text, mood pooled_mood)")
    yield
    with pg.connect(dsn) as c:
        c.execute("DROP TABLE pooled; DROP TYPE pooled_mood")


@MODES
@pytest.mark.parametrize("options", [{"pooler": True}, {"statement_cache_size": 0}], ids=str)
def test_queries_of_clients_that_share_sessions(run, dsn, pgbouncer, many_types, mode, options):
    """More clients than sessions, each with statements of its own: none meets another's."""
    url = pgbouncer(dsn, mode, default_pool_size=3)

    async def client(seed):
        chance = random.Random(seed)
        c = await aio.connect(url, **options)
        pids = {await c.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.05)")}  # all at once
        for i in range(25):
            kind = chance.randrange(6)
            if kind == 0:
                assert await c.fetchval("SELECT $1::int + 1", i) == i + 1
            elif kind == 1:
                assert await c.fetchval("SELECT $1::text || 'x'", "y") == "yx"
            elif kind == 2:
                row = await c.fetchrow("SELECT $1::pooled_mood AS mood, $2::int[]", "sad", [i])
                assert tuple(row) == ("sad", [i])
            elif kind == 3:
                pids.add(await c.fetchval("SELECT pg_backend_pid()"))
            elif kind == 4:
                rows = [(i, f"{seed}", "happy"), (i + 1, None, None)]
                await c.executemany("INSERT INTO pooled VALUES ($1, $2, $3)", rows)
            else:
                st = await c.prepare("SELECT $1::float8")
                assert [await st.fetchval(n) for n in (1.5, 2.5)] == [1.5, 2.5]
        await c.close()
        return pids

    async def main():
        found = await asyncio.gather(*(client(seed) for seed in range(8)))
        assert len(set().union(*found)) > 1  # they did go from session to session
        c = await aio.connect(url, **options)
        names = "SELECT count(*) FROM pg_prepared_statements WHERE name <> ''"
        assert {await c.fetchval(names) for _ in range(5)} == {0}
        await c.close()

    run(main())


def test_a_session_of_ones_own(run, dsn, pgbouncer):
    """In session mode all is as it is without a pooler, and the next client finds nothing of it."""
    url = pgbouncer(dsn, "session", default_pool_size=1)

    async def main():
        heard = []
        pids = set()
        for i in range(3):
            c = await aio.connect(url)
            pids.add(await c.fetchval("SELECT pg_backend_pid()"))
            await c.add_listener("pooled", lambda *event: heard.append(event[-1]))
            await c.execute("CREATE TEMP TABLE mine (a int)")
            await c.copy_records_to_table("mine", records=[(n,) for n in range(10)])
            statement = await c.prepare("SELECT count(*) FROM mine WHERE a < $1")
            async with c.transaction():
                assert [row[0] async for row in c.cursor("TABLE mine")] == list(range(10))
                await c.execute("SELECT pg_notify('pooled', $1)", str(i))
            with pytest.raises(asyncio.TimeoutError):
                await c.fetchval("SELECT pg_sleep(60)", timeout=0.1)
            assert await statement.fetchval(4) == 4
            while len(heard) <= i:
                await c.fetchval("SELECT 1")
            await c.close()
        assert heard == ["0", "1", "2"]
        assert len(pids) == 1

    run(main())


def test_transactions_keep_their_session(run, dsn, pgbouncer, many_types):
    url = pgbouncer(dsn, "transaction", default_pool_size=2)

    async def client(c, n):
        for _ in range(10):
            async with c.transaction():
                pid = await c.fetchval("SELECT pg_backend_pid()")
                await c.execute("SET LOCAL search_path = pg_catalog")
                async with c.transaction():
                    assert await c.fetchval("SHOW search_path") == "pg_catalog"
                values = [row[0] async for row in c.cursor("SELECT generate_series(1, 60)")]
                assert values == list(range(1, 61))
                assert await c.fetchval("SELECT pg_backend_pid()") == pid
            assert await c.fetchval("SHOW search_path") != "pg_catalog"

    async def main():
        pool = aio.create_pool(url, min_size=4, max_size=4, pooler=True)
        async with pool:
            async with pool.acquire() as a, pool.acquire() as b, pool.acquire() as c:
                await asyncio.gather(client(a, 1), client(b, 2), client(c, 3))
                records = [(i, "x", "sad") for i in range(100)]
                assert await a.copy_records_to_table("pooled", records=records) == "COPY 100"
                with pytest.raises(aio.InterfaceError, match="session of one's own"):
                    await a.add_listener("x", print)
                with pytest.raises(asyncio.TimeoutError):
                    await b.fetchval("SELECT pg_sleep(60)", timeout=0.1)
                assert await b.fetchval("SELECT 1") == 1
                await c.execute("BEGIN")  # left open: the pool ends it, and sends nothing else
                assert await c.fetchval("SELECT 1") == 1
            for _ in range(20):
                async with pool.acquire() as c:
                    assert not c.is_in_transaction()
                    assert await c.fetchval("SELECT count(*) FROM pooled") == 100
            assert pool.get_stats()["returns_bad"] == 0

    run(main())
    assert "an active transaction" in run.reported.pop()["message"]


def test_sync_code_through_a_pooler(dsn, pgbouncer, many_types):
    url = pgbouncer(dsn, "transaction", default_pool_size=1)
    with pg.connect(url, pooler=True) as a, pg.connect(url, pooler=True) as b:
        for c in (a, b, a, b):
            query = "INSERT INTO pooled VALUES (%s, %s, %s) RETURNING mood"
            assert c.execute(query, (1, "x", "sad")).fetchone() == ("sad",)
            c.commit()
    kwargs = {"pooler": True, "autocommit": True}
    with pg.Pool(url, min_size=0, max_size=2, kwargs=kwargs) as pool:
        for _ in range(5):
            with pool.connection() as c:
                assert c.execute("SELECT count(*) FROM pooled WHERE a = %s", (1,)).fetchone() == (
                    4,
                )


def test_a_schema_that_changes_is_seen(run, dsn, pgbouncer, many_types):
    url = pgbouncer(dsn, "transaction")

    async def main():
        c = await aio.connect(url, pooler=True)
        assert await c.fetch("SELECT * FROM pooled") == []
        await c.execute("ALTER TABLE pooled ADD d int; INSERT INTO pooled VALUES (1)")
        try:
            await c.fetch("SELECT * FROM pooled")
        except aio.InterfaceError as exc:  # once: its columns were known to be others
            assert "have changed" in str(exc)
        assert len((await c.fetch("SELECT * FROM pooled"))[0]) == 4
        await c.execute("ALTER TABLE pooled ALTER a TYPE text, DROP d")
        with pytest.raises(aio.InterfaceError, match="have changed"):
            [row async for row in c.stream("SELECT * FROM pooled")]
        assert [row async for row in c.stream("SELECT * FROM pooled")] == [("1", None, None)]
        await c.execute("ALTER TABLE pooled ALTER a TYPE int USING a::int")
        with pytest.raises(aio.InterfaceError, match="have changed"):
            await c.fetch_arrow("SELECT * FROM pooled")
        assert (await c.fetch_arrow("SELECT * FROM pooled")).num_rows == 1
        await c.close()

    run(main())


def test_fewer_descriptions_are_kept_than_queries_are_made(run, dsn, pgbouncer):
    url = pgbouncer(dsn, "transaction")

    async def main():
        c = await aio.connect(url, pooler=True, statement_cache_size=3)
        for i in list(range(10)) * 2:
            assert await c.fetchval(f"SELECT $1::int + {i}", 1) == i + 1
        assert len(c._cache) <= 3
        await c.close()

    run(main())
