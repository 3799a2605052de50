"""Very many greenlets at once, and the memory they take: ``python -m benchmarks.memory``.

20,000 green tasks that share 20 pooled psycopg2 connections, and 100,000 suspended greenlets.
Results are checked. Each case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import envs, report, workers

CASES = {
    "pool": (20_000, "green tasks at once through 20 pooled psycopg2 connections"),
    "suspended": (100_000, "suspended greenlets at once"),
}


def measure(case: str, n: int, loop: str) -> dict[str, float]:
    with contextlib.ExitStack() as stack:
        env = {}
        if case == "pool":
            env["DATABASE_URL"] = stack.enter_context(workers.server())
        worker = workers.Worker("scale", Path(sys.executable), env, preload=None)
        stack.callback(worker.close)
        result: dict[str, float] = worker.sample(case, n, loop).extra
        return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures to PATH")
    parser.add_argument("--only", choices=list(CASES), help="run one case")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--number", type=int, metavar="N", help="how many greenlets")
    args = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("", "peak RSS, MB", "bytes each", "wall, s", title=f"Scale, {args.loop}")
    results: dict[str, dict[str, float]] = {}
    try:
        for case, (n, title) in CASES.items():
            if args.only not in (None, case):
                continue
            n = args.number or n
            with console.status(f"{n:,} {title}"):
                got = results[case] = measure(case, n, args.loop)
            table.add_row(
                f"{n:,} {title}",
                f"{got['peak_rss'] / 1e6:,.0f}",
                f"{got['bytes_each']:,.0f}",
                f"{got['wall_s']:.1f}",
            )
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except (envs.EnvError, workers.WorkerError) as exc:
        console.print(f"[red]{exc}[/]")
        return 1
    console.print(table)
    if args.json is not None:
        document = {"machine": report.machine(), "loop": args.loop, "cases": results}
        report.write_json(args.json, document)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
