"""`python -m benchmarks.apps` runs, for greenletio alone, and writes what it measured."""

import json
import shutil
from pathlib import Path

from fix_bench import bench
from fix_missing import missing
from fix_postgres import TemporaryDatabase

CONTENDERS = ("flask-worker", "fastapi-psycopg2", "raw-shared")


def test_quick_run_writes_json(tmp_path: Path, pg_url: str) -> None:
    if shutil.which("wrk") is None:
        missing("there is no wrk: apt-get install wrk")
    out = tmp_path / "apps.json"
    who = [option for name in CONTENDERS for option in ("--contender", name)]
    options = ("--quick", "--only", "clients-100", "--json", str(out))
    with TemporaryDatabase(pg_url) as database:
        done = bench("benchmarks.apps", *who, *options, DATABASE_URL=database.url)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["left_out"] == {}
    assert set(document["benches"]) == {"clients-100"}
    for row in document["benches"].values():
        assert set(row["contenders"]) == set(CONTENDERS)
        for figures in row["contenders"].values():
            assert all(figure["median"] > 0 for figure in figures.values())
            assert figures["p50_ms"]["median"] <= figures["p99_ms"]["median"]
    (tmp_path / "docs").mkdir()
    done = bench("benchmarks.page", str(out), "--docs", str(tmp_path / "docs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**100 clients**" in (tmp_path / "docs/benchmarks.md").read_text()
