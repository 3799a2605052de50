"""Transactions of both faces, doing them again, and two-phase commit."""

import asyncio
import threading

import pytest
from fix_missing import missing

from greenletio import async_, pg
from greenletio.pg import aio

STATE = (
    "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
    " current_setting('transaction_deferrable')"
)


@pytest.fixture
def table(dsn):
    """A table of two accounts; `table()` gives what they have."""
    with pg.connect(dsn) as c:
        c.execute("DROP TABLE IF EXISTS accounts")
        c.execute("CREATE TABLE accounts (id int PRIMARY KEY, has int)")
        c.execute("INSERT INTO accounts VALUES (1, 100), (2, 100)")

    def look():
        with pg.connect(dsn) as c:
            return c.execute("SELECT has FROM accounts ORDER BY id").fetchall()

    yield look
    with pg.connect(dsn) as c:
        c.execute("DROP TABLE accounts")


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, ("read committed", "off", "off")),
        ({"isolation": "repeatable_read"}, ("repeatable read", "off", "off")),
        ({"isolation": "REPEATABLE READ", "readonly": True}, ("repeatable read", "on", "off")),
        (
            {"isolation": "serializable", "readonly": True, "deferrable": True},
            ("serializable", "on", "on"),
        ),
        ({"readonly": False, "deferrable": False}, ("read committed", "off", "off")),
    ],
)
def test_what_a_transaction_is_like(run, dsn, sync, options, state):
    with sync.transaction(**options):
        assert sync.execute(STATE).fetchone() == state
        with sync.transaction():
            assert sync.execute(STATE).fetchone() == state

    async def main():
        c = await aio.connect(dsn)
        lower = {
            key: str(value).lower().replace(" ", "_") if key == "isolation" else value
            for key, value in options.items()
        }
        async with c.transaction(**lower):
            assert tuple(await c.fetchrow(STATE)) == state
            async with c.transaction():
                assert tuple(await c.fetchrow(STATE)) == state
        await c.close()

    run(main())


def test_a_connection_may_say_what_they_are_like(sync):
    sync.isolation_level = "serializable"
    sync.read_only = True
    sync.deferrable = True
    assert sync.execute(STATE).fetchone() == ("serializable", "on", "on")  # begun by itself
    sync.rollback()
    with sync.transaction(readonly=False):
        assert sync.execute(STATE).fetchone() == ("serializable", "off", "on")
    sync.isolation_level = "sometimes"
    with pytest.raises(ValueError, match="expected to be one of 'read_uncommitted'"):
        sync.execute("SELECT 1")


def test_blocks_in_blocks(sync, table):
    def add(n):
        sync.execute("UPDATE accounts SET has = has + %s WHERE id = 1", (n,))

    with sync.transaction() as outer:
        add(1)
        with pytest.raises(ZeroDivisionError), sync.transaction():
            add(10)
            raise ZeroDivisionError
        with pytest.raises(pg.errors.DivisionByZero), sync.transaction('its "own" name'):
            add(100)
            sync.execute("SELECT 1/0")
        with sync.transaction():
            add(1000)
            raise pg.Rollback
        with sync.transaction(force_rollback=True):
            add(10000)
        with sync.transaction():
            add(2)
        with pytest.raises(pg.ProgrammingError, match="outermost"):
            sync.transaction(isolation="serializable").__enter__()
        with pytest.raises(pg.InterfaceError, match="twice"):
            outer.__enter__()
        with pytest.raises(pg.ProgrammingError, match="block's own"):
            sync.commit()
    assert table()[0] == (103,)
    with sync.transaction() as outer, sync.transaction():
        add(5)
        raise pg.Rollback(outer)
    assert table()[0] == (103,)
    with pytest.raises(ValueError, match="isolation"):
        sync.transaction(isolation="none")
    with pytest.raises(pg.ProgrammingError, match="savepoint"):
        sync.transaction("")


# ---- again


def disturb(dsn):
    with pg.connect(dsn) as other:
        other.execute("UPDATE accounts SET has = has + 1 WHERE id = 1")


def test_a_serialization_failure_is_tried_again(run, dsn, table):
    calls = []

    def work(c, amount):
        calls.append(c)
        c.execute("SELECT has FROM accounts").fetchall()
        if len(calls) < 3:
            disturb(dsn)
        c.execute("UPDATE accounts SET has = has - %s WHERE id = 1", (amount,))
        return "done"

    def sync():
        with pg.connect(dsn, autocommit=True) as c:
            assert pg.retry(c, work, 10, isolation="repeatable_read") == "done"
            with c.transaction(), pytest.raises(pg.ProgrammingError, match="inside a transaction"):
                pg.retry(c, work, 10)
            calls.clear()
            with pytest.raises(pg.errors.SerializationFailure):
                pg.retry(c, work, 10, isolation="repeatable_read", attempts=2)
            assert len(calls) == 2
            with pytest.raises(ZeroDivisionError):
                pg.retry(c, lambda c: 1 / 0)
        with pg.Pool(dsn, min_size=0, max_size=1) as pool:
            calls.clear()
            assert pg.retry(pool, work, 10, isolation="repeatable_read") == "done"
            assert len(calls) == 3

    sync()
    assert table()[0] == (100 + 6 - 20,)
    run(async_(sync)())

    async def again(c, amount):
        calls.append(c)
        await c.fetch("SELECT has FROM accounts")
        if len(calls) < 3:
            await async_(disturb)(dsn)
        await c.execute("UPDATE accounts SET has = has - $1 WHERE id = 1", amount)
        return "done"

    async def main():
        calls.clear()
        c = await aio.connect(dsn)
        assert await aio.retry(c, again, 10, isolation="repeatable_read") == "done"
        async with c.transaction():
            with pytest.raises(aio.InterfaceError, match="inside a transaction"):
                await aio.retry(c, again, 10)
        await c.close()
        calls.clear()
        async with aio.create_pool(dsn, min_size=0, max_size=1) as pool:
            assert await aio.retry(pool, again, 10, isolation="repeatable_read") == "done"
        calls.clear()

    before = table()[0][0]
    run(main())
    assert table()[0][0] == before + 4 - 20
    for wrong in ({"attempts": 0}, {"delay": -1}, {"delay": 2, "max_delay": 1}):
        with pytest.raises(ValueError, match="attempts|delay"):
            pg.retry(None, work, **wrong)


def test_write_skew_shows_at_commit_and_is_tried_again(dsn, table):
    """Two who each look at both accounts and take from one, so that together they take too much."""
    barrier = threading.Barrier(2, timeout=20)
    attempts = []

    def take(c, own):
        total = c.execute("SELECT sum(has) FROM accounts").fetchone()[0]
        attempts.append(own)
        if len(attempts) <= 2:
            barrier.wait()
        if total >= 200:
            c.execute("UPDATE accounts SET has = has - 150 WHERE id = %s", (own,))

    def person(own):
        with pg.connect(dsn, autocommit=True) as c:
            pg.retry(c, take, own, isolation="serializable")

    threads = [threading.Thread(target=person, args=(own,)) for own in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(table()) == [(-50,), (100,)]
    assert len(attempts) == 3


def test_a_deadlock_is_tried_again(run, dsn, table):
    async def main():
        met = asyncio.Event()
        attempts = []

        async def move(c, first, second):
            await c.execute("SET LOCAL deadlock_timeout = '20ms'")
            await c.execute("UPDATE accounts SET has = has + 1 WHERE id = $1", first)
            attempts.append(first)
            if len(attempts) >= 2:
                met.set()
            await met.wait()
            await c.execute("UPDATE accounts SET has = has + 1 WHERE id = $1", second)

        async with aio.create_pool(dsn, min_size=2, max_size=2) as pool:
            await asyncio.gather(aio.retry(pool, move, 1, 2), aio.retry(pool, move, 2, 1))
        assert len(attempts) >= 3

    run(main())
    assert table() == [(102,), (102,)]


# ---- two-phase commit


@pytest.fixture
def two_phase(dsn, sync):
    if sync.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
        missing("the server has max_prepared_transactions = 0")
    sync.rollback()
    yield sync
    if not sync.closed and sync._tpc is None:
        for xid in sync.tpc_recover():
            if xid.database == dsn.rpartition("/")[2]:
                sync.tpc_rollback(xid)


def test_two_phase_commit(dsn, two_phase, table):
    c = two_phase
    name = dsn.rpartition("/")[2]
    xid = c.xid(42, f"{name}'\\%", "part 1")
    assert tuple(xid)[:3] == (42, f"{name}'\\%", "part 1")
    add = "UPDATE accounts SET has = has + 1 WHERE id = 1"

    c.tpc_begin(xid)
    c.execute(add)
    for wrong in (c.commit, c.rollback):
        with pytest.raises(pg.ProgrammingError, match="tpc_"):
            wrong()
    c.tpc_prepare()
    assert table()[0] == (100,)
    with pytest.raises(pg.ProgrammingError, match="already"):
        c.tpc_prepare()
    c.tpc_commit()
    assert table()[0] == (101,)

    c.tpc_begin(xid)  # in one phase
    c.execute(add)
    c.tpc_commit()
    c.tpc_begin(xid)
    c.execute(add)
    c.tpc_rollback()
    c.tpc_begin("a name of one's own")
    c.execute(add)
    c.tpc_prepare()
    c.tpc_rollback()
    assert table()[0] == (102,)

    c.tpc_begin(xid)
    c.execute(add)
    c.tpc_prepare()
    c.close()  # it outlives the session
    with pg.connect(dsn) as other:
        found = [one for one in other.tpc_recover() if one.gtrid == xid.gtrid]
        assert [(one.format_id, one.bqual, one.database) for one in found] == [(42, "part 1", name)]
        assert (found[0].prepared is not None, found[0].owner is not None) == (True, True)
        assert str(found[0]) == str(xid)
        other.tpc_commit(found[0])
        assert [one for one in other.tpc_recover() if one.gtrid == xid.gtrid] == []
        with pytest.raises(pg.errors.UndefinedObject):
            other.tpc_rollback(found[0])
    assert table()[0] == (103,)


def test_what_two_phase_commit_refuses(dsn, two_phase, table):
    c = two_phase
    for wrong in (c.tpc_prepare, c.tpc_commit, c.tpc_rollback):
        with pytest.raises(pg.ProgrammingError, match="needs tpc_begin"):
            wrong()
    for wrong in ((-1, "a", "b"), (1, "a" * 65, "b"), (1, "a", "ü")):
        with pytest.raises(ValueError, match="format_id|gtrid|bqual"):
            c.xid(*wrong)
    c.execute("SELECT 1")
    with pytest.raises(pg.ProgrammingError, match="inside a transaction"):
        c.tpc_begin("x")
    with pytest.raises(pg.ProgrammingError, match="inside a transaction"):
        c.tpc_commit("x")
    c.rollback()
    c.autocommit = True
    with pytest.raises(pg.ProgrammingError, match="autocommit"):
        c.tpc_begin("x")
    c.autocommit = False
    c.tpc_begin("x")
    with pytest.raises(pg.DatabaseError):
        c.execute("SELECT 1/0")
    with pytest.raises(pg.ProgrammingError, match="tpc_rollback"):
        c.tpc_prepare()
    c.tpc_rollback()
    c.tpc_begin("x")
    c.execute("CREATE TEMP TABLE t (a int)")
    with pytest.raises(pg.NotSupportedError):  # what it has done cannot be prepared
        c.tpc_prepare()
    assert c.execute("SELECT 1").fetchone() == (1,)
    c.rollback()
    c.tpc_begin("x")
    c.tpc_commit()


def test_texts_of_others_are_ids_too():
    from greenletio.pg._tpc import parse

    for text in ("plain", "1_2_3", "x_YQ==_Yg==", "1_YQ==_Yg==_", "9999999999_YQ==_Yg=="):
        assert parse(text)[:3] == (None, text, None)
        assert str(parse(text)) == text
    assert parse("7_YQ==_Yg==")[:3] == (7, "a", "b")
