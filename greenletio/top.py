"""``python -m greenletio top``: a live view of a process that has called ``monitor.start()``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import socket
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenletio.monitor import folders

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ("add_arguments", "run", "view")

HELP = "a live view of a process: loops, greenlets, pools, queries"
DESCRIPTION = """\
Shows what a process does that has called greenletio.monitor.start(): how late its loops are,
how many greenlets and tasks it has, its pools of connections, and what it asks of PostgreSQL.
Ctrl-C ends the view; the process goes on."""
HOW = "have the process call greenletio.monitor.start() when it starts"
_LINES = 15
#: Seconds within which a process has to say something.
_PATIENCE_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument(
        "process",
        nargs="?",
        metavar="PID",
        help="the process, or the path of its socket (the one there is, if there is one)",
    )
    parser.add_argument("--once", action="store_true", help="one look, then end")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each second")


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(_PATIENCE_S)
    return made


def _alive(process: str | None) -> dict[str, socket.socket]:
    """The processes that can be looked at, connected; what is left of others is removed."""
    found = {}
    for path in sorted(path for folder in folders() for path in folder.glob("*.sock")):
        if process is not None and path.stem != process:
            continue
        connection = _socket()
        try:
            connection.connect(str(path))
        except ConnectionRefusedError:
            connection.close()
            path.unlink(missing_ok=True)
        except OSError:
            connection.close()
        else:
            found[path.stem] = connection
    return found


def _connect(process: str | None) -> socket.socket | str:
    """The connection, or why there is none."""
    if process is not None and not process.isdigit():
        connection = _socket()
        try:
            connection.connect(process)
        except OSError as error:
            connection.close()
            return f"nobody listens at {process}: {error.strerror or error}"
        return connection
    found = _alive(process)
    if process is None and len(found) == 1:
        return found.popitem()[1]
    chosen = None if process is None else found.pop(process, None)
    for other in found.values():
        other.close()
    if chosen is not None:
        return chosen
    if process is None and found:
        return f"several processes can be looked at: name one of {', '.join(found)}"
    who = "no process" if process is None else f"process {process}"
    return f"{who} can be looked at by this user: {HOW}"


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    connection = _connect(args.process)
    if isinstance(connection, str):
        print(f"greenletio top: {connection}", file=sys.stderr)
        return 1
    has_rich = importlib.util.find_spec("rich") is not None
    if not has_rich and not args.json:
        print("greenletio top: the view needs rich (pip install rich), or --json", file=sys.stderr)
        return 1
    with connection, contextlib.suppress(KeyboardInterrupt):
        return _show(_looks(connection), args)
    return 0


def _looks(connection: socket.socket) -> Iterator[str]:
    """The lines that come, whole; ends when the process does, or says nothing any more."""
    rest = b""
    while True:
        try:
            data = connection.recv(1 << 16)
        except TimeoutError:
            print("greenletio top: the process does not answer", file=sys.stderr)
            return
        except ConnectionError:
            return
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()


def _show(lines: Iterator[str], args: argparse.Namespace) -> int:
    if args.json:
        for line in lines:
            print(line, flush=True)
            if args.once:
                return 0
    else:
        from rich.console import Console
        from rich.live import Live

        console = Console()
        before: dict[str, Any] | None = None
        if args.once:  # two looks: rates are of what is between them
            looks = [json.loads(line) for line in islice(lines, 2)]
            if not looks:
                return 1
            console.print(view(looks[-1], looks[0] if len(looks) > 1 else None))
            return 0
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            for line in lines:
                now = json.loads(line)
                live.update(view(now, before), refresh=True)
                before = now
    print("greenletio top: the process has ended", file=sys.stderr)
    return 1 if args.once else 0


def view(now: dict[str, Any], before: dict[str, Any] | None) -> Group:
    """One look at a process, for rich; rates are against the look `before`."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    passed = 1.0 if before is None else max(0.001, now["time"] - before["time"])
    cpu = "" if before is None else f", CPU {100 * (now['cpu_s'] - before['cpu_s']) / passed:.0f} %"
    head = Text.assemble(
        (f"{now['pid']} ", "bold"),
        " ".join(Path(part).name if i == 0 else part for i, part in enumerate(now["command"])),
        f"\nup {now['uptime_s']:.0f} s{cpu}, {now['rss_bytes'] / 2**20:.1f} MB, "
        f"{now['threads']} threads, {now['greenlets']} greenlets",
    )
    parts: list[Any] = [head]

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE, expand=True)
        for i, column in enumerate(columns):
            made.add_column(
                column,
                justify="left" if i == 0 else "right",
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if i == 0 else None,
            )
        parts.append(made)
        return made

    loops = table("Loops", "loop", "lag ms", "tasks")
    for loop in now["loops"]:
        lag = loop["lag_ms"]
        style = "red" if lag >= 100 else "yellow" if lag >= 10 else ""
        tasks = "?" if loop["tasks"] < 0 else str(loop["tasks"])
        loops.add_row(Text(loop["loop"]), Text(f"{lag:.2f}", style=style), tasks)
    if now["pools"]:
        columns = ("pool", "in use", "idle", "max", "waiting", "requests/s", "wait ms", "errors")
        pools = table("Pools", *columns)
        for name, pool in now["pools"].items():
            last = None if before is None else before["pools"].get(name)
            rate = wait = ""  # not known at the first look
            if last is not None:
                if pool["requests_num"] < last["requests_num"]:  # pop_stats()
                    last = dict.fromkeys(last, 0)
                asked = pool["requests_num"] - last["requests_num"]
                waited = pool["requests_wait_ms"] - last["requests_wait_ms"]
                rate = f"{asked / passed:.0f}"
                wait = f"{waited / asked if asked else 0:.1f}"
            waiting = pool["requests_waiting"]
            pools.add_row(
                Text(name),
                str(pool["pool_size"] - pool["pool_available"]),
                str(pool["pool_available"]),
                str(pool["pool_max"]),
                Text(str(waiting), style="yellow" if waiting else ""),
                rate,
                wait,
                str(pool["requests_errors"] + pool["connections_errors"]),
            )
    if now["queries"]:
        queries = table("Queries", "query", "a second", "mean ms", "max ms", "errors", "from")
        for query in now["queries"][:_LINES]:
            queries.add_row(
                Text(query["text"]),
                f"{query['count'] / passed:.0f}",
                f"{query['total_ms'] / query['count']:.2f}",
                f"{query['max_ms']:.2f}",
                str(query["errors"]),
                Text(query["caller"].rpartition("/")[2]),
            )
    return Group(*parts)
