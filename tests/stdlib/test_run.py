"""The program that runs CPython's tests on a loop: what it must notice, on a few quick tests.

`make test-asyncio` runs them all; here the loop is uvloop, which is known to fail some.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytest.importorskip("test.test_asyncio", reason="this Python was installed without its tests")


Specimen = Callable[..., subprocess.CompletedProcess[str]]


def run(
    *args: str, loop: str = "uvloop.Loop", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "run.py"), "--loop", loop, *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
        timeout=100,
    )


def outcomes(path: Path) -> dict[str, str]:
    return {test: each["outcome"] for test, each in json.loads(path.read_text())["tests"].items()}


def test_the_tests_run_on_the_loop_that_was_named(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run("test_locks", "test_sock_lowlevel", "--json", str(out), "--limit", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    locks, sock = document["files"]["test_locks"], document["files"]["test_sock_lowlevel"]
    assert locks["ran"] == locks["passed"] == locks["on the loop"] > 50
    assert locks["loops run"] >= locks["ran"]
    # uvloop has no sock_recvfrom, which is asyncio's since 3.11.
    assert sock["errors"] >= 3 * (sys.version_info >= (3, 11))


def test_a_loop_that_is_not_there_is_said() -> None:
    done = run("test_locks", loop="asyncio:NoLoop")
    assert done.returncode == 1
    assert "has no attribute 'NoLoop'" in done.stderr


SPECIMEN = """
import os, signal, time, unittest

class Specimen(unittest.TestCase):
    def test_1_passes(self): pass
    def test_2_crashes(self):  # and what it has started holds the pipe to the parent
        os.fork() or time.sleep(100)
        os.kill(os.getpid(), signal.SIGSEGV)
    def test_3_fails(self): self.assertEqual(1, 2)
    def test_4_hangs(self): time.sleep(100)
    def test_5_errs(self): raise ZeroDivisionError
    def test_6_skips(self): self.skipTest("so")
    def test_7_one_part_fails(self):
        for n in range(3):
            with self.subTest(n=n):
                self.assertNotEqual(n, 1)
    @unittest.expectedFailure
    def test_8_passes_unexpectedly(self): pass
    def test_9_passes(self): pass

class Unready(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise ZeroDivisionError
    def test_never_runs(self): pass
"""


@pytest.fixture
def specimen(tmp_path: Path) -> Specimen:
    """Runs SPECIMEN, which the child finds instead of the interpreter's own test_locks."""
    package = tmp_path / "test_asyncio"
    package.mkdir()
    (package / "test_locks.py").write_text(SPECIMEN)
    (tmp_path / "sitecustomize.py").write_text(
        f"import test.test_asyncio\ntest.test_asyncio.__path__.insert(0, {str(package)!r})\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return lambda *args: run("test_locks", "--limit", "2", *args, loop="asyncio", env=env)


def test_a_hang_and_a_crash_cost_one_test_each(specimen: Specimen, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = specimen("--json", str(out))
    assert {name.rpartition(".")[2]: each for name, each in outcomes(out).items()} == {
        "test_1_passes": "passed",
        "test_2_crashes": "error",
        "test_3_fails": "failed",
        "test_4_hangs": "error",
        "test_5_errs": "error",
        "test_6_skips": "skipped",
        "test_7_one_part_fails": "failed",
        "test_8_passes_unexpectedly": "failed",
        "test_9_passes": "passed",
        "test_never_runs": "error",
    }
    assert "test_2_crashes ends the process with status -11" in done.stdout
    assert "test_4_hangs hangs" in done.stdout
    assert "nothing was tested" in done.stdout  # no loop ran, and that is a failure by itself
    assert done.returncode == 1


def test_what_fails_must_be_listed_and_what_is_listed_must_fail(
    specimen: Specimen, tmp_path: Path
) -> None:
    here = "{}.{}".format(*sys.version_info)
    listed = tmp_path / "listed.toml"
    listed.write_text(
        f"""
        [[fails]]
        tests = ["*.Specimen.test_3*", "*.Specimen.test_9*", "*.test_gone"]
        pythons = ["{here}"]
        reason = "because"
        [[fails]]
        tests = ["*.Specimen.test_5*"]
        pythons = ["2.7"]
        reason = "long ago"
        """
    )
    only = ["--only", "*.test_[13579]_*"]
    done = specimen(*only, "--expected", str(listed))
    said = done.stdout.splitlines()
    assert "failed: test_locks.Specimen.test_3_fails: because" in said
    assert "error: test_locks.Specimen.test_5_errs: ZeroDivisionError" in said
    assert "passes, but is listed: test_locks.Specimen.test_9_passes" in said
    assert "1 expected failures, 2 others, 1 listed that pass" in said
    assert done.returncode == 1


def run_green(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "run_green.py"), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_blocking_modules_are_tested_green_and_as_they_come(tmp_path: Path) -> None:
    out, plain = tmp_path / "out.json", tmp_path / "plain.json"
    for _ in range(2):  # the second time, what passes as it comes is known
        done = run_green("test_sched", "--json", str(out), "--plain", str(plain))
        assert done.returncode == 0, done.stdout + done.stderr
        document = json.loads(out.read_text())
        row = document["files"]["test_sched"]
        assert row["passed"] == row["passed plain"] > 5 and row["lost"] == 0
        assert document["lost"] == []


def test_a_package_of_tests_is_run_file_by_file(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    packages = ["test_sqlite3"] if sys.version_info >= (3, 11) else []
    only = ["--only", "*.ModuleTests.test_api_level", "--only", "*.SchedulerT*.test_enter"]
    done = run_green("test_sched", *packages, *only, "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    files = json.loads(out.read_text())["files"]
    assert ("test_sqlite3.test_dbapi" in files) == bool(packages) and "test_sqlite3" not in files
    done = run_green("test_no_such_thing")
    assert done.returncode == 2 and "test_no_such_thing" in done.stderr


def test_what_is_lost_must_be_listed(tmp_path: Path) -> None:
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    only = ["test_socket", "--only", "*.NonblockConstantTest.*", "--limit", "20"]
    assert run_green(*only).returncode == 0
    done = run_green(*only, "--expected", str(empty))
    assert done.returncode == 1 and "0 expected failures, 1 others" in done.stdout
