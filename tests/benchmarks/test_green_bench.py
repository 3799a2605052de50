"""`python -m benchmarks.green` runs, for greenletio alone, and writes what it measured."""

import json
from pathlib import Path

from fix_bench import bench


def test_quick_run_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "green.json"
    who = ("--contender", "ours")
    done = bench("benchmarks.green", *who, "--quick", "--rounds", "1", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["left_out"] == {} and document["means"] == {}
    rows = {"echo", "http", "lock", "queue", "spawn", "sleepers", "tls", "thread", "local"}
    assert rows <= set(document["benches"])
    for name, row in document["benches"].items():
        assert row["contenders"]["ours"]["median"] > 0, name
