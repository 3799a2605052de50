"""COPY, which psycopg2 refuses under a wait callback."""

import asyncio
import io

import psycopg2
import pytest

import greenletio
from greenletio import async_


def table(conn):
    cursor = conn.cursor()
    cursor.execute("CREATE TEMPORARY TABLE numbers (n int, word text)")
    return cursor


def lines(count):
    return "".join(f"{n}\tword {n}\n" for n in range(count))


@pytest.mark.parametrize("make", [io.StringIO, lambda text="": io.BytesIO(text.encode())])
def test_copy_from_and_to_text_and_binary_files(run, connect, make):
    def work():
        cursor = table(connect())
        cursor.copy_from(make(lines(1000)), "numbers", columns=("n", "word"))
        assert cursor.rowcount == 1000
        out = make()
        cursor.copy_to(out, "numbers", sep="|", null="nothing")
        assert cursor.rowcount == 1000
        assert out.getvalue() == make(lines(1000).replace("\t", "|")).getvalue()

    async def main():
        await async_(work)()

    run(main())


def test_copy_of_megabytes_lets_others_run(run, connect, ticking):
    data = lines(300_000)

    def work():
        cursor = table(connect())
        cursor.copy_expert("COPY numbers FROM STDIN", io.StringIO(data), size=65536)
        out = io.StringIO()
        cursor.copy_expert("COPY numbers TO STDOUT", out)
        assert out.getvalue() == data

    async def main():
        async with ticking() as ticker:
            await async_(work)()
        return ticker.steps

    assert run(main()) > 20


def test_one_giant_read_lets_others_run(run, connect, ticking):
    class Whole:
        def __init__(self, data):
            self.data = data

        def read(self, size):
            data, self.data = self.data, b""
            return data

    def work(cursor, data):
        cursor.copy_from(Whole(data), "numbers")
        return cursor.rowcount

    async def main():
        cursor = await async_(lambda: table(connect()))()
        data = lines(300_000).encode()
        async with ticking() as ticker:
            assert await async_(work)(cursor, data) == 300_000
            return ticker.steps

    assert run(main()) > 5


def test_a_file_that_waits_itself(run, connect):
    """The file's own methods run in the greenlet, and may wait there."""

    class Slow(io.StringIO):
        def read(self, size=-1):
            greenletio.sleep(0.001)
            return super().read(size)

        def write(self, text):
            greenletio.sleep(0.001)
            return super().write(text)

    def work():
        cursor = table(connect())
        cursor.copy_from(Slow(lines(50)), "numbers", size=64)
        out = Slow()
        cursor.copy_to(out, "numbers")
        return out.getvalue()

    async def main():
        return await async_(work)()

    assert run(main()) == lines(50)


class Broken:
    def read(self, size):
        raise ZeroDivisionError("out of data")

    def write(self, data):
        raise ZeroDivisionError("out of space")


def test_errors_in_the_middle_are_psycopg2s_and_the_connection_survives(run, connect, fetch):
    def work():
        conn = connect()
        cursor = table(conn)
        conn.commit()
        with pytest.raises(psycopg2.DataError, match="invalid input syntax"):
            cursor.copy_from(io.StringIO("1\ta\nx\tb\n" + lines(50_000)), "numbers")
        conn.rollback()
        with pytest.raises(psycopg2.extensions.QueryCanceledError) as caught:
            cursor.copy_from(Broken(), "numbers")
        assert "error in .read() call: ZeroDivisionError out of data" in str(caught.value)
        conn.rollback()
        cursor.copy_from(io.StringIO(lines(1000)), "numbers")
        with pytest.raises(ZeroDivisionError, match="out of space"):
            cursor.copy_to(Broken(), "numbers")
        assert fetch(conn, "SELECT count(*) FROM numbers") == 1000  # the transaction goes on
        with pytest.raises(TypeError):
            cursor.copy_from(object(), "numbers")
        with pytest.raises(AttributeError):
            cursor.copy_expert("COPY numbers TO STDOUT", type("", (), {"read": None})())
        with pytest.raises(AttributeError):
            cursor.copy_expert("COPY numbers FROM STDIN", type("", (), {"write": None})())
        conn.rollback()
        return fetch(conn, "SELECT 42")

    async def main():
        return await async_(work)()

    assert run(main()) == 42


@pytest.mark.parametrize("sql", ["COPY numbers FROM STDIN", "COPY numbers TO STDOUT"])
def test_copy_by_plain_execute_is_refused_and_does_not_wedge(run, connect, fetch, sql):
    def work():
        conn = connect()
        cursor = table(conn)
        conn.commit()
        with pytest.raises(psycopg2.ProgrammingError, match="can't execute COPY"):
            cursor.execute(sql)
        conn.rollback()
        return fetch(conn, "SELECT 42")

    async def main():
        return await async_(work)()

    assert run(main()) == 42


def test_the_connection_used_by_the_file_of_its_own_copy(run, connect, fetch):
    def work():
        conn = connect()
        cursor = table(conn)
        cursor.copy_from(io.StringIO(lines(3)), "numbers")

        class Asks:
            def write(self, data):
                fetch(conn, "SELECT 1")

        with pytest.raises(psycopg2.ProgrammingError, match="use another connection"):
            cursor.copy_to(Asks(), "numbers")
        return fetch(conn, "SELECT count(*) FROM numbers")

    async def main():
        return await async_(work)()

    assert run(main()) == 3


class Endless:
    def __init__(self):
        self.started = asyncio.Event()
        self.size = 0

    def read(self, size):
        self.size += 1
        if self.size > 10:
            self.started.set()
        return "1\tx\n" * 100

    def write(self, data):
        self.size += 1
        if self.size > 10:
            self.started.set()


@pytest.mark.parametrize(
    "sql", ["COPY numbers FROM STDIN", "COPY (SELECT generate_series(1, 1000000000)) TO STDOUT"]
)
def test_cancelled_in_the_middle(run, connect, fetch, sql):
    async def main():
        conn = await async_(connect)()
        cursor = await async_(table)(conn)
        await async_(conn.commit)()
        file = Endless()
        copy = asyncio.ensure_future(async_(cursor.copy_expert)(sql, file))
        await file.started.wait()
        copy.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await copy
        exc = caught.value
        while not isinstance(exc, psycopg2.extensions.QueryCanceledError):
            exc = exc.__context__  # before 3.11 a task wraps its CancelledError in another
        await async_(conn.rollback)()
        return await async_(fetch)(conn, "SELECT count(*) FROM numbers")

    assert run(main()) == 0


def test_cancelled_while_the_file_waits(run, connect, fetch):
    class Stuck:
        def read(self, size):
            started.set()
            greenletio.sleep(60)

    async def main():
        conn = await async_(connect)()
        cursor = await async_(table)(conn)
        copy = asyncio.ensure_future(async_(cursor.copy_from)(Stuck(), "numbers"))
        await started.wait()
        copy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copy
        await async_(conn.rollback)()
        return await async_(fetch)(conn, "SELECT 42")

    started = asyncio.Event()
    assert run(main()) == 42


def test_the_peer_killed_in_the_middle(run, connect, pg_query):
    async def main():
        conn = await async_(connect)()
        cursor = await async_(table)(conn)
        file = Endless()
        copy = asyncio.ensure_future(async_(cursor.copy_from)(file, "numbers"))
        await file.started.wait()
        pg_query("SELECT pg_terminate_backend($1)", conn.get_backend_pid())
        with pytest.raises(psycopg2.OperationalError):
            await copy
        assert conn.closed

    run(main())


def test_copy_without_a_loop(connect):
    cursor = table(connect())
    cursor.copy_from(io.StringIO(lines(1000)), "numbers")
    out = io.StringIO()
    cursor.copy_to(out, "numbers")
    assert out.getvalue() == lines(1000)


def test_copy_on_a_connection_flagged_blocking(run, connect, ticking):
    async def main():
        conn = await async_(connect)()
        greenletio.psycopg2_blocking(conn)
        async with ticking() as ticker:
            await asyncio.sleep(0)
            cursor = table(conn)
            cursor.copy_from(io.StringIO(lines(20_000)), "numbers")
            cursor.copy_to(io.StringIO(), "numbers")
            return ticker.steps

    assert run(main()) == 0
