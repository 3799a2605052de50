"""`python -m benchmarks.green` runs, for greenletio alone, and writes what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_quick_run_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "green.json"
    command = [sys.executable, "-m", "benchmarks.green", "--contender", "ours", "--quick"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--json", str(out)],
        cwd=ROOT,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["left_out"] == {} and document["means"] == {}
    rows = {"echo", "http", "lock", "queue", "spawn", "sleepers", "tls", "thread", "local"}
    assert rows <= set(document["benches"])
    for name, bench in document["benches"].items():
        assert bench["contenders"]["ours"]["median"] > 0, name
