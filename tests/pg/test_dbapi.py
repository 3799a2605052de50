"""The sync face: the DB-API 2.0, psycopg's placeholders, rows, transactions."""

import asyncio
import datetime
import warnings
from dataclasses import dataclass
from decimal import Decimal
from uuid import uuid4

import pytest
from fix_postgres import TemporaryDatabase

from greenletio import async_, pg
from greenletio.pg import _connection, errors, rows
from greenletio.pg._query import is_script


def test_the_module():
    assert (pg.apilevel, pg.threadsafety, pg.paramstyle) == ("2.0", 2, "pyformat")
    assert pg.Connection.IntegrityError is pg.IntegrityError
    assert pg.Date(2024, 2, 29) == datetime.date(2024, 2, 29)
    assert pg.Binary(b"x") == b"x"
    moment = datetime.datetime(2024, 2, 29, 12, 30, 5)
    ticks = moment.timestamp()
    assert pg.TimestampFromTicks(ticks) == moment
    assert (pg.DateFromTicks(ticks), pg.TimeFromTicks(ticks)) == (moment.date(), moment.time())


def test_the_cursor(sync):
    cursor = sync.cursor()
    with pytest.raises(pg.ProgrammingError):
        cursor.fetchone()
    assert (cursor.description, cursor.rowcount, cursor.rownumber) == (None, -1, None)
    cursor.execute("SELECT i, i::text AS t, now() AS n FROM generate_series(1, 5) i")
    assert [column.name for column in cursor.description] == ["i", "t", "n"]
    assert all(len(column) == 7 for column in cursor.description)
    assert cursor.description[0].type_code == pg.NUMBER != cursor.description[1].type_code
    assert cursor.description[1].type_code == pg.STRING
    assert cursor.description[2].type_code == pg.DATETIME
    assert (cursor.rowcount, cursor.statusmessage) == (5, "SELECT 5")
    assert cursor.fetchone()[:2] == (1, "1")
    assert [row[0] for row in cursor.fetchmany()] == [2]
    cursor.arraysize = 2
    assert [row[0] for row in cursor.fetchmany()] == [3, 4]
    assert cursor.rownumber == 4
    cursor.scroll(-1)
    assert [row[0] for row in cursor] == [4, 5]
    assert (cursor.fetchone(), cursor.fetchall(), cursor.fetchmany(3)) == (None, [], [])
    with pytest.raises(ValueError, match="number of rows"):
        cursor.fetchmany(-1)
    cursor.scroll(0, "absolute")
    assert len(cursor.fetchall()) == 5
    with pytest.raises(IndexError):
        cursor.scroll(9)
    cursor.setinputsizes([])
    cursor.setoutputsize(1)
    cursor.execute("CREATE TEMP TABLE t (a int)")
    assert cursor.description is None
    assert cursor.execute("INSERT INTO t VALUES (1), (2)").rowcount == 2
    assert cursor.execute("UPDATE t SET a = a").rowcount == 2
    cursor.close()
    with pytest.raises(pg.InterfaceError):
        cursor.execute("SELECT 1")


@pytest.mark.parametrize(
    ("query", "params", "row"),
    [
        ("SELECT %s, %s", (1, "x"), (1, "x")),
        ("SELECT %s::text", ("",), ("",)),
        ("SELECT %s + 1, '%%', 5 %% 3", [1], (2, "%", 2)),
        ("SELECT %(a)s, %(b)s, %(a)s", {"a": 1, "b": None, "c": 3}, (1, None, 1)),
        ("SELECT $2, $1::text", (1, "x"), ("x", "1")),
        ("SELECT $1::int, '%'", (5,), None),
        ("SELECT '%'", None, ("%",)),
        ("SELECT '%s'", None, ("%s",)),
        ("SELECT %t, %b", (1, 2), (1, 2)),
        ("SELECT date '2024-01-01' + %s", (1,), (datetime.date(2024, 1, 2),)),
        ("SELECT 1 WHERE 1 = %s", ("1",), (1,)),
        ("SELECT %s", (2**40,), (2**40,)),
        ("SELECT %s", (2**100,), (Decimal(2**100),)),
        ("SELECT %s, %s", (1.5, Decimal("1.50")), (1.5, Decimal("1.50"))),
        ("SELECT %s, %s", (b"\0", True), (b"\0", True)),
        ("SELECT %s, %s", ([1, 2**40], ["a", None]), ([1, 2**40], ["a", None])),
        ("SELECT %s::int[], %s", ([], [[1.5]]), ([], [[1.5]])),
        ("SELECT %s", ([b"a", None],), ([b"a", None],)),
        ("SELECT %s", (pg.Jsonb({"a": [1, None]}),), ({"a": [1, None]},)),
        ("SELECT %s", (pg.Json([1]),), ([1],)),
        ("SELECT %s::jsonb", ('{"a": 1}',), ({"a": 1},)),
        ("SELECT %s::jsonb[]", ([{"a": 1}, None],), ([{"a": 1}, None],)),
        ("SELECT %s", (datetime.timedelta(1, 2, 3),), (datetime.timedelta(1, 2, 3),)),
        ("SELECT %s::int4range", (pg.Range(1, 5),), (pg.Range(1, 5),)),
    ],
)
def test_placeholders_and_values(sync, query, params, row):
    if row is None:
        with pytest.raises((pg.Error, TypeError)):
            sync.execute(query, params).fetchone()
    else:
        assert sync.execute(query, params).fetchone() == row


def test_more_parameters_than_there_can_be(sync):
    sync.execute("SELECT 1")
    query = f"SELECT ARRAY[{', '.join(['%s'] * 65536)}]"
    with pytest.raises(pg.ProgrammingError, match="65535"):
        sync.execute(query, range(65536))
    assert sync.execute("SELECT 1, %s", ("x",)).fetchone() == (1, "x")


def test_a_number_for_the_server_is_as_it_says(sync):
    assert sync.execute("SELECT $2::text, $1::int", (1, "x")).fetchone() == ("x", 1)
    uuid = uuid4()
    assert sync.execute("SELECT %s, %s::uuid", (uuid, str(uuid))).fetchone() == (uuid, uuid)


ENDLESS: list = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("query", "params", "error"),
    [
        ("SELECT %s", (), pg.ProgrammingError),
        ("SELECT %s", (1, 2), pg.ProgrammingError),
        ("SELECT %s", {"a": 1}, TypeError),
        ("SELECT %(a)s", (1,), TypeError),
        ("SELECT %(a)s", {}, pg.ProgrammingError),
        ("SELECT %(a)s, %s", {"a": 1}, pg.ProgrammingError),
        ("SELECT %x", (1,), pg.ProgrammingError),
        ("SELECT %", (1,), pg.ProgrammingError),
        ("SELECT %s", "x", TypeError),
        ("SELECT %s", 5, TypeError),
        (b"SELECT 1", None, TypeError),
        ("SELECT %s", (ENDLESS,), pg.DataError),
    ],
)
def test_what_is_refused(sync, query, params, error):
    with pytest.raises(error):
        sync.execute(query, params)
    assert sync.execute("SELECT 1").fetchone() == (1,)


def test_several_statements(sync):
    cursor = sync.execute("SELECT 1 AS a, now() AS n; CREATE TEMP TABLE t (); SELECT '{1}'::int[]")
    ((one, moment),) = cursor.fetchall()
    assert (one, moment.tzinfo) == (1, datetime.timezone.utc)
    assert cursor.nextset()
    assert (cursor.description, cursor.statusmessage) == (None, "CREATE TABLE")
    assert cursor.nextset()
    assert cursor.fetchall() == [([1],)]
    assert cursor.nextset() is None


@pytest.mark.parametrize(
    ("query", "several"),
    [
        ("SELECT 1", False),
        ("SELECT 1; ", False),
        ("SELECT ';'", False),
        ('SELECT ";"', False),
        ("SELECT 1 -- ;", False),
        ("SELECT /* ; */ 1", False),
        ("DO $$ BEGIN NULL; END $$", False),
        ("DO $x$ BEGIN NULL; $$ ; END $x$ ;", False),
        (r"SELECT E'\';'", False),
        ("SELECT 1; SELECT 2", True),
        ("SELECT 'it''s'; SELECT 2", True),
    ],
)
def test_which_queries_are_several(query, several):
    assert is_script(query) is several


@pytest.mark.parametrize("place", ["plain", "green"])
def test_what_makes_the_rows_of_executemany_may_wait(dsn, place):
    """It asks another connection for each, and this one."""

    def work():
        with pg.connect(dsn) as c, pg.connect(dsn) as other:
            c.execute("CREATE TEMP TABLE t (a int, b int)")

            def rows():
                for i in range(1200):
                    (a,) = other.execute("SELECT %s::int", (i,)).fetchone()
                    (b,) = c.execute("SELECT %s::int", (i,)).fetchone() if i % 100 == 0 else (0,)
                    yield a, b

            for _ in range(2):
                c.cursor().executemany("INSERT INTO t VALUES (%s, %s)", rows())
            found = c.execute("SELECT count(*), sum(a), sum(b) FROM t").fetchone()
            assert found == (2400, 1200 * 1199, 2 * 6600)

    work() if place == "plain" else asyncio.run(async_(work)())


def test_executemany(sync):
    cursor = sync.execute("CREATE TEMP TABLE t (a bigint, b text)")
    cursor.executemany("INSERT INTO t VALUES (%s, %s)", [(1, "x"), (2**40, None), (3, "z")])
    assert cursor.rowcount == 3
    cursor.executemany(
        "INSERT INTO t VALUES (%(a)s) RETURNING a", [{"a": 7}, {"a": 8}], returning=True
    )
    assert cursor.fetchall() == [(7,)]
    assert cursor.nextset()
    assert cursor.fetchall() == [(8,)]
    with pytest.raises(errors.UndefinedTable):
        cursor.executemany("INSERT INTO nowhere VALUES (%s)", [(1,)])


class Counted(str):
    """Knows how many there are."""

    alive = most = 0

    def __init__(self, text):
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self):
        Counted.alive -= 1


def test_rows_of_executemany_are_not_held_all_at_once(sync, monkeypatch):
    monkeypatch.setattr(_connection, "ROWS", 100)
    Counted.alive = Counted.most = 0
    sync.execute("CREATE TEMP TABLE t (a bigint, b text)")
    cursor = sync.cursor()
    for many in (0, 99, 1000, 1001):
        sync.execute("TRUNCATE t")
        rows = ((i if i % 150 else 2**40, Counted(i)) for i in range(many))  # of two types
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows)
        assert cursor.rowcount == many
        assert sync.execute("SELECT count(DISTINCT b) FROM t").fetchone() == (many,)
    assert 100 <= Counted.most <= 200
    assert Counted.alive == 0
    with sync.pipeline():
        rows = ((i, Counted(i)) for i in range(1001))
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows)
    assert sync.execute("SELECT count(*) FROM t").fetchone() == (2002,)


def test_executemany_that_is_no_part_of_a_transaction_is_all_or_nothing(sync, monkeypatch):
    monkeypatch.setattr(_connection, "ROWS", 10)
    sync.autocommit = True
    sync.execute("CREATE TEMP TABLE t (a int primary key)")
    with pytest.raises(errors.UniqueViolation):
        sync.cursor().executemany("INSERT INTO t VALUES (%s)", ((i % 50,) for i in range(100)))
    assert sync.execute("SELECT count(*) FROM t").fetchone() == (0,)


@dataclass
class Pair:
    a: int
    b: str


def test_row_factories(sync):
    def one(factory):
        cursor = sync.cursor(row_factory=factory)
        return cursor.execute("SELECT 1 AS a, 'x' AS b").fetchone()

    assert one(rows.tuple_row) == (1, "x")
    assert one(rows.dict_row) == {"a": 1, "b": "x"}
    assert one(rows.namedtuple_row).b == "x"
    assert one(rows.class_row(Pair)) == Pair(1, "x")
    assert one(rows.args_row(Pair)) == Pair(1, "x")
    assert one(rows.scalar_row) == 1
    assert list(sync.cursor(row_factory=rows.scalar_row).execute("VALUES (1), (NULL), (3)")) == [
        1,
        None,
        3,
    ]


def test_transactions(dsn, sync):
    with pg.connect(dsn) as other:
        other.execute("CREATE TABLE committed (a int)")
    try:
        sync.execute("INSERT INTO committed VALUES (1)")
        sync.rollback()
        with pytest.raises(ZeroDivisionError):
            with pg.connect(dsn) as other:
                other.execute("INSERT INTO committed VALUES (2)")
                raise ZeroDivisionError
        with sync.transaction():
            sync.execute("INSERT INTO committed VALUES (3)")
            with pytest.raises(errors.DivisionByZero):
                with sync.transaction():
                    sync.execute("INSERT INTO committed VALUES (4)")
                    sync.execute("SELECT 1/0")
            with pytest.raises(pg.ProgrammingError):
                sync.commit()
        sync.execute("INSERT INTO committed VALUES (5)")
        with pytest.raises(pg.ProgrammingError):
            sync.autocommit = True
        sync.commit()
        sync.autocommit = True
        sync.execute("INSERT INTO committed VALUES (6)")
        sync.rollback()
        sync.autocommit = False
        assert sync.execute("SELECT * FROM committed").fetchall() == [(3,), (5,), (6,)]
        sync.rollback()
    finally:
        sync.rollback()
        sync.execute("DROP TABLE committed")
        sync.commit()


def test_notices(sync):
    heard = []

    def once(diagnostic):
        heard.append("once")
        sync.remove_notice_handler(once)  # which takes nothing from the other one

    sync.add_notice_handler(once)
    sync.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
    for _ in range(2):
        sync.execute("DO $$ BEGIN RAISE NOTICE 'look'; END $$")
    assert heard == ["once", "look", "look"]


def test_a_connection_that_is_closed(dsn):
    c = pg.connect(dsn)
    c.close()
    c.close()
    assert c.closed
    for call in (c.cursor, c.commit, c.rollback, lambda: c.execute("SELECT 1")):
        with pytest.raises(pg.InterfaceError):
            call()


def test_a_connection_that_is_dropped_says_so(dsn):
    c = pg.connect(dsn)
    c.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del c
    with pytest.warns(ResourceWarning, match="unclosed"):
        c = pg.connect(dsn)
        del c


def test_copy(sync):
    cursor = sync.execute("CREATE TEMP TABLE t (a int, b text, c bytea, d bool)")
    row = (1, "tab\t\\ new\nline", b"\0\xff", True)
    with cursor.copy("COPY t FROM STDIN") as copy:
        copy.write_row(row)
        copy.write("2\t\\N\t\\")
        copy.write(b"\\x00\tf\n")
    assert (cursor.rowcount, cursor.statusmessage) == (2, "COPY 2")
    assert cursor.execute("SELECT * FROM t").fetchall() == [row, (2, None, b"\0", False)]
    with cursor.copy("COPY t (a, d) TO STDOUT WITH (FORMAT csv)") as copy:
        assert b"".join(copy) == b"1,t\n2,f\n"
    assert cursor.rowcount == 2
    sync.commit()
    with pytest.raises(ZeroDivisionError):
        with cursor.copy("COPY t FROM STDIN") as copy:
            copy.write_row((3, None, None, None))
            raise ZeroDivisionError
    sync.rollback()
    with pytest.raises(errors.InvalidTextRepresentation):
        with cursor.copy("COPY t FROM STDIN") as copy:
            copy.write("x")
    sync.rollback()
    with cursor.copy("COPY (SELECT generate_series(1, 1000000)) TO STDOUT") as copy:
        assert copy.read().startswith(b"1\n2\n")
    sync.rollback()
    with pytest.raises(pg.InterfaceError, match="takes a COPY"):
        with cursor.copy("SELECT 1"):
            pass
    sync.rollback()
    with pytest.raises(pg.InterfaceError, match="gives data"):
        with cursor.copy("COPY t TO STDOUT") as copy:
            copy.write(b"x")
    sync.rollback()
    assert cursor.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_the_description_of_types_that_are_restricted(sync):
    cursor = sync.execute(
        "SELECT 'a'::varchar(30), 'a'::char(3), 'a'::varchar,"
        " 1::numeric(5, 2), 100::numeric(3, -2), 1"
    )
    assert [column[2:6] for column in cursor.description] == [
        (30, None, None, None),
        (3, None, None, None),
        (None, None, None, None),
        (None, None, 5, 2),
        (None, None, 3, -2),
        (None, 4, None, None),
    ]


def test_the_description_of_names_that_are_no_text(pg_url):
    """Where neither side has an encoding nobody checks any."""
    with (
        TemporaryDatabase(pg_url, "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0") as database,
        pg.connect(database.url) as c,
    ):
        c.execute("SET client_encoding = 'SQL_ASCII'")
        odd = "convert_from('\\x61ff', 'SQL_ASCII')"
        c.execute(f"DO $$ BEGIN EXECUTE format('CREATE TABLE odd (%I int)', {odd}); END $$")
        for cursor in (c.execute("SELECT * FROM odd"), c.execute("SELECT 1; SELECT * FROM odd")):
            while cursor.nextset():
                pass
            assert [column.name for column in cursor.description] == ["a\ufffd"]


def test_a_description_follows_the_table(dsn, sync):
    sync.autocommit = True
    with pg.connect(dsn, autocommit=True) as other:
        sync.execute("CREATE TABLE described (a varchar(3), b int)")
        try:
            for change, expected in (
                ("COLUMN a TYPE varchar(7)", ["a", "b"]),
                ("RENAME COLUMN b TO c", ["a", "c"]),
                ("ADD COLUMN d int", ["a", "c", "d"]),
            ):
                assert len(sync.execute("SELECT * FROM described").description) >= 2
                alter = "ALTER " if change.startswith("COLUMN") else ""
                other.execute(f"ALTER TABLE described {alter}{change}")
                for _ in range(2):
                    columns = sync.execute("SELECT * FROM described").description
                    assert [column.name for column in columns] == expected
                    assert columns[0].display_size == 7
                    columns.clear()  # it is the user's
        finally:
            sync.execute("DROP TABLE described")


def test_codecs_of_ones_own(dsn, sync):
    sync.autocommit = True
    sync.execute("CREATE TYPE pg_temp.pair AS (a int, b text)")
    (schema,) = sync.execute(
        "SELECT nspname::text FROM pg_namespace WHERE oid = pg_my_temp_schema()"
    ).fetchone()
    sync.set_type_codec(
        "interval",
        schema="pg_catalog",
        format="tuple",
        decoder=lambda parts: parts,
        encoder=lambda parts: parts,
    )
    sync.set_type_codec("text", schema="pg_catalog", decoder=str.upper, encoder=str.lower)
    sync.set_type_codec(
        "pair", schema=schema, format="tuple", decoder=list, encoder=lambda pair: tuple(pair)
    )
    query = "SELECT '1 mon 2 days'::interval, ARRAY['x', NULL]::text[], (1, 'y')::pair, '[1]'::json"
    row = ((1, 2, 0), ["X", None], [1, "Y"], [1])
    assert sync.execute(query).fetchone() == row
    assert sync.execute("SELECT $1::interval = '3 days', $2::text", ((0, 3, 0), "AB")).fetchone()[0]
    sync.reset_type_codec("text", schema="pg_catalog")
    assert sync.execute(query).fetchone()[1] == ["x", None]
    with pytest.raises(ValueError, match="unknown type"):
        sync.set_type_codec("no such type", decoder=str, encoder=str)
    with pytest.raises(pg.InterfaceError, match="format is"):
        sync.set_type_codec("text", decoder=str, encoder=str, format="xml")
    with sync.pipeline(), pytest.raises(pg.NotSupportedError, match="pipeline"):
        sync.reset_type_codec("text", schema="pg_catalog")
    sync.execute("DROP TYPE pg_temp.pair")
    closed = pg.connect(dsn)
    closed.close()
    with pytest.raises(errors.ConnectionClosed):
        closed.reset_type_codec("text", schema="pg_catalog")


def test_codecs_of_a_pool(dsn):
    def configure(connection):
        connection.set_type_codec("text", schema="pg_catalog", decoder=str.upper, encoder=str)
        connection.set_type_codec("jsonb", schema="pg_catalog", decoder=len, encoder=str)

    query = "SELECT 'x'::text, '{}'::jsonb, ARRAY['{}'::jsonb], '{}'::json"
    with pg.Pool(dsn, min_size=1, max_size=1, configure=configure) as pool:
        assert pool.shared.execute(query).fetchone() == ("X", 2, [2], {})
        for _ in range(2):
            with pool.connection() as connection:
                assert connection.execute(query).fetchone() == ("X", 2, [2], {})
                with pytest.raises(pg.NotSupportedError, match="configure"):
                    connection.reset_type_codec("text", schema="pg_catalog")
