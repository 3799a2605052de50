"""The picture: one HTML file that fetches nothing."""

from html import escape
from pathlib import Path
from typing import Any

import pygal  # type: ignore[import-untyped]
from pygal.style import CleanStyle  # type: ignore[import-untyped]

from greenletio.demo.conductor import Results
from greenletio.demo.report import COLUMNS, heading
from greenletio.demo.watch import SLOT_S

__all__ = ("write_page",)

COLOURS = {"blocking": "#c0392b", "threads": "#d68910", "greenletio": "#1e8449"}
Slots = list[float | None]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } td, th { padding: .3em 1em; text-align: right; }
tr + tr { border-top: 1px solid #ddd; } td:first-child, th:first-child { text-align: left; }
.bars { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1em; }
small { color: #666; }
"""


def write_page(path: Path, results: Results, facts: dict[str, Any]) -> None:
    options, versions, machine = facts["options"], facts["versions"], facts["machine"]
    header = "".join(f"<th>{title}<br>{unit}</th>" for _, title, unit, _, _ in COLUMNS)
    body = "".join(
        f"<tr><td>{mode}</td>"
        + "".join(f"<td>{form.format(figures[key])}</td>" for key, _, _, form, _ in COLUMNS)
        + "</tr>"
        for mode, figures in results.items()
    )
    bars = "".join(
        _bars(results, key, heading(title, unit, more), form)
        for key, title, unit, form, more in COLUMNS
    )
    first = next(iter(results.values()))
    path.write_text(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>greenletio: one program, three ways</title>
<style>{STYLE}</style>
<h1>One program, three ways to run it</h1>
<p>{options["files"]} source files of Python's standard library ({first["definitions"]} modules,
classes and functions) indexed in PostgreSQL, then {options["requests"]} full-text searches answered
over HTTP, {options["tasks"]} at once; each mode in a process
of its own. They indexed in the order of the table, and took turns in answering.</p>
<table><tr><th>mode</th>{header}</tr>{body}</table>
<div class="bars">{bars}</div>
{_over_time(results, "The loop's longest stall in each tenth of a second, ms", _stalls(results))}
{_over_time(results, "The slowest answer in each tenth of a second, ms", _latencies(results))}
<p><small>{escape(", ".join(f"{name} {version}" for name, version in versions.items()))};
{escape(machine["system"])}, {machine["cpus"]} CPUs</small></p>
</html>
""",
        encoding="utf-8",
    )


def _config(results: Results, **more: Any) -> dict[str, Any]:
    colours = tuple(COLOURS[mode] for mode in results)
    style = CleanStyle(colors=colours, background="white", plot_background="white")
    return {"js": (), "style": style, "disable_xml_declaration": True, **more}


def _bars(results: Results, key: str, title: str, form: str) -> str:
    chart = pygal.HorizontalBar(
        **_config(
            results,
            title=title,
            height=260,
            width=480,
            print_values=True,
            include_x_axis=True,
            max_scale=6,
            formatter=form.format,
        )
    )
    for mode, figures in results.items():
        chart.add(mode, figures[key])
    return str(chart.render(is_unicode=True))


def _over_time(results: Results, title: str, lines: dict[str, Slots]) -> str:
    length = max(map(len, lines.values()))
    chart = pygal.Line(
        **_config(
            results,
            title=title,
            x_title="seconds in which the mode was at work",
            x_labels=[f"{i * SLOT_S:.1f}" for i in range(length)],
            x_labels_major_every=max(1, round(length / 12 * SLOT_S)) * round(1 / SLOT_S),
            show_minor_x_labels=False,
            truncate_label=-1,
            logarithmic=True,
            dots_size=1.5,
            height=420,
            width=1100,
        )
    )
    for mode, points in lines.items():
        chart.add(mode, points)
    return str(chart.render(is_unicode=True))


def _stalls(results: Results) -> dict[str, Slots]:
    # A logarithmic axis has no zero, and below 1 ms nobody minds.
    return {
        mode: [max(late, 1.0) for late in figures["stalls_ms"]] for mode, figures in results.items()
    }


def _latencies(results: Results) -> dict[str, Slots]:
    """The worst in each slot of time."""
    lines: dict[str, Slots] = {}
    for mode, figures in results.items():
        slots: Slots = [None] * (1 + int(max(at for at, _ in figures["latencies"]) / SLOT_S))
        for at, took in figures["latencies"]:
            slot = int(at / SLOT_S)
            slots[slot] = max(slots[slot] or 0.0, took)
        lines[mode] = slots
    return lines
