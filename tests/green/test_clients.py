"""Other people's clients, imported under patch_blocking, each in a process of its own.

A script gets `together(fn, n)`: it calls fn(0) … fn(n-1) at once in greenlets, with a ticker beside
them that must have gone on, and returns the answers. HTTP is served by the test itself. Redis and
MariaDB are the ones in REDIS_URL and MARIADB_URL, by default those of this machine; they are a
check beyond what CI promises, so where one is missing the test is skipped, there too.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from fix_missing import missing

PRELUDE = """
import asyncio
from greenletio import async_, patch_blocking

def together(fn, n):
    async def main():
        steps = 0
        async def tick():
            nonlocal steps
            while True:
                await asyncio.sleep(0)
                steps += 1
        ticking = asyncio.create_task(tick())
        answers = await asyncio.wait_for(asyncio.gather(*(async_(fn)(i) for i in range(n))), 50)
        ticking.cancel()
        assert steps > 0
        return answers
    return asyncio.run(main())
"""

Client = Callable[..., None]


@pytest.fixture
def client(python: Callable[[str], str]) -> Client:
    """client(packages, script) runs the script, which prints "passed" at its end."""

    def call(packages: str, script: str, **names: Any) -> None:
        for package in packages.split():
            if importlib.util.find_spec(package) is None:
                (missing if package == "requests" else pytest.skip)(f"{package} is not installed")
        values = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        lines = [line[8:] for line in script.splitlines()]
        assert python(PRELUDE + values + "\n".join(lines)).strip().endswith("passed")

    return call


class Together(BaseHTTPRequestHandler):
    """Answers a GET only when `parties` of them have come, so that they must run at once."""

    protocol_version = "HTTP/1.1"
    barrier: threading.Barrier

    def do_GET(self) -> None:
        self.barrier.wait(30)
        body = self.path.encode() * 1000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).upper()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=["http", "https"])
def url(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[str]:
    """The URL of a server that answers eight GETs at a time."""

    class Handler(Together):
        barrier = threading.Barrier(8)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if request.param == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("localhost").configure_cert(context)
            # The handshake is made by the handler's thread, not by the one that accepts.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"{request.param}://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def test_requests(client: Client, url: str, ca_file: str) -> None:
    client(
        "requests",
        """
        with patch_blocking():
            import requests

        session = requests.Session()
        session.verify = ca_file
        session.trust_env = False
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=8, pool_block=True)
        session.mount(url, adapter)

        def get(i):
            response = session.get(f"{url}/{i}", timeout=30)
            assert response.text == f"/{i}" * 1000
            return session.post(url, data=b"x" * 100_000, timeout=30).content
        for _ in range(3):
            assert together(get, 8) == [b"X" * 100_000] * 8
        try:
            requests.get(url, timeout=0.05, verify=ca_file)
        except requests.Timeout:
            print("passed")
        """,
        url=url,
        ca_file=ca_file,
    )


def test_urllib_and_http_client(client: Client, url: str, ca_file: str) -> None:
    client(
        "",
        """
        with patch_blocking():
            import ssl
            from urllib.request import Request, urlopen
        context = ssl.create_default_context(cafile=ca_file) if url[4] == "s" else None

        def get(i):
            with urlopen(f"{url}/{i}", timeout=30, context=context) as response:
                assert response.read() == f"/{i}".encode() * 1000
            with urlopen(Request(url, data=b"x" * 100_000), context=context) as response:
                return response.read()
        assert together(get, 8) == [b"X" * 100_000] * 8
        print("passed")
        """,
        url=url,
        ca_file=ca_file,
    )


def test_xmlrpc_both_sides_green(client: Client) -> None:
    client(
        "",
        """
        with patch_blocking():
            import threading, time
            from socketserver import ThreadingMixIn
            from xmlrpc.client import ServerProxy
            from xmlrpc.server import SimpleXMLRPCServer

        class Server(ThreadingMixIn, SimpleXMLRPCServer):
            request_queue_size = 50

        def main(_):
            barrier = threading.Barrier(8)
            def double(n):
                barrier.wait(30)
                return 2 * n
            with Server(("127.0.0.1", 0), logRequests=False) as server:
                server.register_function(double)
                serving = threading.Thread(target=server.serve_forever, args=(0.01,))
                serving.start()
                answers = []
                def ask(i):
                    with ServerProxy("http://127.0.0.1:%d" % server.server_address[1]) as proxy:
                        answers.append(proxy.double(i))
                threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                server.shutdown()
                serving.join()
                return sorted(answers)
        import threading as real
        assert together(main, 1) == [[0, 2, 4, 6, 8, 10, 12, 14]]
        assert real.active_count() == 1
        print("passed")
        """,
    )


def reachable(url: str, default_port: int) -> str:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or default_port), 5).close()
    except OSError as error:
        pytest.skip(f"no server at {url}: {error}")
    return url


def test_redis(client: Client) -> None:
    url = reachable(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), 6379)
    client(
        "redis",
        """
        with patch_blocking():
            import redis, os, threading
        pool = redis.BlockingConnectionPool.from_url(url, max_connections=4, timeout=30)
        server = redis.Redis(connection_pool=pool)
        key = f"greenletio-test-{os.getpid()}"

        def work(i):
            for n in range(20):
                assert server.set(f"{key}-{i}", n)
                assert server.get(f"{key}-{i}") == str(n).encode()
            with server.pipeline() as pipe:
                for n in range(100):
                    pipe.incr(key)
                pipe.execute()
            with server.lock(f"{key}-lock", timeout=30, blocking_timeout=30):
                pass
            server.delete(f"{key}-{i}")
        together(work, 20)
        assert int(server.getdel(key)) == 2000

        def wait_for_it(i):
            if i == 0:
                return server.blpop([f"{key}-list"], timeout=30)
            server.rpush(f"{key}-list", "pushed")
        assert together(wait_for_it, 2)[0] == (f"{key}-list".encode(), b"pushed")

        def subscribe(i):
            if i == 0:
                with server.pubsub() as channel:
                    channel.subscribe(key)
                    channel.get_message(timeout=30)
                    started.set()
                    return channel.get_message(timeout=30)["data"]
            started.wait()
            server.publish(key, "news")
        started = threading.Event()
        assert together(subscribe, 2)[0] == b"news"
        print("passed")
        """,
        url=url,
    )


def test_pymysql(client: Client) -> None:
    url = reachable(os.environ.get("MARIADB_URL", "mysql://root@127.0.0.1:3306"), 3306)
    parts = urlsplit(url)
    server = {
        "host": parts.hostname,
        "port": parts.port or 3306,
        "user": parts.username,
        "password": parts.password or "",
    }
    try:
        pytest.importorskip("pymysql").connect(**server).close()
    except Exception as error:
        if type(error).__name__ != "OperationalError":
            raise
        pytest.skip(f"{url} lets nobody in (set MARIADB_URL): {error}")
    client(
        "pymysql",
        """
        with patch_blocking():
            import pymysql

        def work(i):
            with pymysql.connect(**server) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT SLEEP(0.05), %s", (i,))
                return cursor.fetchone()[1]
        assert together(work, 10) == list(range(10))
        print("passed")
        """,
        server=server,
    )
