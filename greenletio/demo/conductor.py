"""Runs the modes one after the other, each in a process and a schema of its own.

Everything that is started here is stopped here, whatever is raised: the processes
(they run in sessions of their own, so Ctrl-C in a terminal reaches only us), the
schemas, and, in ``database``, the server.
"""

import asyncio
import json
import os
import random
import re
import secrets
import sys
import tokenize
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
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


class Display(Protocol):
    """What the conductor tells while it works."""

    def begin(self, mode: str, files: int, requests: int) -> None: ...
    def indexed(self, files: int) -> None: ...
    def answered(self, requests: int) -> None: ...
    def finish(self, figures: Figures) -> None: ...


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
def database(held: Callable[[], AbstractContextManager[object]]) -> Iterator[str]:
    """The URL of a server: DATABASE_URL's, or an embedded one that lives as long as the block.

    Its start and its stop are not interrupted: both happen inside ``held()``.
    """
    url = os.environ.get("DATABASE_URL")
    if url:
        yield url
        return
    from greenletio._embedded import EmbeddedServer

    with held():
        server = EmbeddedServer()
        server.start()
    try:
        yield server.url
    finally:
        with held():
            server.stop()


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
    """A Python process that is given one JSON line and answers with JSON lines."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        assert process.stderr is not None
        self._errors = asyncio.ensure_future(process.stderr.read())

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What it says, up to and with its result."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            event = json.loads(line)
            yield event
            if event["event"] == "result":
                return
        errors = (await self._errors).decode(errors="replace").strip()
        raise DemoError(f"the {self.name} process failed:\n{errors[-3000:]}")

    def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._errors


@asynccontextmanager
async def started(name: str, module: str, settings: dict[str, Any]) -> AsyncIterator[Child]:
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
        child.tell(json.dumps(settings))
        yield child
    finally:
        await child.end()


async def conduct(url: str, plan: Plan, display: Display) -> tuple[Results, str]:
    """Run the modes of the plan; returns their figures and the server's version."""
    schemas = Schemas(url)
    try:
        results: Results = {}
        for mode in plan.modes:
            schema = schemas.create(mode)
            try:
                results[mode] = await _run_mode(mode, url, schema, plan, display)
            finally:
                schemas.drop(schema)
        return results, str(schemas.server_version)
    finally:
        schemas.close()


async def _run_mode(mode: str, url: str, schema: str, plan: Plan, display: Display) -> Figures:
    display.begin(mode, len(plan.files), len(plan.searches))
    settings = {
        "mode": mode,
        "url": url,
        "schema": schema,
        "tasks": plan.tasks,
        "files": [str(path) for path in plan.files],
    }
    load: dict[str, Any] = {}
    work: dict[str, Any] = {}
    async with started(mode, "greenletio.demo.worker", settings) as worker:
        async for event in worker.events():
            if event["event"] == "indexed":
                display.indexed(event["files"])
            elif event["event"] == "serving":
                load = await _run_clients(event["port"], plan, display)
                worker.tell("stop")
            else:
                work = event
        await worker.process.wait()
    figures = _figures(work, load)
    display.finish(figures)
    return figures


async def _run_clients(port: int, plan: Plan, display: Display) -> dict[str, Any]:
    settings = {"port": port, "searches": plan.searches, "clients": plan.tasks}
    load: dict[str, Any] = {}
    async with started("clients'", "greenletio.demo.client", settings) as client:
        async for event in client.events():
            if event["event"] == "answered":
                display.answered(event["requests"])
            else:
                load = event
    if load["failures"]:
        raise DemoError(f"a search failed: {load['failures'][0]}")
    return load


def _figures(work: dict[str, Any], load: dict[str, Any]) -> Figures:
    samples = sorted(load["samples"])
    latencies = sorted(latency * 1e3 for _, latency in samples)
    search_s = samples[-1][0]
    return {
        "wall_s": round(work["index_s"] + search_s, 3),
        "requests_per_s": round(len(samples) / search_s, 1),
        "p99_ms": round(_percentile(latencies, 0.99), 2),
        "peak_rss_mb": round(work["peak_rss_mb"], 1),
        "longest_stall_ms": round(work["longest_stall_ms"], 2),
        "threads": work["threads"],
        "p50_ms": round(_percentile(latencies, 0.50), 2),
        "index_s": round(work["index_s"], 3),
        "search_s": round(search_s, 3),
        "cpu_s": round(work["cpu_s"], 3),
        "files": work["files"],
        "definitions": work["definitions"],
        "requests": len(samples),
        "hits": load["hits"],
        "digest": load["digest"],
        # Since the mode's start: the worst of each tenth of a second; [seconds, ms] of each answer.
        "stalls_ms": [round(late, 2) for late in work["stalls_ms"]],
        "latencies": [
            [round(at + load["start"] - work["start"], 3), round(latency * 1e3, 2)]
            for at, latency in samples
        ],
    }


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
