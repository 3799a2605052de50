"""Web applications side by side: ``python -m benchmarks.apps``.

One application (five queries, a template, JSON) in Flask and in FastAPI, with SQLAlchemy's ORM and
without, served in each of the ways that its users have. All have one worker process, ten database
connections (`shared=1` has one) and the same versions. The clients are wrk's, which has to be
installed: requests per second, the latencies that half and 99 % of the requests keep to, the
proportional set size of all of the server's processes, and their CPU time. A server is started anew
in each round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import statistics
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import envs, report, run, serving, workers
from benchmarks.plan import Bench, Contender, Plan
from benchmarks.served import tables
from benchmarks.workers import WorkerError

POOL = 10  # connections to the database
CLIENTS = (10, 100, 1000)
SAME = ("fastapi", "flask", "gunicorn", "jinja2", "sqlalchemy", "starlette", "uvicorn")
HEADINGS = ("requests/s", "quartiles", "p50 ms", "p99 ms", "PSS MB", "CPU ms/request")
FIGURES = ("requests_s", "p50_ms", "p99_ms", "memory_mb", "cpu_ms")

UVICORN = ("uvicorn", "--port", "{port}", "--http", "httptools", "--no-access-log")
GUNICORN = (
    "gunicorn",
    "--bind",
    "127.0.0.1:{port}",
    "--workers",
    "1",
    "--worker-connections",
    "1100",
)
UVLOOP = (*UVICORN, "--log-level", "warning", "--timeout-keep-alive", "60", "--loop", "uvloop")
OURS = (*UVLOOP[:-1], "greenletio:new_event_loop")
WORKER = (*GUNICORN, "--log-level", "warning", "--keep-alive", "60")
PSYCOPG2, DIALECT = "postgresql+psycopg2", "postgresql+greenletio"
AIO = "greenletio.pg.aio"


@dataclasses.dataclass(frozen=True)
class App(Contender):
    group: str = ""  # of those that are compared
    command: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()

    @property
    def ours(self) -> bool:
        return "greenletio" in self.title


def app(
    group: str,
    title: str,
    command: tuple[str, ...],
    module: str,
    driver: str,
    green: bool = False,
    **kwargs: Any,
) -> App:
    environ = {"BENCH_DRIVER": driver, **({"BENCH_GREEN": "1"} if green else {})}
    return App(
        title,
        group=group,
        command=(*command, f"benchmarks.served.{module}"),
        environ=(*environ.items(),),
        **kwargs,
    )


CONTENDERS = {
    "flask-threads": app(
        "flask",
        "gunicorn's threads",
        (*WORKER, "-k", "gthread", "--threads", "40"),
        "flask_app:flask",
        PSYCOPG2,
    ),
    "flask-gevent": app(
        "flask",
        "gevent, psycogreen",
        (*WORKER, "-k", "gevent"),
        "flask_gevent:flask",
        PSYCOPG2,
        env="apps-gevent",
        packages=("gevent>=24.10", "packaging>=24", "psycogreen>=1.0.2"),
    ),
    "flask-worker": app(
        "flask",
        "greenletio's worker",
        (*WORKER, "-k", "greenletio.integrations.gunicorn.Worker"),
        "flask_app:flask",
        PSYCOPG2,
    ),
    "flask-worker-dialect": app(
        "flask",
        "greenletio's worker and dialect",
        (*WORKER, "-k", "greenletio.integrations.gunicorn.Worker"),
        "flask_app:flask",
        DIALECT,
    ),
    "flask-asgi": app(
        "flask", "greenletio's as_asgi", OURS, "flask_asgi:app", PSYCOPG2, green=True
    ),
    "flask-asgi-dialect": app(
        "flask", "greenletio's as_asgi and dialect", OURS, "flask_asgi:app", DIALECT, green=True
    ),
    "fastapi-threads": app("fastapi", "thread pool", UVLOOP, "fastapi_def:app", PSYCOPG2),
    "fastapi-sqlalchemy": app(
        "fastapi",
        "SQLAlchemy's asyncio, asyncpg",
        UVLOOP,
        "fastapi_async:app",
        "postgresql+asyncpg",
    ),
    "fastapi-psycopg2": app(
        "fastapi", "greenletio's patch_psycopg2", OURS, "fastapi_green:app", PSYCOPG2, green=True
    ),
    "fastapi-dialect": app(
        "fastapi", "greenletio's dialect", OURS, "fastapi_green:app", DIALECT, green=True
    ),
    "fastapi-async-dialect": app(
        "fastapi", "SQLAlchemy's asyncio, greenletio", OURS, "fastapi_async:app", DIALECT
    ),
    "raw-asyncpg": app("raw", "asyncpg", UVLOOP, "fastapi_raw:app", "asyncpg"),
    "raw-aio": app("raw", "greenletio.pg.aio", OURS, "fastapi_raw:app", AIO),
    "raw-shared": app("raw", "greenletio.pg.aio, shared=1", OURS, "fastapi_shared:app", AIO),
}
GROUPS = {
    "flask": "Flask, SQLAlchemy's ORM",
    "fastapi": "FastAPI, SQLAlchemy's ORM",
    "raw": "FastAPI, no ORM",
}
#: The fastest of ours divided by the fastest of the peers in the group.
LIMITS = {"flask": 1.0, "fastapi": 1.0, "raw": 1.2}

BENCHES = [
    Bench(f"clients-{clients}", f"{clients} clients", "load", args={"clients": clients})
    for clients in CLIENTS
]
PLAN = Plan("python -m benchmarks.apps", __doc__, CONTENDERS, BENCHES, goals=[])

# bench -> contender -> the samples, in round order
Results = dict[str, dict[str, list[serving.Sample]]]


class Run:
    """The contenders that take part, and what was measured."""

    def __init__(self, names: list[str], database: str, seconds: float) -> None:
        self._seconds = seconds
        self._environ = {"DATABASE_URL": database, "BENCH_POOL": str(POOL)}
        self._pythons: dict[str, Path] = {}
        self._page: Any = None
        self.names: list[str] = names
        self.versions: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.results: Results = {}

    def prepare(self) -> None:
        """Make the environments, all with the same versions."""
        same = [f"{package}=={metadata.version(package)}" for package in SAME]
        listed = (*SAME, "asyncpg", "greenlet", "psycopg2-binary", "uvloop")
        self.versions = {package: metadata.version(package) for package in listed}
        for name in list(self.names):
            contender = CONTENDERS[name]
            try:
                self._pythons[name] = (
                    Path(sys.executable)
                    if contender.env is None
                    else envs.ensure(contender.env, (*contender.packages, *same))
                )
            except envs.EnvError as exc:
                self._leave_out(name, exc)

    def _leave_out(self, name: str, why: Exception) -> None:
        self.left_out[name] = str(why)
        self.names.remove(name)
        for by in self.results.values():
            by.pop(name, None)

    def measure(self, benches: list[Bench], rounds: int) -> Iterator[None]:
        """Take all samples; yields after each server."""
        self.results = {bench.name: {name: [] for name in self.names} for bench in benches}
        for turn in range(rounds):
            first = turn % max(len(self.names), 1)
            for name in self.names[first:] + self.names[:first]:
                try:
                    self._serve(name, benches)
                except WorkerError as exc:
                    self._leave_out(name, exc)
                yield

    def _serve(self, name: str, benches: list[Bench]) -> None:
        contender = CONTENDERS[name]
        environ = {**self._environ, **dict(contender.environ)}
        with contextlib.closing(
            serving.Server(name, self._pythons[name], contender.command, environ)
        ) as server:
            self._page = self._page or server.page
            if server.page != self._page:
                raise WorkerError(f"{name} gives another page than the others")
            server.load(POOL, self._seconds / 5)  # caches, connections, prepared statements
            for bench in benches:
                # Those of a thousand that are served last wait for all the others.
                seconds = self._seconds * (3 if bench.args["clients"] >= 1000 else 1)
                sample = server.load(bench.args["clients"], seconds)
                self.results[bench.name][name].append(sample)


def values(samples: list[serving.Sample], figure: str) -> list[float]:
    return [getattr(sample, figure) for sample in samples]


def median(samples: list[serving.Sample], figure: str) -> float:
    return statistics.median(values(samples, figure))


def goals(results: Results) -> list[dict[str, Any]]:
    """Our fastest against the fastest of the peers in its group, and against the smallest."""
    found = []
    for (bench, by), (group, limit) in itertools.product(results.items(), LIMITS.items()):
        members = [name for name in by if CONTENDERS[name].group == group]
        ours = [name for name in members if CONTENDERS[name].ours]
        peers = [name for name in members if not CONTENDERS[name].ours]
        if bench == "clients-10" or not ours or not peers:
            continue
        best = max(ours, key=lambda name: median(by[name], "requests_s"))
        fastest = max(peers, key=lambda name: median(by[name], "requests_s"))
        smallest = min(peers, key=lambda name: median(by[name], "memory_mb"))
        for figure, over, under, wanted in (
            ("requests_s", best, fastest, limit),
            ("memory_mb", smallest, best, 1.0),
        ):
            measured = report.ratio(values(by[over], figure), values(by[under], figure))
            goal = f"{figure}: {over} / {under} >= {wanted:g}"
            met = measured["ratio"] >= wanted
            found.append({"bench": bench, "goal": goal, "met": met, **measured})
    return found


def rows(by: dict[str, list[serving.Sample]]) -> dict[str, list[list[str]]]:
    """What is printed: for each group a row for each contender."""
    found: dict[str, list[list[str]]] = {}
    for name, samples in by.items():
        low, middle, high = report.quartiles(values(samples, "requests_s"))
        row = [CONTENDERS[name].title, f"{middle:,.0f}", f"{low:,.0f} .. {high:,.0f}"]
        row += [f"{median(samples, figure):,.1f}" for figure in ("p50_ms", "p99_ms")]
        row += [f"{median(samples, 'memory_mb'):,.0f}", f"{median(samples, 'cpu_ms'):,.2f}"]
        found.setdefault(GROUPS[CONTENDERS[name].group], []).append(row)
    return found


def as_json(benches: list[Bench], results: Results) -> dict[str, Any]:
    """Every figure of every contender, its median, quartiles, and all rounds; and the tables."""
    out: dict[str, Any] = {}
    for bench in benches:
        contenders: dict[str, Any] = {}
        for name, samples in results[bench.name].items():
            contenders[name] = {}
            for figure in FIGURES:
                rounds = values(samples, figure)
                low, middle, high = report.quartiles(rounds)
                row = {"median": middle, "q1": low, "q3": high, "rounds": rounds}
                contenders[name][figure] = row
        table = [["", *HEADINGS]]
        for group, lines in rows(results[bench.name]).items():
            table += [[f"**{group}**", *[""] * len(HEADINGS)], *lines]
        out[bench.name] = {"title": bench.title, "contenders": contenders, "table": table}
    return {"benches": out, "goals": goals(results), "means": {}}


def print_bench(console: Console, bench: Bench, by: dict[str, list[serving.Sample]]) -> None:
    table = Table(title=bench.title, title_justify="left", title_style="bold")
    table.add_column("")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for group, lines in rows(by).items():
        table.add_section()
        table.add_row(f"[bold]{group}[/]")
        for line in lines:
            table.add_row(*line)
    console.print(table)


def create_tables(url: str, sql: str) -> None:
    from greenletio import pg

    with pg.connect(url) as connection:
        connection.execute(sql)


def measure(console: Console, plan: Plan, benches: list[Bench], args: argparse.Namespace) -> int:
    rounds = args.rounds or (1 if args.quick else 5)
    machine = report.machine()
    report.print_machine(console, machine, rounds)
    serving.wrk()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(workers.server())
        create_tables(url, tables.CREATE)
        stack.callback(create_tables, url, tables.DROP)
        took = Run(args.contender or list(CONTENDERS), url, seconds=1.0 if args.quick else 5.0)
        progress = stack.enter_context(run.progress_bar(console))
        task = progress.add_task("environments", total=None)
        took.prepare()
        console.print(", ".join(f"{name} {version}" for name, version in took.versions.items()))
        progress.update(task, description="measuring", total=rounds * len(took.names))
        for _ in took.measure(benches, rounds):
            progress.advance(task)
    for bench in benches:
        print_bench(console, bench, took.results[bench.name])
    report.print_goals(console, goals(took.results))
    report.print_left_out(console, took.left_out)
    if args.json is not None:
        document = {
            **run.what_it_is(plan),
            "machine": machine,
            "titles": {"all": "all"},
            "versions": {"all": took.versions},
            "left_out": took.left_out,
            "rounds": rounds,
            **as_json(benches, took.results),
        }
        report.write_json(args.json, document)
    return 1 if took.left_out else 0


if __name__ == "__main__":
    raise SystemExit(run.main(PLAN, measure=measure))
