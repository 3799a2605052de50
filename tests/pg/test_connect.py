"""Connecting: strings and keywords, the environment, several hosts, names, limits of time."""

import asyncio
import socket
import threading
from urllib.parse import urlsplit

import pytest
from fix_progress import Ticker, connected_in_time

import greenletio
from greenletio import _pg, async_, pg
from greenletio.pg import aio, errors

NAME = "SELECT current_database()"


@pytest.fixture
def parts(dsn):
    """The shared database's connection options, one by one."""
    url = urlsplit(dsn)
    return {
        "host": url.hostname,
        "port": url.port or 5432,
        "user": url.username,
        "password": url.password,
        "database": url.path[1:],
    }


@pytest.fixture
def deaf():
    """A server that takes connections and never says anything; and one that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def nobody():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_by_keywords_and_by_the_environment(run, parts, monkeypatch):
    async def main():
        c = await aio.connect(
            **parts, server_settings={"application_name": "a b", "search_path": '"a \\ b"'}
        )
        assert await c.fetchval(NAME) == parts["database"]
        assert await c.fetchval("SHOW application_name") == "a b"
        assert await c.fetchval("SHOW search_path") == '"a \\ b"'
        await c.close()
        for name in ("host", "port", "user", "database"):
            monkeypatch.setenv(f"PG{name.upper()}", str(parts[name]))
        if parts["password"]:
            monkeypatch.setenv("PGPASSWORD", parts["password"])
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        c = await aio.connect()
        assert await c.fetchval("SELECT $1 || current_database()", "é") == "é" + parts["database"]
        await c.close()

    run(main())


def test_the_second_host_is_reached(run, parts, nobody, dsn):
    async def main():
        both = {**parts, "host": ["127.0.0.1", parts["host"]], "port": [nobody, parts["port"]]}
        c = await aio.connect(**both)
        assert await c.fetchval(NAME) == parts["database"]
        await c.close()

    run(main())


def test_hosts_in_an_order_of_chance(run, parts):
    """By libpq's option, where it has it."""
    options = {**parts, "host": ["127.0.0.1", "localhost"], "load_balance_hosts": "random"}

    async def main():
        found = set()
        for _ in range(100):
            c = await aio.connect(**options)
            found.add(c._options()["host"])
            await c.close()
            if len(found) == 2:
                return True

    if _pg.libpq_version() >= 160000:
        assert run(main())
    else:
        with pytest.raises(errors.ProgrammingError, match="load_balance_hosts"):
            run(main())


def test_an_address_that_does_not_answer_costs_its_own_time_only(run, parts, deaf):
    async def main():
        both = {**parts, "host": ["127.0.0.1", parts["host"]], "port": [deaf, parts["port"]]}
        async with Ticker():
            c = await connected_in_time(lambda s: aio.connect(**both, connect_timeout=str(s)))
        assert await c.fetchval(NAME) == parts["database"]
        await c.close()
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await aio.connect(host="127.0.0.1", port=deaf, timeout=0.1)

    run(main())


def test_names_are_resolved_off_the_loop(run, parts, monkeypatch):
    resolve = socket.getaddrinfo

    def slowly(host, *args, **kwargs):
        if host != "a.name":
            return resolve(host, *args, **kwargs)
        import time

        time.sleep(0.3)
        return resolve(parts["host"], *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    named = {**parts, "host": "a.name"}

    async def main():
        async with Ticker():
            c = await aio.connect(**named)
        assert c._options()["host"] == "a.name"
        await c.close()
        async with Ticker():
            with await async_(pg.connect)(**named) as sync:
                await async_(sync.execute)("SELECT 1")
                await async_(sync.close)()

    if run.kind != "uvloop":  # it has a resolver of its own
        run(main())


def test_a_name_that_is_not_resolved_in_time(run, parts, monkeypatch):
    release, late = threading.Event(), []
    resolve = socket.getaddrinfo

    def stuck(host, *args, **kwargs):
        if host != "a.name":
            return resolve(host, *args, **kwargs)
        release.wait(20)
        late.append(host)
        raise socket.gaierror("nobody waits any more")

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    named = {**parts, "host": "a.name", "timeout": 0.05}

    async def main():
        try:
            for connect in (aio.connect, async_(pg.connect)):
                with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                    await connect(**named)
            assert not late
        finally:
            release.set()

    if run.kind != "uvloop":  # it has a resolver of its own
        run(main())


def test_why_it_failed(run, parts, nobody):
    async def main():
        with pytest.raises(errors.OperationalError, match="refused"):
            await aio.connect(host="127.0.0.1", port=nobody)
        with pytest.raises(errors.OperationalError) as caught:
            await aio.connect(host=["127.0.0.1", "a.name.invalid"], port=[nobody, 5432])
        assert "refused" in str(caught.value)
        assert "a.name.invalid" in str(caught.value)
        with pytest.raises(errors.InvalidCatalogName, match="does not exist$") as caught:
            await aio.connect(**{**parts, "database": "there is none"})
        assert caught.value.sqlstate == "3D000"
        with pytest.raises(errors.ProgrammingError, match="no_such_option"):
            await aio.connect("no_such_option=1")
        with pytest.raises(errors.ProgrammingError, match="no_such_option"):
            await aio.connect(no_such_option=1)
        for wrong in ("host=127.0.0.1\0 user=x", "postgresql://127.0.0.1\0"):
            with pytest.raises(errors.ProgrammingError, match="NUL"):
                await aio.connect(wrong)

    run(main())


def test_a_cancelled_connect_leaves_nothing(run, deaf, aflat):
    async def main():
        async def one():
            task = asyncio.create_task(aio.connect(host="127.0.0.1", port=deaf, timeout=None))
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])

        await aflat(one, 60)

    run(main())


def test_closing(run, dsn):
    async def main():
        c = await aio.connect(dsn)
        query = asyncio.create_task(c.fetchval("SELECT 1 FROM pg_sleep(1000)"))
        other = asyncio.create_task(c.fetchval("SELECT 2"))
        await asyncio.sleep(0)
        await c.close()  # what runs is cancelled, what waits has its turn
        with pytest.raises(errors.QueryCanceled):
            await query
        assert await other == 2
        assert c.is_closed()
        await c.close()
        with pytest.raises(errors.InterfaceError, match="closed"):
            await c.fetch("SELECT 1")
        c = await aio.connect(dsn)
        query = asyncio.create_task(c.fetch("SELECT pg_sleep(60)"))
        await asyncio.sleep(0)
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await c.close(timeout=0)
        assert c.is_closed()
        with pytest.raises(errors.OperationalError):
            await query
        c = await aio.connect(dsn)
        c.terminate()
        assert c.is_closed()

    run(main())


def test_directly_in_a_loop_the_sync_face_is_refused(run, dsn):
    async def main():
        with pytest.raises(greenletio.WouldBlockError, match="greenletio.pg"):
            pg.connect(dsn)
        c = await async_(pg.connect)(dsn)
        with pytest.raises(greenletio.WouldBlockError):
            c.execute("SELECT 1")
        await async_(c.close)()

    run(main())


def test_connections_and_queries_leave_nothing_behind(run, dsn, aflat):
    async def main():
        async def one():
            c = await aio.connect(dsn, timeout=None)
            await c.fetch("SELECT $1::int, ARRAY[1]", 1)
            with pytest.raises(errors.DivisionByZero):
                await c.execute("SELECT 1/0")
            await c.close()

        await aflat(one, 60)

    run(main())


def test_a_subclass_whose_del_does_not_close(dsn, run):
    class Mine(aio.Connection):
        def __del__(self):
            pass

    async def main():
        c = await aio.connect(dsn, connection_class=Mine)
        assert isinstance(c, Mine)
        del c

    run(main())
