"""Very many greenlets at once: every one of them gets its own result.

The work and its checks are those of `python -m benchmarks.memory`, in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(case: str, out: Path, url: str = "") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--only", case, "--json", str(out)],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(out.read_text())["cases"][case]
    return result


def test_20000_green_tasks_share_20_pooled_connections(tmp_path: Path, pg_url: str) -> None:
    assert run("pool", tmp_path / "out.json", pg_url)["greenlets"] == 20_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_100000_greenlets_are_suspended_at_once(tmp_path: Path) -> None:
    assert run("suspended", tmp_path / "out.json")["greenlets"] == 100_000
