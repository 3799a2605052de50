"""`python -m benchmarks.core` still runs, for greenletio alone, and writes what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*args: str, url: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.core", *args],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_quick_run_of_every_bench_writes_json(tmp_path: Path, pg_url: str) -> None:
    out = tmp_path / "core.json"
    options = ("--quick", "--rounds", "1", "--contender", "ours", "--json", str(out))
    done = run(*options, url=pg_url)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["left_out"] == {}
    assert document["versions"]["ours"]["greenletio"]
    assert {"call", "immediate", "suspend-uvloop", "fd-asyncio", "pg20-uvloop", "rss"} <= set(
        document["benches"]
    )
    for name, bench in document["benches"].items():
        ours = bench["contenders"]["ours"]
        assert len(ours["rounds"]) == 1, name
        assert ours["median"] > 0, name
        assert ours["vs_ours"]["ratio"] == 1, name
    assert [goal["goal"] for goal in document["goals"]] == ["greenletio <= 7,000"]


def test_an_unknown_bench_is_refused() -> None:
    done = run("--only", "nonsense")
    assert done.returncode == 1
    assert "no bench is named nonsense" in done.stderr
