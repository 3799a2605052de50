"""Logical replication: what a stream tells, and what the server is told."""

import datetime
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fix_replication import AT_ONCE, numbers_of

from greenletio import _pg, pg
from greenletio.pg import LSN, UNCHANGED, _process, aio, errors
from greenletio.pg._pgoutput import PgOutput
from greenletio.pg._test_decoding import TestDecoding

LIMIT_S = 30  # against a hang, not a measure


def plain(change):
    """A change as a tuple."""
    kind = type(change).__name__
    if isinstance(change, pg.Truncate):
        names = sorted(map(str, change.relations))
        return kind, names, change.cascade, change.restart_identity
    if isinstance(change, pg.Message):
        return kind, change.transactional, change.prefix, change.content
    rows = [getattr(change, name, None) for name in ("old", "new")]
    return kind, str(change.relation), *(None if row is None else dict(row) for row in rows)


def read(stream, transactions):
    """The changes of so many transactions."""
    items = [stream.get(LIMIT_S) for _ in range(transactions)]
    return [[plain(change) for change in item] for item in items]


def taken(stream, transactions):
    """The same, each taken before the next is asked for."""
    return [[plain(change) for change in stream.get(LIMIT_S)] for _ in range(transactions)]


def test_an_lsn_is_an_integer_and_a_text():
    lsn = LSN("16/B374D848")
    assert lsn == 0x16B374D848 and str(lsn) == "16/B374D848" and repr(lsn) == "LSN('16/B374D848')"
    assert LSN(str(LSN(2**64 - 1))) == 2**64 - 1 and LSN(0) < lsn and str(LSN()) == "0/0"
    for wrong in ("", "16", "16/", "/1", "x/1", "1/123456789", -1, 2**64):
        with pytest.raises(ValueError):
            LSN(wrong)


TABLES = (
    "CREATE TYPE mood AS ENUM ('sad', 'ok')",
    "CREATE TYPE pair AS (x int, y text)",
    "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
    'CREATE TABLE "odd "" name" ("a.b" int PRIMARY KEY, "t[1]: x" text)',
    "CREATE TABLE plain (id int PRIMARY KEY, note text, large text)",
    "ALTER TABLE plain ALTER large SET STORAGE external",
    "CREATE TABLE whole (id int, note text, large text)",
    "ALTER TABLE whole REPLICA IDENTITY FULL",
    "ALTER TABLE whole ALTER large SET STORAGE external",
    "CREATE TABLE keyless (n int)",
)

CHANGES = (
    "INSERT INTO plain VALUES (1, 'it''s', repeat('x', 5000)), (2, NULL, NULL)",
    "UPDATE plain SET note = 'new' WHERE id = 1",
    "UPDATE plain SET id = 3 WHERE id = 2",
    "DELETE FROM plain WHERE id = 3",
    "INSERT INTO whole VALUES (1, 'a', repeat('y', 5000))",
    "UPDATE whole SET note = 'b'",
    "DELETE FROM whole",
    """INSERT INTO "odd "" name" VALUES (1, '[x]: ''y'' ')""",
    "INSERT INTO keyless VALUES (1)",
    "TRUNCATE plain, whole RESTART IDENTITY CASCADE",
)

X, Y = "x" * 5000, "y" * 5000
EXPECTED = [
    [
        ("Insert", "public.plain", None, {"id": 1, "note": "it's", "large": X}),
        ("Insert", "public.plain", None, {"id": 2, "note": None, "large": None}),
    ],
    [("Update", "public.plain", None, {"id": 1, "note": "new", "large": UNCHANGED})],
    [("Update", "public.plain", {"id": 2}, {"id": 3, "note": None, "large": None})],
    [("Delete", "public.plain", {"id": 3}, None)],
    [("Insert", "public.whole", None, {"id": 1, "note": "a", "large": Y})],
    [
        (
            "Update",
            "public.whole",
            {"id": 1, "note": "a", "large": Y},
            {"id": 1, "note": "b", "large": Y},
        )
    ],
    [("Delete", "public.whole", {"id": 1, "note": "b", "large": Y}, None)],
    [("Insert", 'public.odd " name', None, {"a.b": 1, "t[1]: x": "[x]: 'y' "})],
    [("Insert", "public.keyless", None, {"n": 1})],
    [("Truncate", ["public.plain", "public.whole"], True, True)],
]


@pytest.mark.parametrize("options", [{}, {"binary": False}, {"streaming": True}], ids=str)
def test_pgoutput_tells_every_change(replicated, options):
    replicated.sql(*TABLES)
    slot = replicated.slot()
    replicated.sql(*CHANGES)
    with pg.connect_replication(replicated.url) as replication:
        with replication.stream(slot, "everything", **options) as stream:
            assert taken(stream, len(EXPECTED)) == EXPECTED


def test_test_decoding_tells_the_same(replicated):
    replicated.sql(*TABLES)
    slot = replicated.slot("test_decoding")
    replicated.sql(*CHANGES)
    with pg.connect_replication(replicated.url) as replication:
        with replication.stream(slot) as stream:
            found = taken(stream, len(EXPECTED))
    for changes, expected in zip(found, EXPECTED, strict=True):
        if expected[0][0] == "Update" and expected[0][2] and len(expected[0][2]) == 3:
            # It does not say what was not changed, but for the row before.
            assert changes[0][2] == expected[0][2]
            assert changes[0][3] in (expected[0][3], {**expected[0][3], "large": UNCHANGED})
        elif expected[0][0] == "Update" and expected[0][2] is None:
            assert changes == expected
        elif expected[0][0] == "Truncate":
            assert (changes[0][0], sorted(changes[0][1])) == ("Truncate", expected[0][1])
        else:
            assert changes == expected


VALUES = {
    "int2": "'-3'",
    "int8[]": "'{{1,NULL},{3,4}}'",
    "numeric": "'12.50'",
    "float8": "'0.1'",
    "bool": "'t'",
    "bytea": r"'\xff00'",
    "text[]": """'{"a b",NULL,"c\\"d"}'""",
    "date": "'2024-02-29'",
    "timestamptz": "'2024-02-29 12:00:00.5+02'",
    "interval": "'1 day 02:03:04'",
    "uuid": "'12345678-1234-5678-1234-567812345678'",
    "jsonb": """'{"a": [1]}'""",
    "inet": "'10.0.0.1/8'",
    "bit(3)": "B'101'",
    "mood": "'ok'",
    "positive": "7",
    "int4range": "'[1,5)'",
    "pg_lsn": "'1/2'",
    "money": "'12.00'",
    "tsvector": "'a b'",
}


@pytest.mark.parametrize("plugin", ["pgoutput", "pgoutput as text", "test_decoding"])
def test_values_are_those_of_queries(replicated, plugin):
    replicated.sql(*TABLES[:3])
    columns = ", ".join(f"c{i} {type_}" for i, type_ in enumerate(VALUES))
    replicated.sql(f"CREATE TABLE kinds (id int PRIMARY KEY, {columns})")
    slot = replicated.slot(plugin.split()[0])
    replicated.sql(f"INSERT INTO kinds VALUES (1, {', '.join(VALUES.values())})")
    publications = () if plugin == "test_decoding" else ("everything",)
    binary = False if plugin == "pgoutput as text" else None
    with pg.connect_replication(replicated.url) as replication:
        with replication.stream(slot, *publications, binary=binary) as stream:
            (insert,) = stream.get(LIMIT_S)
    asked = replicated.writer.cursor(row_factory=pg.rows.dict_row)
    for name, value in insert.new.items():  # one by one: money's text must not make others so
        assert {name: value} == asked.execute(f"SELECT {name} FROM kinds").fetchone()


def test_a_type_without_a_binary_form_makes_the_server_send_text(replicated_here):
    replicated_here.sql("CREATE TABLE prices (id int PRIMARY KEY, price money, p point)")
    replicated_here.sql("CREATE TABLE others (id int PRIMARY KEY)")
    slot = replicated_here.slot()
    replicated_here.sql(
        "INSERT INTO others VALUES (1)",
        "BEGIN; INSERT INTO others VALUES (2); INSERT INTO prices VALUES (1, 5, '(1,2)'); COMMIT",
        "INSERT INTO others VALUES (3)",
    )
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "everything") as stream:
            rows = [[dict(change.new) for change in stream.get(LIMIT_S)] for _ in range(3)]
    assert [row.get("price") or row["id"] for part in rows for row in part] == [1, 2, "$5.00", 3]


def test_codecs_of_a_connection_are_used(run, replicated_here):
    replicated_here.sql("CREATE TABLE prices (id int PRIMARY KEY, price numeric)")
    slot = replicated_here.slot()
    replicated_here.sql("INSERT INTO prices VALUES (1, 2.5)")

    async def main():
        c = await aio.connect(replicated_here.url)
        await c.set_type_codec(
            "numeric", schema="pg_catalog", encoder=str, decoder=lambda text: f"<{text}>"
        )
        async with await aio.connect_replication(replicated_here.url) as replication:
            async with replication.stream(slot, "everything", connection=c) as stream:
                changes = [change async for change in await stream.get(LIMIT_S)]
        await c.close()
        return changes[0].new["price"]

    assert run(main()) == "<2.5>"


def test_codecs_of_the_process_are_used(replicated_here, monkeypatch):
    monkeypatch.setattr(_process, "_current", _process.Process())
    replicated_here.sql("CREATE TABLE weights (id int PRIMARY KEY, weight numeric)")
    slot = replicated_here.slot()
    replicated_here.sql("INSERT INTO weights VALUES (1, 2.5)")
    pg.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=lambda text: f"<{text}>")
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "everything") as stream:
            assert [change.new["weight"] for change in stream.get(LIMIT_S)] == ["<2.5>"]


def test_messages_come_in_their_transaction_or_by_themselves(replicated):
    slot = replicated.slot()
    emit = "SELECT pg_logical_emit_message({}, '{}', '{}')"
    replicated.sql(
        emit.format("false", "p", "first"),
        f"BEGIN; {emit.format('true', 'p', 'in it')}; {emit.format('false', 'p', 'before')}; "
        "COMMIT",
        emit.format("false", "é", "last"),
    )
    with pg.connect_replication(replicated.url) as replication:
        with replication.stream(slot, "everything", messages=True) as stream:
            items = [stream.get(LIMIT_S) for _ in range(2)]
            assert [plain(item) for item in items] == [
                ("Message", False, "p", b"first"),
                ("Message", False, "p", b"before"),
            ]
            assert taken(stream, 1) == [[("Message", True, "p", b"in it")]]
            assert plain(stream.get(LIMIT_S)) == ("Message", False, "é", b"last")
            with pytest.raises(TimeoutError):
                stream.get(0.05)
        # All was confirmed by asking for the next.
        replicated.sql(emit.format("false", "p", "new"))
        with replication.stream(slot, "everything", messages=True) as stream:
            assert plain(stream.get(LIMIT_S))[-1] == b"new"


def test_what_a_transaction_is(replicated):
    replicated.sql(TABLES[4])
    slot = replicated.slot()
    before = datetime.datetime.now(datetime.timezone.utc)
    replicated.sql(
        "SELECT pg_replication_origin_create('elsewhere')",
        "SELECT pg_replication_origin_session_setup('elsewhere')",
    )
    try:
        (xid,) = replicated.sql(
            "INSERT INTO plain VALUES (1) RETURNING pg_current_xact_id()::text"
        )[0]
    finally:
        replicated.sql(
            "SELECT pg_replication_origin_session_reset()",
            "SELECT pg_replication_origin_drop('elsewhere')",
        )
    with pg.connect_replication(replicated.url) as replication:
        identity = replication.identify_system()
        with replication.stream(slot, "everything") as stream:
            transaction = stream.get(LIMIT_S)
            assert transaction.end_lsn is None
            with pytest.raises(errors.ProgrammingError, match="before its last change"):
                stream.confirm(transaction)
            (change,) = transaction
            assert list(transaction) == []
            assert transaction.xid == int(xid)
            assert abs(transaction.commit_time - before) < datetime.timedelta(minutes=5)
            assert transaction.lsn < transaction.end_lsn <= identity.position
            assert transaction.origin == "elsewhere"
            columns = change.relation.columns
            assert [(c.name, c.type_name, c.is_key) for c in columns] == [
                ("id", "int4", True),
                ("note", "text", False),
                ("large", "text", False),
            ]
            assert change.relation.replica_identity == "default"
            stream.confirm(transaction)
            assert stream.confirmed_lsn == transaction.end_lsn
            with pytest.raises(errors.ProgrammingError, match="nothing has come"):
                stream.confirm(transaction.end_lsn + 2**40)
        assert replication.slot(slot).confirmed_flush_lsn >= transaction.end_lsn


def test_slots_are_made_looked_at_and_dropped(replicated):
    replicated.sql("CREATE TABLE numbers (n int PRIMARY KEY)", "INSERT INTO numbers VALUES (1)")
    with pg.connect_replication(replicated.url) as replication:
        identity = replication.identify_system()
        assert identity.database == replicated.url.rpartition("/")[2]
        made = replication.create_slot("test_made", snapshot=True)
        replicated.sql("INSERT INTO numbers VALUES (2)")
        with pg.connect(replicated.url) as reader:
            reader.isolation_level = "repeatable read"
            reader.execute(f"SET TRANSACTION SNAPSHOT '{made.snapshot_name}'")
            assert reader.execute("SELECT n FROM numbers").fetchall() == [(1,)]
        with pytest.raises(errors.DuplicateObject):
            replication.create_slot("test_made")
        found = replication.slot("test_made")
        assert (found.name, found.plugin) == ("test_made", "pgoutput")
        assert found.confirmed_flush_lsn == made.confirmed_flush_lsn > found.restart_lsn > 0
        assert found.active_pid is None and not found.temporary
        with replication.stream("test_made", "everything") as stream:
            assert taken(stream, 1) == [[("Insert", "public.numbers", None, {"n": 2})]]
            with pytest.raises(errors.InterfaceError, match="is streaming"):
                replication.slot("test_made")
            assert replicated.status("test_made").active_pid is not None
            with pg.connect_replication(replicated.url) as other:
                with pytest.raises(errors.ObjectInUse):
                    other.drop_slot("test_made")
                with other.stream("test_made", "everything") as second:
                    with pytest.raises(errors.ObjectInUse):
                        second.get(LIMIT_S)
        replication.drop_slot("test_made")
        assert replication.slot("test_made") is None
        assert replication.create_slot("test_gone", temporary=True).temporary
        with replication.stream("test_gone", "everything") as stream:
            replicated.sql("INSERT INTO numbers VALUES (3)")
            assert taken(stream, 1) == [[("Insert", "public.numbers", None, {"n": 3})]]
            (pid,) = replicated.sql(
                "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'test_gone'"
            )[0]
            replicated.sql(f"SELECT pg_terminate_backend({pid}, 10000)")
            with pytest.raises(errors.ProgrammingError, match="no replication slot 'test_gone'"):
                stream.get(LIMIT_S)


def test_mistakes_are_told(replicated_here):
    slot = replicated_here.slot()
    text_slot = replicated_here.slot("test_decoding")
    replicated_here.sql("CREATE TABLE numbers (n int)")
    with pg.connect_replication(replicated_here.url) as replication:
        for options, match in (
            ((slot,), "names of publications"),
            (("no_such_slot", "everything"), "no replication slot"),
            ((text_slot, "everything"), "publications, streaming, two_phase and binary are"),
        ):
            with replication.stream(*options) as stream:
                with pytest.raises(errors.ProgrammingError, match=match):
                    stream.get(LIMIT_S)
        with replication.stream(slot, "no_such_publication") as stream:
            replicated_here.sql("INSERT INTO numbers VALUES (1)")
            with pytest.raises((errors.UndefinedObject, TimeoutError)):
                stream.get(1)  # newer servers only warn
        with replication.stream(slot, "everything", options={"nonsense": "1"}) as stream:
            with pytest.raises(errors.DatabaseError, match="nonsense"):
                stream.get(LIMIT_S)
        replicated_here.sql("INSERT INTO numbers VALUES (2)")
        stream = replication.stream(slot, "everything")
        stream.get(LIMIT_S)
        stream.close()
        stream.close()
        with pytest.raises(errors.InterfaceError, match="closed"):
            stream.get(LIMIT_S)
    with pytest.raises(errors.ConnectionClosed):
        replication.identify_system()
    with pg.connect(replicated_here.url) as connection:
        with pytest.raises(errors.SyntaxError):
            start = "START_REPLICATION SLOT x LOGICAL 0/0"
            connection.raw._op("replication", "status", start).run()


def test_replication_by_the_wrong_call_is_refused(replicated_here):
    slot = replicated_here.slot("test_decoding")
    c = pg.connect(replicated_here.url, replication="database", autocommit=True)
    with pytest.raises(errors.NotSupportedError, match="connect_replication"):
        c.raw._op("script", "tuples", f"START_REPLICATION SLOT {slot} LOGICAL 0/0").run()
    assert c.closed


def test_what_a_plugin_writes_can_be_had_as_it_is(replicated_here):
    replicated_here.sql("CREATE TABLE numbers (n int)")
    slot = replicated_here.slot("test_decoding")
    replicated_here.sql("INSERT INTO numbers VALUES (1)")
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, raw=True, options={"include-xids": "off"}) as stream:
            data = [stream.get(LIMIT_S) for _ in range(3)]
        assert [item.data for item in data] == [
            b"BEGIN",
            b"table public.numbers: INSERT: n[integer]:1",
            b"COMMIT",
        ]
        assert data[0].lsn <= data[1].lsn < data[2].lsn <= data[2].server_lsn


# ---- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["pgoutput", "test_decoding"])
def test_what_was_not_confirmed_comes_to_the_next_program(replicated, plugin):
    replicated.sql("CREATE TABLE numbers (n int)")
    slot = replicated.slot(plugin)
    publications = ("everything",) if plugin == "pgoutput" else ()
    for n in range(5):
        replicated.sql(f"INSERT INTO numbers VALUES ({n})")

    def consume(count, **options):
        with pg.connect_replication(replicated.url) as replication:
            with replication.stream(slot, *publications, **options) as stream:
                transactions = []
                for _ in range(count):
                    transactions.append(stream.get(LIMIT_S))
                    assert len(numbers_of(transactions[-1])) == 1
                if options.get("auto_confirm") is False and "start" not in options:
                    stream.confirm(transactions[1])
                return transactions

    def numbers(count, **options):
        with pg.connect_replication(replicated.url) as replication:
            with replication.stream(slot, *publications, **options) as stream:
                return [n for _ in range(count) for n in numbers_of(stream.get(LIMIT_S))]

    first = consume(4, auto_confirm=False)
    assert numbers(3, auto_confirm=False) == [2, 3, 4]
    assert numbers(1, auto_confirm=False, start=str(first[3].end_lsn)) == [4]
    assert numbers(2) == [2, 3]  # the last one taken is not confirmed
    assert numbers(2) == [3, 4]


def test_an_idle_stream_lets_the_server_forget_what_concerns_others(replicated_here):
    replicated_here.sql("CREATE TABLE numbers (n int)", "CREATE TABLE others (n int)")
    replicated_here.sql("CREATE PUBLICATION few FOR TABLE numbers")
    slot = replicated_here.slot()
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "few", status_interval=0.02) as stream:
            replicated_here.sql("INSERT INTO others SELECT generate_series(1, 1000)")
            (position,) = replicated_here.sql("SELECT pg_current_wal_lsn()")[0]
            end = time.monotonic() + LIMIT_S
            while stream.confirmed_lsn < position and time.monotonic() < end:
                with pytest.raises(TimeoutError):
                    stream.get(0.05)
        assert replication.slot(slot).confirmed_flush_lsn >= position


def test_what_is_left_of_a_transaction_is_passed_over(replicated_here):
    replicated_here.sql("CREATE TABLE numbers (n int)")
    slot = replicated_here.slot()
    replicated_here.sql(
        "INSERT INTO numbers SELECT generate_series(1, 5000)", "INSERT INTO numbers VALUES (7)"
    )
    with pg.connect_replication(replicated_here.url) as replication:
        with replication.stream(slot, "everything") as stream:
            first = stream.get(LIMIT_S)
            assert next(first).new["n"] == 1
            assert numbers_of(stream.get(LIMIT_S)) == [7]
            assert list(first) == []  # it was passed over, to its end
            assert stream.confirmed_lsn == first.end_lsn


def test_large_transactions_come_before_they_are_committed(replicated):
    replicated.sql(
        "CREATE TABLE numbers (n int, t text)",
        # Of a row of it the server sends before the commit.
        "ALTER ROLE postgres IN DATABASE "
        f"{replicated.url.rpartition('/')[2]} SET logical_decoding_work_mem = '64kB'",
    )
    slot = replicated.slot()
    insert = "INSERT INTO numbers SELECT i, repeat('x', 100) FROM generate_series({}, {}) i"
    other = pg.connect(replicated.url, autocommit=True, options=AT_ONCE)
    replicated.sql(
        "BEGIN",
        insert.format(1, 3000),
        "SAVEPOINT a",
        insert.format(3001, 6000),
        "SAVEPOINT b",
        "ALTER TABLE numbers ADD u int",
        insert.format(6001, 9000),
        "ROLLBACK TO a",
        insert.format(9001, 12000),
    )
    other.execute("BEGIN")  # one that comes in between, and is rolled back
    other.execute(insert.format(-3000, -1))
    other.execute("ROLLBACK")
    other.execute("INSERT INTO numbers VALUES (0)")
    replicated.sql("RELEASE a", "COMMIT")
    other.close()
    with pg.connect_replication(replicated.url) as replication:
        with replication.stream(slot, "everything", streaming=True) as stream:
            assert numbers_of(stream.get(LIMIT_S)) == [0]
            large = stream.get(LIMIT_S)
            numbers = [next(large).new["n"] for _ in range(4000)]
            (pid,) = replicated.sql(
                f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'"
            )[0]
            replicated.sql(f"SELECT pg_terminate_backend({pid}, 10000)")
            numbers += numbers_of(large)
            assert numbers == [*range(1, 3001), *range(9001, 12001)]
            replicated.sql("INSERT INTO numbers VALUES (1)")
            assert numbers_of(stream.get(LIMIT_S)) == [1]


def test_the_example_runs(replicated_here):
    example = Path(__file__).resolve().parents[2] / "examples/replication_cache.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        env={**os.environ, "DATABASE_URL": replicated_here.url},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("prices, the same in the table and in the dict\n")


def test_a_row_that_is_cut_short_is_refused():
    codecs = tuple(_pg.BUILTIN[oid] for oid in (23, 25, 23, 1009))
    names = ("a", "b", "c", "d")
    reader = _pg.RowReader(names, codecs, lambda codec, data: (codec.oid, data), UNCHANGED)
    tags = codecs[3].encode(["x", None])
    parts = [b"b\0\0\0\4\0\0\0\7", b"t\0\0\0\2hi", b"u", b"b" + struct.pack(">I", len(tags)) + tags]
    row = b"??\0\4" + b"".join(parts)
    record, end = reader.read(row + b"rest", 2)
    assert end == len(row)
    assert tuple(record) == (7, (25, b"hi"), UNCHANGED, ["x", None])
    assert tuple(reader.read(b"\0\4nnnn", 0)[0]) == (None,) * 4
    wrong = [row[:size] for size in range(len(row))] + [b"\0\3nnn", b"\0\4nnnx", b"\0\4nnnb"]
    wrong += [b"\0\4nnnb\xff\xff\xff\xff", b"\0\4b\0\0\0\3abc"]
    for data in wrong:
        with pytest.raises(errors.InternalError):
            reader.read(data, 2 if data[:1] == b"?" else 0)
    for offset in (-1, 7, 2**62):
        with pytest.raises(errors.InternalError):
            reader.read(b"\0\4nnnn", offset)
    for args in (
        (names, codecs[:3], repr, None),
        (names, (1, 2, 3, 4), repr, None),
        ((1, 2, 3, 4), codecs, repr, None),
        (names, codecs, None, None),
    ):
        with pytest.raises(TypeError):
            _pg.RowReader(*args)
    with pytest.raises(TypeError):
        reader.read(memoryview(row), 0)
    with pytest.raises(ZeroDivisionError):
        _pg.RowReader(names, codecs, lambda codec, data: 1 / 0, None).read(row, 2)


class Sink:
    """What is told of is not looked at."""

    def begin(self, *args):
        return True

    change = commit = origin = single = begin


def test_malformed_messages_are_refused():
    """Text that did not end was read in every way that there is: for years."""
    decoder = TestDecoding(Sink(), {"text": _pg.BUILTIN[25]}.get)
    head = b"table public.t: INSERT: a[text]:'"
    decoder.feed(head + b"it''s'''", 1)
    for wrong in (
        b"",
        b"BEGIN",
        b"BEGIN x",
        b"\xff",
        head,
        head + b"x" * 200,
        head + b"'" * 200,
        head + b"x'y" * 100,
        b"table public.t: INSERT: a[" + b'"' * 201,
        b"table " + b'"' * 201,
        b"table " + b"a.bc" * 100,
        b"table " + b"a.b, " * 100,
        b"message: transactional: 1 prefix: " + b", sz: 1" * 100,
        b"message: transactional: 1 prefix: \xff, sz: 1 content:x",
        b"COMMIT 1 (at yesterday)",
    ):
        with pytest.raises(errors.InternalError):
            decoder.feed(wrong, 1)
    decoder = PgOutput(Sink(), _pg.BUILTIN.get, True)
    decoder.feed(b"B" + struct.pack(">QqI", 16, 0, 9), 1)
    late = b"B" + struct.pack(">QqI", 16, 2**62, 9)
    for wrong in (b"", b"?", b"B", late, b"I\0\0\0\7N", b"R"):
        with pytest.raises(errors.InternalError):
            decoder.feed(wrong, 1)
