"""Pools with roles: who writes where, who reads where, and what becomes of it when servers change
their roles under traffic."""

import asyncio
import itertools
import threading
import time
from urllib.parse import urlsplit

import pytest
from fix_loops import new_loop
from fix_postgres import ask

import greenletio
from greenletio import async_, pg
from greenletio.pg import _pool_roles, aio, errors

LIMIT = 60  # against a hang, not a measure
STANDBY = "SELECT pg_is_in_recovery()"
FAILED = (errors.DatabaseError, errors.ConnectionClosed, asyncio.TimeoutError, TimeoutError)
DURABLE = {"synchronous_commit": "remote_write"}


def until(true, what):
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def make_table(cluster, columns):
    """It is on the standby, too, when this returns: a commit does not wait for that by itself."""
    name = columns.split()[0]
    ask(cluster.primary.url, f"DROP TABLE IF EXISTS {name}")
    ask(cluster.primary.url, f"CREATE TABLE {columns}")
    ((oid,),) = ask(cluster.primary.url, f"SELECT '{name}'::regclass::oid::int8")
    there = f"to_regclass('{name}')::oid::int8 IS NOT DISTINCT FROM {oid}"
    cluster.wait(cluster.standby.url, f"SELECT {there}")


def pool_of(cluster, **options):
    kwargs = cluster.options(*options.pop("ports", ()))
    kwargs["server_settings"] = DURABLE
    return pg.Pool(kwargs=kwargs, **{"min_size": 1, "max_size": 4, "readonly": 3, **options})


def test_where_they_are(cluster, monkeypatch):
    monkeypatch.setattr(_pool_roles, "LOOK_AGAIN", 0.2)
    monkeypatch.setattr(_pool_roles, "AVOID_MOST", 0.2)
    make_table(cluster, "t (a int)")
    with pool_of(cluster) as pool, pool_of(cluster, readonly_fallback=False) as strict:

        def reads(pool=pool):
            with pool.connection(readonly=True, timeout=LIMIT) as c:
                return c.execute(STANDBY).fetchone()[0]

        async def by_tasks():
            async with pool.aio.acquire(timeout=LIMIT) as c:
                assert await c.fetchval(STANDBY) is False
            async with pool.aio.acquire(timeout=LIMIT, readonly=True) as c:
                assert await c.fetchval(STANDBY) is True
                with pytest.raises(errors.ReadOnlySqlTransaction):
                    await c.execute("INSERT INTO t VALUES (1)")
            async with aio.create_pool(
                **cluster.options(), min_size=1, max_size=1, readonly=2
            ) as own:
                async with own.acquire() as w, own.acquire(readonly=True) as r:
                    assert [await w.fetchval(STANDBY), await r.fetchval(STANDBY)] == [False, True]
                assert await own.fetchval(STANDBY) is False
                assert own.get_stats()["readonly_pool_size"] == 1

        with pool.connection() as c:
            assert c.execute(STANDBY).fetchone() == (False,)
            c.execute("INSERT INTO t VALUES (1)")
        assert reads() is True and reads(strict) is True
        asyncio.run(by_tasks())

        # A transaction that is read-only since the program wants it so is no reason to leave.
        before = pool.get_stats()["evicted"]
        with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection() as c:
            c.read_only = True
            c.execute("INSERT INTO t VALUES (1)")
        assert pool.get_stats()["evicted"] == before

        # Without a standby the primary is read, and even there nothing can be written.
        cluster.standby.kill()
        assert reads() is False
        with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection(readonly=True) as c:
            c.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(pg.PoolTimeout):
            strict.getconn(timeout=0.5, readonly=True)
        with strict.connection() as c:
            assert c.execute(STANDBY).fetchone() == (False,)
        cluster.standby.start()
        until(reads, "reads go back to the standby")
        assert reads(strict) is True


def test_a_server_that_takes_no_writes_any_more(cluster):
    """By its settings, as when it is about to be replaced: connections to it are of no use."""
    url = cluster.primary.url
    make_table(cluster, "t (a int)")
    with pool_of(cluster, min_size=2) as pool:
        pool.wait(LIMIT)
        ask(url, "ALTER SYSTEM SET default_transaction_read_only = on")
        ask(url, "SELECT pg_reload_conf()")
        cluster.wait(url, "SELECT current_setting('default_transaction_read_only') = 'on'")
        with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection() as c:
            c.execute("INSERT INTO t VALUES (1)")
        assert pool.get_stats()["evicted"] == 1
        with pytest.raises(pg.PoolTimeout, match="read-only|hot standby|took too long"):
            pool.getconn(timeout=0.5)
        ask(url, "SET default_transaction_read_only = off")
        server = pg.connect(url, autocommit=True)
        server.execute("SET default_transaction_read_only = off")
        server.execute("ALTER SYSTEM RESET default_transaction_read_only")
        server.execute("SELECT pg_reload_conf()")
        server.close()
        with pool.connection(timeout=LIMIT) as c:
            c.execute("INSERT INTO t VALUES (2)")


def test_a_standby_that_lags_is_not_read(cluster, monkeypatch):
    monkeypatch.setattr(_pool_roles, "LAGS", 0.2)
    monkeypatch.setattr(_pool_roles, "LOOK_AGAIN", 0.2)
    make_table(cluster, "t (a int)")
    with pool_of(cluster, max_lag=1.0) as pool:

        def reads():
            with pool.connection(readonly=True, timeout=LIMIT) as c:
                return c.execute(STANDBY).fetchone()[0]

        assert reads() is True
        ask(cluster.standby.url, "SELECT pg_wal_replay_pause()")
        until(
            lambda: ask(cluster.primary.url, "INSERT INTO t VALUES (1)") == [] and not reads(),
            "reads leave the standby that lags",
        )
        ask(cluster.standby.url, "SELECT pg_wal_replay_resume()")
        until(reads, "reads go back to it")


def test_what_was_written_just_now_is_no_lag(cluster, monkeypatch):
    """The last transaction that it has replayed is old then."""
    monkeypatch.setattr(_pool_roles, "SOON", (0.0001,) * 100_000)
    make_table(cluster, "t (a int)")
    time.sleep(0.5)  # so long nobody writes
    resume = threading.Timer(0.2, ask, (cluster.standby.url, "SELECT pg_wal_replay_resume()"))
    with pool_of(cluster, max_lag=0.4) as pool:
        ask(cluster.standby.url, "SELECT pg_wal_replay_pause()")
        ask(cluster.primary.url, "INSERT INTO t VALUES (1)")
        resume.start()
        try:
            with pool.connection(readonly=True, timeout=LIMIT) as c:
                assert c.execute(STANDBY).fetchone()[0] is True
        finally:
            resume.join()


def test_a_standby_that_freezes(cluster, monkeypatch):
    monkeypatch.setattr(_pool_roles, "LOOK_AGAIN", 0.2)
    monkeypatch.setattr(_pool_roles, "AVOID_MOST", 0.5)
    limits = {"connect_timeout": "0.3", "command_timeout": 0.3}

    async def main():
        async with aio.create_pool(**cluster.options(), **limits, min_size=0, readonly=2) as pool:

            async def read():
                async with pool.acquire(readonly=True, timeout=LIMIT) as c:
                    c.cancel_timeout = 0.3
                    return await c.fetchval(STANDBY)

            async def read_until(standby):
                deadline = time.monotonic() + LIMIT
                while True:
                    assert time.monotonic() < deadline
                    try:
                        if await read() is standby:
                            return
                    except FAILED:
                        pass
                    await asyncio.sleep(0.01)

            await read_until(True)
            cluster.standby.freeze()
            try:
                await read_until(False)
                # Who comes next does not wait for it again, but goes where the last one has been.
                assert await pool.fetchval(STANDBY) is False
            finally:
                cluster.standby.thaw()
            await read_until(True)

    asyncio.run(main())


def test_a_pooler_whose_server_has_another_role_now(cluster, pgbouncer):
    """In transaction mode a connection outlives the server's, and so does what it was told."""
    make_table(cluster, "t (a int)")
    bouncer = urlsplit(pgbouncer(cluster.primary.url, "transaction"))
    options = cluster.options(bouncer.port, cluster.standby.port)
    with pg.Pool(kwargs={**options, "pooler": True}, min_size=1, max_size=1, readonly=1) as pool:

        def write():
            with pool.connection(timeout=LIMIT) as c:
                c.execute("INSERT INTO t VALUES (1)")
                return c.raw._options()["port"]

        assert write() == str(bouncer.port)
        cluster.fail_over()
        cluster.rejoin()
        with pytest.raises(FAILED):  # the old server is a standby, and this connection leads there
            until(lambda: write() == str(cluster.primary.port), "")
        assert write() == str(cluster.primary.port)
        assert pool.get_stats()["evicted"] == 1


def test_it_is_made_as_it_can_be(dsn):
    with pg.Pool(dsn, min_size=0, max_size=1) as pool:
        with pytest.raises(errors.InterfaceError, match="knows the roles"):
            pool.getconn(readonly=True)
    for wrong in (
        {"readonly": -1},
        {"readonly": 1, "max_lag": 0},
        {"max_lag": 1},
        {"readonly_fallback": False},
        {"readonly": 1, "kwargs": {"target_session_attrs": "primary"}},
    ):
        with pytest.raises(ValueError, match="readonly|max_lag"):
            pg.Pool(dsn, min_size=1, open=False, **wrong)
    with pytest.raises(ValueError, match="connect="):
        aio.create_pool(dsn, readonly=1, connect=aio.connect)
    with pytest.raises(ValueError, match="target_session_attrs"):
        aio.create_pool(f"{dsn}?target_session_attrs=any", readonly=1)
    with pg.Pool(f"{dsn}?work_mem=5MB", min_size=0, max_size=1, readonly=1) as pool:
        for readonly in (False, True):  # one server, and no standby at all
            with pool.connection(readonly=readonly) as c:
                assert c.execute("SHOW work_mem").fetchone() == ("5MB",)


class Application(threading.Thread):
    """Writes numbers, each once, and reads, by one pool: tasks and greenlets on a loop of its kind,
    or plain code."""

    def __init__(self, kind, cluster, **options):
        super().__init__(daemon=True)
        self.kind = kind
        self.pool = pool_of(cluster, **options)
        self.acknowledged, self.failed, self.reads = [], [], []
        self.stopped = False
        self._numbers = itertools.count()
        self.start()

    def run(self):
        if self.kind == "plain":
            reader = threading.Thread(target=self.read)
            reader.start()
            self.write()
            reader.join()
        else:
            loop = new_loop(self.kind)
            loop.run_until_complete(self.main())
            loop.close()
        self.pool.close()

    async def main(self):
        await asyncio.gather(
            *(self.write_async(), self.write_async(), self.read_async()),
            *(async_(self.write)(), async_(self.read)()),
        )

    async def write_async(self):
        while not self.stopped:
            number = next(self._numbers)
            try:
                async with self.pool.aio.acquire(timeout=LIMIT) as c:
                    await c.execute("INSERT INTO written VALUES ($1, $2)", self.kind, number)
                self.acknowledged.append(number)
            except FAILED as exc:
                self.failed.append(exc)

    async def read_async(self):
        while not self.stopped:
            try:
                async with self.pool.aio.acquire(timeout=LIMIT, readonly=True) as c:
                    self.reads.append(await c.fetchval(STANDBY))
            except FAILED as exc:
                self.failed.append(exc)
            await asyncio.sleep(0.002)

    def write(self):
        while not self.stopped:
            number = next(self._numbers)
            try:
                with self.pool.connection(timeout=LIMIT) as c:
                    c.execute("INSERT INTO written VALUES (%s, %s)", [self.kind, number])
                self.acknowledged.append(number)
            except FAILED as exc:
                self.failed.append(exc)

    def read(self):
        while not self.stopped:
            try:
                with self.pool.connection(timeout=LIMIT, readonly=True) as c:
                    self.reads.append(c.execute(STANDBY).fetchone()[0])
            except FAILED as exc:
                self.failed.append(exc)
            greenletio.sleep(0.002)

    def goes_on(self, count=20):
        """Wait for that many more acknowledged writes, and some reads."""
        wanted, reads = len(self.acknowledged) + count, len(self.reads) + 5
        until(
            lambda: len(self.acknowledged) >= wanted and len(self.reads) >= reads,
            (self.kind, self.failed[-2:]),
        )

    def reads_on(self, standby):
        """Wait until it reads there."""
        seen = len(self.reads)
        until(lambda: standby in self.reads[seen:], (self.kind, standby, self.failed[-2:]))


def back_and_forth(cluster, monkeypatch, times, kinds, **options):
    monkeypatch.setattr(_pool_roles, "LOOK_AGAIN", 0.5)
    monkeypatch.setattr(_pool_roles, "AVOID_MOST", 0.5)
    make_table(cluster, "written (who text, number int)")
    applications = [Application(kind, cluster, **options) for kind in kinds]
    try:
        for _ in range(times):
            for application in applications:
                application.goes_on()
                application.reads_on(True)
            cluster.fail_over()
            for application in applications:
                application.goes_on()
                application.reads_on(False)  # there is no standby
            cluster.rejoin()
    finally:
        for application in applications:
            application.stopped = True
        for application in applications:
            application.join(LIMIT)
    for application in applications:
        assert not application.is_alive()
        sql = "SELECT number FROM written WHERE who = $1"
        found = [number for (number,) in ask(cluster.primary.url, sql, application.kind)]
        assert len(found) == len(set(found)), "a number was written twice"
        missed = set(application.acknowledged) - set(found)
        assert not missed, application.kind


def test_promoted_back_and_forth(cluster, monkeypatch):
    back_and_forth(cluster, monkeypatch, 2, ["greenletio", "plain"])


def test_behind_haproxy(cluster, proxied, monkeypatch):
    back_and_forth(cluster, monkeypatch, 1, ["asyncio"], ports=proxied(cluster))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("through", ["directly", "haproxy"])
def test_promoted_back_and_forth_many_times(cluster, proxied, monkeypatch, through):
    ports = proxied(cluster) if through == "haproxy" else ()
    kinds = ["asyncio", "uvloop", "greenletio", "plain"]
    back_and_forth(cluster, monkeypatch, 8, kinds, ports=ports)
