"""`python -m benchmarks.pg` runs, for greenletio and the C floor, and writes what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_quick_run_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "pg.json"
    chosen = "select1-50 by_key-10 series-10 *-select1-10 pool-10 executemany copy-*".split()
    who = ["--contender", "ours", "--contender", "floor"]
    who += [option for name in chosen for option in ("--only", name)]
    command = [sys.executable, "-m", "benchmarks.pg", *who, "--quick"]
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
    assert document["left_out"] == {}
    assert {"series-10", "by_key-10", "executemany", "copy-in", "copy-out"} <= set(
        document["benches"]
    )
    for name, bench in document["benches"].items():
        assert bench["contenders"]["ours"]["median"] > 0, name
        if not name.startswith(("shared", "pool")):
            assert bench["contenders"]["floor"]["median"] > 0, name
