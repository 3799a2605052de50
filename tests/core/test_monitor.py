"""What a running process tells: the monitor's socket, and `python -m greenletio top`."""

import gc
import io
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from rich.console import Console

from greenletio import GreenletioError, monitor, top

PROCESS = """
import asyncio, os, time, greenletio
from greenletio import monitor, spawn
from greenletio.pg import aio

async def main():
    found = monitor.start({path!r})
    green = spawn(greenletio.sleep, 60)
    async with aio.create_pool(os.environ["DATABASE_URL"], min_size=1, name="main") as pool:
        print("ready", flush=True)
        while True:
            await pool.fetchval("SELECT 'from the process'")
            time.sleep(0.2)  # it holds its loop
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def no_others(tmp_path, monkeypatch):
    """The processes of other tests are not found."""
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def process(pg_dsn, monkeypatch):
    """A process that can be looked at, and where."""
    monkeypatch.setenv("DATABASE_URL", pg_dsn)
    started = subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(path=None)], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    yield started
    started.kill()
    started.wait()
    started.stdout.close()


def run_top(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "greenletio", "top", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_look_at_a_process(process):
    done = run_top("--once", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    look = json.loads(done.stdout)
    assert look["pid"] == process.pid
    assert look["greenlets"] >= 1
    ((loop,),) = [look["loops"]]
    assert loop["tasks"] >= 1
    assert look["pools"]["main"]["pool_size"] == 1
    (query,) = look["queries"]
    assert query["text"] == "SELECT 'from the process'"
    assert query["count"] >= 1 and query["errors"] == 0
    # Somewhere in these looks the loop was asked while it was held.
    path = next(monitor.folder().glob("*.sock"))
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile() as lines:
        connection.connect(str(path))
        lags = [json.loads(lines.readline())["loops"][0]["lag_ms"] for _ in range(3)]
    assert max(lags) > 10


def test_the_view_for_people(process):
    done = run_top(str(process.pid), "--once")
    assert (done.returncode, done.stderr) == (0, "")
    parts = (str(process.pid), "greenlets", "CPU", "Loops", "Pools", "main", "Queries", "SELECT")
    for part in parts:
        assert part in done.stdout


def look(**pool):
    """A look at a process with one pool, at which so much has happened."""
    counts = dict.fromkeys(("requests_waiting", "requests_errors", "connections_errors"), 0)
    counts |= {"pool_size": 1, "pool_available": 1, "pool_max": 9} | pool
    head = {"pid": 1, "command": ["x"], "uptime_s": 1.0, "rss_bytes": 1, "threads": 1}
    more = {"greenlets": 0, "cpu_s": 0.0, "loops": [], "queries": [], "pools": {"main": counts}}
    return head | more


def shown(now, before):
    """What the view has of the pool."""
    console = Console(width=120, file=io.StringIO())
    console.print(top.view(now, before))
    (line,) = [line for line in console.file.getvalue().splitlines() if "main" in line]
    return line.split()


def test_rates_are_of_what_is_between_two_looks():
    first = look(requests_num=100, requests_wait_ms=500) | {"time": 10.0}
    second = look(requests_num=140, requests_wait_ms=540) | {"time": 12.0}
    anew = look(requests_num=6, requests_wait_ms=0) | {"time": 14.0}
    known = ["main", "0", "1", "9", "0"]
    assert shown(first, None) == [*known, "0"]  # its errors: there is no rate yet
    assert shown(second, first) == [*known, "20", "1.0", "0"]
    assert shown(anew, second) == [*known, "3", "0.0", "0"]  # pop_stats()
    assert shown(second, first | {"pools": {}}) == [*known, "0"]


def test_the_end_of_the_process_is_the_end_of_the_view(process):
    view = subprocess.Popen(
        [sys.executable, "-m", "greenletio", "top", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert view.stdout is not None
    assert view.stdout.readline()
    process.kill()
    _, errors = view.communicate(timeout=60)
    assert (view.returncode, "has ended" in errors) == (0, True)


def test_a_view_that_is_read_no_further_ends_without_a_traceback(process):
    view = subprocess.Popen(
        [sys.executable, "-m", "greenletio", "top", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert view.stdout is not None and view.stderr is not None
    assert view.stdout.readline()
    view.stdout.close()
    assert view.wait(60) == 128 + signal.SIGPIPE
    assert view.stderr.read() == b""
    view.stderr.close()


def test_nobody_to_look_at(tmp_path):
    for arguments in ((), ("123456",), (str(tmp_path / "none.sock"),)):
        done = run_top(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert "greenletio top: " in done.stderr


def test_what_a_dead_process_left_is_removed():
    monitor.folder().mkdir(mode=0o700)
    left = monitor.folder() / "4000000.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    assert run_top().returncode == 1
    assert not left.exists()


def test_the_socket_is_private_and_goes_with_stop():
    with monitor.start() as found:
        assert found.path.stat().st_mode & 0o077 == 0
        assert found.path.parent.stat().st_mode & 0o077 == 0
    assert not found.path.exists()
    found.stop()
    monitor.folder().chmod(0o777)
    with pytest.raises(GreenletioError, match="only this user"):
        monitor.start()


def test_a_monitor_that_cannot_listen_leaves_no_socket(tmp_path, recwarn):
    with pytest.raises(OSError, match="too long"):
        monitor.start(tmp_path / ("long" * 60))
    gc.collect()
    assert [str(w.message) for w in recwarn] == []


def test_whoever_reads_nothing_keeps_nobody(tmp_path):
    path = Path(tmp_path, "m.sock")
    with monitor.start(path) as found:
        connections = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for connection in connections:
            connection.connect(str(path))
        connections.pop().close()
        began = time.monotonic()
        found.stop()
        assert time.monotonic() - began < 30  # against a hang, not a measure
        for connection in connections:
            connection.close()
