"""PgBouncer in front of the tests' server: a real one, on a port of its own.

def test_it(pgbouncer):
    dsn = pgbouncer(pg_dsn, "transaction", default_pool_size=2)
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import pytest
from fix_missing import missing

CONFIG = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = {mode}
ignore_startup_parameters = extra_float_digits,options
max_client_conn = 200
server_lifetime = 3600
"""

LIMIT_S = 30  # against a hang, not a measure


def program() -> str:
    """The path of the program; without it the test cannot run."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        missing("there is no PgBouncer: apt-get install pgbouncer")
    return found


@contextmanager
def held_port() -> Iterator[int]:
    """A port that the kernel gives to nobody else while one who asks for it by number, with
    SO_REUSEADDR as servers do, may listen there: for it is bound, and nobody listens yet."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port


@contextmanager
def running(url: str, mode: str, **settings: object) -> Iterator[str]:
    """PgBouncer before the server of `url`, in this pool mode; gives the URL through it."""
    parts = urlsplit(url)
    command = program()
    with (
        held_port() as port,
        tempfile.TemporaryDirectory(prefix="gio-bouncer-", dir="/tmp") as name,
    ):
        folder = Path(name)
        text = CONFIG.format(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 5432,
            listen=port,
            folder=folder,
            mode=mode,
        )
        text += "".join(f"{key} = {value}\n" for key, value in settings.items())
        (folder / "pgbouncer.ini").write_text(text)
        user, password = unquote(parts.username or "postgres"), unquote(parts.password or "")
        (folder / "users.txt").write_text(f'"{user}" "{password}"\n')
        owner: dict[str, int] = {}
        if os.geteuid() == 0:  # which it refuses to run as
            nobody = pwd.getpwnam("nobody")
            owner = {"user": nobody.pw_uid, "group": nobody.pw_gid}
            for path in (folder, *folder.iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [command, str(folder / "pgbouncer.ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                extra_groups=[] if owner else None,
                **owner,  # type: ignore[call-overload]
            )
        try:
            wait_for_port(process, port, folder / "log")
            who = f"{user}:{password}" if password else user
            yield urlunsplit(parts._replace(netloc=f"{who}@127.0.0.1:{port}"))
        finally:
            process.terminate()
            process.wait(LIMIT_S)


def wait_for_port(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PgBouncer does not listen:\n{log.read_text()}", pytrace=False)
        time.sleep(0.02)


@pytest.fixture
def pgbouncer() -> Iterator[Callable[..., str]]:
    """`pgbouncer(url, mode, **settings)` starts one, and gives the URL through it."""
    with ExitStack() as stack:
        yield lambda url, mode, **settings: stack.enter_context(running(url, mode, **settings))
