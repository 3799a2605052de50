"""A primary and a standby by hand, which change their roles; and HAProxy before them.

def test_it(cluster):
    cluster.fail_over()     # the primary is killed, the standby promoted
    cluster.rejoin()        # a new standby where the old primary was
"""

import http.server
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fix_missing import missing
from fix_pgbouncer import held_port, wait_for_port
from fix_postgres import OwnServer, ask
from fix_system_postgres import system_binaries

from greenletio._embedded import EmbeddedStandby

LIMIT_S = 60  # against a hang, not a measure


class OwnStandby(OwnServer, EmbeddedStandby):
    """A standby that can be treated badly."""


class Cluster:
    """Two servers, one of which follows the other, synchronously."""

    def __init__(self, stack: ExitStack, binaries: Path) -> None:
        self._stack = stack
        self._binaries = binaries
        self.primary: OwnServer = stack.enter_context(OwnServer(binaries=binaries))
        self.password = self.primary.password
        self.standby = self._follow(None)
        self.ports = self.primary.port, self.standby.port

    def _follow(self, port: int | None) -> OwnServer:
        standby = self._stack.enter_context(
            OwnStandby(self.primary, binaries=self._binaries, port=port)
        )
        ask(self.primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        ask(self.primary.url, "SELECT pg_reload_conf()")
        self.wait(
            self.primary.url, "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state='sync'"
        )
        return standby

    def wait(self, url: str, sql: str) -> None:
        """Until that is true."""
        deadline = time.monotonic() + LIMIT_S
        while ask(url, sql) != [(True,)]:
            assert time.monotonic() < deadline, sql
            time.sleep(0.02)

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        self.primary.kill()
        self.primary, self.standby = self.standby, self.primary
        ask(self.primary.url, "SELECT pg_promote()")

    def rejoin(self) -> None:
        """A new standby in place of the server that was killed."""
        port = self.standby.port
        self.standby.stop()
        self.standby = self._follow(port)

    def heal(self) -> None:
        """Have both run, in their roles."""
        if self.standby.running:
            self.standby.thaw()
        else:
            self.rejoin()

    def options(self, *ports: int) -> dict[str, object]:
        """connect()'s, for both servers, or what listens on these ports."""
        return {
            "host": ["127.0.0.1"] * 2,
            "port": list(ports or self.ports),
            "user": "postgres",
            "password": self.password,
            "database": "postgres",
        }


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    binaries = system_binaries()
    if binaries is None:
        missing("the system has no PostgreSQL server: apt-get install postgresql")
    with ExitStack() as stack:
        yield Cluster(stack, binaries)


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """A primary and a synchronous standby. Whatever a test has done to their roles, the next one
    finds both."""
    yield _cluster
    _cluster.heal()


CONFIG = """
global
    maxconn 500
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
listen primary
    bind 127.0.0.1:{primary}
    option httpchk GET /primary
    default-server inter 100ms fastinter 50ms rise 1 fall 1 on-marked-down shutdown-sessions
{servers}
listen replicas
    bind 127.0.0.1:{replicas}
    option httpchk GET /replica
    default-server inter 100ms fastinter 50ms rise 1 fall 1 on-marked-down shutdown-sessions
{servers}
"""


class Check(http.server.BaseHTTPRequestHandler):
    """Says which role a server has, as Patroni does: 200 for the one that is asked for."""

    url = ""

    def do_GET(self) -> None:
        try:
            ((standby,),) = ask(self.url, "SELECT pg_is_in_recovery()")
            good = standby is (self.path == "/replica")
        except Exception:  # it is being killed, or is not there
            good = False
        self.send_response(200 if good else 503)
        self.end_headers()

    do_OPTIONS = do_GET

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def haproxy(cluster: Cluster) -> Iterator[tuple[int, int]]:
    """HAProxy, whose two ports lead to the primary, and to standbys."""
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        missing("there is no HAProxy: apt-get install haproxy")
    with ExitStack() as stack:
        servers = []
        for port in cluster.ports:
            url = f"postgresql://postgres:{cluster.password}@127.0.0.1:{port}/postgres"
            handler = type("OwnCheck", (Check,), {"url": url})
            check = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.callback(check.server_close)
            stack.callback(check.shutdown)
            threading.Thread(target=check.serve_forever, daemon=True).start()
            asked = check.server_address[1]
            servers.append(f"    server s{port} 127.0.0.1:{port} check port {asked}")
        ports = stack.enter_context(held_port()), stack.enter_context(held_port())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gio-haproxy-")))
        config = folder / "haproxy.cfg"
        config.write_text(
            CONFIG.format(primary=ports[0], replicas=ports[1], servers="\n".join(servers))
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-db", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            for port in ports:
                wait_for_port(process, port, folder / "log")
            yield ports
        finally:
            process.terminate()
            process.wait(LIMIT_S)


@pytest.fixture
def proxied() -> Iterator[Callable[[Cluster], tuple[int, int]]]:
    """`proxied(cluster)`: HAProxy's ports, of the primary and of the standbys."""
    with ExitStack() as stack:
        yield lambda cluster: stack.enter_context(haproxy(cluster))
