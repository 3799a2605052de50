"""CPython's own asyncio tests on another loop: `make test-asyncio ARGS="--loop uvloop.Loop"`.

They come from the interpreter's package `test`. Each file runs in a process of its own; a test
that hangs or crashes ends that process, counts as an error, and the rest goes on in a new one.
What our loop is known to fail is in asyncio.toml, with reasons: any other failure fails the run,
and so does a listed test that passes. Another loop's failures are only counted.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import known
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).parent
OURS = "greenletio:EventLoop"
FILES = (
    "test_events test_base_events test_streams test_sslproto test_ssl test_sock_lowlevel"
    " test_subprocess test_server test_sendfile test_buffered_proto test_unix_events test_tasks"
    " test_futures test_locks test_timeouts test_taskgroups test_runners test_queues test_waitfor"
).split()


@dataclass
class Outcome:
    outcome: str  # passed, failed, error, skipped
    detail: str = ""
    made: int = 0  # loops of the class that the test made
    ran: int = 0  # those of them that ran for the first time
    runs: int = 0  # how often one ran


@dataclass
class File:
    """What became of one file of tests."""

    name: str
    tests: list[str] = field(default_factory=list)
    repeats: int = 0  # tests left out, because they repeat others with another selector
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0
    #: Whether loops were counted.
    loops: bool = True
    #: What became of them as they come; None: it is not asked for.
    plain: dict[str, str] | None = None

    def count(self, outcome: str) -> int:
        return sum(1 for each in self.outcomes.values() if each.outcome == outcome)

    @property
    def lost(self) -> dict[str, Outcome]:
        """Those that pass as they come, and not here."""
        plain = self.plain or {}
        return {
            test: each
            for test, each in self.outcomes.items()
            if plain.get(test) == "passed" != each.outcome
        }

    @property
    def row(self) -> dict[str, int]:
        row = {
            "ran": len(self.outcomes) - self.count("skipped"),
            "passed": self.count("passed"),
            "failed": self.count("failed"),
            "errors": self.count("error"),
            "skipped": self.count("skipped"),
        }
        if self.plain is not None:
            passed = sum(1 for outcome in self.plain.values() if outcome == "passed")
            return {**row, "passed plain": passed, "lost": len(self.lost)}
        if not self.loops:
            return row
        return {
            **row,
            "on the loop": sum(1 for each in self.outcomes.values() if each.runs),
            "loops made": sum(each.made for each in self.outcomes.values()),
            "loops run": sum(each.ran for each in self.outcomes.values()),
        }


class Runner:
    """Runs files of tests, each as `child` is asked to by ``request``."""

    def __init__(
        self,
        options: argparse.Namespace,
        *,
        child: Path = HERE / "child.py",
        env: dict[str, str] | None = None,
        **request: Any,
    ) -> None:
        self._child = child
        self._env = env
        self._request = {"only": options.only or ["*"], "limit": options.limit, **request}
        self._prefix = request["package"] + "."

    async def file(self, name: str, heard: Callable[[File], None]) -> File:
        """Run all tests of a file, in as many processes as it takes."""
        file, began = File(name), time.monotonic()
        while not await self._process(file, heard):
            pass
        file.seconds = round(time.monotonic() - began, 1)
        return file

    async def _process(self, file: File, heard: Callable[[File], None]) -> bool:
        """One process for the tests that are left. False if it died in one of them."""
        request = {
            **self._request,
            "module": file.name,
            "done": list(file.outcomes),
        }
        with tempfile.TemporaryFile() as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                self._child,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=1 << 26,  # a traceback is one line of JSON
                start_new_session=True,
                env=self._env,
            )
            ended = asyncio.create_task(self._end(process))
            try:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(json.dumps(request).encode() + b"\n")
                complete, current = False, ""
                async for line in process.stdout:
                    message = json.loads(line)
                    current = message.get("start", current)
                    complete |= self._take(file, message)
                    heard(file)
                    if complete:
                        break  # what its threads do now is nobody's business
                status = 0 if complete else await ended
            finally:
                self._kill(process)
                await ended
            if complete:
                return True
            log.seek(0)
            said = log.read().decode(errors="replace")[-20_000:]
            if not current or current in file.outcomes:
                raise SystemExit(f"{file.name}: exit status {status} outside any test\n{said}")
            how = "hangs" if "Timeout (" in said else f"ends the process with status {status}"
            file.outcomes[current] = Outcome("error", f"{how}\n{said}\n{current} {how}")
            heard(file)
            return False

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        # What it started may hold our pipe, whose end wait() waits for on Python 3.12 and 3.13.0.
        while process.returncode is None:
            await asyncio.sleep(0.02)
        self._kill(process)
        return process.returncode

    @staticmethod
    def _kill(process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _take(self, file: File, message: dict[str, Any]) -> bool:
        if "tests" in message:
            file.tests, file.repeats = message["tests"], message["repeats"]
        elif "end" in message:
            test = message.pop("end")
            file.outcomes[test] = Outcome(**message)
        elif "fixture" in message:
            # "setUpModule (test.test_asyncio.test_ssl)", "setUpClass (….test_ssl.TestSSL)"
            scope = message["fixture"].rpartition("(")[2].rstrip(")")
            scope = scope.removeprefix(self._prefix) + "."
            for test in file.tests:
                if test.startswith(scope) and test not in file.outcomes:
                    file.outcomes[test] = Outcome(message["outcome"], message["detail"])
        return bool(message.get("complete"))


async def side_by_side(
    options: argparse.Namespace,
    run: Callable[[str], Coroutine[Any, Any, File]],
    say: Callable[..., None],
) -> list[File]:
    """``run`` each of the files, so many at a time as was asked for."""
    free = asyncio.Semaphore(options.jobs)

    async def one(name: str) -> File:
        async with free:
            file = await run(name)
        counts = ", ".join(f"{n} {what}" for what, n in file.row.items() if n)
        say(f"{name}: {counts} ({file.seconds} s)", highlight=False)
        return file

    tasks = [asyncio.create_task(one(name)) for name in options.files]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_all(options: argparse.Namespace, console: Console) -> list[File]:
    runner = Runner(options, package="test.test_asyncio", way="loop", loop=options.loop)
    files = {name: File(name) for name in options.files}
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        bar = progress.add_task("starting", total=None)

        def heard(file: File) -> None:
            files[file.name] = file
            done = sum(len(each.outcomes) for each in files.values())
            total = sum(len(each.tests) for each in files.values())
            progress.update(bar, completed=done, total=total, description=file.name)

        return await side_by_side(options, lambda name: runner.file(name, heard), progress.print)


def print_table(console: Console, files: list[File], against: dict[str, Any]) -> dict[str, int]:
    """Prints a row per file and returns the sums."""
    rows = {file.name: file.row for file in files}
    total = {what: sum(row[what] for row in rows.values()) for what in files[0].row}
    table = Table("file", *(what for what in total), box=None, header_style="bold")
    if against:
        table.add_column(f"passed by {against['loop']}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in [*rows.items(), ("all", total)]:
        other = against.get("files", {}).get(name, {}).get("passed", "")
        table.add_row(name, *map(str, row.values()), *([str(other)] if against else []))
    console.print(table)
    if repeats := sum(file.repeats for file in files):
        console.print(f"left out: {repeats} tests that repeat others with another selector")
    return total


def summary(detail: str) -> str:
    lines = detail.strip().splitlines()
    return lines[-1] if lines else ""


def failures(files: list[File]) -> dict[str, Outcome]:
    outcomes = {test: each for file in files for test, each in file.outcomes.items()}
    return {t: each for t, each in outcomes.items() if each.outcome in ("failed", "error")}


def judge(
    console: Console,
    files: list[File],
    bad: dict[str, Outcome],
    options: argparse.Namespace,
    complete: bool,
) -> bool:
    """Print what is `bad`; whether the run is as it should be. `complete`: nothing was left out."""
    outcomes = {test: each for file in files for test, each in file.outcomes.items()}
    ok = True
    expected: dict[str, str] = {}
    if options.expected is not None:
        expected, unmatched = known.match(options.expected, outcomes)
        if complete:
            for pattern in unmatched:
                console.print(f"{options.expected.name}: no test is called {pattern}", style="red")
                ok = False
    for test, each in bad.items():
        reason = expected.get(test)
        style = "red" if reason is None else "dim"
        console.print(
            f"{each.outcome}: {test}: {escape(reason or summary(each.detail))}",
            style=style,
            highlight=False,
            soft_wrap=True,
        )
        if options.verbose:
            console.print(each.detail, markup=False, highlight=False, soft_wrap=True)
    if options.expected is not None:
        unexpected = [test for test in bad if test not in expected]
        passes = [test for test in expected if outcomes[test].outcome == "passed"]
        for test in passes:
            console.print(f"passes, but is listed: {test}", style="red", highlight=False)
        console.print(
            f"{len(bad) - len(unexpected)} expected failures, {len(unexpected)} others,"
            f" {len(passes)} listed that pass"
        )
        ok = ok and not unexpected and not passes
    return ok


def add_common_arguments(
    parser: argparse.ArgumentParser, *, only: str, jobs: int | None, expected: Path | None
) -> None:
    parser.add_argument("--only", action="append", metavar="PATTERN", help=f"'{only}'")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS", help="for a test")
    parser.add_argument("--jobs", type=int, default=jobs, help="files at a time")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all outcomes there")
    parser.add_argument(
        "--expected",
        type=Path,
        metavar="PATH",
        default=expected,
        help=f"what is known to fail: {expected.name if expected else 'of our loop asyncio.toml'}",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks")


def write_outcomes(
    path: Path | None, files: list[File], total: dict[str, int], **more: Any
) -> None:
    if path is None:
        return
    document = {
        **more,
        "files": {file.name: {**file.row, "seconds": file.seconds} for file in files},
        "total": total,
        "tests": {test: asdict(each) for file in files for test, each in file.outcomes.items()},
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def present() -> list[str]:
    return [name for name in FILES if importlib.util.find_spec(f"test.test_asyncio.{name}")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make test-asyncio", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="test_events ...; all of them")
    parser.add_argument(
        "--loop",
        default=os.environ.get("GREENLETIO_TEST_LOOP", OURS),
        metavar="MODULE.CLASS",
        help="the loop: uvloop.Loop, or `asyncio`; GREENLETIO_TEST_LOOP is the default",
    )
    parser.add_argument("--against", type=Path, metavar="PATH", help="what --json wrote earlier")
    add_common_arguments(parser, only="*.test_sock_*", jobs=os.cpu_count(), expected=None)
    options = parser.parse_args()
    if options.loop != "asyncio" and ":" not in options.loop:
        options.loop = ":".join(options.loop.rpartition(".")[::2])
    if importlib.util.find_spec("test.test_asyncio") is None:
        parser.error("this Python has no package test.test_asyncio: install its tests")
    if options.loop == OURS and options.expected is None:
        options.expected = HERE / "asyncio.toml"
    options.files = options.files or present()
    if unknown := set(options.files) - set(present()):
        parser.error(f"no such file in this Python's tests: {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    against = json.loads(options.against.read_text()) if options.against else {}
    console.print(f"{options.loop} on Python {platform.python_version()}", highlight=False)
    try:
        files = asyncio.run(run_all(options, console))
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    total = print_table(console, files, against)
    complete = not options.only and len(files) == len(present())
    ok = judge(console, files, failures(files), options, complete)
    if total["loops run"] == 0:
        console.print(f"no loop of {options.loop} ran: nothing was tested", style="red")
        ok = False
    python = platform.python_version()
    write_outcomes(options.json, files, total, loop=options.loop, python=python)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
