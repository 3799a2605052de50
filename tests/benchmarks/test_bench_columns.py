"""`python -m benchmarks.columns` runs, for greenletio alone, and writes what it measured."""

import json
from pathlib import Path

from fix_bench import bench
from fix_postgres import TemporaryDatabase


def test_quick_run_writes_json(tmp_path: Path, pg_url: str) -> None:
    out = tmp_path / "made" / "columns.json"
    options = ("--contender", "ours-here", "--quick", "--rounds", "1", "--json", str(out))
    with TemporaryDatabase(pg_url) as database:
        done = bench(
            "benchmarks.columns", *options, DATABASE_URL=database.url, BENCH_COLUMNS_ROWS="5000"
        )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["left_out"] == {}
    assert {"mixed", "integers", "text"} <= set(document["benches"])
    for name, row in document["benches"].items():
        assert name == "memory" or row["contenders"]["ours-here"]["median"] > 0
