"""The fixtures that other tests stand on."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fix_loops import Run
from fix_postgres import OwnServer, Query, TemporaryDatabase, ask

from greenletio._embedded import EmbeddedServer


def test_run_uses_the_kind_of_loop_it_says(run: Run, loop_kind: str) -> None:
    async def main() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run(main()).split(".")[0] == loop_kind


def test_run_keeps_what_the_loop_reports(run: Run) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main())
    assert [type(context["exception"]) for context in run.reported] == [ZeroDivisionError]
    run.reported.clear()


def test_each_test_has_a_database_of_its_own(
    pg_database: TemporaryDatabase, pg_dsn: str, pg_query: Query
) -> None:
    assert pg_query("SELECT current_database()") == [(pg_database.name,)]
    with TemporaryDatabase(pg_database.admin_url) as other:
        assert other.name != pg_database.name
    assert pg_query("SELECT 1 FROM pg_database WHERE datname = $1", other.name) == []


def test_own_server_comes_back_after_a_kill(own_server: OwnServer) -> None:
    pid, url = own_server.pid, own_server.url
    own_server.kill()
    assert not own_server.running
    assert own_server.start() == url
    assert own_server.pid != pid
    assert ask(url, "SELECT 1") == [(1,)]


def test_own_server_answers_again_after_a_freeze(own_server: OwnServer) -> None:
    own_server.freeze()
    while psutil.Process(own_server.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    own_server.thaw()
    assert ask(own_server.url, "SELECT 1") == [(1,)]


def test_a_stopped_server_leaves_nothing() -> None:
    with EmbeddedServer() as server:
        pid, folder = server.pid, server.data_dir.parent
        assert folder.exists()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_frozen_server_can_be_stopped() -> None:
    with OwnServer() as server:
        server.freeze()
        folder = server.data_dir.parent
    assert not folder.exists()


ORPHAN = """
import os, signal, sys
from greenletio._embedded import EmbeddedServer
server = EmbeddedServer()
server.start()
print(server.pid, server.data_dir.parent, flush=True)
if sys.argv[1] == "guard":
    server._guard.kill()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("also", ["nothing", "guard"])
def test_a_killed_run_leaves_nothing_behind(also: str) -> None:
    # Alone, the guard cleans up; when it is killed as well, the next start does.
    killed = subprocess.run([sys.executable, "-c", ORPHAN, also], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pid, folder = killed.stdout.split()
    if also == "guard":
        assert Path(folder).exists()
        with EmbeddedServer():
            pass
    deadline = time.monotonic() + 30
    while Path(folder).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(folder).exists()
    assert not psutil.pid_exists(int(pid))


@pytest.mark.parametrize("in_ci", [False, True])
def test_what_is_missing_skips_a_test_and_fails_it_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, in_ci: bool
) -> None:
    monkeypatch.setenv("CI", "true" if in_ci else "")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    code = "from fix_missing import need\n"
    pytester.makepyfile(
        test_one=f"{code}def test_it(): need('no_such_package')",
        test_other=f"{code}need('no_such_package')",
    )
    result = pytester.runpytest_subprocess("-rs", "--continue-on-collection-errors")
    if in_ci:
        result.assert_outcomes(failed=1, errors=1)
    else:
        result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*pip install no_such_package*"])
