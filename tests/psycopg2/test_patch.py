"""Patching and unpatching: everything, exactly, and only once."""

import asyncio
import importlib.resources
import io

import psycopg2
import psycopg2.extensions as ext
import psycopg2.extras
import pytest

import greenletio
from greenletio import _pq, async_

TYPES = (ext.connection, ext.cursor, psycopg2.extras.DictCursor, psycopg2.extras.RealDictCursor)


def snapshot():
    return [{name: id(value) for name, value in vars(kind).items()} for kind in TYPES] + [
        id(psycopg2._connect),
        ext.get_wait_callback(),
    ]


def test_unpatching_restores_everything(pg_dsn):
    before = snapshot()
    old = psycopg2.connect(pg_dsn)
    for _ in range(3):
        greenletio.patch_psycopg2()
        assert snapshot() != before
        new = psycopg2.connect(pg_dsn)
        old.cursor().execute("SELECT 1")
        greenletio.unpatch_psycopg2()
        assert snapshot() == before
        for conn in (old, new):
            cursor = conn.cursor()
            cursor.execute("CREATE TEMPORARY TABLE numbers (n int)")
            cursor.copy_from(io.StringIO("1\n" * 200_000), "numbers")
            named = conn.cursor("named")
            named.execute("SELECT n FROM numbers LIMIT 3")
            assert [*named] == [(1,)] * 3
            assert type(conn.lobject()) is ext.lobject
            conn.rollback()
        new.close()
    old.close()


def test_patching_twice_is_patching_once():
    before = snapshot()
    greenletio.patch_psycopg2()
    patched = snapshot()
    greenletio.patch_psycopg2(cancel_timeout=1)
    assert snapshot() == patched
    greenletio.unpatch_psycopg2()
    assert snapshot() == before
    greenletio.unpatch_psycopg2()
    assert snapshot() == before


def test_another_wait_callback_is_put_back(pg_dsn):
    ext.set_wait_callback(psycopg2.extras.wait_select)
    try:
        greenletio.patch_psycopg2()
        greenletio.unpatch_psycopg2()
        assert ext.get_wait_callback() is psycopg2.extras.wait_select
        psycopg2.connect(pg_dsn).close()
    finally:
        ext.set_wait_callback(None)


def test_guards_look_like_what_they_guard(patched):
    original = ext.cursor.execute.__wrapped__
    assert ext.cursor.execute.__name__ == original.__name__ == "execute"
    assert ext.cursor.execute.__doc__ == original.__doc__
    assert "cursor.execute()" in repr(ext.cursor.execute)
    with pytest.raises(TypeError):
        ext.cursor.execute()
    with pytest.raises(TypeError):
        ext.cursor.execute(42)
    assert ext.connection.autocommit.__doc__


def test_subclasses_and_their_overrides_are_kept(run, connect):
    class Upper(ext.cursor):
        def execute(self, query, vars=None):
            return super().execute(query.upper(), vars)

    def work():
        conn = connect(cursor_factory=Upper)
        cursor = conn.cursor()
        cursor.execute("select 'x'")
        return cursor.query, cursor.fetchone()

    async def main():
        return await async_(work)()

    assert run(main()) == (b"SELECT 'X'", ("X",))


def test_asynchronous_connections_stay_psycopg2s(patched, pg_dsn):
    async def main():
        conn = psycopg2.connect(pg_dsn, async_=True)
        psycopg2.extras.wait_select(conn)
        cursor = conn.cursor()
        cursor.execute("SELECT 42")
        psycopg2.extras.wait_select(conn)
        assert cursor.fetchone() == (42,)
        conn.close()

    asyncio.run(main())


def test_a_method_looked_up_before_the_patch_waits_too(run, pg_dsn, ticking):
    conn = psycopg2.connect(pg_dsn)
    cursor = conn.cursor()
    execute = cursor.execute
    greenletio.patch_psycopg2()
    try:

        async def main():
            async with ticking() as ticker:
                others = asyncio.ensure_future(async_(execute)("SELECT 1 FROM pg_sleep(0.1)"))
                await asyncio.sleep(0.01)
                await async_(conn.commit)()
                await others
            return ticker.steps

        assert run(main()) > 3
        assert cursor.fetchone() == (1,)
    finally:
        greenletio.unpatch_psycopg2()
        conn.close()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e9, "soon"])
def test_a_cancel_timeout_that_makes_no_sense(seconds):
    with pytest.raises((ValueError, TypeError)):
        greenletio.patch_psycopg2(cancel_timeout=seconds)
    assert ext.get_wait_callback() is None


def test_what_is_not_a_connection_is_refused():
    for function in (_pq.wait, _pq.mark, _pq.get_blocking):
        with pytest.raises(TypeError):
            function(object())
    with pytest.raises(TypeError):
        greenletio.psycopg2_blocking(object())


def test_the_stub_names_what_the_module_has():
    public = {name for name in vars(_pq) if not name.startswith("_")}
    stub = (importlib.resources.files("greenletio") / "_pq.pyi").read_text()
    assert public == {line.split("(")[0][4:] for line in stub.splitlines() if line[:4] == "def "}
