"""BEGIN, which a statement of sync code sends before it: with it, where that is prepared."""

import asyncio

import pytest
from fix_recorded import recorded

from greenletio import async_, pg
from greenletio.pg import errors

LIMIT_S = 30  # against a hang, not a measure
IDLE, IN_TRANSACTION, IN_ERROR = 0, 2, 3  # of libpq's PGTransactionStatusType
SYNC, QUERY = b"S\0\0\0\4", b"Q\0\0\0\x0aBEGIN\0"


def status_of(c):
    return c.raw._transaction_status


@pytest.fixture
def prepared(sync):
    """Has the connection prepare a query; gives what runs it as the first of a transaction."""

    def prepare(query, params):
        sync.execute(query, params)
        sync.rollback()
        return lambda *args, **options: sync.execute(query, *args, **options)

    return prepare


def test_it_goes_with_a_query_that_is_prepared(run, dsn):
    async def main():
        async with recorded(dsn) as (url, sent):
            c = await async_(pg.connect)(url, sslmode="disable")

            def transaction():
                sent.clear()
                assert c.execute("SELECT %s + 1", (1,)).fetchone() == (2,)
                assert status_of(c) == IN_TRANSACTION
                first = bytes(sent)
                c.execute("SELECT %s + 1", (1,))
                assert b"BEGIN" not in sent[len(first) :]
                c.rollback()
                return first

            first = await async_(transaction)()
            assert QUERY in first
            assert first.count(SYNC) == 2  # PREPARE, and the execution
            first = await async_(transaction)()
            assert b"BEGIN" in first
            assert QUERY not in first
            assert first.count(SYNC) == 1
            await async_(c.close)()

    run(main())


def test_what_fails_has_begun_the_transaction(sync, prepared):
    with pytest.raises(errors.UndefinedTable):
        sync.execute("SELECT * FROM nowhere")
    assert status_of(sync) == IN_ERROR
    with pytest.raises(errors.InFailedSqlTransaction):
        sync.execute("SELECT 1")
    sync.rollback()
    divide = prepared("SELECT 1 / %s", (1,))
    for _ in range(2):
        with pytest.raises(errors.DivisionByZero) as caught:
            divide((0,))
        assert caught.value.query == "SELECT 1 / $1"
        assert status_of(sync) == IN_ERROR
        sync.rollback()
    assert divide((1,)).fetchone() == (1,)
    assert status_of(sync) == IN_TRANSACTION


def test_a_begin_that_fails(sync, prepared, monkeypatch):
    add = prepared("SELECT %s + 1", (1,))
    with monkeypatch.context() as patch:
        patch.setattr(sync, "_begin_sql", lambda: "BEGIN sometimes")
        for run in (lambda: add((1,)), lambda: sync.execute("SELECT 1 AS new")):
            with pytest.raises(errors.SyntaxError):
                run()
            assert status_of(sync) == IDLE
        patch.setattr(sync, "_begin_sql", lambda: "BEGIN\0")
        for run in (lambda: add((1,)), lambda: sync.execute("SELECT 1 AS newer")):
            with pytest.raises(pg.ProgrammingError, match="NUL"):
                run()
    assert add((1,)).fetchone() == (2,)


def test_what_cannot_be_sent(sync, prepared):
    """A value that is none of its parameter's: neither it nor BEGIN has gone anywhere."""
    show = prepared("SELECT %s::int[]", ([1],))
    with pytest.raises(pg.DataError):
        show(([[1], [2, 3]],))
    assert status_of(sync) == IDLE
    assert show(([1, 2],)).fetchone() == ([1, 2],)
    assert status_of(sync) == IN_TRANSACTION


@pytest.mark.parametrize("change", ["ALTER TABLE changing ADD b int", "DROP TABLE changing"])
def test_a_plan_that_the_connection_has_made_useless_is_not_tried(sync, change):
    """It would fail in the transaction, which nobody but its user can begin again."""
    for _ in range(2):
        sync.execute("CREATE TEMP TABLE IF NOT EXISTS changing (a int)")
        sync.execute("SELECT * FROM changing")
        sync.commit()
    sync.execute(change)
    if "DROP" in change:
        sync.execute("CREATE TEMP TABLE changing (a int, b int)")
    sync.commit()
    for _ in range(2):
        cursor = sync.execute("SELECT * FROM changing")
        assert [column.name for column in cursor.description] == ["a", "b"]
        assert status_of(sync) == IN_TRANSACTION
        sync.commit()


def test_copy_is_refused_as_ever(sync):
    for _ in range(3):
        with pytest.raises(pg.NotSupportedError, match="copy methods"):
            sync.execute("COPY (SELECT 1) TO STDOUT")
        sync.rollback()
    assert sync.execute("SELECT 1").fetchone() == (1,)


def test_what_is_large_both_ways(sync, prepared):
    echo = prepared("SELECT %s::bytea", (b"x",))
    data = bytes(range(256)) * 32768
    assert echo((data,)).fetchone() == (data,)
    assert status_of(sync) == IN_TRANSACTION


def test_a_limit(sync, prepared):
    wait = prepared("SELECT pg_sleep(%s)", (0,))
    with pytest.raises(TimeoutError):
        wait((LIMIT_S,), timeout=0.05)
    sync.rollback()
    assert sync.execute("SELECT 1").fetchone() == (1,)


def test_a_transaction_of_its_own_kind(sync, prepared):
    sync.isolation_level = "serializable"
    level = prepared("SELECT current_setting('transaction_isolation')", None)
    assert level().fetchone() == ("serializable",)
    sync.rollback()
    sync.isolation_level = None
    assert level().fetchone() == ("read committed",)


def test_cancelled(run, dsn):
    async def main():
        c = await async_(pg.connect)(dsn)

        def wait(seconds):
            c.execute("SELECT pg_sleep(%s)", (seconds,))
            c.rollback()

        await async_(wait)(0)
        for _ in range(10):
            task = asyncio.ensure_future(async_(wait)(LIMIT_S))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await async_(c.rollback)()
            assert status_of(c) == IDLE
        await async_(wait)(0)
        await async_(c.close)()

    run(main())


def test_a_server_that_has_ended_the_session(dsn, sync, prepared):
    add = prepared("SELECT %s + 1", (1,))
    with pg.connect(dsn) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (sync.raw._pid,))
    with pytest.raises(pg.OperationalError):
        add((1,))
    assert sync.closed


def test_a_connection_that_many_share_has_none(dsn):
    with pg.connect(dsn, autocommit=True) as c:
        c.raw.shared = True
        op = c.raw._op("query", "tuples", "SELECT 1", (), before="BEGIN")
        with pytest.raises(pg.NotSupportedError, match="a connection of its own"):
            op.run()
        assert c.execute("SELECT 1").fetchone() == (1,)
        for wrong in ({"kind": "script", "want": "status"}, {"kind": "query", "want": "tuples"}):
            with pytest.raises(TypeError, match="do not make an operation"):
                c.raw._op(
                    **wrong, sql="SELECT 1", before=1 if wrong["kind"] == "query" else "BEGIN"
                )
