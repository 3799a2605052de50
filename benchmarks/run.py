"""Carries a plan out: every contender in a process of its own, in interleaved rounds.

Each contender is driven over pipes; each round runs every contender once, one at a time, so that
what the machine does meanwhile hits all alike. CPU time of the contender's process is measured,
inside it. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import envs, report, workers
from benchmarks.plan import Bench, Plan


class Settings:
    def __init__(self, plan: Plan, quick: bool, rounds: int | None) -> None:
        self.rounds = rounds or (3 if quick else 15)
        self.memory_rounds = min(self.rounds, 5)
        self.sample_ns = plan.sample_ms * (200_000 if quick else 1_000_000)
        self.shrink = 10 if quick else 1  # of the benches with a fixed size

    def rounds_of(self, bench: Bench) -> int:
        rounds = self.memory_rounds if bench.memory else self.rounds
        return rounds if bench.rounds is None else min(rounds, bench.rounds)


class Run:
    """The workers of one run, started when first needed, and what was measured."""

    def __init__(
        self, plan: Plan, contenders: list[str], env: dict[str, str], settings: Settings
    ) -> None:
        self._plan = plan
        self._contenders = contenders
        self._env = env
        self._settings = settings
        self._pythons: dict[str, Path] = {}
        self._paths: dict[str, str] = {}  # PYTHONPATH
        self._workers: dict[tuple[str, bool], workers.Worker] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.left_out: dict[str, str] = {}
        self.results: report.Results = {}
        self.walls: report.Results = {}

    def prepare(self, progress: Progress) -> None:
        """Make the environments and start one worker for each contender."""
        task = progress.add_task("environments", total=len(self._contenders))
        for name in list(self._contenders):
            contender = self._plan.contenders[name]
            progress.update(task, description=f"environments: {contender.title}")
            try:
                if contender.env is None:
                    self._pythons[name] = Path(sys.executable)
                else:
                    self._pythons[name] = envs.ensure(contender.env, contender.packages)
                if contender.newer_libpq:
                    self._paths[name] = str(envs.newer_libpq())
                worker = self._worker(name, shim=False)
            except (envs.EnvError, workers.WorkerError) as exc:
                self.left_out[name] = str(exc)
                self._contenders.remove(name)
            else:
                self.versions[name] = {"python": worker.python, **worker.versions}
            progress.advance(task)
        progress.remove_task(task)

    def _start(self, name: str, shim: bool) -> workers.Worker:
        preload = envs.shim() if shim else None
        module = self._plan.contenders[name].module or name
        env = self._env
        if name in self._paths:
            env = {**env, "PYTHONPATH": self._paths[name]}
        return workers.Worker(module, self._pythons[name], env, preload)

    def _worker(self, name: str, shim: bool) -> workers.Worker:
        key = (name, shim)
        if key not in self._workers:
            self._workers[key] = self._start(name, shim)
        return self._workers[key]

    def _in(self, bench: Bench) -> list[str]:
        return [
            name
            for name in self._contenders
            if name not in bench.without and bench.method in self._worker(name, shim=False).benches
        ]

    def steps(self, benches: list[Bench]) -> int:
        """How many samples `measure` takes."""
        return sum(self._settings.rounds_of(b) * len(self._in(b)) for b in benches)

    def measure(self, benches: list[Bench]) -> Iterator[None]:
        """Take all samples, and yield after each.

        A round goes through all benches: a busy minute of the machine then costs every bench a
        few samples instead of costing one bench most of them.
        """
        took_part = {bench.name: self._in(bench) for bench in benches}
        sizes: dict[tuple[str, str], int] = {}
        self.results = {b.name: {c: [] for c in took_part[b.name]} for b in benches}
        self.walls = {b.name: {c: [] for c in took_part[b.name]} for b in benches}
        for turn in range(self._settings.rounds):
            for bench in benches:
                if turn >= self._settings.rounds_of(bench):
                    continue
                names = took_part[bench.name]
                first = turn % max(len(names), 1)
                for name in names[first:] + names[:first]:
                    try:
                        if (bench.name, name) not in sizes:
                            sizes[bench.name, name] = self._size(bench, name)
                        value, wall = self._value(bench, name, sizes[bench.name, name])
                        self.results[bench.name][name].append(value)
                        self.walls[bench.name][name].append(wall)
                    except workers.WorkerError as exc:
                        self._drop(bench, name, str(exc))
                        names.remove(name)
                    yield
        for bench in benches:
            if bench.shim:
                self._check_shim(bench, took_part[bench.name])

    def _drop(self, bench: Bench, name: str, why: str) -> None:
        """Go on without a contender that failed, in this bench."""
        del self.results[bench.name][name]
        self.left_out[f"{name}, {bench.name}"] = why
        worker = self._workers.pop((name, bench.shim), None)
        if worker is not None:
            worker.close()

    def _sample(self, worker: workers.Worker, bench: Bench, name: str, n: int) -> workers.Sample:
        loop = self._plan.contenders[name].loop or bench.loop
        return worker.sample(bench.method, n, loop, bench.args)

    def _value(self, bench: Bench, name: str, n: int) -> tuple[float, float]:
        """What is compared, and the wall time, both for one operation."""
        if bench.memory:
            with contextlib.closing(self._start(name, shim=False)) as worker:
                sample = self._sample(worker, bench, name, n)
                return sample.extra, sample.wall_ns / n
        sample = self._sample(self._worker(name, bench.shim), bench, name, n)
        each = n * bench.per_n * (1000 if bench.unit == "us" else 1)
        return sample.cpu_ns / each, sample.wall_ns / each

    def _size(self, bench: Bench, name: str) -> int:
        """How many operations make a sample of the wanted length."""
        if bench.n is not None:
            return max(bench.n // self._settings.shrink, 1)
        worker = self._worker(name, bench.shim)
        n = max(20, bench.multiple)
        while True:
            took = self._sample(worker, bench, name, n).cpu_ns
            factor = self._settings.sample_ns / max(took, 1)
            if factor < 1.5 or n >= 1_000_000:
                return n
            n = max(int(n * min(factor, 20)) // bench.multiple, 1) * bench.multiple

    def _check_shim(self, bench: Bench, names: list[str]) -> None:
        """The shim must have worked for those that make a greenlet for each call."""
        for name in {"greenletio_0_11", "sqlalchemy", "greenback"} & set(names):
            if not self._worker(name, shim=True).chunks_reused():
                raise workers.WorkerError(f"{name}: the shim of {bench.name} spared no mapping")

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def arguments(plan: Plan, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=plan.prog, description=plan.doc)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures to PATH")
    parser.add_argument("--quick", action="store_true", help="few rounds, short samples")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each bench")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="run these benches (a name, or a pattern such as 'pg*'); may be repeated",
    )
    parser.add_argument(
        "--contender",
        action="append",
        choices=list(plan.contenders),
        metavar="NAME",
        help="run these contenders only; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="list benches and contenders")
    return parser.parse_args(argv)


def chosen(plan: Plan, patterns: list[str] | None) -> list[Bench]:
    if patterns is None:
        return list(plan.benches)
    found = [b for b in plan.benches if any(fnmatch(b.name, p) for p in patterns)]
    if not found:
        raise SystemExit(f"no bench is named {' or '.join(patterns)}: see --list")
    return found


Measure = Callable[[Console, Plan, list[Bench], argparse.Namespace], int]


def main(plan: Plan, argv: list[str] | None = None, measure: Measure | None = None) -> int:
    """The program of a plan; `measure` is for one that needs more than a `Run`."""
    args = arguments(plan, argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if args.list:
        for bench in plan.benches:
            console.print(f"{bench.name:20} {bench.title}")
        console.print("contenders: " + ", ".join(plan.contenders))
        return 0
    benches = chosen(plan, args.only)
    try:
        return (measure or measure_cpu)(console, plan, benches, args)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except (envs.EnvError, workers.WorkerError) as exc:
        console.print(f"[red]{exc}[/]")
        return 1


def progress_bar(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=console)


def measure_cpu(
    console: Console, plan: Plan, benches: list[Bench], args: argparse.Namespace
) -> int:
    settings = Settings(plan, args.quick, args.rounds)
    names = args.contender or list(plan.contenders)
    machine = report.machine()
    report.print_machine(console, machine, settings.rounds)
    with contextlib.ExitStack() as stack:
        env = plan.environment()
        if any(bench.postgres for bench in benches):
            env["DATABASE_URL"] = stack.enter_context(workers.server())
        run = Run(plan, names, env, settings)
        stack.callback(run.close)
        with progress_bar(console) as progress:
            run.prepare(progress)
            print_versions(console, plan, run)
            task = progress.add_task("measuring", total=run.steps(benches))
            for _ in run.measure(benches):
                progress.advance(task)
        for bench in benches:
            if run.results[bench.name]:
                report.print_bench(console, plan, bench, run.results, run.walls)
        report.print_goals(console, report.goals(plan, run.results, run.walls))
        report.print_means(console, plan, run.results)
        report.print_left_out(console, run.left_out)
    if args.json is not None:
        document = {
            **what_it_is(plan),
            "machine": machine,
            "titles": {name: plan.contenders[name].title for name in run.versions},
            "versions": run.versions,
            "left_out": run.left_out,
            "rounds": settings.rounds,
            **report.as_json(plan, benches, run.results, run.walls),
        }
        report.write_json(args.json, document)
    return 1 if run.left_out else 0


def print_versions(console: Console, plan: Plan, run: Run) -> None:
    for name, versions in run.versions.items():
        listed = ", ".join(f"{package} {version}" for package, version in versions.items())
        console.print(f"{plan.contenders[name].title}: {listed}")


def what_it_is(plan: Plan) -> dict[str, Any]:
    """How a document of what was measured begins."""
    return {
        "title": plan.doc.partition(": ``")[0],
        "command": plan.prog,
        "date": datetime.date.today().isoformat(),
    }
