"""Large objects: files in the database, for both faces."""

import asyncio
import gc
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from greenletio import async_, pg
from greenletio.pg import aio, errors
from greenletio.pg._lobject import CHUNK

DATA = bytes(range(256)) * (3 * CHUNK // 256) + b"the end"


@pytest.fixture(params=["plain", "green"])
def use(request, dsn):
    """use(function): call it with a sync connection, in plain code or in a greenlet."""

    def use(function, **options):
        def work():
            with pg.connect(dsn, **options) as c:
                return function(c)

        return work() if request.param == "plain" else asyncio.run(async_(work)())

    return use


def test_it_is_a_file(use):
    def work(c):
        oid = c.lo_create()
        with c.lo_open(oid, "wb") as f:
            assert (f.oid, f.mode, f.tell(), f.closed) == (oid, "wb", 0, False)
            assert f.writable() and not f.readable() and f.seekable()
            assert f.write(DATA[:10]) == 10
            for start in range(10, len(DATA), 100_000):
                f.write(bytearray(DATA[start : start + 100_000]))
            assert f.tell() == len(DATA)
        assert f.closed
        with c.lo_open(oid) as f:
            assert f.read() == DATA and f.read() == b"" == f.read(10)
            assert f.seek(5) == 5 and f.read(3) == DATA[5:8]
            assert f.seek(-3, io.SEEK_END) == len(DATA) - 3 and f.read(10) == b"end"
            f.seek(CHUNK - 2)
            assert f.seek(1, io.SEEK_CUR) == CHUNK - 1
            assert f.read(CHUNK + 2) == DATA[CHUNK - 1 : 2 * CHUNK + 1]
            buffer = bytearray(7)
            f.seek(0)
            assert f.readinto(buffer) == 7 and buffer == DATA[:7]
            f.seek(0)
            assert io.BufferedReader(f, 1000).read() == DATA  # closes it, too
        with c.lo_open(oid, "r+b") as f:
            f.seek(CHUNK)
            assert f.read(1) == DATA[CHUNK : CHUNK + 1]
            f.write(b"xyz")
            assert f.read(2) == DATA[CHUNK + 4 : CHUNK + 6]
            f.seek(CHUNK)
            assert f.read(5) == DATA[CHUNK : CHUNK + 1] + b"xyz" + DATA[CHUNK + 4 : CHUNK + 5]
            f.seek(0)
            f.write(b"abc")
            f.seek(10)
            f.write(b"def")
            f.flush()
            f.seek(0)
            assert f.read(13) == b"abc" + DATA[3:10] + b"def"
            assert f.truncate(5) == 5 and f.seek(0, 2) == 5
            f.seek(2)
            assert f.truncate() == 2
            assert f.truncate(4) == 4
            f.seek(0)
            assert f.read() == b"ab\0\0"
        with c.lo_open(oid, "w+b") as f:
            f.write(b"line 1\nline 2\n")
            f.seek(0)
            assert [line.decode() for line in f] == ["line 1\n", "line 2\n"]
        c.lo_unlink(oid)
        with pytest.raises(errors.UndefinedObject):
            c.lo_open(oid)

    use(work)


def test_the_same_in_tasks(run, connect):
    async def main():
        async with connect() as c, c.transaction():
            oid = await c.lo_create()
            async with await c.lo_open(oid, "w+b") as f:
                assert await f.write(memoryview(DATA)) == len(DATA) == f.tell()
                await f.seek(0)
                assert b"".join([piece async for piece in f]) == DATA
                assert await f.seek(-3, 2) == len(DATA) - 3
                assert await f.read() == b"end"
                await f.seek(1)
                buffer = bytearray(4)
                assert await f.readinto(buffer) == 4 and buffer == DATA[1:5]
                assert await f.truncate(3) == 3
                await f.seek(0)
                assert await f.read() == DATA[:3]
                await f.flush()
            assert f.closed
            with pytest.raises(ValueError, match="closed"):
                await f.read()
            await c.lo_unlink(oid)

    run(main())


@pytest.fixture
def strange():
    """Codecs of the user's for all that the server's functions take and give."""

    def refuse(value):
        raise ValueError(f"no value for the user: {value!r}")

    return [
        {"typename": name, "schema": "pg_catalog", "encoder": refuse, "decoder": refuse}
        for name in ("bytea", "int4", "int8", "oid")
    ]


def test_the_users_codecs_do_not_concern_them(use, strange):
    def work(c):
        for codec in strange:
            c.set_type_codec(**codec)
        oid = c.lo_import(DATA)
        found = []
        assert c.lo_export(oid, found.append) == len(DATA)
        assert b"".join(found) == DATA
        with c.lo_open(oid, "r+b") as f:
            assert f.seek(-3, io.SEEK_END) == len(DATA) - 3 and f.truncate() == len(DATA) - 3
        c.lo_unlink(oid)
        with pytest.raises(ValueError, match="no value"):  # whatever was prepared
            c.execute("SELECT pg_catalog.lo_create(0)")

    use(work)


def test_the_users_codecs_do_not_concern_them_in_tasks(run, connect, strange):
    async def main():
        async with connect() as c:
            for codec in strange:
                await c.set_type_codec(**codec)
            oid = await c.lo_import(DATA)
            async with c.transaction(), await c.lo_open(oid) as f:
                assert await f.read() == DATA
            await c.lo_unlink(oid)

    run(main())


def test_offsets_have_64_bits(sync):
    far = 5 * 2**30
    with sync.transaction(force_rollback=True):
        oid = sync.lo_create()
        with sync.lo_open(oid, "w+b") as f:
            assert f.seek(far) == far
            f.write(b"there")
            assert f.seek(0, io.SEEK_END) == far + 5
            f.seek(far - 2)
            assert f.read() == b"\0\0there"
            assert f.truncate(far + 1) == far + 1
            f.seek(far)
            assert f.read() == b"t"
        with pytest.raises(errors.DatabaseError), sync.transaction():
            with sync.lo_open(oid, "r+b") as f:
                f.seek(2**62)
                f.write(b"x")


def test_reading_ahead_is_not_seen(sync):
    """Many blocks, read in turn, with seeks and writes in between."""
    chance = random.Random(1)
    model = bytearray(chance.randbytes(11 * CHUNK + 77))
    oid = sync.lo_create()
    with sync.lo_open(oid, "w+b") as f:
        f.write(model)
        f.seek(0)
        at = 0
        for _ in range(120):
            what = chance.randrange(12)
            if what == 0:
                at = chance.choice((0, CHUNK, 9 * CHUNK - 5, chance.randrange(len(model) + 9)))
                f.seek(at)
            elif what == 1 and at <= len(model):
                data = chance.randbytes(chance.choice((1, 5000, CHUNK + 1)))
                f.write(data)
                model[at : at + len(data)] = data
                at += len(data)
            else:
                size = chance.choice((1, 300_000, CHUNK, 3 * CHUNK))
                got = f.read(size)
                assert got == model[at : at + size]
                at += len(got)
        f.seek(0)
        assert f.read() == model
        assert f.read() == b""
    sync.lo_unlink(oid)


def test_files_and_iterables_come_in_and_go_out(use, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(DATA)

    def work(c):
        oids = [
            c.lo_import(source),
            c.lo_import(str(source)),
            c.lo_import(io.BytesIO(DATA)),
            c.lo_import(DATA[i : i + 999_999] for i in range(0, len(DATA), 999_999)),
            c.lo_import(DATA),
        ]
        for oid in oids:
            assert c.lo_export(oid, tmp_path / "target") == len(DATA)
            assert (tmp_path / "target").read_bytes() == DATA
            out = io.BytesIO()
            assert c.lo_export(oid, out) == len(DATA) and out.getvalue() == DATA
            pieces = []
            c.lo_export(oid, pieces.append)
            assert b"".join(pieces) == DATA
            c.lo_unlink(oid)
        assert c.lo_import(b"", oids[0]) == oids[0] and c.lo_export(oids[0], pieces.append) == 0
        with pytest.raises(errors.UniqueViolation):
            c.lo_import(b"", oids[0])
        c.rollback() if not c.autocommit else c.lo_unlink(oids[0])
        with pytest.raises(OSError):
            c.lo_import(tmp_path / "nothing")

    use(work)
    use(work, autocommit=True)


def test_the_same_in_tasks_with_what_is_awaited(run, connect, tmp_path):
    async def pieces():
        yield DATA[:1_000_000]
        yield DATA[1_000_000:]

    async def main():
        async with connect() as c:
            for source in (DATA, io.BytesIO(DATA), pieces(), iter([DATA, b""])):
                oid = await c.lo_import(source)
                taken = []

                async def take(data, taken=taken):
                    taken.append(data)

                assert await c.lo_export(oid, take) == len(DATA)
                assert b"".join(taken) == DATA
                assert await c.lo_export(oid, tmp_path / "target") == len(DATA)
                assert (tmp_path / "target").read_bytes() == DATA
                await c.lo_unlink(oid)

    run(main())


def test_it_is_of_its_transaction(run, connect, dsn):
    with pg.connect(dsn, autocommit=True) as c:
        oid = c.lo_import(DATA)
        with pytest.raises(errors.ProgrammingError, match="no transaction is open"):
            c.lo_open(oid)
        with c.transaction():
            read, written = c.lo_open(oid), c.lo_open(oid, "r+b")
            read.read(3)
            written.write(b"lost")
        with pytest.raises(errors.ProgrammingError, match="is over"):
            read.seek(0, 2)
        read.close()
        with pytest.raises(errors.ProgrammingError, match="what was written last is lost"):
            written.close()
        with c.transaction():
            read = c.lo_open(oid)
        with c.transaction():
            other = c.lo_open(c.lo_create())  # which has its number now
            with pytest.raises(errors.ProgrammingError, match="is over"):
                read.read()
            other.close()
        with c.transaction(readonly=True), pytest.raises(errors.ReadOnlySqlTransaction):
            c.lo_open(oid, "r+b")
        with pytest.raises(errors.DivisionByZero), c.transaction():
            with c.lo_open(oid, "r+b") as f:
                f.write(b"not there")
                c.execute("SELECT 1 / 0")
        assert c.lo_export(oid, lambda data: None) == len(DATA)
        with c.transaction(), c.lo_open(oid) as f:
            assert f.read(3) == DATA[:3]
    with pg.connect(dsn) as c:  # the first call begins one
        f = c.lo_open(oid)
        c.commit()
        f.close()
        assert not c.raw._transaction_status
        c.lo_unlink(oid)

    async def main():
        async with connect() as c:
            with pytest.raises(errors.ProgrammingError, match="no transaction is open"):
                await c.lo_open(1)
            with pytest.raises(errors.UndefinedObject):
                async with c.transaction():
                    await c.lo_open(1)
            async with c.transaction():
                oid = await c.lo_create()
                f = await c.lo_open(oid, "w+b")
                calls = [f.write(DATA * 3), f.read()]
                results = await asyncio.gather(*calls, return_exceptions=True)
                assert results[0] == 3 * len(DATA)
                assert isinstance(results[1], errors.InterfaceError)
                await f.close()
                await c.lo_unlink(oid)

    run(main())


def test_mistakes_are_told(sync):
    oid = sync.lo_create()
    for mode in ("", "x", "r+w", "rr", "t", "rt"):
        with pytest.raises(ValueError, match="opened as"):
            sync.lo_open(oid, mode)
    with sync.lo_open(oid) as f:
        with pytest.raises(io.UnsupportedOperation):
            f.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            f.truncate(0)
        for wrong in ((-1,), (0, 7), (-1, 2)):
            with pytest.raises(ValueError):
                f.seek(*wrong)
    for use in (f.read, f.tell, f.readall, f.truncate):
        with pytest.raises(ValueError, match="closed"):
            use()
    with sync.lo_open(oid, "wb") as f:
        with pytest.raises(io.UnsupportedOperation):
            f.read()
        with pytest.raises(TypeError, match="encode"):
            f.write("text")
        with pytest.raises(TypeError):
            f.write(5)
        with pytest.raises(ValueError):
            f.truncate(-1)
    f = sync.lo_open(oid, "wb")
    f.write(b"x")
    with pytest.warns(ResourceWarning, match="may be lost"):
        del f
        gc.collect()
    sync.rollback()


def test_a_server_that_is_killed_ends_it(own_server):
    async def main():
        c = await aio.connect(own_server.url)
        with pytest.raises((errors.OperationalError, errors.InterfaceError)):
            async with c.transaction():
                f = await c.lo_open(await c.lo_create(), "wb")
                own_server.kill()
                await f.write(DATA * 3)
                await f.flush()
        await f.close()  # there is nothing left to do
        await c.close()

    asyncio.run(main())


def test_the_example_runs(dsn):
    example = Path(__file__).resolve().parents[2] / "examples/large_objects.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        env={**os.environ, "DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout
