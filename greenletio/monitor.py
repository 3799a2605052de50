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
import select
import socket
import stat
import struct
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

__all__ = ("Monitor", "folder", "folders", "start")

INTERVAL_S = 1.0
#: Different texts of queries that are counted apart in an interval.
_TEXTS = 1000
_TEXT_LENGTH = 300


def folder() -> Path:
    """Where the sockets are: a folder of this user's, in XDG_RUNTIME_DIR or the temporary one."""
    return _folders()[0]


def folders() -> list[Path]:
    """Where sockets of this user's processes may be: not every process has XDG_RUNTIME_DIR."""
    return [path for path in _folders() if _is_private(path)]


def _folders() -> list[Path]:
    found = [Path(tempfile.gettempdir(), f"greenletio-{os.getuid()}")]
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base):
        found.insert(0, Path(base, "greenletio"))
    return found


def _is_private(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _private(path: Path) -> Path:
    """Make the folder; it must be nobody else's."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not _is_private(path):
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
            self._asked = time.monotonic()  # before: it may be answered at once
            try:
                loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # it is closed
                self._asked = None

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
        # Re-entrant: the garbage collector may end a query, and call the hook, in the middle.
        self._lock = threading.RLock()
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
        self._listener = socket.socket(socket.AF_UNIX)
        self._end, end = socket.socketpair()  # closing the first ends the thread
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._inode = path.lstat().st_ino
            self._listener.listen()
        except BaseException:
            for each in (self._listener, self._end, end):
                each.close()
            raise
        self._thread = threading.Thread(
            target=self._serve, args=(end,), name="greenletio monitor", daemon=True
        )
        self._thread.start()
        atexit.register(self.stop)
        _open.add(self)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell of this loop, too."""
        self._lags = [*self._lags, _Lag(loop)]

    def stop(self) -> None:
        """Close and remove the socket. Again: nothing."""
        if self._stopped.is_set() or os.getpid() != self._pid:
            return
        self._stopped.set()
        atexit.unregister(self.stop)
        self._end.close()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            if self.path.lstat().st_ino == self._inode:  # and nobody else's by now
                self.path.unlink()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _serve(self, end: socket.socket) -> None:
        with end, self._listener:
            while not self._stopped.is_set():
                if end in select.select([self._listener, end], [], [])[0]:
                    return
                with contextlib.suppress(OSError):
                    connection = self._listener.accept()[0]
                    name = "greenletio monitor's guest"
                    threading.Thread(
                        target=self._tell, args=(connection,), name=name, daemon=True
                    ).start()

    def _tell(self, connection: socket.socket) -> None:
        """One who is connected."""
        queries = _Queries()
        with contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if not _is_own(connection):
                return
            if "greenletio.pg" in sys.modules:
                from greenletio.pg import observe

                stack.enter_context(observe.hook(queries.add))
            stack.enter_context(contextlib.suppress(OSError))
            connection.settimeout(10)
            while not self._stopped.is_set():
                for lag in self._lags:
                    lag.ask()
                if self._stopped.wait(INTERVAL_S):
                    break
                line = json.dumps(self._snapshot(queries.take())) + "\n"
                connection.sendall(line.encode())

    def _after_fork(self) -> None:
        """The socket is the parent's; so is whoever was connected."""
        self._stopped.set()
        self._listener.close()
        self._end.close()

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


def _is_own(connection: socket.socket) -> bool:
    """Whether it is this user, or root, who has connected."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return struct.unpack("3i", found)[1] in (0, os.getuid())


_open: weakref.WeakSet[Monitor] = weakref.WeakSet()


def _after_fork() -> None:
    for monitor in list(_open):
        monitor._after_fork()


os.register_at_fork(after_in_child=_after_fork)


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
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                try:
                    probe.connect(str(where))
                except ConnectionRefusedError:
                    where.unlink()  # left by a process that has died
                else:
                    raise GreenletioError(f"a monitor listens at {where}: name another path")
    monitor = Monitor(where)
    with contextlib.suppress(RuntimeError):
        monitor.watch(asyncio.get_running_loop())
    return monitor
