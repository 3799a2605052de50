"""Runs the modes, each in a process and a schema of its own.

Everything that is started here is stopped here, whatever is raised: the processes
(they run in sessions of their own, so Ctrl-C in a terminal reaches only us), the
schemas, and, in ``database``, the server.
"""

import asyncio
import json
import math
import os
import random
import re
import secrets
import sys
import tokenize
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg2
from psycopg2 import sql
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from greenletio.demo.corpus import entries, module_name
from greenletio.errors import GreenletioError

__all__ = ("DemoError", "Display", "Plan", "Results", "conduct", "database", "searches")

SCHEMAS = "greenletio_demo_"
WORKER = "greenletio.demo.worker"
CLIENT = "greenletio.demo.client"

Figures = dict[str, Any]
Results = dict[str, Figures]


class DemoError(GreenletioError):
    """The demo cannot go on; the text says why, and what to do."""


@dataclass(frozen=True)
class Plan:
    modes: tuple[str, ...]
    files: list[Path]
    searches: list[str]
    tasks: int
    rounds: int


class Display(Protocol):
    """What the conductor tells while it works."""

    def begin(self, mode: str, files: int, requests: int) -> None: ...
    def indexed(self, mode: str, files: int) -> None: ...
    def answered(self, mode: str, requests: int) -> None: ...


def searches(files: list[Path], count: int) -> list[str]:
    """What people might type: words from the names and docstrings of these very files."""
    chance = random.Random(20)
    pool: list[str] = []
    for path in files[:: max(1, len(files) // 60)]:
        with tokenize.open(path) as file:
            source = file.read()
        for piece in entries(module_name(path), source):
            for entry in piece:
                first = entry.docstring.partition("\n")[0]
                words = re.findall(r"[a-z]{4,}", f"{entry.qualname} {first}".lower())
                if len(words) >= 2:
                    pool.append(" ".join(chance.sample(words, 2)))
    return chance.choices(pool, k=count)


@contextmanager
def database() -> Iterator[str]:
    """The URL of a server: DATABASE_URL's, or an embedded one that lives as long as the block."""
    url = os.environ.get("DATABASE_URL")
    if url:
        yield url
        return
    from greenletio._embedded import EmbeddedServer

    with EmbeddedServer() as server:
        yield server.url


class Schemas:
    """The schemas of one run, on a connection that is held as long as the run lasts.

    It holds an advisory lock named after the run. A run that was killed left its
    schemas but no lock: the next one drops them.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url).set(drivername="postgresql")
        except ArgumentError:
            raise DemoError(
                "DATABASE_URL is not a URL: postgresql://user:password@host:port/database is meant"
            ) from None
        try:
            self.connection = psycopg2.connect(parsed.render_as_string(hide_password=False))
        except psycopg2.OperationalError as error:
            reason = str(error).strip().replace("\n\t", " ")
            raise DemoError(
                f"no PostgreSQL answers at {parsed.render_as_string()}: {reason}"
            ) from None
        self.connection.autocommit = True
        self.run = SCHEMAS + secrets.token_hex(4)
        self.server_version = self.connection.info.parameter_status("server_version")
        self._execute("SELECT pg_advisory_lock(hashtext(%s))", self.run)
        self._drop_stale()

    def create(self, mode: str) -> str:
        schema = f"{self.run}_{mode}"
        try:
            self._execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        except psycopg2.errors.InsufficientPrivilege:
            raise DemoError(
                "the user in DATABASE_URL may not create a schema: grant CREATE on the database, "
                "or unset DATABASE_URL to use an embedded server"
            ) from None
        return schema

    def drop(self, schema: str) -> None:
        # A worker that was killed in the middle of a query leaves a backend with locks.
        self._execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = %s",
            schema,
        )
        self._execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))

    def close(self) -> None:
        self.connection.close()

    def _drop_stale(self) -> None:
        for (schema,) in self._execute(
            "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)", SCHEMAS
        ):
            run = schema[: len(self.run)]
            [(abandoned,)] = self._execute("SELECT pg_try_advisory_lock(hashtext(%s))", run)
            if abandoned:
                self.drop(schema)
                self._execute("SELECT pg_advisory_unlock(hashtext(%s))", run)

    def _execute(self, statement: str | sql.Composed, *args: object) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, args or None)
            return cursor.fetchall() if cursor.description else []


class Child:
    """A Python process that is told JSON lines and says JSON lines."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        assert process.stderr is not None
        self._errors = asyncio.ensure_future(process.stderr.read())

    async def hear(self) -> dict[str, Any]:
        """The next thing it says."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            errors = (await self._errors).decode(errors="replace").strip()
            raise DemoError(f"the {self.name} process failed:\n{errors[-3000:]}")
        event: dict[str, Any] = json.loads(line)
        return event

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._errors


@asynccontextmanager
async def started(name: str, module: str) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=1 << 26,
    )
    child = Child(name, process)
    try:
        yield child
    finally:
        await child.end()


async def conduct(url: str, plan: Plan, display: Display) -> tuple[Results, str]:
    """Run the modes of the plan; returns their figures and the server's version.

    They index one after the other. Then they take turns: in each round each mode answers the
    same searches while the others are idle, so a machine's mood does not favour one of them.
    """
    schemas = Schemas(url)
    try:
        async with AsyncExitStack() as stack:
            runs = [
                Run(mode, await stack.enter_async_context(_worker(mode, url, schemas, plan)))
                for mode in plan.modes
            ]
            for run in runs:
                display.begin(run.mode, len(plan.files), len(plan.searches))
                await run.index(display)
            client = await stack.enter_async_context(started("clients'", CLIENT))
            size = math.ceil(len(plan.searches) / plan.rounds)
            for number in range(plan.rounds):
                searches = plan.searches[number * size : (number + 1) * size]
                first = number % len(runs)
                for run in runs[first:] + runs[:first]:
                    await run.search(client, searches, plan.tasks, display)
            for run in runs:
                await run.finish()
            return {run.mode: run.figures() for run in runs}, str(schemas.server_version)
    finally:
        schemas.close()


@asynccontextmanager
async def _worker(mode: str, url: str, schemas: Schemas, plan: Plan) -> AsyncIterator[Child]:
    schema = schemas.create(mode)
    try:
        async with started(mode, WORKER) as worker:
            worker.tell(
                mode=mode,
                url=url,
                schema=schema,
                tasks=plan.tasks,
                files=[str(path) for path in plan.files],
            )
            yield worker
    finally:
        schemas.drop(schema)


class Run:
    """One mode: its process, and what is known of it so far."""

    def __init__(self, mode: str, worker: Child) -> None:
        self.mode = mode
        self.worker = worker
        self.port = 0
        self.search_s = 0.0
        self.samples: list[tuple[float, float]] = []
        self.hits = self.digest = 0
        self.result: dict[str, Any] = {}

    async def index(self, display: Display) -> None:
        self.worker.tell(order="index")
        while (event := await self.worker.hear())["event"] == "indexed":
            display.indexed(self.mode, event["files"])
        self.port = event["port"]

    async def search(
        self, client: Child, searches: list[str], clients: int, display: Display
    ) -> None:
        self.worker.tell(order="serve")
        serving = await self.worker.hear()
        client.tell(port=self.port, searches=searches, clients=clients)
        while (event := await client.hear())["event"] == "answered":
            display.answered(self.mode, len(self.samples) + event["requests"])
        if event["failures"]:
            raise DemoError(f"a search failed: {event['failures'][0]}")
        self.worker.tell(order="rest")
        self.search_s += event["seconds"]
        self.hits += event["hits"]
        self.digest += event["digest"]
        # From the common clock to the mode's own, which stands still while it rests.
        self.samples += [
            (at - serving["clock"] + serving["active_s"], took) for at, took in event["samples"]
        ]
        display.answered(self.mode, len(self.samples))

    async def finish(self) -> None:
        self.worker.tell(order="stop")
        self.result = await self.worker.hear()

    def figures(self) -> Figures:
        latencies = sorted(took * 1e3 for _, took in self.samples)
        result = self.result
        return {
            "wall_s": round(result["index_s"] + self.search_s, 3),
            "requests_per_s": round(len(latencies) / self.search_s, 1),
            "p99_ms": round(_percentile(latencies, 0.99), 2),
            "peak_rss_mb": round(result["peak_rss_mb"], 1),
            "longest_stall_ms": round(max(result["stalls_ms"]), 2),
            "threads": result["threads"],
            "longest_stall_own_ms": round(result["own_stall_ms"], 2),
            "p50_ms": round(_percentile(latencies, 0.50), 2),
            "index_s": round(result["index_s"], 3),
            "search_s": round(self.search_s, 3),
            "index_cpu_s": round(result["index_cpu_s"], 3),
            "search_cpu_s": round(result["cpu_s"] - result["index_cpu_s"], 3),
            "files": result["files"],
            "definitions": result["definitions"],
            "requests": len(latencies),
            "hits": self.hits,
            "digest": f"{self.digest:x}",
            # Over the time in which the mode was at work: the worst of each tenth of a second,
            # and [second, ms] of each answer.
            "stalls_ms": [round(late, 2) for late in result["stalls_ms"]],
            "latencies": [[round(at, 3), round(took * 1e3, 2)] for at, took in self.samples],
        }


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
