"""Very many greenlets at once: every one of them gets its own result.

The work and its checks are those of `python -m benchmarks.memory`, in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(case: str, n: int, out: Path, url: str = "") -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"]
        + ["--only", case, "--number", str(n), "--json", str(out)],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["cases"][case]["greenlets"] == n


slow = (pytest.mark.slow, pytest.mark.timeout(600))


@pytest.mark.parametrize("n", [2_000, pytest.param(20_000, marks=slow)])
def test_green_tasks_share_20_pooled_connections(n: int, tmp_path: Path, pg_url: str) -> None:
    run("pool", n, tmp_path / "out.json", pg_url)


@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=slow)])
def test_greenlets_are_suspended_at_once(n: int, tmp_path: Path) -> None:
    run("suspended", n, tmp_path / "out.json")
