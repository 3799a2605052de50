"""Hundreds of cancellations and timeouts on one pool, and then with a server that is treated badly.

The workers run random operations on a pool of SQLAlchemy; each operation carries a token that its
answer must repeat. At the end the pool's connections and those the server knows must be the same.
"""

import asyncio
import io
import os
import random
import secrets
import signal
import time

import psycopg2
import pytest
from psycopg2 import OperationalError
from sqlalchemy.pool import QueuePool

import greenletio
from greenletio import async_

WORKERS = 12
EXPECTED = (asyncio.CancelledError, TimeoutError, OperationalError, psycopg2.InterfaceError)


class Chaos:
    def __init__(self, url):
        self.url = url
        self.name = f"chaos-{secrets.token_hex(4)}"
        # Never more workers than connections: QueuePool itself would hold the loop.
        self.pool = QueuePool(self.connect, pool_size=WORKERS, max_overflow=0)
        self.random = random.Random(7)
        self.interrupted = 0
        self.finished = 0
        self.failures = []

    def connect(self):
        return psycopg2.connect(self.url, application_name=self.name, connect_timeout=5)

    def query(self, conn, token):
        cursor = conn.cursor()
        cursor.execute("SELECT %s FROM pg_sleep(%s)", (token, self.random.random() / 50))
        assert cursor.fetchall() == [(token,)]

    def large(self, conn, token):
        cursor = conn.cursor()
        cursor.execute("SELECT %s || repeat('x', 300000), n FROM generate_series(1, 5) n", (token,))
        assert all(row[0].startswith(token) for row in cursor.fetchall())

    def copy(self, conn, token):
        cursor = conn.cursor()
        cursor.execute("CREATE TEMPORARY TABLE copied (word text) ON COMMIT DROP")
        cursor.copy_from(io.StringIO(f"{token}\n" * 20_000), "copied")
        out = io.StringIO()
        cursor.copy_expert("COPY (SELECT DISTINCT word FROM copied) TO STDOUT", out)
        assert out.getvalue() == f"{token}\n"

    def reconnect(self, conn, token):
        other = self.connect()
        try:
            self.query(other, token)
        finally:
            other.close()

    def operation(self, limit):
        work = self.random.choice([self.query, self.large, self.copy, self.reconnect])
        token = secrets.token_hex(8)
        with greenletio.timeout(limit):
            conn = self.pool.connect()
            try:
                work(conn, token)
                conn.commit()
            finally:
                conn.close()

    async def worker(self, interruptions):
        while self.interrupted < interruptions:
            delay = self.random.random() ** 2 * self.patience
            by_timeout = self.random.random() < 0.5
            task = asyncio.ensure_future(async_(self.operation)(delay if by_timeout else None))
            if not by_timeout:
                await asyncio.wait([task], timeout=delay)
                task.cancel()
            try:
                await task
                self.finished += 1
            except EXPECTED as exc:
                self.interrupted += isinstance(exc, (asyncio.CancelledError, TimeoutError))
                self.failures.extend([exc] if isinstance(exc, psycopg2.Error) else [])

    async def measure(self):
        """See what operations take, to interrupt in the middle on slow machines as on fast ones."""
        begun = time.monotonic()
        await asyncio.gather(*(async_(self.operation)(None) for _ in range(WORKERS)))
        self.patience = 2 * (time.monotonic() - begun)

    async def run(self, interruptions):
        await asyncio.gather(*(self.worker(interruptions) for _ in range(WORKERS)))

    def check(self, ask):
        """The pool holds all that the server holds, each usable and with its own answers."""
        assert self.pool.checkedout() == 0
        leased = [self.pool.connect() for _ in range(WORKERS)]
        for number, conn in enumerate(leased):
            assert not conn.dbapi_connection.closed
            self.query(conn, f"check {number}")
        held = {conn.dbapi_connection.get_backend_pid() for conn in leased}
        for conn in leased:
            conn.close()
        sql = "SELECT pid FROM pg_stat_activity WHERE application_name = $1"
        for _ in range(200):  # a backend takes a moment to see that its client is gone
            known = {pid for (pid,) in ask(sql, self.name)}
            if known == held:
                break
            greenletio.sleep(0.05)
        assert known == held


@pytest.mark.parametrize("times", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_interruptions_on_one_pool(run, patched, pg_dsn, pg_query, times):
    chaos = Chaos(pg_dsn)

    async def main():
        await chaos.measure()
        await chaos.run(times)
        await async_(chaos.check)(pg_query)

    run(main())
    chaos.pool.dispose()
    assert chaos.interrupted >= times
    assert chaos.failures == []
    assert chaos.finished > 0


@pytest.mark.parametrize("misfortune", ["frozen", "killed", "restarted"])
def test_with_a_server_that_is_treated_badly(run, patched, own_server, misfortune):
    from fix_postgres import ask

    greenletio.patch_psycopg2(cancel_timeout=0.3)
    chaos = Chaos(own_server.url)

    async def misfortunes():
        for _ in range(3):
            await asyncio.sleep(0.3)
            if misfortune == "frozen":
                own_server.freeze()
                await asyncio.sleep(1)
                own_server.thaw()
                continue
            if misfortune == "killed":
                own_server.kill()
            else:
                os.kill(own_server.pid, signal.SIGINT)
            while own_server.running:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(own_server.start)
        await asyncio.sleep(0.3)

    async def main():
        await chaos.measure()
        workers = asyncio.ensure_future(chaos.run(1_000_000))
        await misfortunes()
        chaos.interrupted = 1_000_000
        await asyncio.wait_for(workers, 60)
        await async_(recover)()
        await async_(chaos.check)(lambda sql, *args: ask(own_server.url, sql, *args))

    def recover():
        """As an application would: a connection the server has dropped is replaced."""
        for _ in range(WORKERS):
            for _ in range(2):
                conn = chaos.pool.connect()
                try:
                    chaos.query(conn, "recover")
                except psycopg2.Error:
                    conn.invalidate()
                conn.close()

    run(main())
    chaos.pool.dispose()
    assert chaos.finished > 0
