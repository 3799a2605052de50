"""`python -m benchmarks.loop` still runs, for greenletio alone, and writes what it measured."""

import json
from pathlib import Path

from fix_bench import bench

OURS = ("benchmarks.loop", "--contender", "ours")


def test_quick_run_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "loop.json"
    chosen = "*-10 call-soon timers cancel turn future queue spawn idle-rss-tcp".split()
    only = [option for name in chosen for option in ("--only", name)]
    done = bench(*OURS, "--quick", "--rounds", "1", "--json", str(out), *only)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["left_out"] == {}
    assert {
        *(f"sockets-{family}-10" for family in ("tcp", "unix")),
        *(f"{s}-{f}-10" for s in ("streams", "protocol", "buffered") for f in ("tcp", "tls")),
        "protocol-pieces-tls-10",
        "green-tls-10",
    } <= set(document["benches"])
    for name, row in document["benches"].items():
        ours = row["contenders"]["ours"]
        assert ours["median"] > 0, name
        assert name.startswith("idle-rss") or ours["wall_median"] > 0, name


def test_every_bench_is_listed() -> None:
    done = bench(*OURS, "--list")
    assert done.returncode == 0
    for name in ("protocol-tls-100", "green-tcp-1", "idle-tls", "call-soon"):
        assert f"\n{name} " in done.stdout
