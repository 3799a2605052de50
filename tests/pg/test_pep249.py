"""PEP 249 (DB-API 2.0), sentence by sentence, and what psycopg's users rely on beyond it."""

import datetime
import inspect
import threading
import time

import pytest
from fix_missing import missing

from greenletio import pg

MANDATORY_ERRORS = {
    "Warning": Exception,
    "Error": Exception,
    "InterfaceError": "Error",
    "DatabaseError": "Error",
    "DataError": "DatabaseError",
    "OperationalError": "DatabaseError",
    "IntegrityError": "DatabaseError",
    "InternalError": "DatabaseError",
    "ProgrammingError": "DatabaseError",
    "NotSupportedError": "DatabaseError",
}


@pytest.fixture
def cursor(sync):
    """On a connection with the table booze (name text)."""
    cursor = sync.cursor()
    cursor.execute("CREATE TEMP TABLE booze (name text)")
    return cursor


NAMES = ["Carlton Cold", "Carlton Draft", "Mountain Goat", "Redback", "Victoria Bitter", "XXXX"]


@pytest.fixture
def filled(cursor):
    cursor.executemany("INSERT INTO booze VALUES (%s)", [(name,) for name in NAMES])
    return cursor


# ---- the module


def test_globals():
    assert pg.apilevel == "2.0"
    assert pg.threadsafety in (0, 1, 2, 3)
    assert pg.paramstyle in ("qmark", "numeric", "named", "format", "pyformat")
    assert callable(pg.connect)


@pytest.mark.parametrize("name", MANDATORY_ERRORS)
def test_exceptions(name, sync):
    error, base = getattr(pg, name), MANDATORY_ERRORS[name]
    assert issubclass(error, base if isinstance(base, type) else getattr(pg, base))
    assert (name == "Warning") != issubclass(error, pg.Error)
    assert getattr(sync, name) is error  # the optional extension
    assert getattr(pg.Connection, name) is error


def test_connect(dsn):
    """By a string, by keywords, and by both."""
    parts = pg._conninfo.options_of(dsn, {})
    for connection in (pg.connect(dsn), pg.connect(**parts), pg.connect(dsn, user=parts["user"])):
        assert connection.execute("SELECT 1").fetchone() == (1,)
        connection.close()
    with pytest.raises(pg.DatabaseError):
        pg.connect(dsn, dbname="there is no such database")
    with pytest.raises(pg.Error):
        pg.connect(dsn, no_such_option=1)


def test_constructors_of_types(sync):
    moment = time.mktime((2002, 12, 25, 13, 45, 30, 0, 0, 0))
    cases = [
        (pg.Date(2002, 12, 25), pg.DateFromTicks(moment), "date"),
        (pg.Time(13, 45, 30), pg.TimeFromTicks(moment), "time"),
        (
            pg.Timestamp(2002, 12, 25, 13, 45, 30),
            pg.TimestampFromTicks(moment),
            "timestamp",
        ),
    ]
    for value, from_ticks, name in cases:
        assert value == from_ticks
        (back,) = sync.execute(f"SELECT %s::{name}", (value,)).fetchone()
        assert back == value
    for data in (b"", b"\0\xff binary"):
        for binary in (pg.Binary(data), pg.Binary(bytearray(data)), pg.Binary(memoryview(data))):
            assert sync.execute("SELECT %s", (binary,)).fetchone() == (data,)
    assert sync.execute("SELECT %s::int", (None,)).fetchone() == (None,)


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("'x'::text", "STRING"),
        ("'x'::varchar(3)", "STRING"),
        ("'x'::char(3)", "STRING"),
        ("''::bytea", "BINARY"),
        ("1::int2", "NUMBER"),
        ("1", "NUMBER"),
        ("1::int8", "NUMBER"),
        ("1.5", "NUMBER"),
        ("1::float4", "NUMBER"),
        ("1::float8", "NUMBER"),
        ("now()", "DATETIME"),
        ("now()::timestamp", "DATETIME"),
        ("now()::date", "DATETIME"),
        ("now()::time", "DATETIME"),
        ("1::oid", "ROWID"),
    ],
)
def test_type_objects(sync, sql, kind):
    """A type code is equal to one of them, and unequal to the others."""
    code = sync.execute(f"SELECT {sql}").description[0].type_code
    names = ("STRING", "BINARY", "NUMBER", "DATETIME", "ROWID")
    assert [name for name in names if code == getattr(pg, name)] == [kind]
    assert [name for name in names if getattr(pg, name) != code] == [n for n in names if n != kind]


# ---- connections


def test_commit_and_rollback(dsn, sync):
    """Nothing is committed by itself; closing undoes what was not."""
    sync.commit()  # nothing to do
    sync.rollback()
    cursor = sync.cursor()
    cursor.execute("CREATE TABLE kept (a int)")
    cursor.execute("INSERT INTO kept VALUES (1)")
    with pg.connect(dsn) as other:
        assert other.execute("SELECT to_regclass('kept')").fetchone() == (None,)
    sync.commit()
    try:
        cursor.execute("INSERT INTO kept VALUES (2)")
        sync.rollback()
        other = pg.connect(dsn)
        other.cursor().execute("INSERT INTO kept VALUES (3)")
        other.close()
        assert sync.execute("SELECT * FROM kept").fetchall() == [(1,)]
    finally:
        sync.rollback()
        cursor.execute("DROP TABLE kept")
        sync.commit()


def test_cursors_are_not_isolated(filled):
    """What one has done another of the same connection sees."""
    other = filled.connection.cursor()
    assert other.execute("SELECT count(*) FROM booze").fetchone() == (len(NAMES),)
    filled.execute("SELECT 1")
    other.execute("SELECT 2")
    assert (filled.fetchone(), other.fetchone()) == ((1,), (2,))


def test_everything_fails_after_close(dsn):
    connection = pg.connect(dsn)
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    copy = connection.cursor()
    connection.close()
    for call in (
        connection.cursor,
        connection.commit,
        connection.rollback,
        lambda: connection.execute("SELECT 1"),
        lambda: cursor.execute("SELECT 1"),
        lambda: cursor.executemany("SELECT %s", [(1,)]),
        lambda: cursor.callproc("now"),
        lambda: next(cursor.stream("SELECT 1")),
        lambda: copy.copy("COPY (SELECT 1) TO STDOUT").__enter__(),
        connection.transaction().__enter__,
        lambda: connection.pipeline().__enter__(),
        connection.tpc_recover,
        lambda: connection.tpc_begin(connection.xid(1, "a", "b")),
    ):
        with pytest.raises(pg.Error):
            call()
    connection.close()


def test_everything_of_a_cursor_fails_after_its_close(sync):
    cursor = sync.cursor()
    cursor.execute("SELECT 1")
    cursor.close()
    cursor.close()
    for call in (
        lambda: cursor.execute("SELECT 1"),
        lambda: cursor.executemany("SELECT %s", [(1,)]),
        lambda: cursor.callproc("now"),
        cursor.fetchone,
        cursor.fetchmany,
        cursor.fetchall,
        cursor.nextset,
        lambda: cursor.scroll(0),
        lambda: next(cursor),
        lambda: list(cursor),
        lambda: next(cursor.stream("SELECT 1")),
    ):
        with pytest.raises(pg.Error):
            call()
    assert sync.execute("SELECT 1").fetchone() == (1,)


# ---- cursors


def test_description(cursor):
    assert cursor.description is None  # CREATE TABLE gives no rows
    cursor.execute("SELECT name, 1 AS one FROM booze")
    assert len(cursor.description) == 2
    for column in cursor.description:
        assert len(column) == 7
        assert tuple(column)[:2] == (column.name, column.type_code)
    assert [column[0] for column in cursor.description] == ["name", "one"]
    assert cursor.description[0][1] == pg.STRING
    cursor.execute("INSERT INTO booze VALUES ('x')")
    assert cursor.description is None


def test_rowcount(cursor):
    assert cursor.connection.cursor().rowcount == -1
    cursor.execute("INSERT INTO booze VALUES ('x'), ('y')")
    assert cursor.rowcount == 2
    cursor.execute("SELECT name FROM booze")
    assert cursor.rowcount == 2
    cursor.execute("UPDATE booze SET name = name WHERE name = 'x'")
    assert cursor.rowcount == 1
    cursor.execute("DELETE FROM booze WHERE false")
    assert cursor.rowcount == 0
    cursor.executemany("INSERT INTO booze VALUES (%s)", [("a",), ("b",), ("c",)])
    assert cursor.rowcount == 3
    cursor.execute("CREATE TEMP TABLE other ()")
    assert cursor.rowcount == -1
    with pytest.raises(pg.ProgrammingError):
        cursor.execute("SELECT nothing FROM nowhere")
    assert (cursor.rowcount, cursor.description) == (-1, None)


def test_parameters(cursor):
    """A sequence, a mapping; values are values whatever is in them."""
    quotes = 'O\'Hara "%s" \\ $1 -- ;'
    cursor.execute("INSERT INTO booze VALUES (%s)", (quotes,))
    cursor.execute("INSERT INTO booze VALUES (%(name)s)", {"name": quotes, "more": 1})
    cursor.executemany("INSERT INTO booze VALUES (%(n)s)", [{"n": "1"}, {"n": "2"}])
    cursor.executemany("INSERT INTO booze VALUES (%s)", iter([["3"], ("4",)]))
    cursor.execute("SELECT name FROM booze")
    assert [row[0] for row in cursor.fetchall()] == [quotes, quotes, "1", "2", "3", "4"]


def test_fetchone(cursor):
    with pytest.raises(pg.Error):
        cursor.fetchone()
    cursor.execute("SELECT name FROM booze")
    assert cursor.fetchone() is None
    cursor.execute("INSERT INTO booze VALUES ('x')")
    with pytest.raises(pg.Error):
        cursor.fetchone()
    cursor.execute("SELECT name FROM booze")
    assert (cursor.fetchone(), cursor.fetchone()) == (("x",), None)


def test_fetchmany(filled):
    new = filled.connection.cursor()
    with pytest.raises(pg.Error):
        new.fetchmany(4)
    assert filled.arraysize == 1
    filled.execute("SELECT name FROM booze ORDER BY name")
    assert filled.fetchmany() == [(NAMES[0],)]
    assert filled.fetchmany(10) == [(name,) for name in NAMES[1:]]
    assert filled.fetchmany(10) == []
    filled.arraysize = 4
    filled.execute("SELECT name FROM booze ORDER BY name")
    assert [len(filled.fetchmany()) for _ in range(3)] == [4, 2, 0]
    filled.execute("SELECT name FROM booze ORDER BY name")
    assert filled.fetchmany(size=2) == [(NAMES[0],), (NAMES[1],)]
    filled.execute("SELECT name FROM booze WHERE false")
    assert filled.fetchmany() == []


def test_fetchall_and_the_mixture(filled):
    with pytest.raises(pg.Error):
        filled.fetchall()  # executemany() gave no rows
    filled.execute("SELECT name FROM booze ORDER BY name")
    rows = [filled.fetchone(), *filled.fetchmany(2), next(filled), *filled.fetchall()]
    assert rows == [(name,) for name in NAMES]
    assert (filled.fetchall(), filled.rowcount) == ([], len(NAMES))


def test_iteration(filled):
    filled.execute("SELECT name FROM booze ORDER BY name")
    assert (next(filled), next(iter(filled))) == ((NAMES[0],), (NAMES[1],))
    assert [name for (name,) in filled] == NAMES[2:]
    with pytest.raises(StopIteration):
        next(filled)


def test_rownumber_and_scroll(filled):
    filled.execute("SELECT name FROM booze ORDER BY name")
    assert filled.rownumber == 0
    filled.fetchmany(3)
    assert filled.rownumber == 3
    filled.scroll(-2)
    assert (filled.rownumber, filled.fetchone()) == (1, (NAMES[1],))
    filled.scroll(5, mode="absolute")
    assert filled.fetchone() == (NAMES[5],)
    for value, mode in ((1, "relative"), (-7, "relative"), (6, "absolute"), (-1, "absolute")):
        with pytest.raises(IndexError):
            filled.scroll(value, mode)
    with pytest.raises(ValueError, match="bad mode"):
        filled.scroll(0, "sideways")
    assert filled.lastrowid is None


def test_nextset(sync):
    cursor = sync.cursor()
    assert cursor.nextset() is None
    cursor.execute("SELECT 1; SELECT generate_series(1, 3); SELECT 'x'")
    assert cursor.fetchall() == [(1,)]
    assert cursor.nextset()
    assert cursor.fetchone() == (1,)  # the rest of this set is discarded
    assert cursor.nextset()
    assert cursor.fetchall() == [("x",)]
    assert cursor.nextset() is None


def test_setinputsizes_and_setoutputsize(cursor):
    cursor.setinputsizes((25,))
    cursor.execute("INSERT INTO booze VALUES (%s)", ("x",))
    cursor.setoutputsize(1000)
    cursor.setoutputsize(2000, 0)
    assert cursor.execute("SELECT name FROM booze").fetchall() == [("x",)]


def test_callproc(sync):
    """What it was given, unchanged, and its rows to fetch."""
    cursor = sync.cursor()
    assert cursor.callproc("lower", ("FOO",)) == ["FOO"]
    assert cursor.fetchall() == [("foo",)]
    assert cursor.callproc("pg_catalog.generate_series", [1, 3]) == [1, 3]
    assert cursor.fetchall() == [(1,), (2,), (3,)]
    assert cursor.callproc("make_interval", {"days": 2}) == {"days": 2}
    assert cursor.fetchone() == (datetime.timedelta(2),)
    cursor.callproc("current_schema")
    assert cursor.fetchone() == ("public",)
    sync.execute("""CREATE FUNCTION pg_temp."an odd; name" (a int) RETURNS int
                    LANGUAGE sql AS 'SELECT a + 1'""")
    cursor.callproc('pg_temp."an odd; name"', (1,))
    assert cursor.fetchone() == (2,)
    for name in ("lower('x'); SELECT", "now() --", "a b", "", "a..b", '"', "1a"):
        with pytest.raises(pg.ProgrammingError, match="no name of a function"):
            cursor.callproc(name, ("x",))
    with pytest.raises(pg.ProgrammingError, match="no name of a parameter"):
        cursor.callproc("make_interval", {"days => 1, hours": 2})
    with pytest.raises(TypeError):
        cursor.callproc("lower", "FOO")


def test_signatures():
    """Parameters that PEP 249 names have those names, and its order."""
    cases = {
        pg.Cursor.execute: ["self", "query"],
        pg.Cursor.fetchmany: ["self", "size"],
        pg.Cursor.callproc: ["self", "procname", "parameters"],
        pg.Cursor.setinputsizes: ["self", "sizes"],
        pg.Cursor.setoutputsize: ["self", "size", "column"],
        pg.Cursor.scroll: ["self", "value", "mode"],
    }
    for function, names in cases.items():
        assert list(inspect.signature(function).parameters)[: len(names)] == names
    assert inspect.signature(pg.Cursor.scroll).parameters["mode"].default == "relative"


# ---- threads


def test_threads_share_the_module_and_connections(sync):
    """threadsafety is 2."""
    sync.execute("CREATE TEMP TABLE by_threads (a int)")
    failed = []

    def work(number):
        try:
            for i in range(20):
                cursor = sync.cursor()
                cursor.execute("INSERT INTO by_threads VALUES (%s)", (number,))
                cursor.execute("SELECT %s::int, %s::int", (number, i))
                assert cursor.fetchall() == [(number, i)]
                cursor.close()
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    counts = sync.execute("SELECT count(*) FROM by_threads GROUP BY a").fetchall()
    assert counts == [(20,)] * 8


# ---- two phases (the optional extension)


def test_two_phase_commit(dsn):
    with pg.connect(dsn) as c:
        if c.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
            missing("the server has max_prepared_transactions = 0")
    connection, name = pg.connect(dsn), "dbapi_tpc"
    xid = connection.xid(42, name, "branch")
    assert (xid[0], xid[1], xid[2]) == (42, name, "branch")
    connection.tpc_begin(xid)
    for refused in (connection.commit, connection.rollback):
        with pytest.raises(pg.ProgrammingError):
            refused()
    connection.execute("SELECT 1")
    connection.tpc_prepare()
    found = [one for one in connection.tpc_recover() if one.gtrid == name]
    assert found == [xid._replace(**found[0]._asdict() | {"format_id": 42})]
    connection.tpc_rollback()
    assert [one for one in connection.tpc_recover() if one.gtrid == name] == []
    connection.rollback()
    connection.close()
