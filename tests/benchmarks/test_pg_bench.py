"""`python -m benchmarks.pg` runs, for greenletio and the C floor, and writes what it measured."""

import json
from pathlib import Path

from fix_bench import bench


def test_quick_run_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "pg.json"
    chosen = "select1-50 by_key-10 series-10 *-select1-10 far-by_key-50 pool-10".split()
    chosen += ["executemany", "copy-*"]
    who = ["--contender", "ours", "--contender", "floor"]
    who += [option for name in chosen for option in ("--only", name)]
    done = bench("benchmarks.pg", *who, "--quick", "--rounds", "1", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["left_out"] == {}
    assert {"series-10", "by_key-10", "executemany", "copy-in", "copy-out"} <= set(
        document["benches"]
    )
    for name, row in document["benches"].items():
        assert row["contenders"]["ours"]["median"] > 0, name
        if not name.startswith(("shared", "far", "pool")):
            assert row["contenders"]["floor"]["median"] > 0, name
    # Each of the 50 tasks waits a round trip of 1 ms for each of its queries.
    assert document["benches"]["far-by_key-50"]["contenders"]["ours"]["wall_median"] >= 1000 / 50
