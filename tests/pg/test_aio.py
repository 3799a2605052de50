"""What asyncpg's users expect of greenletio.pg.aio, beyond queries."""

import asyncio
import ssl
from decimal import Decimal

import pytest

from greenletio.pg import aio, errors


def test_queries_are_logged_while_there_is_a_logger(run, connect):
    async def main():
        async with connect() as c:
            heard, other = [], []

            async def later(record):
                other.append(record.query)

            statement = await c.prepare("SELECT $1::int")
            with c.query_logger(heard.append), c.query_logger(later):
                await c.execute("SELECT 1")
                assert await c.fetchval("SELECT $1::int", 5) == 5
                assert await statement.fetchrow(6) == (6,)
                with pytest.raises(errors.UndefinedColumn):
                    await c.fetch("SELECT x", timeout=9)
                await asyncio.sleep(0)
            await c.execute("SELECT 2")
            await asyncio.sleep(0)
            queries = ["SELECT 1", "SELECT $1::int", "SELECT $1::int", "SELECT x"]
            assert [record.query for record in heard] == other == queries
            assert [record.args for record in heard] == [(), (5,), (6,), ()]
            assert isinstance(heard[3].exception, errors.UndefinedColumn) and heard[3].timeout == 9
            assert heard[0].exception is None and heard[0].elapsed > 0
            assert heard[0].conn_params["dbname"] and "password" not in heard[0].conn_params
            assert "fetch" not in vars(c)

    run(main())


def test_statements_that_are_dropped_inside_transactions_have_an_end_there(run, connect):
    async def main():
        async with connect() as c:
            async with c.transaction():
                for i in range(100):
                    if i == 30:
                        await c.execute("DEALLOCATE ALL")
                    assert await (await c.prepare(f"SELECT {i}")).fetchval() == i
                held = await c.fetchval("SELECT count(*) FROM pg_prepared_statements")
                assert held < 30

    run(main())


def test_statements_have_names_a_status_and_an_end(run, connect):
    async def main():
        async with connect() as c:
            held = "SELECT count(*)::int FROM pg_prepared_statements WHERE name = $1"
            statement = await c.prepare("SELECT generate_series(1, 3) AS n", name="mine")
            assert (statement.get_name(), statement.get_statusmsg()) == ("mine", None)
            assert len(await statement.fetch()) == 3 and statement.get_statusmsg() == "SELECT 3"
            assert await statement.fetchval(column="n") == 1
            with pytest.raises(KeyError):
                await statement.fetchval(column="m")
            twice = await c.prepare("SELECT 4 AS a, 5 AS a")
            assert await twice.fetchval(column="a") == 5 == (await twice.fetchrow())["a"]
            assert await c.fetchval("SELECT 4 AS a, 5 AS b", column="b") == 5
            with pytest.raises(KeyError):
                await c.fetchval("SELECT 4 AS a", column="b")
            with pytest.raises(errors.DuplicatePreparedStatement, match="mine") as caught:
                await c.prepare("SELECT 1", name="mine")
            assert "statement_cache_size=0" in caught.value.hint
            await statement.close()
            with pytest.raises(errors.InterfaceError, match="is closed"):
                await statement.fetch()
            dropped = await c.prepare("SELECT 2")
            name = dropped.get_name()
            assert await c.fetchval(held, name) == 1
            del dropped
            again = await c.prepare("SELECT 3")
            assert await c.fetchval(held, name) == 0
            assert await again.fetchval() == 3
            dropped = await c.prepare("SELECT 4")
            await c.execute("DEALLOCATE ALL")
            del dropped
            again = await c.prepare("SELECT 5")
            assert await again.fetchval() == 5
            async with c.transaction():
                dropped = await c.prepare("SELECT 6")
                await c.execute("DEALLOCATE ALL")
                del dropped
                assert await (await c.prepare("SELECT 7")).fetchval() == 7
            with pytest.raises(ZeroDivisionError):
                async with c.transaction():
                    statement = await c.prepare("SELECT 8", name="mine")
                    with pytest.raises(errors.DivisionByZero):
                        await c.fetch("SELECT 1 / 0")
                    await statement.close()  # at the server later
                    raise ZeroDivisionError
            assert await (await c.prepare("SELECT 9", name="mine")).fetchval() == 9
            with pytest.raises(errors.InterfaceError, match="bytes"):
                await c.prepare("SELECT 1", name="x" * 64)
            rows = await c.fetchmany("SELECT $1::int AS i", [(1,), (2,)])
            assert rows == [(1,), (2,)]

    run(main())


def test_a_cached_statement_lives_as_long_as_it_may(run, connect):
    async def main():
        async with connect(max_cached_statement_lifetime=0.05) as c:
            names = "SELECT name FROM pg_prepared_statements WHERE statement = 'SELECT 11'"
            await c.fetchval("SELECT 11")
            first = await c.fetchval(names)
            await asyncio.sleep(0.06)
            await c.fetchval("SELECT 11")
            await c.fetchval("SELECT 12")  # the old one goes when there is a new one
            assert first not in [row[0] for row in await c.fetch(names + " AND true")]

    run(main())


def test_codecs_of_tuples_and_of_other_types(run, connect):
    async def main():
        async with connect() as c:
            await c.set_type_codec(
                "interval", schema="pg_catalog", encoder=tuple, decoder=list, format="tuple"
            )
            assert await c.fetchval("SELECT $1::interval", (14, 3, 5)) == [14, 3, 5]
            await c.execute("CREATE TYPE pg_temp.complex AS (r float, i float)")
            own = "SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()"
            schema = await c.fetchval(own)
            complex_ = {
                "encoder": lambda x: (x.real, x.imag),
                "decoder": lambda t: complex(*t),
            }
            with pytest.raises(errors.NotSupportedError, match="tuple-format"):
                await c.set_type_codec("complex", schema=schema, **complex_)
            await c.set_type_codec("complex", schema=schema, format="tuple", **complex_)
            assert await c.fetchval("SELECT $1::complex[]", [1 + 2j]) == [1 + 2j]
            await c.execute("CREATE TYPE pg_temp.pair AS (a complex, b int)")
            assert await c.fetchval("SELECT $1::pair", (3j, 1)) == (3j, 1)
            await c.execute("CREATE DOMAIN pg_temp.amount AS numeric")
            await c.set_builtin_type_codec("amount", schema=schema, codec_name="decimal")
            assert await c.fetchval("SELECT $1::amount", 44) == Decimal(44)
            for name, where, match in (
                ("nothing", "public", "unknown type"),
                ("_int4", "pg_catalog", "neither a scalar"),
                ("amount", schema, "custom codecs on domain types are not supported"),
            ):
                with pytest.raises((errors.Error, ValueError), match=match):
                    await c.set_type_codec(name, schema=where, encoder=str, decoder=str)

    run(main())


def test_a_type_that_was_altered_is_looked_up_again(run, connect):
    async def main():
        async with connect() as c, connect() as other:
            await c.execute("CREATE TYPE altered AS (x int, y int)")
            try:
                query = "SELECT (1, 2)::altered AS a"
                table = "SELECT a FROM (VALUES ((NULL::altered))) v(a)"
                assert await c.fetchval(query) == (1, 2)
                await c.execute("CREATE TABLE altered_rows AS SELECT ROW(1, 2)::altered AS a")
                rows = "SELECT a FROM altered_rows"
                assert await c.fetchval(rows) == (1, 2) == await other.fetchval(rows)
                await c.execute("ALTER TYPE altered ADD ATTRIBUTE z text")
                for each in (c, other):
                    with pytest.raises(errors.OutdatedTypes, match="unexpected number of attrib"):
                        await each.fetchval(rows)
                    assert await each.fetchval(rows) == (1, 2, None)
                assert await c.fetchval(table) is None
            finally:
                await c.execute("DROP TABLE IF EXISTS altered_rows; DROP TYPE altered")

    run(main())


def test_settings_messages_and_the_end(run, connect, dsn):
    async def main():
        url = f"{dsn}?application_name=app&search_path=pg_temp%2C%20public"
        c = await aio.connect(url, server_settings={"work_mem": "7MB"})
        assert await c.fetchval("SHOW search_path") == "pg_temp, public"
        assert await c.fetchval("SHOW work_mem") == "7MB"
        settings = c.get_settings()
        assert (settings.application_name, settings.client_encoding) == ("app", "UTF8")
        with pytest.raises(AttributeError, match="SHOW"):
            _ = settings.work_mem
        heard = []

        def once(connection, message):
            connection.remove_log_listener(once)  # which takes nothing from the other one

        c.add_log_listener(once)
        c.add_log_listener(lambda connection, message: heard.append(message))
        await c.execute("DO $$ BEGIN RAISE WARNING 'so' USING ERRCODE = '01004'; END $$")
        assert isinstance(heard[0], aio.exceptions.StringDataRightTruncation)  # at once
        assert heard[0].as_dict()["message"] == "so" and heard[0].sqlstate == "01004"
        c.add_termination_listener(lambda connection: heard.append("end"))
        await c.close()
        await asyncio.sleep(0)
        assert heard[-1] == "end"
        for refused in (
            lambda: c.transaction(),
            lambda: c.stream("SELECT 1"),
        ):
            with pytest.raises(errors.InterfaceError, match="closed"):
                refused()
        for bad in (True, -1, "a", 0):
            with pytest.raises(ValueError, match="command_timeout"):
                await aio.connect(dsn, command_timeout=bad)
        with pytest.raises(TypeError, match="sslmode"):
            await aio.connect(dsn, ssl=5)
        context = ssl.create_default_context()
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        with pytest.raises(errors.NotSupportedError, match="sslcrl"):
            await aio.connect(dsn, ssl=context)

    run(main())
