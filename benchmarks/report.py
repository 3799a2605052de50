"""Medians and ratios of what was measured, as tables and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.plan import Bench, Plan

# bench name -> contender -> one value for each round, in round order
Results = dict[str, dict[str, list[float]]]


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "malloc": {  # every contender inherits them
            name: value
            for name, value in os.environ.items()
            if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "PYTHONMALLOC")
        },
    }


def print_machine(console: Console, machine: dict[str, Any], rounds: int) -> None:
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']}, "
        f"{machine['system']}, Python {machine['python']}; {rounds} rounds"
        f"{''.join(f', {name}={value}' for name, value in machine['malloc'].items())}"
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The ratio of the medians, and how the ratio spreads over the rounds."""
    low, _, high = quartiles([a / b for a, b in zip(over, under, strict=True)])
    return {
        "ratio": statistics.median(over) / statistics.median(under),
        "q1": low,
        "q3": high,
    }


def goals(plan: Plan, results: Results, walls: Results) -> list[dict[str, Any]]:
    found = []
    for goal in plan.goals:
        by = (walls if goal.wall else results).get(goal.bench, {})
        if goal.over not in by or (goal.under is not None and goal.under not in by):
            continue
        if goal.under is None:
            measured = {"ratio": statistics.median(by[goal.over])}
        else:
            measured = ratio(by[goal.over], by[goal.under])
        value = measured["ratio"]
        met = value >= goal.limit if goal.sign == ">=" else value <= goal.limit
        found.append({"bench": goal.bench, "goal": plan.text(goal), "met": met, **measured})
    return found


def means(plan: Plan, results: Results) -> dict[str, dict[str, Any]]:
    """For each peer, the geometric mean of its ratios of medians over the benches."""
    found = {}
    for peer, limit in plan.means.items():
        ratios = [
            statistics.median(by[peer]) / statistics.median(by["ours"])
            for bench, by in results.items()
            if peer in by and "ours" in by and bench in (plan.mean_of or results)
        ]
        if ratios:
            value = statistics.geometric_mean(ratios)
            found[peer] = {"ratio": value, "benches": len(ratios)}
            if limit is not None:
                found[peer] |= {"goal": limit, "met": value >= limit}
    return found


def as_json(
    plan: Plan, benches: Sequence[Bench], results: Results, walls: Results
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for bench in benches:
        rows = {}
        for contender, values in results.get(bench.name, {}).items():
            low, median, high = quartiles(values)
            rows[contender] = {
                "median": median,
                "q1": low,
                "q3": high,
                "min": min(values),
                "rounds": values,
                "wall_median": statistics.median(walls[bench.name][contender]),
            }
            ours = results[bench.name].get("ours")
            if ours is not None:
                rows[contender]["vs_ours"] = ratio(values, ours)
        out[bench.name] = {"title": bench.title, "unit": bench.unit, "contenders": rows}
    return {"benches": out, "goals": goals(plan, results, walls), "means": means(plan, results)}


def _number(value: float, unit: str) -> str:
    return f"{value:,.2f}" if unit == "us" else f"{value:,.0f}"


def print_bench(
    console: Console, plan: Plan, bench: Bench, results: Results, walls: Results
) -> None:
    unit = {"ns": "CPU ns", "us": "CPU µs", "bytes": "bytes"}[bench.unit]
    table = Table(title=bench.title, title_justify="left", title_style="bold")
    table.add_column("", min_width=17)
    for heading in (f"median {unit}", "quartiles", "min", "÷ greenletio", "quartiles by round"):
        table.add_column(heading, justify="right")
    if plan.wall:
        table.add_column("median wall", justify="right")
    document = as_json(plan, [bench], results, walls)
    for contender, row in document["benches"][bench.name]["contenders"].items():
        versus = row.get("vs_ours")
        table.add_row(
            plan.contenders[contender].title,
            _number(row["median"], bench.unit),
            f"{_number(row['q1'], bench.unit)} .. {_number(row['q3'], bench.unit)}",
            _number(row["min"], bench.unit),
            f"{versus['ratio']:.2f}" if versus else "",
            f"{versus['q1']:.2f} .. {versus['q3']:.2f}" if versus else "",
            *([_number(row["wall_median"], bench.unit)] if plan.wall else []),
        )
    console.print(table)


def print_goals(console: Console, measured: list[dict[str, Any]]) -> None:
    table = Table(title="Goals", title_justify="left", title_style="bold")
    for heading in ("bench", "goal"):
        table.add_column(heading)
    table.add_column("measured", justify="right")
    table.add_column("quartiles by round", justify="right")
    table.add_column("")
    for goal in measured:
        table.add_row(
            goal["bench"],
            goal["goal"],
            f"{goal['ratio']:,.2f}" if "q1" in goal else f"{goal['ratio']:,.0f}",
            f"{goal['q1']:.2f} .. {goal['q3']:.2f}" if "q1" in goal else "",
            "[green]met[/]" if goal["met"] else "[red]missed[/]",
        )
    if table.row_count:
        console.print(table)


def print_means(console: Console, plan: Plan, results: Results) -> None:
    for peer, found in means(plan, results).items():
        goal = ""
        if "goal" in found:
            met = "[green]met[/]" if found["met"] else "[red]missed[/]"
            goal = f", of {found['goal']:g} to reach: {met}"
        console.print(
            f"geometric mean of {plan.contenders[peer].title} / greenletio"
            f" over {found['benches']} benches: {found['ratio']:.2f}{goal}"
        )


def print_left_out(console: Console, left_out: dict[str, str]) -> None:
    for name, why in left_out.items():
        console.print(f"[yellow]left out: {name}: {why}[/]", highlight=False)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write all of it, or leave what is there; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(partial, path)
