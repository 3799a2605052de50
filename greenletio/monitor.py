"""What a running process does, for ``python -m greenletio top`` and whoever else connects.

`start` opens a Unix socket that only the same user can reach. Whoever connects gets a line of JSON
every second: CPU time, memory, how late each loop is, tasks and greenlets, the pools and queries of
greenletio.pg. While nobody is connected, it costs nothing; while somebody is, some microseconds
for each query. It runs in threads of the system, so a loop that is held is seen to be.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import resource
import socket
import socketserver
import stat
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenletio import _core
from greenletio.errors import GreenletioError

if TYPE_CHECKING:
    from greenletio.pg.observe import Query

__all__ = ("Monitor", "folder", "start")

INTERVAL_S = 1.0
#: Different texts of queries that are counted apart in an interval.
_TEXTS = 1000
_TEXT_LENGTH = 300


def folder() -> Path:
    """Where the sockets are: a folder of this user's, in XDG_RUNTIME_DIR or the temporary one."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        return Path(base, "greenletio")
    return Path(tempfile.gettempdir(), f"greenletio-{os.getuid()}")


def _private(path: Path) -> Path:
    """Make the folder; it must be nobody else's."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise GreenletioError(
            f"{path} must be a folder that only this user can enter: remove it, or name another "
            "path for the monitor's socket"
        )
    return path


class _Lag:
    """How late a loop answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._asked: float | None = None
        self._lag = 0.0
        self.name = f"{type(loop).__module__}.{type(loop).__qualname__}"

    def ask(self) -> None:
        loop = self._loop()
        if self._asked is None and loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._answer)
                self._asked = time.monotonic()

    def _answer(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            self._lag = time.monotonic() - asked

    def as_dict(self) -> dict[str, Any] | None:
        """None if the loop is gone, or closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return None
        asked = self._asked
        waits = 0.0 if asked is None else time.monotonic() - asked
        try:
            tasks = len(asyncio.all_tasks(loop))
        except RuntimeError:  # they change too fast
            tasks = -1
        lag = max(self._lag, waits)
        return {"loop": self.name, "lag_ms": round(1000 * lag, 3), "tasks": tasks}


class _Queries:
    """What greenletio.pg has been asked in an interval, by text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, list[Any]] = {}

    def add(self, query: Query) -> None:
        text = " ".join(query.text.split())[:_TEXT_LENGTH]
        with self._lock:
            if text not in self._found and len(self._found) >= _TEXTS:
                text = "(others)"
            entry = self._found.setdefault(text, [0, 0.0, 0.0, 0, str(query.caller)])
            entry[0] += 1
            entry[1] += query.seconds
            entry[2] = max(entry[2], query.seconds)
            entry[3] += query.error is not None

    def take(self) -> list[dict[str, Any]]:
        with self._lock:
            found, self._found = self._found, {}
        rows = sorted(found.items(), key=lambda item: -item[1][1])
        return [
            {
                "text": text,
                "count": count,
                "total_ms": round(1000 * total, 3),
                "max_ms": round(1000 * longest, 3),
                "errors": errors,
                "caller": caller,
            }
            for text, (count, total, longest, errors, caller) in rows[:50]
        ]


class Monitor:
    """An open socket; see `start`. ``with`` closes it."""

    def __init__(self, path: Path) -> None:
        #: The socket.
        self.path = path
        self._started = time.time()
        self._pid = os.getpid()
        self._lags: list[_Lag] = []
        self._stopped = threading.Event()
        self._server = _Server(str(path), _Handler)
        self._server.monitor = self
        path.chmod(0o600)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="greenletio monitor", daemon=True
        )
        self._thread.start()
        atexit.register(self.stop)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell of this loop, too."""
        self._lags = [*self._lags, _Lag(loop)]

    def stop(self) -> None:
        """Close and remove the socket. Again: nothing."""
        if self._stopped.is_set() or os.getpid() != self._pid:
            return
        self._stopped.set()
        atexit.unregister(self.stop)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _snapshot(self, queries: list[dict[str, Any]]) -> dict[str, Any]:
        loops = [lag.as_dict() for lag in self._lags]
        pools: dict[str, dict[str, int]] = {}
        observe = sys.modules.get("greenletio.pg.observe")
        if observe is not None:
            pools = observe.pools()
        return {
            "pid": self._pid,
            "command": sys.orig_argv,
            "time": time.time(),
            "uptime_s": round(time.time() - self._started, 3),
            "cpu_s": time.process_time(),
            "rss_bytes": _rss(),
            "threads": threading.active_count(),
            "greenlets": sum(len(_core.calls(ident)) for ident in sys._current_frames()),
            "loops": [loop for loop in loops if loop is not None],
            "pools": pools,
            "queries": queries,
        }


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    monitor: Monitor


class _Handler(socketserver.BaseRequestHandler):
    """One who is connected."""

    def handle(self) -> None:
        server: Any = self.server
        monitor: Monitor = server.monitor
        connection: socket.socket = self.request
        queries = _Queries()
        with contextlib.ExitStack() as stack:
            if "greenletio.pg" in sys.modules:
                from greenletio.pg import observe

                stack.enter_context(observe.hook(queries.add))
            stack.enter_context(contextlib.suppress(OSError))
            while not monitor._stopped.is_set():
                for lag in monitor._lags:
                    lag.ask()
                if monitor._stopped.wait(INTERVAL_S):
                    break
                line = json.dumps(monitor._snapshot(queries.take())) + "\n"
                connection.settimeout(10)
                connection.sendall(line.encode())


def _rss() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start(path: str | os.PathLike[str] | None = None) -> Monitor:
    """Let ``python -m greenletio top`` look at this process; returns what stops it.

    Called in a running loop (an application's start-up), it tells of that loop; ``watch(loop)``
    adds others. `path` is the socket's (``<pid>.sock`` in `folder()`), whose folder should be
    private. Any thread.
    """
    where = _private(folder()) / f"{os.getpid()}.sock" if path is None else Path(path)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(where.lstat().st_mode):
            where.unlink()  # of a process that had our number
    monitor = Monitor(where)
    with contextlib.suppress(RuntimeError):
        monitor.watch(asyncio.get_running_loop())
    return monitor
