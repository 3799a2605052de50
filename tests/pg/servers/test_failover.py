"""A primary that dies under traffic, and a standby that takes its place.

Applications that name both reconnect, and lose nothing that was acknowledged.
"""

import asyncio
import itertools
import threading
import time

import pytest
from fix_loops import new_loop
from fix_missing import missing
from fix_postgres import OwnServer, ask
from fix_system_postgres import system_binaries

import greenletio
from greenletio import async_, pg
from greenletio._embedded import EmbeddedStandby
from greenletio.pg import aio, errors

INSERT = "INSERT INTO written VALUES ($1, $2)"
SYNCHRONOUS = "SET synchronous_commit = remote_write"
LIMIT_S = 60  # against a hang, not a measure


class Application(threading.Thread):
    """Writes numbers, each once, on connections that it makes anew whenever they are lost: one task
    and one greenlet on a loop of its kind, or plain code."""

    def __init__(self, kind, conninfo):
        super().__init__(daemon=True)
        self.kind = kind
        self.conninfo = conninfo
        self.acknowledged = []
        self.lost = []  # connections in use, by their exceptions
        self.refused = []  # attempts to connect
        self.stopped = False
        self._numbers = itertools.count()
        self.start()

    def run(self):
        if self.kind == "plain":
            self.write()
            return
        loop = new_loop(self.kind)
        loop.run_until_complete(self.main())
        loop.close()

    async def main(self):
        await asyncio.gather(self.write_async(), async_(self.write)())

    async def write_async(self):
        while not self.stopped:
            try:
                c = await aio.connect(self.conninfo, timeout=LIMIT_S)
            except errors.OperationalError as exc:
                self.refused.append(exc)
                await asyncio.sleep(0.02)
                continue
            try:
                await c.execute(SYNCHRONOUS)
                while not self.stopped:
                    number = next(self._numbers)
                    await c.execute(INSERT, self.kind, number)
                    self.acknowledged.append(number)
            except errors.OperationalError as exc:
                self.lost.append(exc)
            finally:
                await c.close()

    def write(self):
        while not self.stopped:
            try:
                c = pg.connect(self.conninfo, autocommit=True, timeout=LIMIT_S)
            except errors.OperationalError as exc:
                self.refused.append(exc)
                greenletio.sleep(0.02)
                continue
            try:
                c.execute(SYNCHRONOUS)
                while not self.stopped:
                    number = next(self._numbers)
                    c.execute(INSERT, [self.kind, number])
                    self.acknowledged.append(number)
            except errors.OperationalError as exc:
                self.lost.append(exc)
            finally:
                c.close()

    def goes_on(self, count=30):
        """Wait for that many more acknowledged writes."""
        wanted = len(self.acknowledged) + count
        deadline = time.monotonic() + LIMIT_S
        while len(self.acknowledged) < wanted:
            assert self.is_alive(), "it ended, see what its thread reported"
            assert time.monotonic() < deadline, (self.kind, self.lost[-1:], self.refused[-1:])
            time.sleep(0.005)


@pytest.fixture
def pair():
    """A primary and a synchronous standby."""
    binaries = system_binaries()
    if binaries is None:
        missing("the system has no PostgreSQL server: apt-get install postgresql")
    with OwnServer(binaries=binaries) as primary:
        with EmbeddedStandby(primary, binaries=binaries) as standby:
            ask(primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
            ask(primary.url, "SELECT pg_reload_conf()")
            yield primary, standby


def test_a_promotion_under_traffic(pair):
    primary, standby = pair
    ask(primary.url, "CREATE TABLE written (who text, number int, PRIMARY KEY (who, number))")
    both = (
        f"host=127.0.0.1,127.0.0.1 port={primary.port},{standby.port} user=postgres "
        f"password={primary.password} dbname=postgres connect_timeout=10"
    )
    for attributes, port in {
        "read-write": primary.port,
        "primary": primary.port,
        "any": primary.port,
        "standby": standby.port,
        "read-only": standby.port,
        "prefer-standby": standby.port,
    }.items():
        with pg.connect(both, target_session_attrs=attributes) as c:
            assert c.execute("SELECT inet_server_port()").fetchone() == (port,), attributes
    with pytest.raises(errors.CannotConnect, match="session is read-only"):
        pg.connect(standby.url, target_session_attrs="read-write")

    conninfo = f"{both} target_session_attrs=read-write"
    kinds = ("asyncio", "uvloop", "greenletio", "plain")
    applications = [Application(kind, conninfo) for kind in kinds]
    try:
        for application in applications:
            application.goes_on()
        primary.kill()
        ask(standby.url, "SELECT pg_promote()")
        for application in applications:
            application.goes_on()
    finally:
        for application in applications:
            application.stopped = True
    for application in applications:
        application.join(LIMIT_S)
        assert not application.is_alive()
        assert application.lost, application.kind
        found = ask(standby.url, "SELECT number FROM written WHERE who = $1", application.kind)
        missed = set(application.acknowledged) - {number for (number,) in found}
        assert not missed, application.kind
