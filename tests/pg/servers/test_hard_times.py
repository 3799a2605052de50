"""Servers that are frozen, killed, started again: every call ends, in time, with what happened."""

import asyncio
import io
import os
import select
import signal
import socket
import struct
import threading

import pytest
from fix_progress import Ticker, connected_in_time

import greenletio
from greenletio import async_, pg
from greenletio.pg import aio, errors

SLEEP = "SELECT pg_sleep(60)"
TIMED_OUT = (TimeoutError, asyncio.TimeoutError)
LIMIT_S = 30  # against a hang, not a measure
SOON = 0.2  # seconds: what has a limit here has this one


@pytest.fixture
def frozen(own_server):
    """A server that takes connections, and says nothing. Thawed at the end."""
    own_server.freeze()
    yield own_server
    own_server.thaw()


def several(*urls):
    """The options that name these servers in turn."""
    parts = [pg._conninfo.options_of(url, {}) for url in urls]
    return {
        **parts[-1],
        **{key: ",".join(part[key] for part in parts) for key in ("host", "port")},
    }


async def until_it_is_back(url):
    """Connect as soon as the server lets us; what it says until then."""
    said = []
    while True:
        try:
            return await aio.connect(url), said
        except errors.OperationalError as exc:
            said.append(exc)
            await asyncio.sleep(0.01)


def test_connecting_to_a_frozen_server(run, frozen):
    async def main():
        async with Ticker():
            for connect in (aio.connect, async_(pg.connect)):
                with pytest.raises(TIMED_OUT):
                    await connect(frozen.url, timeout=SOON)
                with pytest.raises(TIMED_OUT):
                    await connect(frozen.url, connect_timeout=SOON)
                with pytest.raises(errors.CannotConnect, match="timeout expired"):
                    await connect(**several(frozen.url, frozen.url), connect_timeout=SOON / 2)

    run(main())
    with pytest.raises(TIMED_OUT):
        pg.connect(frozen.url, timeout=SOON)


def test_a_frozen_server_costs_its_own_time_only(run, frozen, system_server):
    """Though both have the same name: each address has its own time."""
    both = several(frozen.url, system_server.url)
    both["password"] = system_server.password

    async def main():
        async with Ticker():
            for connect in (aio.connect, async_(pg.connect)):
                c = await connected_in_time(
                    lambda s, connect=connect: connect(**both, connect_timeout=s)
                )
                await (c.close() if connect is aio.connect else async_(c.close)())

    run(main())
    pg.connect(**both, connect_timeout=1).close()


async def copy_in(c):
    await c.copy_to_table("pg_temp.t", source=io.BytesIO(b"1\n" * 4_000_000), timeout=SOON)


async def copy_out(c):
    async def drop(data):
        pass

    await c.copy_from_query("SELECT 1 FROM pg_sleep(60)", output=drop, timeout=SOON)


async def in_transaction(c):
    async with c.transaction():  # BEGIN is its first word to a server that is frozen
        await c.execute(SLEEP)


WORK = {
    "fetch": lambda c: c.fetch("SELECT $1::int", 1, timeout=SOON),
    "script": lambda c: c.execute("SELECT 1; SELECT 2", timeout=SOON),
    "prepare": lambda c: c.prepare("SELECT 3", timeout=SOON),
    "executemany": lambda c: c.executemany(
        "INSERT INTO t VALUES ($1)", [(i,) for i in range(100_000)], timeout=SOON
    ),
    "copy in": copy_in,
    "copy out": copy_out,
    "transaction": in_transaction,
    "explicit None": lambda c: c.fetch("SELECT 1", timeout=None),
    "close": lambda c: c.close(timeout=SOON),
}
LIMITS = {"transaction": SOON, "explicit None": SOON}  # connect()'s command_timeout


def test_work_on_a_server_that_freezes(run, own_server):
    async def main():
        connections = {
            name: await aio.connect(own_server.url, command_timeout=LIMITS.get(name))
            for name in WORK
        }
        for name, c in connections.items():
            c.cancel_timeout = SOON if name != "close" else 60  # close() has a limit of its own
            await c.execute("CREATE TEMP TABLE t (a int)")
        closing = asyncio.ensure_future(connections["close"].fetch(SLEEP))
        await asyncio.sleep(0)
        own_server.freeze()
        try:
            async with Ticker():
                results = await asyncio.wait_for(
                    asyncio.gather(
                        *(WORK[name](c) for name, c in connections.items()),
                        return_exceptions=True,
                    ),
                    30,
                )
                for name, result in zip(WORK, results, strict=True):
                    assert isinstance(result, TIMED_OUT), (name, result)
                for name, c in connections.items():
                    # Nobody can know whether the server ends the old query before the new one.
                    with pytest.raises(errors.Error, match="in time|closed"):
                        await c.fetch("SELECT 1", timeout=30)
                    assert c.is_closed(), name
                with pytest.raises(errors.OperationalError):
                    await closing
        finally:
            own_server.thaw()

    run(main())


def test_sync_work_on_a_server_that_freezes(run, own_server):
    def work():
        with pg.connect(own_server.url) as c:
            c.raw.cancel_timeout = SOON
            c.execute("SELECT 1")
            own_server.freeze()
            try:
                with pytest.raises(TimeoutError), greenletio.timeout(SOON):
                    c.commit()
                # On a loop the old query is ended in the background, meanwhile the next one waits.
                with pytest.raises(errors.Error, match="in time|closed"):
                    c.execute("SELECT 1")
                assert c.closed
            finally:
                own_server.thaw()

    async def main():
        async with Ticker():
            await async_(work)()

    run(main())
    work()


@pytest.mark.parametrize("what", ["execute", "commit", "rollback", "copy", "stream"])
def test_a_limit_of_the_connection_in_sync_code(own_server, what):
    """BEGIN, which execute() sends first, has it as well as what a call can name no limit for."""
    with pg.connect(own_server.url, command_timeout=SOON) as c:
        c.raw.cancel_timeout = SOON
        if what in ("commit", "rollback"):
            c.execute("SELECT 1", timeout=LIMIT_S)
        own_server.freeze()
        with pytest.raises(TimeoutError):
            if what == "copy":
                c.cursor().copy("COPY (SELECT 1) TO STDOUT").__enter__()
            elif what == "stream":
                list(c.cursor().stream("SELECT 1"))
            elif what == "execute":
                c.execute("SELECT 1")
            else:
                getattr(c, what)()
        own_server.thaw()


def test_a_backend_that_freezes_is_no_matter_of_others(run, own_server):
    async def main():
        frozen, other = await aio.connect(own_server.url), await aio.connect(own_server.url)
        frozen.cancel_timeout = SOON
        pid = frozen.get_server_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            # The cancel request is taken by another process, and does not help.
            with pytest.raises(TIMED_OUT):
                await frozen.fetch(SLEEP, timeout=SOON)
            assert await other.fetchval("SELECT 1") == 1
            with pytest.raises(errors.OperationalError, match="in time"):
                await frozen.fetch("SELECT 1")
        finally:
            os.kill(pid, signal.SIGCONT)
        await other.close()

    run(main())


def test_a_cancel_request_that_comes_before_its_query_is_repeated(run, own_server):
    """The backend has not read the query yet when the signal comes, and passes it over."""

    async def main():
        c = await aio.connect(own_server.url)
        pid = c.get_server_pid()
        await c.fetch("SELECT pg_sleep($1)", 0)  # prepared: it is not looked at before it runs
        os.kill(pid, signal.SIGSTOP)
        try:
            query = asyncio.ensure_future(c.fetch("SELECT pg_sleep($1)", 60))
            await asyncio.sleep(0)
            query.cancel()
            await asyncio.sleep(0.1)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await c.fetchval("SELECT 1") == 1
        assert query.cancelled()
        await c.close()

    run(main())


def test_a_backend_that_is_killed_takes_all_with_it(run, own_server):
    """The server ends every session, recovers, and takes new ones."""

    async def main():
        killed, busy, idle = [await aio.connect(own_server.url) for _ in range(3)]
        query = asyncio.ensure_future(busy.fetch(SLEEP))
        await asyncio.sleep(0)
        os.kill(killed.get_server_pid(), signal.SIGKILL)
        with pytest.raises(errors.OperationalError, match="closed the connection unexpectedly"):
            await killed.fetch("SELECT 1")
        with pytest.raises(errors.OperationalError):
            await query
        with pytest.raises(errors.Error, match="closed|terminating"):
            while True:
                await idle.fetch("SELECT 1")
                await asyncio.sleep(0.01)
        assert killed.is_closed() and busy.is_closed() and idle.is_closed()
        c, said = await until_it_is_back(own_server.url)
        assert await c.fetchval("SELECT 1") == 1
        for exc in said:
            known = "refused" in str(exc) or "closed the connection" in str(exc)
            assert known or isinstance(exc, errors.CannotConnectNow), exc
        await c.close()

    run(main())


class Proxy(threading.Thread):
    """Passes bytes on between one client and a server, until it does something else."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.far = socket.create_connection(("127.0.0.1", port))
        self.stopped = False
        self.start()

    def run(self):
        self.near, _ = self.listener.accept()
        other = {self.near: self.far, self.far: self.near}
        while not self.stopped:
            for sock in select.select([*other], [], [], 0.01)[0]:
                other[sock].sendall(sock.recv(65536))

    def stop(self):
        self.stopped = True
        self.join()

    def send_and_reset(self, data):
        self.near.sendall(data)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for sock in (self.near, self.far, self.listener):
            sock.close()


@pytest.mark.parametrize("busy", [True, False])
def test_a_reset_right_after_some_data(run, own_server, busy):
    """libuv, and so uvloop, is silent about a socket once it was reset: what is unread then, the
    error included, must be read with what it has told of."""
    fields = b"SWARNING\0C57P02\0Mthe server is going down\0\0"
    notice = b"N" + struct.pack("!i", len(fields) + 4) + fields

    async def main():
        proxy = Proxy(own_server.port)
        through = {**several(own_server.url), "port": str(proxy.port)}
        c = await aio.connect(**through, sslmode="disable")
        proxy.stop()
        query = asyncio.ensure_future(c.fetch("SELECT 1")) if busy else None
        await asyncio.sleep(0)
        proxy.send_and_reset(notice)
        if query is not None:
            with pytest.raises(errors.OperationalError, match="reset by peer|unexpectedly"):
                await query
        while not c.is_closed():
            await asyncio.sleep(0.001)

    run(main())


def test_a_server_that_is_killed_and_started_again(run, own_server):
    async def main():
        c = await aio.connect(own_server.url)
        copy = await aio.connect(own_server.url)
        sync = await async_(pg.connect)(own_server.url)
        await c.fetchval("SELECT $1::int", 1)

        async def endless():
            while True:
                yield (1,)
                await asyncio.sleep(0)

        await copy.execute("CREATE TEMP TABLE t (a int)")
        copying = asyncio.ensure_future(copy.copy_records_to_table("t", records=endless()))
        await asyncio.sleep(0.02)
        own_server.kill()
        with pytest.raises(errors.OperationalError):
            await copying
        # These two were idle: they may know already that they are closed.
        with pytest.raises((errors.OperationalError, errors.InterfaceError)):
            await c.fetchval("SELECT $1::int", 1)
        with pytest.raises((errors.OperationalError, errors.InterfaceError)):
            await async_(sync.execute)("SELECT 1")
        assert c.is_closed() and copy.is_closed() and sync.closed
        with pytest.raises(errors.CannotConnect, match="refused"):
            await aio.connect(own_server.url)
        await asyncio.get_running_loop().run_in_executor(None, own_server.start)
        c, _ = await until_it_is_back(own_server.url)
        assert await c.fetchval("SELECT $1::int", 1) == 1
        await c.close()

    run(main())
