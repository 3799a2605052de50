"""What is there, what is patched, what came too early: ``python -m greenletio doctor``.

`examine` gives the same as data. Called inside an application it tells of that application; the
command imports the modules that it is given and tells of what they did.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import socket
import sys
import sysconfig
import time
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from greenletio import _core

__all__ = ("Finding", "add_arguments", "examine", "run")

HELP = "say what was found, what is patched, and what to do about it"
DESCRIPTION = """\
Says which versions of everything are in use, what they can do, what is patched, and what
was imported too early to be. Modules that are named are imported first, as the application
would import them. The exit status is 1 if something does not work, 0 otherwise."""

PACKAGES = ("uvloop", "psycopg2", "psycopg", "sqlalchemy", "django", "eventlet", "gevent")
_DISTRIBUTIONS = {"psycopg2": ("psycopg2", "psycopg2-binary")}
# Where they keep what they have patched.
_PATCHERS = {
    "eventlet": ("eventlet.patcher", "already_patched"),
    "gevent": ("gevent.monkey", "saved"),
}
_ENOUGH_FILES = 4096
_CONNECT_S = 5.0

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass
class Finding:
    """One line of the report."""

    #: What it belongs to: ``"versions"``, ``"loop"``, ``"postgresql"``, ``"patches"``.
    section: str
    name: str
    #: What was found, in a few words.
    value: str
    #: ``"ok"``, ``"note"`` (there is something to know), or ``"bad"`` (it does not work).
    status: str = OK
    #: What to do, or to know. Empty if nothing.
    advice: str = ""


def examine(database: str | None = None) -> list[Finding]:
    """What is there in this process. Takes milliseconds, but for the database.

    `database` is a connection string or URL of a server to ask, too, which has five seconds to let
    one in, and as many for each answer; not from a task of a running loop, which that would hold.
    """
    found = [*_versions(), *_loop(), *_libpq(), *_patches()]
    if database is not None:
        found += _server(database)
    return found


def _version_of(package: str) -> str | None:
    for name in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return None


def _has_patched(module: str, name: str) -> bool:
    return bool(getattr(sys.modules.get(module), name, None))


def _versions() -> list[Finding]:
    found = partial(Finding, "versions")

    import greenlet

    import greenletio

    where = os.path.dirname(os.path.abspath(greenletio.__file__))
    gil = "" if not sysconfig.get_config_var("Py_GIL_DISABLED") else ", free-threaded"
    python = f"{platform.python_implementation()} {platform.python_version()}{gil}"
    lines = [
        found("greenletio", f"{greenletio.__version__}, in {where}"),
        found("Python", f"{python}, {sys.executable}"),
        found("system", platform.platform()),
        found("greenlet", greenlet.__version__),
    ]
    for package in PACKAGES:
        version = _version_of(package)
        if version is None:
            continue
        line = found(package, version)
        if package in _PATCHERS and _has_patched(*_PATCHERS[package]):
            line.status = NOTE
            line.advice = f"its monkey patching and ours exclude each other: leave {package}'s out"
        lines.append(line)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = soft != resource.RLIM_INFINITY and soft < _ENOUGH_FILES
    lines.append(
        found(
            "open files",
            "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}",
            NOTE if few else OK,
            "each socket is one; a server wants more: ulimit -n 65536" if few else "",
        )
    )
    return lines


def _loop() -> list[Finding]:
    from greenletio._event_loop import EventLoop

    found = partial(Finding, "loop")

    lines = []
    try:
        running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is not None:
        kind = type(running)
        lines.append(found("running", f"{kind.__module__}.{kind.__qualname__}"))
    # From Python 3.14 on the public one warns that it will go.
    private = getattr(asyncio.events, "_get_event_loop_policy", None)
    policy: Any = (private or asyncio.get_event_loop_policy)()
    kind = type(policy)
    ours = kind.__module__.startswith("greenletio")
    lines.append(
        found(
            "policy",
            f"{kind.__module__}.{kind.__qualname__}",
            OK,
            ""
            if ours or isinstance(running, EventLoop)
            else "any loop will do; greenletio.run(), or --loop greenletio:new_event_loop for "
            "uvicorn, is faster",
        )
    )
    loop = EventLoop()
    try:
        version, method = loop._backend
    finally:
        loop.close()
    lines.append(
        found(
            "libevent",
            f"{version}, {method}",
            OK if method == "epoll" else NOTE,
            "" if method == "epoll" else "epoll is faster: unset EVENT_NOEPOLL",
        )
    )
    lines.append(_tls())
    pidfd = hasattr(os, "pidfd_open")
    if pidfd:
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError:
            pidfd = False
    lines.append(
        found(
            "processes",
            "watched by pidfd" if pidfd else "watched by a thread each",
            OK if pidfd else NOTE,
            "" if pidfd else "Linux 5.3 has pidfds",
        )
    )
    return lines


def _tls() -> Finding:
    try:
        import ssl
    except ImportError:
        return Finding("loop", "TLS", "this Python has no ssl", NOTE, "build Python with OpenSSL")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    session = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    try:
        _core.TlsSession(session._sslobj)  # type: ignore[attr-defined]
        direct = True
    except NotImplementedError:
        direct = False
    return Finding(
        "loop",
        "TLS",
        f"{ssl.OPENSSL_VERSION}, {'moved in C' if direct else 'moved by Python'}",
        OK if direct else NOTE,
        "" if direct else "OpenSSL is built into this Python, or is not to be found: TLS is slower",
    )


def _libpq() -> list[Finding]:
    try:
        from greenletio import _pg
    except ImportError as error:
        return [
            Finding(
                "postgresql",
                "libpq",
                f"{error}",
                BAD,
                "greenletio.pg does not work: install libpq (apt-get install libpq5)",
            )
        ]
    number = _pg.libpq_version()
    has = ["pipelines"]
    if _pg.HAS_CHUNKS:
        has += ["rows in chunks", "nonblocking cancel"]
    if number >= 160000:
        has += ["load_balance_hosts", "require_auth"]
    advice = ""
    if not _pg.HAS_CHUNKS:
        advice = "libpq 17 streams rows in chunks and cancels without a thread"
        if number >= 170000:
            advice = "built with an older libpq: build it again to use what this one has"
    return [
        Finding(
            "postgresql",
            "libpq",
            f"{number // 10000}.{number % 10000}: {', '.join(has)}",
            OK,
            advice,
        )
    ]


def _server(database: str) -> list[Finding]:
    from greenletio import pg

    found = partial(Finding, "postgresql")

    try:
        started = time.perf_counter()
        limits: dict[str, Any] = {"timeout": _CONNECT_S, "command_timeout": _CONNECT_S}
        with pg.connect(database, autocommit=True, **limits) as connection:
            took = time.perf_counter() - started
            row = connection.execute(
                "SELECT current_setting('server_version'), pg_is_in_recovery(),"
                " current_setting('max_connections'), s.ssl, s.version"
                " FROM (SELECT 1) AS one LEFT JOIN pg_stat_ssl AS s ON s.pid = pg_backend_pid()"
            ).fetchone()
            assert row is not None
            rounds = []
            for _ in range(5):
                started = time.perf_counter()
                connection.execute("SELECT 1")
                rounds.append(time.perf_counter() - started)
    except (pg.Error, TimeoutError, asyncio.TimeoutError) as error:
        text = " ".join(str(error).split()) or "no answer in time"
        return [found("server", text, BAD, "is the connection string right, and the server up?")]
    version, standby, most, tls, tls_version = row
    return [
        found("server", f"PostgreSQL {version}, {'a standby' if standby else 'primary'}"),
        found("connecting", f"{took * 1e3:.1f} ms; a round trip {min(rounds) * 1e3:.2f} ms"),
        found("connections", f"at most {most}"),
        found("encryption", tls_version if tls else "none"),
    ]


def _patches() -> list[Finding]:
    from greenletio._patch import green_packages
    from greenletio._patch_all import is_patched, left_behind

    found = partial(Finding, "patches")

    everything = is_patched()
    lines = [found("patch_all", "called" if everything else "not called")]
    if everything and (names := left_behind()):
        lines.append(
            found(
                "too early",
                ", ".join(names),
                NOTE,
                "they were made before patch_all() and still block: call it before their imports",
            )
        )
    for driver, patch in (("psycopg2", "patch_psycopg2"), ("psycopg", "patch_psycopg")):
        if driver not in sys.modules:
            continue
        module: Any = sys.modules.get(f"greenletio._{driver}")
        patched = module is not None and module.is_patched()
        lines.append(
            found(
                patch,
                "called" if patched else "not called",
                OK if patched else NOTE,
                "" if patched else f"{driver} holds the loop while it waits: call {patch}()",
            )
        )
    if green := green_packages():
        lines.append(found("patch_blocking", f"imported green: {', '.join(green)}"))
    return lines


# ---- the command ------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="import this one first")
    parser.add_argument("--json", action="store_true", help="the same as JSON, for programs")
    parser.add_argument(
        "--database",
        metavar="URL",
        default=os.environ.get("DATABASE_URL"),
        help="ask this server, too (the default is DATABASE_URL)",
    )


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    broken = []
    if args.modules and "" not in sys.path:
        sys.path.insert(0, "")
    for name in args.modules:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            problem = traceback.format_exception_only(type(error), error)[-1].strip()
            advice = "the application does not start like this, either"
            broken.append(Finding("patches", name, problem, BAD, advice))
    found = examine(args.database) + broken
    if args.json:
        document = {"host": socket.gethostname(), "findings": [asdict(line) for line in found]}
        print(json.dumps(document, indent=2))
    else:
        _show(found)
    return 1 if any(line.status == BAD for line in found) else 0


_MARKS = {OK: ("✓", "green"), NOTE: ("!", "yellow"), BAD: ("✗", "red")}
_ASCII = str.maketrans("✓✗→", "+x>")


def _show(found: list[Finding]) -> None:
    with_rich = sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    report = _table(found) if with_rich else _lines(found)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        report.encode(encoding)
    except UnicodeEncodeError:
        report = report.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    print(report, end="")


def _lines(found: list[Finding]) -> str:
    """Each finding on one line, however long: for files, and for programs that read it."""
    width = max(len(line.name) for line in found)
    report = []
    section = ""
    for line in found:
        if line.section != section:
            section = line.section
            report.append(section)
        report.append(f"{_MARKS[line.status][0]} {line.name:<{width}}  {line.value}")
        if line.advice:
            report.append(f"  {'':<{width}}  → {line.advice}")
    return "\n".join(report) + "\n"


def _table(found: list[Finding]) -> str:
    """As wide as the terminal is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    section = ""
    for line in found:
        if line.section != section:
            section = line.section
            table.add_row("", Text(section, style="bold"), "")
        mark, style = _MARKS[line.status]
        value = Text(line.value, overflow="fold")
        if line.advice:
            value.append(f"\n→ {line.advice}", style=style if line.status != OK else "dim")
        table.add_row(Text(mark, style=style), Text(line.name), value)
    console = Console()
    with console.capture() as report:  # errors of writing are the caller's, rich would end the run
        console.print(table)
    return report.get()
