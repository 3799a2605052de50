"""Codecs of the user's: for all of the process, and what they do not concern."""

import asyncio
import enum
import json
import socket
from decimal import Decimal
from urllib.parse import urlsplit

import pytest
from fix_postgres import TemporaryDatabase

from greenletio import pg
from greenletio.pg import _process, _types, aio


class Mood(enum.Enum):
    SAD = "sad"
    HAPPY = "happy"


@pytest.fixture
def process(monkeypatch):
    """What is set is forgotten after the test."""
    monkeypatch.setattr(_process, "_current", _process.Process())


@pytest.fixture
def own(pg_url, process):
    """The URL of a database with types of its own."""
    with TemporaryDatabase(pg_url) as database:
        with pg.connect(database.url, autocommit=True) as c:
            c.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
            c.execute("CREATE TYPE pair AS (first int, second mood)")
            c.execute("CREATE TYPE pairs AS (one pair, more pair[])")
            c.execute("CREATE DOMAIN short AS varchar(3)")
        yield database.url


MOOD = {"encoder": lambda mood: mood.value, "decoder": Mood}
QUERY = "SELECT $1::mood, ARRAY[$1::mood], (1, $1)::pair"


def test_they_hold_for_both_faces(run, own):
    def sync(connection):
        row = connection.execute(QUERY, (Mood.SAD,)).fetchone()
        assert row == (Mood.SAD, [Mood.SAD], (1, Mood.SAD))
        assert connection.execute("SELECT 2.50::numeric, '[1]'::json").fetchone() == ("2.50", [1])

    async def main():
        c = await aio.connect(own)
        row = await c.fetchrow(QUERY, Mood.HAPPY)
        assert row == (Mood.HAPPY, [Mood.HAPPY], (1, Mood.HAPPY))
        assert await c.fetchrow("SELECT $1::numeric, ARRAY[$1]", "1.5") == ("1.5", ["1.5"])
        await c.copy_records_to_table("kept", records=[(Mood.SAD,)])
        assert await c.fetchrow("SELECT * FROM kept") == (Mood.SAD,)
        await c.reload_schema_state()
        assert await c.fetchval("SELECT 'sad'::mood") is Mood.SAD
        await c.close()
        async with aio.create_pool(own, min_size=0, shared=1) as pool:
            assert await pool.fetchval("SELECT 'sad'::mood") is Mood.SAD
            async with pool.acquire() as lease:
                assert await lease.fetchval("SELECT 'sad'::mood") is Mood.SAD

    with pg.connect(own, autocommit=True) as before:
        before.execute("CREATE TABLE kept (mood mood)")
        assert before.execute("SELECT 'sad'::mood, 1.5").fetchone() == ("sad", Decimal("1.5"))
        pg.set_type_codec("mood", **MOOD)
        aio.set_type_codec("decimal", schema="pg_catalog", encoder=str, decoder=str)
        run(main())
        with pg.connect(own) as c:
            sync(c)
        with pg.Pool(own, min_size=0, max_size=1) as pool:
            sync(pool.shared)
            with pool.connection() as c:
                sync(c)
        # What was open before goes on as it was.
        assert before.execute("SELECT 'happy'::mood, 1.5").fetchone() == ("happy", Decimal("1.5"))


def test_a_connections_own_come_before_them(own):
    pg.set_type_codec("mood", **MOOD)
    pg.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=len)
    query = "SELECT 'sad'::mood, '{}'::jsonb, '{}'::json"
    with pg.connect(own) as c:
        assert c.execute(query).fetchone() == (Mood.SAD, 2, {})
        c.set_type_codec("mood", encoder=str.lower, decoder=str.upper)
        c.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=str)
        assert c.execute(query).fetchone() == ("SAD", "{}", {})
        c.reset_type_codec("mood")
        c.reset_type_codec("jsonb", schema="pg_catalog")
        assert c.execute(query).fetchone() == (Mood.SAD, 2, {})
    pg.reset_type_codec("mood")
    aio.reset_type_codec("jsonb", schema="pg_catalog")
    pg.reset_type_codec("never set")
    with pg.connect(own) as c:
        assert c.execute(query).fetchone() == ("sad", {}, {})


def test_composites_and_binary_forms(own):
    pg.set_type_codec("pair", format="tuple", encoder=tuple, decoder=list)
    pg.set_type_codec(
        "int4",
        schema="pg_catalog",
        format="binary",
        encoder=lambda n: n.to_bytes(4, "big"),
        decoder=lambda data: int.from_bytes(data, "big"),
    )
    with pg.connect(own) as c:
        query = "SELECT %s::pair, ((1, 'sad'), ARRAY[(2, 'happy')]::pair[])::pairs"
        row = ([1, "sad"], ([1, "sad"], [[2, "happy"]]))
        assert c.execute(query, ([1, "sad"],)).fetchone() == row
        c.set_type_codec("pair", format="tuple", encoder=tuple, decoder=dict_of)
        assert c.execute("SELECT (1, 'sad')::pair").fetchone() == ({"first": 1},)


def dict_of(pair):
    return {"first": pair[0]}


def test_of_what_there_can_be_none(own):
    plain = {"encoder": str, "decoder": str}
    with pytest.raises(pg.InterfaceError, match="format is"):
        pg.set_type_codec("mood", **plain, format="xml")
    with pytest.raises(TypeError, match="callables"):
        pg.set_type_codec("mood", encoder=str, decoder="str")
    with pytest.raises(pg.InterfaceError, match="neither a scalar"):
        pg.set_type_codec("int4[]", schema="pg_catalog", **plain)
    for name in ("_mood", "short", "pair", "no such type"):
        pg.set_type_codec(name, **plain)
    pg.set_type_codec("int4range", schema="pg_catalog", **plain)
    with pg.connect(own, autocommit=True) as c:
        for value, error, match in (
            ("'[1,2)'::int4range", pg.InterfaceError, "pg_catalog.int4range"),
            ("'{sad}'::mood[]", pg.InterfaceError, "public._mood"),
            ("'(1,sad)'::pair", pg.NotSupportedError, "format='tuple'"),
        ):
            with pytest.raises(error, match=match):
                c.execute(f"SELECT {value}")
        assert c.execute("SELECT 'abc'::short").fetchone() == ("abc",)  # a varchar, for the server
        assert c.execute("SELECT 1").fetchone() == (1,)


def test_what_the_driver_asks_for_itself(run, connect):
    async def main():
        async with connect() as c:
            await c.set_type_codec("text", schema="pg_catalog", encoder=str, decoder=str.upper)
            async with c.transaction(isolation="serializable"):
                async with c.transaction(isolation="serializable"):
                    assert await c.fetchval("SHOW transaction_isolation") == "SERIALIZABLE"
            statement = await c.prepare("SELECT $1::int")
            assert "Plan" in (await statement.explain(1))[0]
            await c.set_type_codec(
                "json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads
            )
            assert "Plan" in (await statement.explain(1, analyze=True))[0]
            await c.reset_type_codec("text", schema="pg_catalog")

    run(main())


def test_many_threads_set_some_at_once(process):
    async def main():
        await asyncio.gather(*(asyncio.to_thread(one, i) for i in range(20)))

    def one(i):
        pg.set_type_codec(f"type {i}", encoder=str, decoder=str)

    asyncio.run(main())
    assert len(_process.current().wishes) == 20


def test_types_of_a_statement_without_a_name(run, own):
    """What looks them up has no name either, and takes its place at the server."""

    async def main():
        c = await aio.connect(own)
        too_long_to_be_kept = "SELECT $1::mood -- " + "x" * 20000
        assert await c.fetchval(too_long_to_be_kept, "sad") == "sad"
        async with c.transaction():
            cursor = await c.cursor("SELECT $1::mood[]", ["happy"])
            assert await cursor.fetch(2) == [(["happy"],)]
        await c.close()

    run(main())


def test_so_many_databases_are_remembered(process, monkeypatch, dsn):
    """Each by the address that was connected to, which may be an ever new one."""
    monkeypatch.setattr(_process, "DATABASES", 3)
    address = socket.gethostbyname(urlsplit(dsn).hostname)
    for i in (0, 1, 2, 0, 3, 4):
        with pg.connect(dsn, host=f"place-{i}", hostaddr=address) as c:
            c.execute("SELECT NULL::pg_catalog.pg_am")  # a type that is looked up
    known = _process.current().known
    assert [key[1] for key in known] == ["place-0", "place-3", "place-4"]
    assert all(known.values())


def test_so_many_types_of_a_database_are_remembered(own, monkeypatch):
    """Some live as short as the table that they are of."""
    monkeypatch.setattr(_types, "TYPES", 5)
    with pg.connect(own) as c:
        for i in range(30):
            c.execute(f"CREATE TEMP TABLE t{i} AS SELECT {i} AS a, 'sad'::mood AS b")
            assert c.execute(f"SELECT t FROM t{i} t").fetchone() == ((i, "sad"),)
        (known,) = _process.current().known.values()
        assert len(known) < 10


def test_so_many_types_of_its_own_a_connection_remembers(own, monkeypatch):
    """As above; those that are set by the user stay."""
    monkeypatch.setattr(_types, "TYPES", 5)
    with pg.connect(own) as c:
        c.set_type_codec("mood", **MOOD)
        for i in range(30):
            c.execute(f"CREATE TEMP TABLE t{i} AS SELECT {i} AS a, 'sad'::mood AS b")
            assert c.execute(f"SELECT t, b, '1'::json FROM t{i} t").fetchone() == (
                (i, Mood.SAD),
                Mood.SAD,
                1,
            )
        assert c.execute("SELECT t FROM t0 t").fetchone() == ((0, Mood.SAD),)
        assert len(c.raw._codecs) < 20
