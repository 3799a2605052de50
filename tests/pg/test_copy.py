"""COPY, both ways: what it takes and gives, back-pressure, and the ways in which it ends early."""

import asyncio
import functools
import io
import time
from pathlib import Path

import pytest
from fix_progress import Ticker

from greenletio import async_, pg
from greenletio.pg import aio, errors


def test_round_trip_by_files_and_functions(run, connect, tmp_path):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int, b text); CREATE TEMP TABLE u (LIKE t)")
            source = io.BytesIO(b"1\tone\n2\t\\N\n")
            assert await c.copy_to_table("t", source=source) == "COPY 2"
            output = io.BytesIO()
            assert await c.copy_from_table("t", output=output) == "COPY 2"
            assert output.getvalue() == source.getvalue()
            path = tmp_path / "rows.csv"
            status = await c.copy_from_query(
                "SELECT * FROM t WHERE a < $1 AND b = $2",
                5,
                "one",
                output=path,
                format="csv",
                header=True,
            )
            assert (status, path.read_bytes()) == ("COPY 1", b"a,b\n1,one\n")
            assert await c.copy_to_table("u", source=path, format="csv", header=True) == "COPY 1"
            chunks = []

            async def take(chunk):
                chunks.append(chunk)

            await c.copy_from_table("u", columns=["b"], output=take)
            assert b"".join(chunks) == b"one\n"

            async def give():
                yield b"7,x"
                yield b"\n"

            assert await c.copy_to_table("u", source=give(), delimiter=",") == "COPY 1"
            assert await c.fetch("SELECT * FROM u") == [(1, "one"), (7, "x")]

    run(main())


def test_records(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int, b text, c numeric[], d timestamptz)")
            rows = [(i, "x" * i, [i, None], None) for i in range(1000)]
            assert await c.copy_records_to_table("t", records=rows) == "COPY 1000"
            assert await c.fetch("SELECT * FROM t ORDER BY a") == rows

            async def some():
                for i in range(1200):
                    yield (i,)

            status = await c.copy_records_to_table(
                "t", records=some(), columns=["a"], where="a >= 1100"
            )
            assert status == "COPY 100"
            assert await c.copy_records_to_table("t", records=[]) == "COPY 0"

    run(main())


def test_a_socket_that_fills_and_drains_in_the_same_moment(run, connect):
    """Each write waits for room; the server may make some before anybody waits for it."""

    async def main():
        async with connect() as c:
            directory = (await c.fetchval("SHOW unix_socket_directories")).split(",")[0].strip()
            socket = Path(directory, f".s.PGSQL.{await c.fetchval('SHOW port')}")
        # A Unix socket's buffer is so small that this happens in some of twenty writes.
        nearby = {"host": directory} if socket.is_socket() else {}
        async with connect(**nearby) as c:
            await c.execute("CREATE TEMP TABLE t (a int, b text, c float8)")
            rows = [(i, f"text {i}", i / 3) for i in range(10_000)]
            for _ in range(60):
                assert await c.copy_records_to_table("t", records=rows, timeout=30) == "COPY 10000"
            await c.execute("TRUNCATE t")

    run(main())


def test_a_slow_taker_holds_the_server(run, connect):
    async def main():
        taken = 0
        go_on = asyncio.Event()

        async def slowly(chunk):
            nonlocal taken
            taken += len(chunk)
            await go_on.wait()

        async with connect() as c, connect() as other, Ticker():
            # More than the sockets' buffers hold.
            query = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
            task = asyncio.create_task(c.copy_from_query(query, output=slowly))
            state = "SELECT wait_event FROM pg_stat_activity WHERE pid = $1"
            while await other.fetchval(state, c.get_server_pid()) != "ClientWrite":
                await asyncio.sleep(0.01)
            assert taken < 1_000_000
            go_on.set()
            assert await task == "COPY 20000"
            assert taken == 20000 * 1001

    run(main())


def test_a_chunk_is_whole_rows_of_any_size(run, connect):
    # Some fill what one chunk has room for to the byte, some are larger by far.
    sizes = [*range(64, 72)] + [1, 65535, 65536, 73727, 73728, 147455, 147456, 500_000] * 3
    sizes += [8191] * 30 + [*range(2000)]

    async def main():
        chunks = []

        async def take(chunk):
            chunks.append(chunk)

        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (i serial, n int)")
            await c.copy_records_to_table("t", records=[(n,) for n in sizes], columns=["n"])
            query = "SELECT repeat('x', n - 1) FROM t ORDER BY i"
            for _ in range(3):
                assert await c.copy_from_query(query, output=take) == f"COPY {len(sizes)}"
                assert all(chunk.endswith(b"\n") for chunk in chunks)
                rows = b"".join(chunks).splitlines()
                assert [len(row) + 1 for row in rows] == [max(n, 1) for n in sizes]
                assert not b"".join(rows).strip(b"x")
                chunks.clear()

    run(main())


def test_arguments_do_not_go_through_the_users_codec_of_text(run, connect):
    async def main():
        async with connect() as c:
            await c.set_type_codec(
                "text", schema="pg_catalog", encoder=str, decoder=lambda text: ("mine", text)
            )
            output = io.BytesIO()
            query = "SELECT $1::text, $2::int, $3::text"
            assert await c.copy_from_query(query, "it's", 5, None, output=output) == "COPY 1"
            assert output.getvalue() == b"it's\t5\t\\N\n"
            await c.reset_type_codec("text", schema="pg_catalog")
            for args in ((5,), (5, 6, 7)):
                with pytest.raises(errors.ArgumentsMismatch, match="expects 2 arguments"):
                    await c.copy_from_query("SELECT $1::int, $2::int", *args, output=output)

    run(main())


def test_what_is_asked_for_in_the_middle_of_a_copy_would_wait_for_it(run, connect, sync):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")

            async def ask(*_):
                return await c.fetchval("SELECT 1")

            async def rows():
                yield (1,)
                yield (await ask(),)

            with pytest.raises(errors.InterfaceError, match="copying for this task"):
                await c.copy_from_query("SELECT 1", output=ask)
            with pytest.raises(errors.InterfaceError, match="copying for this task"):
                await c.copy_records_to_table("t", records=rows())
            other = asyncio.ensure_future(c.copy_from_query("SELECT 5", output=io.BytesIO()))
            assert await c.fetchval("SELECT count(*) FROM t") == 0
            assert await other == "COPY 1"

    run(main())
    with sync.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        with pytest.raises(errors.InterfaceError, match="or copying"):
            sync.execute("SELECT 1")
        assert copy.read() == b"1\n"
    sync.execute("CREATE TEMP TABLE t (a int)")
    with pytest.raises(errors.InterfaceError, match="or copying"):
        sync.cursor().copy_records("t", (sync.execute("SELECT 1").fetchone() for _ in range(2)))
    sync.rollback()


def test_what_comes_before_a_copy_in_its_script_is_let_go(sync, flat):
    cursor = sync.cursor()

    def copy():
        with cursor.copy("SELECT 1; COPY (SELECT 2) TO STDOUT") as rows:
            assert b"".join(rows) == b"2\n"

    flat(copy)


def test_closed_by_another_task_than_the_one_that_reads(run, connect):
    async def main():
        async with connect() as c:
            sleep = "pg_sleep(CASE WHEN i < 3 THEN 0 ELSE 60 END)"
            query = f"SELECT repeat('x', 20000), {sleep} FROM generate_series(1, 3) i"
            session = c._op("copy", "status", f"COPY ({query}) TO STDOUT")
            await session

            async def read():
                while await c._op("copy_read", "nothing", "", session=session):
                    pass

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.01)  # it has come to its wait
            session.close()
            with pytest.raises(errors.InterfaceError, match="COPY was closed meanwhile"):
                await reading

    run(main())


def test_what_ends_early(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")
            with pytest.raises(errors.InvalidTextRepresentation):
                await c.copy_to_table("t", source=io.BytesIO(b"x\n" * 200000))
            with pytest.raises(errors.UndefinedTable):
                await c.copy_to_table("nowhere", source=io.BytesIO(b""))
            with pytest.raises(errors.DataError, match=r"\$1"):
                await c.copy_records_to_table("t", records=[(1,), ("x",)])
            with pytest.raises(errors.DataError, match="1 values"):
                await c.copy_records_to_table("t", records=[(1, 2)])

            async def failing():
                yield b"1\n"
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await c.copy_to_table("t", source=failing())
            with pytest.raises(TypeError):
                await c.copy_to_table("t", source=5)

            async def refuse(chunk):
                raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await c.copy_from_query("SELECT generate_series(1, 1000000)", output=refuse)
            with pytest.raises(errors.DivisionByZero):
                await c.copy_from_query(
                    "SELECT 1 / (i - 90000) FROM generate_series(1, 100000) i", output=io.BytesIO()
                )
            assert await c.fetchval("SELECT count(*) FROM t") == 0

    run(main())


def test_what_is_cancelled(run, connect):
    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")

            async def endless():
                while True:
                    yield b"1\n"
                    await asyncio.sleep(0.001)

            async def never(chunk):
                await asyncio.sleep(60)

            for copy in (
                c.copy_to_table("t", source=endless()),
                c.copy_from_query("SELECT generate_series(1, 10000000)", output=never),
                c.copy_from_query("SELECT pg_sleep(60)", output=never),
            ):
                task = asyncio.create_task(copy)
                await asyncio.sleep(0.03)
                after = asyncio.create_task(c.fetchval("SELECT count(*) FROM t"))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await after == 0

    run(main())


@pytest.fixture
def end_session(dsn):
    """Have the server end a session; it has when this returns."""

    def end(pid):
        with pg.connect(dsn, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])

    return end


@pytest.mark.parametrize("seen", [True, False], ids=["noticed", "unnoticed"])
def test_a_session_that_ends_between_two_writes(run, connect, end_session, seen):
    """Whether the loop told of it in between or not: what is raised is what the server said."""

    async def main():
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")

            async def give():
                yield b"1\n"
                await async_(end_session)(c.get_server_pid())
                while seen and not c.is_closed():
                    await asyncio.sleep(0.001)
                while True:
                    yield b"2\n"

            with pytest.raises(errors.AdminShutdown, match="terminating connection"):
                await c.copy_to_table("t", source=give())
            assert c.is_closed()

    run(main())


def test_sync_code_whose_session_ends_between_two_writes(sync, end_session):
    sync.execute("CREATE TEMP TABLE t (a int)")
    with pytest.raises(errors.AdminShutdown, match="terminating connection"):
        with sync.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write("1\n")
            end_session(sync.raw._pid)
            while True:
                copy.write("2\n")
    assert sync.closed


@pytest.mark.parametrize("leave", [False, True], ids=["reads on", "leaves"])
def test_a_session_that_ends_between_two_reads(run, connect, end_session, leave):
    """What had come before is given; nobody waits for the rest of it."""

    async def main():
        async with connect() as c:
            taken = bytearray()

            async def take(rows):
                if not taken:
                    await async_(end_session)(c.get_server_pid())
                    if leave:
                        raise ZeroDivisionError
                taken.extend(rows)

            query = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
            expected = ZeroDivisionError if leave else errors.OperationalError
            with pytest.raises(expected):
                await c.copy_from_query(query, output=take)
            with pytest.raises(errors.Error):
                await asyncio.wait_for(c.fetch("SELECT 1"), 30)
            assert c.is_closed()
            assert leave or len(taken) > 65536

    run(main())


def test_records_need_a_binary_form(run, dsn):
    async def main():
        c = await aio.connect(dsn)
        await c.execute("CREATE TEMP TABLE t (a uuid)")
        named = {"schema": "pg_catalog", "format": "text"}
        await c.set_type_codec("uuid", encoder=str, decoder=str, **named)
        with pytest.raises(aio.InternalClientError, match="no binary format encoder") as caught:
            await c.copy_records_to_table("t", records=[("x",)])
        assert isinstance(caught.value, pg.NotSupportedError)
        assert await c.fetchval("SELECT count(*) FROM t") == 0
        await c.close()

    run(main())


class Turns:
    """How many pieces were taken or given in a row while another task waited for its turn."""

    def __init__(self):
        self.most = self._now = 0

    def piece(self):
        """One that takes a millisecond: the other side is far ahead, and nobody has to wait."""
        time.sleep(0.001)
        self._now += 1
        self.most = max(self.most, self._now)

    async def count(self):
        while True:
            self._now = 0
            await asyncio.sleep(0)


MANY_ROWS = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"


async def out(c, turns):
    async for _ in reading(c):
        turns.piece()


async def reading(c):
    session = c._op("copy", "status", f"COPY ({MANY_ROWS}) TO STDOUT")
    await session
    while isinstance(rows := await c._op("copy_read", "nothing", "", session=session), bytes):
        yield rows


async def to_file(c, turns):
    class File:
        def write(self, data):
            turns.piece()

    await c.copy_from_query(MANY_ROWS, output=File())


async def from_file(c, turns):
    class File:
        left = 200

        def read(self, size):
            self.left -= 1
            turns.piece()
            return b"1\n" * 100 if self.left else b""

    await c.copy_to_table("t", source=File())


async def columns(c, turns):
    async for _ in c.stream_arrow(MANY_ROWS, batch_rows=50):
        turns.piece()


def by_cursor(work):
    @functools.wraps(work)
    async def run(c, turns):
        await async_(work)(turns, c.dsn)

    return run


@by_cursor
def green_out(turns, dsn):
    with pg.connect(dsn) as c, c.cursor().copy(f"COPY ({MANY_ROWS}) TO STDOUT") as copy:
        for _ in copy:
            turns.piece()


@by_cursor
def green_in(turns, dsn):
    with pg.connect(dsn) as c:
        c.execute("CREATE TEMP TABLE t (a int)")
        with c.cursor().copy("COPY t FROM STDIN") as copy:
            for _ in range(200):
                copy.write(b"1\n" * 100)
                turns.piece()


@pytest.mark.parametrize(
    "work", [out, to_file, from_file, columns, green_out, green_in], ids=lambda f: f.__name__
)
def test_others_have_their_turn_however_fast_the_server_is(run, connect, dsn, work):
    async def main():
        turns = Turns()
        async with connect() as c:
            await c.execute("CREATE TEMP TABLE t (a int)")
            c.dsn = dsn
            counting = asyncio.create_task(turns.count())
            await work(c, turns)
            counting.cancel()
        assert 1 <= turns.most <= 10

    run(main())


def test_cancelled_while_others_have_their_turn(run, connect):
    """The piece that was there is lost, the COPY is ended, and the connection usable."""

    async def main():
        async with connect() as c:
            turns = Turns()
            task = asyncio.create_task(to_file(c, turns))
            while turns.most < 3:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):
                slow = asyncio.create_task(to_file(c, turns))
                await asyncio.wait_for(slow, 0.01)

    run(main())


def test_rows_and_records_of_a_cursor(sync):
    cursor = sync.execute("CREATE TEMP TABLE t (a int, b text, c int[])")
    records = [(1, "tab\t\\N back\\slash\r\n\b\f\v", [1, None]), (None, "", []), (3, None, None)]
    cursor.copy_records("t", iter(records))
    assert cursor.rowcount == 3
    cursor.copy_records("t", [["x"]], columns=["b"], schema="pg_temp")
    assert cursor.execute("SELECT * FROM t").fetchall() == [*records, (None, "x", None)]
    with cursor.copy("COPY (SELECT * FROM t) TO STDOUT") as copy:
        assert list(copy.rows()) == [
            ("1", records[0][1], "{1,NULL}"),
            (None, "", "{}"),
            ("3", None, None),
            (None, "x", None),
        ]
    with pytest.raises(errors.DataError, match="got one with 2"):
        cursor.copy_records("t", [(1, "x")])
    sync.rollback()
    with pytest.raises(pg.NotSupportedError, match="text format"):
        with cursor.copy("COPY (SELECT 1) TO STDOUT (FORMAT binary)") as copy:
            list(copy.rows())
    sync.rollback()
    assert cursor.execute("SELECT 1").fetchone() == (1,)


class CutShort:
    """Steps a read until its rows are there and only others are to have their turn; cancels it."""

    def __init__(self, op):
        self._op = op

    def __await__(self):
        try:
            while (step := self._op.send(None)) is not None:
                yield step
        except StopIteration:
            return False  # nobody else had a turn
        with pytest.raises(asyncio.CancelledError):
            self._op.throw(asyncio.CancelledError())
        return True


def test_a_read_that_is_cancelled_when_its_rows_are_there_ends_the_copy(run, connect):
    """They are lost: whoever caught that and went on reading would have a gap."""

    async def main():
        async with connect() as c:
            session = c._op("copy", "status", "COPY (SELECT generate_series(1, 5000000)) TO STDOUT")
            await session
            while not await CutShort(c._op("copy_read", "nothing", "", session=session)):
                time.sleep(0.003)  # more comes meanwhile than a read takes
            with pytest.raises(errors.Error):
                await c._op("copy_read", "nothing", "", session=session)
            session.close()

    run(main())
