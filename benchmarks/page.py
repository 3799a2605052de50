"""The page of all benchmarks, from what they have written: ``python -m benchmarks.page FILE ...``.

Each FILE is what a benchmark wrote by its --json. The page, docs/benchmarks.md, has the machine,
the versions, medians with their spread, and, first of all, where greenletio loses; a chart for each
file goes beside it, as SVG.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pygal  # type: ignore[import-untyped]
from pygal.style import CleanStyle  # type: ignore[import-untyped]

DOCS = Path(__file__).resolve().parents[1] / "docs"
UNITS = {"ns": "ns", "us": "µs", "bytes": "bytes"}
# Ours in another form, or what no Python driver can reach: no peers.
NO_PEERS = ("ours", "floor")

INTRODUCTION = """\
# Benchmarks

`make bench` runs all of them and writes this page. Every contender runs in a process of its own,
all of them interleaved in one run: each round goes through all contenders, one at a time, so that
what the machine does meanwhile hits all alike. What is compared is, unless a title says
otherwise, the CPU time of the contender's process for one operation; the ratios are of the
medians over the rounds, and a ratio above 1 means that the contender takes that many times what
greenletio takes. "By round" are the quartiles of the ratios within each round; the ratio of the
medians may lie beside them where the machine's speed changed between rounds. The figures are as
good as the machine: run them on yours.
"""


def is_peer(name: str) -> bool:
    return not name.startswith(NO_PEERS)


def number(value: float, unit: str) -> str:
    digits = 2 if unit == "us" and value < 100 else 0
    return f"{value:,.{digits}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def losses(document: dict[str, Any]) -> Iterator[list[str]]:
    """The rows in which a peer takes less than greenletio."""
    for bench in document["benches"].values():
        for name, row in bench["contenders"].items():
            versus = row.get("vs_ours")
            if is_peer(name) and versus is not None and versus["ratio"] < 1:
                yield [
                    bench["title"],
                    document["titles"][name],
                    f"{versus['ratio']:.2f}",
                    f"{versus['q1']:.2f} to {versus['q3']:.2f}",
                ]


def missed(document: dict[str, Any]) -> Iterator[list[str]]:
    for goal in document["goals"]:
        if not goal["met"]:
            title = document["benches"][goal["bench"]]["title"]
            yield [title, goal["goal"], f"{goal['ratio']:,.2f}"]
    for name, mean in document["means"].items():
        if not mean.get("met", True):
            what = f"{document['titles'][name]} / greenletio >= {mean['goal']:g}"
            yield ["geometric mean", what, f"{mean['ratio']:.2f}"]


def has_chart(document: dict[str, Any]) -> bool:
    return any("ours" in bench["contenders"] for bench in document["benches"].values())


def chart(document: dict[str, Any]) -> str:
    """What each contender takes, as a multiple of what greenletio takes."""
    # The first bar is the lowest.
    benches = [b for b in reversed(document["benches"].values()) if "ours" in b["contenders"]]
    names = [n for n in document["titles"] if n != "ours"]
    drawing = pygal.HorizontalBar(
        title="times what greenletio takes (less than 1: it is better)",
        x_labels=[bench["title"] for bench in benches],
        height=140 + len(benches) * (20 + 11 * len(names)),
        width=1000,
        logarithmic=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        truncate_label=-1,
        truncate_legend=-1,
        style=CleanStyle,
        disable_xml_declaration=False,
        js=[],
    )
    for name in names:
        rows = (bench["contenders"].get(name) for bench in benches)
        drawing.add(
            document["titles"][name],
            [None if row is None else round(row["vs_ours"]["ratio"], 3) for row in rows],
        )
    return str(drawing.render(is_unicode=True))


def section(document: dict[str, Any], picture: str) -> Iterator[str]:
    machine, titles = document["machine"], document["titles"]
    yield f"## {document['title']}\n"
    yield (
        f"`{document['command']}`, {document['date']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['system']}, Python {machine['python']}, load {machine['load']} at the start; "
        f"{document['rounds']} rounds.\n"
    )
    yield "".join(
        f"- {titles[name]}: {', '.join(f'{k} {v}' for k, v in versions.items())}\n"
        for name, versions in document["versions"].items()
    )
    if has_chart(document):
        yield f"```{{image}} {picture}\n:alt: the ratios of the tables below, as bars\n```\n"
    for name, why in document["left_out"].items():
        yield f"Left out: {name}: {why}\n"
    for bench in document["benches"].values():
        yield f"**{bench['title']}**\n"
        if "table" in bench:  # of a benchmark that compares more than a time
            yield table(bench["table"][0], bench["table"][1:])
            continue
        unit = bench["unit"]
        rows = []
        for name, row in bench["contenders"].items():
            versus = row.get("vs_ours")
            rows.append(
                [
                    titles[name],
                    number(row["median"], unit),
                    f"{number(row['q1'], unit)} to {number(row['q3'], unit)}",
                    number(row["wall_median"], unit),
                    f"{versus['ratio']:.2f}" if versus else "",
                    f"{versus['q1']:.2f} to {versus['q3']:.2f}" if versus else "",
                ]
            )
        head = ["", f"median, {UNITS[unit]}", "quartiles", "wall time", "÷ greenletio", "by round"]
        yield table(head, rows)


def page(documents: dict[str, dict[str, Any]]) -> str:
    """The page; the keys are the names of the files, without their ends."""
    lost = [row for document in documents.values() for row in losses(document)]
    short = [row for document in documents.values() for row in missed(document)]
    parts = [INTRODUCTION, "## Where greenletio loses\n"]
    if lost:
        parts.append(table(["", "to", "ratio", "by round"], lost))
    else:
        parts.append("Nowhere in this run.\n")
    if short:
        parts += ["What it was to reach, and did not:\n", table(["", "goal", "measured"], short)]
    for name, document in documents.items():
        parts += section(document, f"_static/bench-{name}.svg")
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page goes (docs/)")
    args = parser.parse_args(argv)
    documents = {file.stem: json.loads(file.read_text()) for file in args.files}
    (args.docs / "_static").mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        if has_chart(document):
            (args.docs / "_static" / f"bench-{name}.svg").write_text(chart(document) + "\n")
    partial = args.docs / "benchmarks.md.part"
    partial.write_text(page(documents))
    os.replace(partial, args.docs / "benchmarks.md")
    print(args.docs / "benchmarks.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
