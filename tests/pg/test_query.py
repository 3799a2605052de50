"""Queries by tasks: what they give, the cache of statements, turns, errors."""

import asyncio
import io
import itertools
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from urllib.parse import urlsplit

import pytest
from fix_progress import Ticker
from fix_recorded import Gaps, recorded

import greenletio
from greenletio import async_, await_, pg
from greenletio.pg import aio, errors


def test_what_the_methods_give(run, connect):
    async def main():
        async with connect() as c:
            assert await c.execute("CREATE TEMP TABLE t (a int, b text)") == "CREATE TABLE"
            assert await c.execute("INSERT INTO t VALUES ($1, $2)", 1, "one") == "INSERT 0 1"
            assert await c.execute(
                "INSERT INTO t VALUES (2, 'two'); DELETE FROM t WHERE a = 2"
            ) == ("DELETE 1")
            assert await c.execute("") == ""
            (row,) = await c.fetch("SELECT * FROM t")
            assert isinstance(row, aio.Record)
            assert dict(row) == {"a": 1, "b": "one"}
            assert await c.fetchrow("SELECT * FROM t WHERE a = $1", 5) is None
            assert await c.fetchval("SELECT b, a FROM t", column=1) == 1
            assert await c.fetchval("SELECT a FROM t WHERE false") is None
            assert await c.fetch("DELETE FROM t") == []
            assert await c.fetch("SELECT FROM generate_series(1, 3)") == [(), (), ()]

    run(main())


def test_a_query_that_is_dropped_or_given_as_a_task_is_no_coroutine_but_works_as_one(run, connect):
    async def main():
        async with connect() as c:
            c.fetch("SELECT 1/0")  # never awaited: never run
            task = asyncio.create_task(c.fetchval("SELECT 1"))
            assert await asyncio.gather(task, c.fetchval("SELECT 2")) == [1, 2]
            op = c.fetchval("SELECT 3")
            assert (await op, await op) == (3, 3)

    run(main())


def test_the_loop_goes_on(run, connect):
    async def main():
        async with connect() as c, Ticker():
            await c.fetch("SELECT pg_sleep(0.3)")

    run(main())


def test_tasks_that_share_a_connection_take_turns(run, connect):
    async def main():
        async with connect() as c:
            done = []

            async def query(i):
                assert await c.fetchval("SELECT $1::int FROM pg_sleep(0.001)", i) == i
                done.append(i)

            await asyncio.gather(*(query(i) for i in range(50)))
            assert done == list(range(50))

    run(main())


def test_statements_are_prepared_once_and_the_oldest_leaves(run, connect):
    async def main():
        async with connect(statement_cache_size=3) as c:
            for _ in range(3):
                for i in range(5):
                    assert await c.fetchval(f"SELECT {i}") == i
            await c.fetchval("SELECT 4")
            count = "SELECT count(*) FROM pg_prepared_statements"
            assert await c.fetchval(count) == 3
            assert len(c._cache) == 3
            assert await c.fetchval("SELECT 4 -- " + "x" * 20000) == 4  # too long to be kept
            assert len(c._cache) == 3
        async with connect(statement_cache_size=0) as c:
            assert await c.fetchval("SELECT $1::int", 7) == 7
            assert await c.fetchval(count) == 0

    run(main())


def test_a_plan_that_a_change_of_the_schema_made_useless(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t AS SELECT 1 AS a")
            assert await c.fetch("SELECT * FROM t") == [(1,)]
            await c.execute("ALTER TABLE t ADD COLUMN b numeric DEFAULT 2")
            assert await c.fetch("SELECT * FROM t") == [(1, Decimal(2))]
            await c.execute("DEALLOCATE ALL")
            assert await c.fetch("SELECT * FROM t") == [(1, Decimal(2))]

    run(main())


def test_a_change_of_its_own_inside_a_transaction(run, connect):
    """Where the server's word for it would end the transaction."""

    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t AS SELECT 1 AS a")
            assert await c.fetch("SELECT * FROM t") == [(1,)]
            async with c.transaction():
                await c.execute("ALTER TABLE t ADD COLUMN b int DEFAULT 2")
                assert await c.fetch("SELECT * FROM t") == [(1, 2)]
                with pytest.raises(LookupError):
                    async with c.transaction():
                        await c.execute("DROP TABLE t")
                        await c.execute("CREATE TEMP TABLE t AS SELECT 'x' AS a")
                        assert await c.fetch("SELECT * FROM t") == [("x",)]
                        raise LookupError
                assert await c.fetch("SELECT * FROM t") == [(1, 2)]
                await c.execute("DEALLOCATE ALL")
                assert await c.fetch("SELECT * FROM t") == [(1, 2)]
            await c.execute("DISCARD ALL")
            async with c.transaction():
                assert await c.fetchval("SELECT to_regclass('t')") is None
            count = "SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'FROM t$'"
            assert await c.fetchval(count) == 0  # each has left as another came

    run(main())


def test_what_deallocate_all_has_taken_leaves_the_cache_without_a_word(run, connect):
    """Where that would be an error, which ends the transaction."""

    async def main():
        async with connect(statement_cache_size=2) as c:
            for i in range(2):
                await c.fetchval(f"SELECT {i}")
            await c.execute("DEALLOCATE ALL")
            async with c.transaction():
                for i in range(2, 6):
                    assert await c.fetchval(f"SELECT {i}") == i

    run(main())


def test_an_answer_without_a_result_is_an_error(run, dsn):
    """No server of PostgreSQL's leaves out how it went."""

    async def rows_of(stream):
        return [row async for row in stream]

    asked = {
        "records": lambda c: c.fetch("SELECT 1"),
        "status": lambda c: c.execute("SET work_mem = '1MB'"),
        "tuples": lambda c: c._op("query", "tuples", "SELECT 1", ()),
        "script": lambda c: c._op("script", "tuples", "SET work_mem = '1MB'"),
        "stream": lambda c: rows_of(c.stream("SELECT 1")),
        "columns": lambda c: c.fetch_arrow("SELECT 1"),
        "copy": lambda c: c.copy_from_query("SELECT 1", output=io.BytesIO()),
    }

    async def main():
        gaps = Gaps()
        async with recorded(dsn, gaps) as (url, _):
            for ask in asked.values():
                c = await aio.connect(url)
                gaps.kinds = b"C"  # CommandComplete
                with pytest.raises(errors.InternalError, match="without a result"):
                    await ask(c)
                gaps.kinds = b""
                c.terminate()
            sync = await async_(pg.connect)(url)
            gaps.kinds = b"C"
            with pytest.raises(errors.InternalError, match="without a result"):
                await async_(sync.execute)("SET work_mem = '1MB'")
            sync.raw.terminate()

    run(main())


def test_a_change_by_another_inside_a_transaction(run, connect):
    async def main():
        async with connect() as c, connect() as other:
            await c.execute("CREATE TABLE changing AS SELECT 1 AS a")
            try:
                assert await c.fetch("SELECT * FROM changing") == [(1,)]
                await other.execute("ALTER TABLE changing ADD COLUMN b int DEFAULT 2")
                async with c.transaction():
                    with pytest.raises(errors.StalePlan):
                        async with c.transaction():
                            await c.fetch("SELECT * FROM changing")
                    assert await c.fetch("SELECT * FROM changing") == [(1, 2)]
            finally:
                await c.execute("DROP TABLE changing")

    run(main())


def test_prepared_statements(run, connect):
    async def main():
        async with connect() as c:
            statement = await c.prepare("SELECT $1::int + 1 AS n, $2::text AS t")
            assert [p.name for p in statement.get_parameters()] == ["int4", "text"]
            assert [(a.name, a.type.name) for a in statement.get_attributes()] == [
                ("n", "int4"),
                ("t", "text"),
            ]
            assert await statement.fetchval(1, "x") == 2
            assert await statement.fetchrow(2, "y") == (3, "y")
            await c.execute("DEALLOCATE ALL")
            assert await statement.fetch(3, "z") == [(4, "z")]
            assert "Plan" in (await statement.explain(1, "x"))[0]
            with pytest.raises(errors.UndefinedTable):
                await c.prepare("SELECT * FROM there_is_none")

    run(main())


def test_arguments_that_do_not_fit(run, connect):
    async def main():
        async with connect() as c:
            with pytest.raises(errors.ArgumentsMismatch, match="expects 1 argument for this query"):
                await c.fetch("SELECT $1::int")
            with pytest.raises(errors.DataError, match=r"\$2: 'x' .*integer is required") as caught:
                await c.fetch("SELECT $1::int, $2::int", 1, "x")
            assert isinstance(caught.value.__cause__, TypeError)
            with pytest.raises(errors.DataError, match="value out of int16 range"):
                await c.fetch("SELECT $1::int2", 1 << 15)
            with pytest.raises(TypeError, match="unexpected keyword argument 'colum'"):
                await c.fetchval("SELECT 1", colum=1)
            with pytest.raises(IndexError):
                await c.fetchval("SELECT 1", column=1)

    run(main())


def test_copy_where_a_query_is_expected_is_refused_and_the_connection_usable(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")
            with pytest.raises(errors.QueryCanceled, match="copy methods"):
                await c.execute("COPY t FROM STDIN")
            with pytest.raises(errors.NotSupportedError, match="copy methods"):
                await c.execute("COPY (SELECT generate_series(1, 100000)) TO STDOUT")

    run(main())


def test_large_parameters_and_results(run, connect):
    async def main():
        async with connect() as c, Ticker():
            data = bytes(range(256)) * 40_000
            assert await c.fetchval("SELECT $1::bytea", data) == data
            rows = await c.fetch("SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i")
            assert [row[0] for row in rows] == list(range(1, 20001))

    run(main())


def test_transactions_and_savepoints(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")
            async with c.transaction(isolation="serializable", readonly=False, deferrable=True):
                assert await c.fetchval("SHOW transaction_isolation") == "serializable"
                await c.execute("INSERT INTO t VALUES (1)")
                with pytest.raises(errors.DivisionByZero):
                    async with c.transaction():
                        await c.execute("INSERT INTO t VALUES (2)")
                        await c.execute("SELECT 1/0")
                assert c.is_in_transaction()
            assert not c.is_in_transaction()
            assert await c.fetch("SELECT * FROM t") == [(1,)]
            transaction = c.transaction()
            with pytest.raises(errors.InterfaceError):
                await transaction.commit()
            await transaction.start()
            await c.execute("DELETE FROM t")
            await transaction.rollback()
            assert await c.fetchval("SELECT count(*) FROM t") == 1
            await c.execute("BEGIN")
            with pytest.raises(errors.InterfaceError, match="manually started"):
                await c.transaction().start()
            await c.execute("ROLLBACK")

    run(main())


def test_executemany_sends_and_reads_side_by_side(run, connect):
    async def main():
        async with connect() as c, Ticker():
            await c.execute("CREATE TEMP TABLE t (a int, b text)")
            answer = "x" * 2000  # more than fits the sockets' buffers, both ways

            def rows():
                for i in range(3000):
                    yield i, answer

            await c.executemany("INSERT INTO t VALUES ($1, $2) RETURNING *", rows())
            assert await c.fetch("SELECT count(*), sum(length(b)) FROM t") == [(3000, 6000000)]
            await c.executemany("DELETE FROM t WHERE a = $1", [])

    run(main())


def test_executemany_that_fails_undoes_all(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")

            def rows(bad):
                for i in range(2000):
                    yield (i,)
                if bad is not None:
                    yield bad
                raise ZeroDivisionError

            insert = "INSERT INTO t VALUES ($1)"
            with pytest.raises(ZeroDivisionError):
                await c.executemany(insert, rows(None))
            with pytest.raises(errors.DataError):
                await c.executemany(insert, rows(("x",)))
            with pytest.raises(errors.ArgumentsMismatch):
                await c.executemany(insert, rows(()))
            with pytest.raises(TypeError):
                await c.executemany(insert, 5)

            def use_connection():
                yield (1,)
                c.execute("SELECT 1").run()

            with pytest.raises(RuntimeError):  # WouldBlockError
                await c.executemany(insert, use_connection())

            def wait():
                yield (1,)
                greenletio.sleep(0.001)

            @async_  # where a wait is possible: others would meet a connection that is stuck
            def in_a_greenlet():
                await_(c.executemany(insert, [(1,)]))  # its statement is prepared from now on
                with pytest.raises(RuntimeError):  # WouldBlockError
                    await_(c.executemany(insert, wait()))
                await_(c.execute("DELETE FROM t"))

            await in_a_greenlet()
            assert await c.fetchval("SELECT count(*) FROM t") == 0
            async with c.transaction():
                await c.executemany(insert, [(1,), (2,)])
                with pytest.raises(errors.DataError):
                    async with c.transaction():
                        await c.executemany(insert, [(3,), ("x",)])
            assert await c.fetch("SELECT a FROM t") == [(1,), (2,)]

    run(main())


def test_executemany_undone_by_a_server_that_speaks_another_language(run, dsn, tmp_path):
    """How it is undone is an error of the server's, which is told from others by no word of it."""
    there, served = urlsplit(dsn), []

    async def forward(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data.replace(b'"the"', b"'the'"))
        writer.close()

    async def serve(reader, writer):
        served.append(asyncio.current_task())
        up = await asyncio.open_connection(there.hostname, there.port or 5432)
        await asyncio.gather(forward(reader, up[1]), forward(up[0], writer))

    def rows():
        yield (1,)
        raise ZeroDivisionError

    async def main():
        server = await asyncio.start_unix_server(serve, tmp_path / ".s.PGSQL.5432")
        c = await aio.connect(dsn, host=str(tmp_path), port=5432)
        await c.execute("CREATE TEMP TABLE t (a int)")
        with pytest.raises(ZeroDivisionError):
            await c.executemany("INSERT INTO t VALUES ($1)", rows())
        assert await c.fetchval("SELECT count(*) FROM t") == 0
        await c.close()
        server.close()
        await asyncio.gather(*served)

    run(main())


def test_executemany_that_is_cancelled_undoes_all(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")

            def rows():
                for i in range(10**9):
                    yield (i % 2**31,)

            task = asyncio.create_task(c.executemany("INSERT INTO t VALUES ($1)", rows()))
            async with Ticker():
                await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await c.fetchval("SELECT count(*) FROM t") == 0
            with pytest.raises(asyncio.TimeoutError):
                await c.executemany("INSERT INTO t VALUES ($1)", rows(), timeout=0.05)
            assert await c.fetchval("SELECT count(*) FROM t") == 0

    run(main())


def test_executemany_is_all_or_nothing(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int PRIMARY KEY)")
            await c.executemany("INSERT INTO t VALUES ($1)", [(i,) for i in range(10)])
            with pytest.raises(errors.UniqueViolation):
                await c.executemany("INSERT INTO t VALUES ($1)", [(20,), (1,), (21,)])
            assert await c.fetchval("SELECT count(*) FROM t") == 10

    run(main())


def test_notifications_and_notices(run, connect):
    async def main():
        heard = []
        async with connect() as c, connect() as other:
            await c.add_listener("a channel", lambda *args: heard.append(args))
            await other.execute("NOTIFY \"a channel\", 'one'")
            while not heard:
                await asyncio.sleep(0.001)
            assert heard == [(c, other.get_server_pid(), "a channel", "one")]
            notices = []
            c.add_log_listener(lambda _, diagnostic: notices.append(diagnostic.message_primary))
            await c.execute("DO $$ BEGIN RAISE NOTICE 'look'; END $$")
            await asyncio.sleep(0)
            assert notices == ["look"]
            await c.reset()
            assert await c.fetch("SELECT pg_listening_channels()") == []

    run(main())


@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_listener_that_is_added_twice_at_once(run, connect, cancelled):
    """One of the two is cancelled: the other has added it."""

    async def main():
        heard = asyncio.Queue()

        def listener(*args):
            heard.put_nowait(args[-1])

        async with connect() as c, connect() as other:
            adding = [asyncio.ensure_future(c.add_listener("twice", listener)) for _ in range(2)]
            await asyncio.sleep(0)
            adding[cancelled].cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding[cancelled]
            await adding[1 - cancelled]
            await other.execute("NOTIFY twice, 'one'")
            assert await asyncio.wait_for(heard.get(), 30) == "one"
            await c.remove_listener("twice", listener)
            assert await c.fetch("SELECT pg_listening_channels()") == []

    run(main())


def test_a_notification_that_comes_with_the_answer_to_listen(run, connect, sync):
    sync.autocommit = True

    def ask(sql, *params):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(sync.execute, sql, params).result()

    async def main():
        heard = []

        def listener(*args):
            heard.append(args[-1])

        async with connect(ssl="disable") as c:
            pid = c.get_server_pid()
            await c.add_listener("early", listener)  # its statement is prepared from now on
            await c.remove_listener("early", listener)
            listening = asyncio.create_task(c.add_listener("early", listener))
            await asyncio.sleep(0)  # it is sent
            state = "query ~ '^LISTEN' AND state = 'idle' FROM pg_stat_activity WHERE pid = %s"
            while not ask(f"SELECT {state}", pid).fetchone()[0]:  # the loop stands still
                pass
            ask("NOTIFY early, 'one'")
            with socket.socket(fileno=os.dup(c._fd)) as peer:
                while b"early" not in peer.recv(1000, socket.MSG_PEEK):
                    pass
            await listening
            await c.fetchval("SELECT 1")
            assert heard == ["one"]

    run(main())


def test_listeners_that_are_added_in_vain_leave_nothing_behind(run, dsn, aflat):
    async def main():
        c = await aio.connect(dsn, shared=True)
        channels = map("channel {}".format, itertools.count())

        async def one():
            with pytest.raises(errors.NotSupportedError):
                await c.add_listener(next(channels), print)

        await aflat(one)
        await c.close()

    run(main())


def test_a_listener_whose_listen_fails_is_none(run, connect):
    async def main():
        heard = []
        async with connect() as c, connect() as other:
            with pytest.raises(errors.InFailedSqlTransaction):
                async with c.transaction():
                    with pytest.raises(errors.DivisionByZero):
                        await c.fetchval("SELECT 1/0")
                    await c.add_listener("failing", lambda *args: heard.append(args))
            second = [lambda *args: heard.append(1), lambda *args: heard.append(2)]
            await asyncio.gather(*[c.add_listener("failing", one) for one in second])
            await other.execute("NOTIFY failing")
            while len(heard) < 2:
                await asyncio.sleep(0.001)
            assert heard == [1, 2]
            for one in second:
                await c.remove_listener("failing", one)
            assert await c.fetch("SELECT pg_listening_channels()") == []

    run(main())


def test_codecs_of_ones_own(run, connect):
    async def main():
        async with connect() as c:
            query = "SELECT $1::jsonb, ARRAY[$1::jsonb]"
            assert await c.fetchrow(query, '{"a": 1}') == ('{"a": 1}', ['{"a": 1}'])
            await c.set_type_codec(
                "jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads
            )
            assert await c.fetchrow(query, {"a": 1}) == ({"a": 1}, [{"a": 1}])
            await c.reset_type_codec("jsonb", schema="pg_catalog")
            assert await c.fetchrow(query, '{"a": 1}') == ('{"a": 1}', ['{"a": 1}'])
            await c.set_type_codec(
                "int4",
                schema="pg_catalog",
                encoder=lambda n: str(n - 1),
                decoder=lambda s: int(s) + 1,
            )
            assert await c.fetchrow("SELECT $1::int4, 1.5::numeric", 5) == (5, Decimal("1.5"))
            await c.set_type_codec(
                "integer",
                schema="pg_catalog",
                encoder=lambda n: n.to_bytes(4, "big"),
                decoder=lambda data: data,
                format="binary",
            )
            assert await c.fetchval("SELECT $1::int4", 258) == b"\0\0\1\2"
            with pytest.raises(ValueError, match="unknown type"):
                await c.set_type_codec("nothing", encoder=str, decoder=str)
            await c.reload_schema_state()
            assert await c.fetchval("SELECT $1::int4", 258) == b"\0\0\1\2"
            await c.reset_type_codec("int4", schema="pg_catalog")
            assert await c.fetchval("SELECT $1::int4", 258) == 258

    run(main())


def test_cursors(run, connect):
    async def main():
        async with connect() as c:
            query = "SELECT i FROM generate_series(1, $1::int) i"
            async with c.transaction():
                seen = [row["i"] async for row in c.cursor(query, 120, prefetch=50)]
                assert seen == list(range(1, 121))
                cursor = await c.cursor(query, 10)
                other = await c.cursor("SELECT 'x' AS t")
                assert await cursor.fetch(2) == [(1,), (2,)]
                assert await cursor.forward(3) == 3
                assert await other.fetchrow() == ("x",)
                assert await cursor.fetchrow() == (6,)
                assert await cursor.fetch(100) == [(7,), (8,), (9,), (10,)]
                assert (await cursor.fetchrow(), await cursor.forward(1)) == (None, 0)
                await cursor.close()
                statement = await c.prepare("SELECT $1::text AS t")
                assert [row async for row in statement.cursor("y")] == [("y",)]
                with pytest.raises(errors.DataError):
                    await c.cursor(query, "x")
                with pytest.raises(errors.InterfaceError):
                    await other.fetch(0)
            with pytest.raises(errors.NoActiveSqlTransaction, match="outside of a transaction"):
                await c.cursor(query, 1)

    run(main())


def test_cursors_leave_the_cache_to_others(run, connect):
    """Each has a name of its own, and so texts that are of no use to anybody after it."""

    async def main():
        async with connect() as c:
            assert await c.fetchval("SELECT 'here before'") == "here before"
            for _ in range(30):
                async with c.transaction():
                    for i in range(3):
                        rows = [row[0] async for row in c.cursor("SELECT generate_series(1, 60)")]
                        assert len(rows) == 60
                        cursor = await c.cursor("SELECT generate_series(1, 60)")
                        assert len(await cursor.fetch(5 + i)) == 5 + i
            texts = [str(key).split()[0] for key in c._cache]
            assert "SELECT 'here before'" in c._cache
            assert (texts.count("DECLARE"), texts.count("FETCH") <= 9) == (0, True)
            there = await c.fetchval("SELECT count(*) FROM pg_prepared_statements")
            assert there == len(c._cache)

    run(main())
