"""The command ``demo``: its options, and what can go wrong before and after the run."""

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from greenletio.demo.conductor import Plan

__all__ = ("HELP", "add_arguments", "run")

T = TypeVar("T")

HELP = "run one real program blocking, in threads and with greenletio, and compare"
MODES = ("blocking", "threads", "greenletio")
NEEDED = {
    "sqlalchemy": "sqlalchemy",
    "psycopg2": "psycopg2-binary",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "psutil": "psutil",
    "rich": "rich",
    "pygal": "pygal",
}
PACKAGES = ("greenletio", "greenlet", *NEEDED.values(), "psycopg2", "httptools")
DESCRIPTION = """\
A synchronous program (SQLAlchemy's ORM on psycopg2) indexes the source files of this
Python's standard library in PostgreSQL, then answers full-text searches through an ASGI
application. The same work is done in three modes: called straight from async handlers,
in a pool of 40 threads, and with greenletio; each in a fresh process and schema. They
index one after the other and then take turns in answering the same searches; the HTTP
clients are a process of their own."""
EPILOG = """\
The server is the one in DATABASE_URL, or an embedded PostgreSQL that is stopped at the
end. Ctrl-C stops everything at any moment (exit status 130)."""


def _tasks(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 500:
        raise argparse.ArgumentTypeError(f"a number from 1 to 500 is needed, not {text!r}")
    return number


def _modes(text: str) -> tuple[str, ...]:
    modes = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown mode {unknown[0]!r}: use {', '.join(MODES)}")
    return modes


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="less of the same: under 30 seconds")
    parser.add_argument(
        "--tasks",
        type=_tasks,
        default=50,
        metavar="N",
        help="how many files are indexed, and how many searches asked, at once (default: 50)",
    )
    parser.add_argument(
        "--modes",
        type=_modes,
        default=MODES,
        metavar="LIST",
        help=f"which modes, in which order (default: {','.join(MODES)})",
    )
    parser.add_argument("--json", type=_file, metavar="PATH", help="write all figures to a file")
    parser.add_argument(
        "--html",
        type=_file,
        default=Path("greenletio-demo.html"),
        metavar="PATH",
        help="where the picture goes (default: greenletio-demo.html)",
    )


class _Interrupted(BaseException):
    pass


class _Interrupts:
    """The first SIGINT or SIGTERM ends the run at the next ``check``, or cancels what ``run`` runs.

    A handler that raised could do so in the middle of an import or of the server's start. Later
    signals do not disturb the clean-up.
    """

    def __init__(self) -> None:
        self.number = 0
        self._cancel: Callable[[], object] | None = None

    def __enter__(self) -> "_Interrupts":
        signals = (signal.SIGINT, signal.SIGTERM)
        self._before = [(each, signal.signal(each, self._arrived)) for each in signals]
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before:
            signal.signal(each, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            if self._cancel is not None:
                self._cancel()

    def check(self) -> None:
        if self.number:
            raise _Interrupted

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """asyncio.run, whose main task an interrupt cancels."""

        async def cancellable() -> T:
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(main)
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            try:
                if self.number:
                    task.cancel()
                return await task
            finally:
                self._cancel = None

        try:
            return asyncio.run(cancellable())
        finally:
            self.check()


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.stderr.write(
            f"greenletio demo: {', '.join(missing)} not installed. "
            "Run: pip install 'greenletio[demo]'\n"
        )
        return 1
    with _Interrupts() as interrupts:
        try:
            return _run(args, interrupts)
        except _Interrupted:
            sys.stderr.write("stopped\n")
            return 128 + interrupts.number


def _run(args: argparse.Namespace, interrupts: _Interrupts) -> int:
    from rich.console import Console

    from greenletio.demo import report
    from greenletio.demo.conductor import conduct, database
    from greenletio.demo.page import write_page
    from greenletio.errors import GreenletioError

    interrupts.check()
    console = Console(highlight=False)
    load = os.getloadavg()[0]
    if load > 0.5 * (os.cpu_count() or 1):
        console.print(
            f"Other programs keep this machine busy (load average {load:.1f}, {os.cpu_count()} "
            "CPUs): the figures will say as much about them, and favour the mode with most threads."
        )
    try:
        plan = _plan(args)
        interrupts.check()
        with database() as url:
            interrupts.check()
            with report.display(console) as display:
                results, server = interrupts.run(conduct(url, plan, display))
    except GreenletioError as error:
        interrupts.check()
        sys.stderr.write(f"greenletio demo: {error}\n")
        return 1
    facts = _facts(args, plan, server, load)
    if args.json:
        args.json.write_text(json.dumps({"modes": results, **facts}) + "\n")
    report.show(console, results)
    write_page(args.html, results, facts)
    console.print(f"\nThe picture: {args.html.absolute().as_uri()}", soft_wrap=True)
    interrupts.check()
    if len({figures["digest"] for figures in results.values()}) > 1:
        sys.stderr.write("greenletio demo: the modes gave different answers: this is a defect\n")
        return 1
    return 0


def _plan(args: argparse.Namespace) -> "Plan":
    from greenletio.demo.conductor import Plan, searches
    from greenletio.demo.corpus import source_files

    files, requests, rounds = (100, 900, 3) if args.quick else (None, 4000, 6)
    paths = source_files(limit=files)
    return Plan(args.modes, paths, searches(paths, requests), args.tasks, rounds)


def _facts(args: argparse.Namespace, plan: "Plan", server: str, load: float) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {"python": platform.python_version(), "postgresql": server}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "load_before": round(load, 2),
        },
        "options": {
            "quick": args.quick,
            "tasks": args.tasks,
            "order": list(plan.modes),
            "files": len(plan.files),
            "requests": len(plan.searches),
        },
    }
