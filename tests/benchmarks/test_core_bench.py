"""`python -m benchmarks.core` still runs, for greenletio alone, and writes what it measured."""

import json
from pathlib import Path

from fix_bench import bench


def test_quick_run_of_every_bench_writes_json(tmp_path: Path, pg_url: str) -> None:
    out = tmp_path / "core.json"
    options = ("--quick", "--rounds", "1", "--contender", "ours", "--json", str(out))
    done = bench("benchmarks.core", *options, DATABASE_URL=pg_url)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["left_out"] == {}
    assert document["versions"]["ours"]["greenletio"]
    assert {"call", "immediate", "suspend-uvloop", "fd-asyncio", "pg20-uvloop", "rss"} <= set(
        document["benches"]
    )
    for name, row in document["benches"].items():
        ours = row["contenders"]["ours"]
        assert len(ours["rounds"]) == 1, name
        assert ours["median"] > 0, name
        assert ours["vs_ours"]["ratio"] == 1, name
    assert [goal["goal"] for goal in document["goals"]] == ["greenletio <= 7,000"]


def test_an_unknown_bench_is_refused() -> None:
    done = bench("benchmarks.core", "--only", "nonsense", DATABASE_URL="")
    assert done.returncode == 1
    assert "no bench is named nonsense" in done.stderr
