"""The page of the benchmarks, from what a run has written."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fix_bench import bench


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("bench") / "green.json"
    options = ["--only", "lock-free", "--only", "local", "--quick", "--rounds", "2"]
    who = ["--contender", "ours", "--contender", "threads"]
    done = bench("benchmarks.green", *options, *who, "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def page(folder: Path, **documents: dict) -> str:
    files = []
    for name, document in documents.items():
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(document))
    done = bench("benchmarks.page", *map(str, files), "--docs", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "benchmarks.md").read_text()


def test_what_was_measured_is_on_the_page(tmp_path: Path, document: dict) -> None:
    text = page(tmp_path, green=document)
    assert document["machine"]["cpu"] in text
    for name, bench_row in document["benches"].items():
        assert bench_row["title"] in text, name
        assert f"{bench_row['contenders']['ours']['median']:,.0f}" in text
    for versions in document["versions"].values():
        for package, version in versions.items():
            assert f"{package} {version}" in text
    drawing = ET.parse(tmp_path / "_static" / "bench-green.svg")
    assert document["benches"]["local"]["title"] in "".join(drawing.getroot().itertext())


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_row_where_a_peer_takes_less_is_told_first(
    tmp_path: Path, document: dict, factor: float
) -> None:
    changed = json.loads(json.dumps(document))
    for row in changed["benches"].values():
        row["contenders"]["threads"]["vs_ours"] = {"ratio": factor, "q1": factor, "q3": factor}
    lost = page(tmp_path, green=changed).partition("## Where greenletio loses")[2]
    lost = lost.partition("\n## ")[0]
    title = document["benches"]["local"]["title"]
    assert (f"| {title} | threads | 0.50 |" in lost) is (factor < 1)
    assert ("Nowhere" in lost) is (factor > 1)
