"""CPython's own tests of the blocking modules, run green: `make test-stdlib ARGS="test_socket"`.

Each file runs twice, in processes of its own: as it comes, and in a greenlet of a loop after
`patch_all()`. A test is lost if it passes the first time and not the second. Which are known to be
lost is in green.toml, with reasons: any other fails the run, and so does a listed one that passes.
"""

import argparse
import asyncio
import importlib.util
import json
import pkgutil
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

import known
from rich.console import Console
from run import (
    HERE,
    OURS,
    File,
    Runner,
    add_common_arguments,
    judge,
    print_table,
    side_by_side,
    write_outcomes,
)

FILES = (
    "test_socket test_ssl test_threading test_thread test_threading_local test_threadsignals"
    " test_queue test_select test_poll test_epoll test_selectors test_time test_signal"
    " test_subprocess test_popen test_fcntl test_concurrent_futures test_sched test_sqlite3"
    " test_httplib test_urllib2 test_urllib2_localnet test_httpservers test_wsgiref test_xmlrpc"
    " test_smtplib test_smtpd test_ftplib test_imaplib test_poplib test_telnetlib test_nntplib"
    " test_socketserver test_asyncore test_asynchat test_logging"
).split()


def parts(name: str) -> list[str]:
    """The file itself, or the files of a package of tests, which can be run one by one; none."""
    spec = importlib.util.find_spec(f"test.{name}")
    if spec is None or spec.submodule_search_locations is None:
        return [name] if spec is not None else []
    found = (each.name for each in pkgutil.iter_modules(spec.submodule_search_locations))
    return [f"{name}.{each}" for each in found if each.startswith("test_")]


def present() -> list[str]:
    return [part for name in FILES for part in parts(name)]


async def run_file(name: str, options: argparse.Namespace, plain: dict[str, Any]) -> File:
    """The file run green; `plain` gets what it does as it comes, unless that is known."""

    def heard(file: File) -> None:
        pass

    async def run(way: str, doomed: list[str]) -> File:
        runner = Runner(options, package="test", way=way, loop=options.loop, known=doomed)
        return await runner.file(name, heard)

    if options.only or name not in plain:
        as_it_comes = await run("plain", [])
        if options.only:
            plain = {}
        plain[name] = {test: each.outcome for test, each in as_it_comes.outcomes.items()}
    file = await run("green", known.patterns(options.expected))
    file.plain = {test: plain[name][test] for test in plain[name]}
    return file


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make test-stdlib", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="test_socket ...; all of them")
    parser.add_argument(
        "--loop", default=OURS, metavar="MODULE.CLASS", help="the loop: uvloop.Loop, or `asyncio`"
    )
    parser.add_argument(
        "--plain", type=Path, metavar="PATH", help="remember there what passes without greenletio"
    )
    add_common_arguments(parser, only="*.test_recv*", jobs=1, expected=HERE / "green.toml")
    options = parser.parse_args()
    if options.loop != "asyncio" and ":" not in options.loop:
        options.loop = ":".join(options.loop.rpartition(".")[::2])
    if not present():
        parser.error("this Python has no package test: install its tests")
    named = options.files or FILES
    options.absent = [name for name in named if not parts(name)]
    if options.files and options.absent:
        parser.error(f"no such file in this Python's tests: {', '.join(options.absent)}")
    options.files = [part for name in named for part in parts(name)]
    return options


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(f"green on Python {platform.python_version()}", highlight=False)
    if options.absent:
        console.print(f"not among this Python's tests: {', '.join(options.absent)}")
    plain: dict[str, Any] = {}
    if options.plain is not None and options.plain.exists():
        plain = json.loads(options.plain.read_text())
    try:
        run = partial(run_file, options=options, plain=plain)
        files = asyncio.run(side_by_side(options, run, console.print))
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    if options.plain is not None:
        options.plain.write_text(json.dumps(plain, indent=1) + "\n")
    total = print_table(console, files, {})
    lost = {test: each for file in files for test, each in file.lost.items()}
    complete = not options.only and options.files == present()
    ok = judge(console, files, lost, options, complete)
    python = platform.python_version()
    write_outcomes(options.json, files, total, python=python, lost=sorted(lost))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
