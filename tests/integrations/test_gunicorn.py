"""greenletio.integrations.gunicorn: a real gunicorn, real applications, real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
from fix_missing import need
from fix_postgres import Query
from fix_programs import ServerProgram

HERE = Path(__file__).parent / "gunicorn"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "gunicorn.md"
WORKER = "greenletio.integrations.gunicorn.Worker"
LIMIT_S = 30  # against a hang, not a measure


class Gunicorn(ServerProgram):
    """A gunicorn that runs."""

    limit_s = LIMIT_S
    ends_with = (0,)

    def __init__(self, log: Path, app: str, options: tuple[str, ...], env: dict[str, str]) -> None:
        def command(fd: int) -> list[str]:
            bind = () if "--bind" in options else ("--bind", f"fd://{fd}")
            start = [sys.executable, "-m", "gunicorn", "-k", WORKER, *bind]
            return [*start, "--no-control-socket", *options, app]

        path = f"{log.parent}:{HERE}"
        super().__init__(command, log, {**env, "PYTHONPATH": path}, log.parent)

    def connect(self, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        if context is not None:
            return http.client.HTTPSConnection(
                "localhost", self.port, timeout=LIMIT_S, context=context
            )
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)

    def get(self, path: str) -> bytes:
        connection = self.connect()
        try:
            return ask(connection, path)
        finally:
            connection.close()

    def said(self, pattern: str) -> Any:
        return re.search(pattern, self.log.read_text())

    def refuses(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), LIMIT_S).close()
        except ConnectionRefusedError:
            return True
        return False


def ask(connection: http.client.HTTPConnection, path: str, **options: Any) -> bytes:
    connection.request("POST" if "body" in options else "GET", path, **options)
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, (response.status, body)
    return body


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    """gunicorn(*options, app=...) starts one. Whoever means it to end calls its end()."""
    need("psycopg2")
    started: list[Gunicorn] = []

    def start(*options: str, app: str = "wsgi:app", **env: str) -> Gunicorn:
        server = Gunicorn(tmp_path / f"gunicorn-{len(started)}.log", app, options, env)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.running:
            server.end(signal.SIGQUIT)


@pytest.mark.parametrize("loop", ["greenletio", "asyncio", "uvloop"])
def test_one_worker_serves_many_at_once(gunicorn: Any, loop: str) -> None:
    server = gunicorn("--keep-alive", "30", "--env", f"GREENLETIO_LOOP={loop}", PARTIES="100")
    with ThreadPoolExecutor(100) as threads:
        numbers = list(threads.map(server.get, ["/meet"] * 100))
    assert sorted(map(int, numbers)) == list(range(100))

    connection = server.connect()
    first, again = (json.loads(ask(connection, "/facts")) for _ in range(2))
    assert first == again, "the connection is kept, and with it its port"
    assert first["loop"] == loop
    assert first["lock"] == "greenletio.green._thread"
    assert first["thread_is_green"] and first["multithread"] and first["asyncio.run"] == "ran"
    assert first["psycopg2"] == "greenletio._pq"

    # Bodies in chunks, both ways.
    sent = [os.urandom(n) for n in (1, 1000, 100_000)]
    chunked = ask(connection, "/echo", body=iter(sent), encode_chunked=True)
    assert chunked == b"".join(sent)
    streamed = b"".join(b"%07d\n" % n * 100 for n in range(1000))
    assert ask(connection, "/stream") == streamed

    # Clients that go away: in the middle of an answer, of a request, before one.
    for part in (b"GET /stream HTTP/1.1\r\n\r\n", b"GET /str", b""):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(part)
                if part.endswith(b"\n"):
                    client.recv(10)
    assert ask(connection, "/echo", body=b"still there") == b"still there"
    connection.request("GET", "/fail")
    assert connection.getresponse().status == 500
    said = server.end()
    assert "ZeroDivisionError" in said
    assert "Warning" not in said and "never retrieved" not in said, said
    assert said.count("Traceback") == 1, said


def test_django(gunicorn: Any, pg_dsn: str, pg_query: Query) -> None:
    need("django")
    states = "SELECT state FROM pg_stat_activity WHERE application_name = 'django_asgi'"
    server = gunicorn("--keep-alive", "30", app="django_wsgi:app", DATABASE_URL=pg_dsn)
    connections = [server.connect() for _ in range(3)]
    for connection in connections:  # which are kept, and hold none of the database's
        for path in ("/notes", "/sleep/0", "/sleep_async/0", "/first"):
            ask(connection, path)
    leaving = [server.connect() for _ in range(10)]
    for client in leaving:  # as many as the pool has connections
        client.request("GET", "/sleep/60")
    server.until(lambda: pg_query(states) == [("active",)] * 10)
    said = server.end(signal.SIGQUIT)  # cancels them
    assert "Warning" not in said, said
    deadline = time.monotonic() + LIMIT_S
    while pg_query(states) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pg_query(states) == []


def test_tls(gunicorn: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(cert)
    files = ("--certfile", str(cert), "--keyfile", str(key))
    server = gunicorn(*files, "--keep-alive", "60", PARTIES="20")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    # They hold nobody up: one that says nothing, one that speaks no TLS.
    silent = socket.create_connection(("127.0.0.1", server.port))
    with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")

        def meet(_: int) -> bytes:
            connection = server.connect(context)
            numbers = ask(connection, "/meet")
            assert json.loads(ask(connection, "/facts"))["scheme"] == "https"
            body = os.urandom(300_000)
            assert ask(connection, "/echo", body=body) == body
            connection.close()
            return numbers

        with ThreadPoolExecutor(20) as threads:
            assert sorted(map(int, threads.map(meet, range(20)))) == list(range(20))
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(1000):
                pass
    # Nor does it hold up the end, nor a connection that is kept.
    idle = server.connect(context)
    ask(idle, "/pid")
    assert "Traceback" not in server.end()
    assert silent.recv(1) == idle.sock.recv(1) == b""
    silent.close()


@pytest.mark.parametrize("keepalive", ["0", "60"])
def test_a_graceful_stop_finishes_requests_and_refuses_new_ones(
    gunicorn: Any, tmp_path: Path, keepalive: str
) -> None:
    server, go = gunicorn("--keep-alive", keepalive), tmp_path / "go"
    idle = socket.create_connection(("127.0.0.1", server.port), LIMIT_S)
    kept = server.connect()
    ask(kept, "/pid")
    with ThreadPoolExecutor(3) as threads:
        held = [threads.submit(server.get, f"/hold?{go}") for _ in range(3)]
        server.until(lambda: server.get("/most") == b"3 3")
        server.process.send_signal(signal.SIGTERM)
        server.until(server.refuses)
        assert not any(each.done() for each in held)
        go.touch()
        assert [each.result(LIMIT_S) for each in held] == [b"held"] * 3
    # Connections without a request, which might have stayed for long, are closed.
    assert idle.recv(1) == b""
    assert kept.sock is None or kept.sock.recv(1) == b""
    assert "Traceback" not in server.ended()


def test_a_quick_stop_waits_for_nothing(gunicorn: Any, tmp_path: Path) -> None:
    server = gunicorn()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(server.get, f"/hold?{tmp_path / 'never'}")
        server.until(lambda: server.get("/most") == b"1 1")
        said = server.end(signal.SIGINT)
        with pytest.raises((http.client.HTTPException, OSError)):
            held.result(LIMIT_S)
    assert "Traceback" not in said, said


def test_requests_that_outlast_a_graceful_stop_are_cancelled(gunicorn: Any, tmp_path: Path) -> None:
    server = gunicorn("--graceful-timeout", "1")
    pid = int(server.get("/pid"))
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(server.get, f"/hold?{tmp_path / 'never'}")
        server.until(lambda: server.get("/most") == b"1 1")
        os.kill(pid, signal.SIGTERM)  # the worker alone: the master starts another
        server.until(lambda: server.said(rf"Worker graceful timeout \(pid:{pid}\)"))
        with pytest.raises((http.client.HTTPException, OSError)):
            held.result(LIMIT_S)
    server.until(lambda: server.said(rf"Worker exiting \(pid: {pid}\)"))
    assert int(server.get("/pid")) != pid
    assert "Traceback" not in server.end()


def test_only_a_held_loop_gets_the_worker_killed(gunicorn: Any, tmp_path: Path) -> None:
    server, go = gunicorn("--timeout", "2"), tmp_path / "go"
    pid = server.get("/pid")
    with ThreadPoolExecutor(2) as threads:
        held = threads.submit(server.get, f"/hold?{go}")
        server.until(lambda: server.get("/most") == b"1 1")
        for _ in range(45):  # more than two of the timeouts, while a request hangs
            time.sleep(0.1)
            assert server.get("/pid") == pid
        assert not server.said("WORKER TIMEOUT")
        go.touch()
        assert held.result(LIMIT_S) == b"held"
        blocked = threads.submit(server.get, f"/block?{tmp_path / 'never'}")
        server.until(lambda: server.said("WORKER TIMEOUT"))
        server.until(lambda: server.said(r"The loop of worker \d+ is held here:"))
        server.until(lambda: server.said(r"in block\n"))
        with pytest.raises((AssertionError, http.client.HTTPException, OSError)):
            blocked.result(LIMIT_S)
    # On a busy machine it does not get to its end in the second that it is given for that.
    ended = rf"Worker \(pid:{pid.decode()}\) (exited with code 1|was sent SIGKILL)"
    server.until(lambda: server.said(ended))
    assert server.get("/pid") != pid


def test_a_worker_that_is_told_to_stop_while_it_begins(gunicorn: Any) -> None:
    # One that did not hear of it would be killed after that time, which is longer than we wait.
    server = gunicorn("--workers", "3", "--graceful-timeout", "120")
    server.until(lambda: server.log.read_text().count("Booting worker") == 3)
    assert "Traceback" not in server.end()


def test_max_requests_restarts_the_worker(gunicorn: Any, tmp_path: Path) -> None:
    server, go = gunicorn("--max-requests", "20"), tmp_path / "go"
    pid = server.get("/pid")
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(server.get, f"/hold?{go}")
        for _ in range(18):
            assert server.get("/pid") == pid
        server.until(lambda: server.said("Autorestarting worker"))
        go.touch()
        assert held.result(LIMIT_S) == b"held"
    assert server.get("/pid") != pid
    said = server.end()
    assert "Traceback" not in said, said


def test_two_addresses_preloading_and_a_limit_of_connections(gunicorn: Any, tmp_path: Path) -> None:
    path, go = tmp_path / "socket", tmp_path / "go"
    server = gunicorn(
        *("--bind", f"unix:{path}", "--bind", "127.0.0.1:0"),
        *("--preload", "--worker-connections", "3", "--workers", "2"),
    )
    server.port = int(server.until(lambda: server.said(r"http://127.0.0.1:(\d+)"))[1])

    def get(page: str) -> bytes:
        connection = http.client.HTTPConnection("localhost", timeout=LIMIT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(LIMIT_S)
        connection.sock.connect(str(path))
        try:
            return ask(connection, page)
        finally:
            connection.close()

    facts = json.loads(server.get("/facts"))
    pid = facts["pid"]
    assert facts["lock"] == "greenletio.green._thread"  # imported in the master
    with ThreadPoolExecutor(20) as threads:
        by = [get, server.get] * 10
        held = [threads.submit(fetch, f"/hold?{go}") for fetch in by]
        go.touch()
        assert [each.result(LIMIT_S) for each in held] == [b"held"] * 20
    seen = {get("/most").decode().split()[1] for _ in range(10)}
    assert seen <= {"0", "1", "2", "3"}, "each of the workers has three connections at most"
    # SIGHUP: new workers, and the old ones end.
    server.process.send_signal(signal.SIGHUP)
    server.until(lambda: server.said(rf"Worker exiting \(pid: {pid}\)"))
    assert json.loads(server.get("/facts"))["pid"] != pid
    assert "Traceback" not in server.end()


def test_reload(gunicorn: Any, tmp_path: Path) -> None:
    source = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "1")])
    return [b"{}"]
"""
    changing, now = tmp_path / "changing.py", time.time()
    changing.write_text(source.format(1))
    server = gunicorn("--reload", app="changing:app")
    assert server.get("/") == b"1"
    changing.write_text(source.format(2))

    def changed() -> bool:  # again and again, for the reloader may not have looked yet
        nonlocal now
        now += 2
        os.utime(changing, (now, now))
        return server.get("/") == b"2"

    server.until(changed)


def test_flask_as_the_documentation_shows_it(gunicorn: Any, tmp_path: Path, pg_dsn: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "app.py").write_text(blocks[0])
    server = gunicorn(app="app:app", DATABASE_URL=pg_dsn)
    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(server.get, ["/"] * 20)) == [b"42"] * 20
        assert list(threads.map(server.get, ["/async"] * 20)) == [b"43"] * 20
    assert "Traceback" not in server.end()


def test_what_cannot_be_started_says_why(gunicorn: Any, tmp_path: Path) -> None:
    server = gunicorn("--env", "GREENLETIO_LOOP=no_such_loop")
    assert server.process.wait(LIMIT_S) != 0
    assert "no_such_loop" in server.log.read_text()
    (tmp_path / "broken.py").write_text("import no_such_module")
    server = gunicorn(app="broken:app")
    assert server.process.wait(LIMIT_S) != 0
    assert "No module named 'no_such_module'" in server.log.read_text()
