"""Large objects, which psycopg2 refuses under a wait callback."""

import asyncio
import gc
import os
import weakref

import psycopg2
import psycopg2.extensions
import pytest

import greenletio
from greenletio import async_

DATA = bytes(range(256)) * 10_000  # 2.5 MB: more than two pieces


def test_write_read_seek_truncate_unlink(run, connect, ticking):
    def work():
        conn = connect()
        obj = conn.lobject(0, "wb")
        assert obj.write(DATA) == len(DATA)
        assert obj.tell() == len(DATA)
        obj.close()
        assert obj.closed
        obj = conn.lobject(obj.oid, "rb")
        assert obj.mode == "rb"
        assert obj.read() == DATA
        assert obj.seek(-10, os.SEEK_END) == len(DATA) - 10
        assert obj.read(4) == DATA[-10:-6]
        obj.seek(0)
        assert obj.read(0) == b""
        obj.close()
        obj = conn.lobject(obj.oid, "rw")
        obj.truncate(3)
        assert obj.read() == DATA[:3].decode()
        obj.unlink()
        with pytest.raises(psycopg2.OperationalError):
            conn.lobject(obj.oid)

    async def main():
        async with ticking() as ticker:
            await async_(work)()
        return ticker.steps

    assert run(main()) > 5


def test_import_and_export(run, connect, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)

    def work():
        conn = connect()
        conn.lobject(0, "n", 0, str(source)).export(str(target))
        with pytest.raises(psycopg2.OperationalError):
            conn.lobject(0, "n", 0, str(tmp_path / "missing"))

    async def main():
        await async_(work)()

    run(main())
    assert target.read_bytes() == DATA


def test_a_factory_keeps_its_methods(run, connect):
    class Shouting(psycopg2.extensions.lobject):
        def read(self, size=-1):
            return super().read(size).upper()

    def work():
        obj = connect().lobject(lobject_factory=Shouting)
        assert isinstance(obj, Shouting)
        obj.write("abc")
        obj.seek(0)
        return obj.read()

    async def main():
        return await async_(work)()

    assert run(main()) == "ABC"


def test_a_factory_is_forgotten_with_its_last_user(run, connect):
    class Kept(psycopg2.extensions.lobject):
        pass

    def work():
        class Passing(psycopg2.extensions.lobject):
            pass

        conn = connect()
        assert type(conn.lobject(lobject_factory=Kept)) is type(conn.lobject(lobject_factory=Kept))
        conn.lobject(lobject_factory=Passing)
        return weakref.ref(Passing)

    async def main():
        return await async_(work)()

    passing = run(main())
    gc.collect()
    assert passing() is None


def test_the_end_of_the_transaction_ends_the_object(run, connect):
    def work():
        conn = connect()
        obj = conn.lobject()
        conn.commit()
        with pytest.raises(psycopg2.ProgrammingError, match="isn't valid anymore"):
            obj.read()
        obj.close()
        conn.autocommit = True
        with pytest.raises(psycopg2.ProgrammingError, match="outside of transactions"):
            conn.lobject()

    async def main():
        await async_(work)()

    run(main())


def test_cancelled_while_writing(run, connect, fetch):
    def work():
        conn = connect()
        with pytest.raises(TimeoutError), greenletio.timeout(0.05):
            obj = conn.lobject()
            while True:
                obj.write(DATA)
        conn.rollback()
        return fetch(conn, "SELECT 42")

    async def main():
        return await asyncio.ensure_future(async_(work)())

    assert run(main()) == 42
