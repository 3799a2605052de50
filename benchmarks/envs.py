"""The environments the contenders live in: made once under .venvs/, used again afterwards.

greenletio itself is measured in the environment that runs the benchmark. The others get the
same versions of what all stand on (greenlet, uvloop, psycopg2), so that only the bridges differ.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venvs"

SHARED = ("greenlet", "uvloop", "psycopg2", "psycopg2-binary")
OLD_GREENLETIO = ("greenletio==0.11.0",)
PEERS = (
    "asgiref>=3.8",
    "gevent>=24.10",
    "greenback>=1.2.1",
    "psycogreen>=1.0.2",
    "sqlalchemy>=2.0.36",
)


class EnvError(Exception):
    """An environment could not be made."""


def _shared() -> list[str]:
    found = []
    for package in SHARED:
        try:
            found.append(f"{package}=={metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def ensure(name: str, packages: tuple[str, ...]) -> Path:
    """The Python of the environment `name`, which has `packages`; it is made if need be."""
    home = HOME / f"{name}-{sys.version_info[0]}.{sys.version_info[1]}"
    python = home / "bin" / "python"
    wanted = "\n".join([sys.version, *_shared(), *packages])
    stamp = home / "packages.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *_shared(), *packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise EnvError(f"could not install {', '.join(packages)}: {''.join(last)}")
    stamp.write_text(wanted)
    return python


def compiled(source: str, target: str, *flags: str) -> Path:
    """What a C file beside this one is compiled to, under .venvs/; again when it has changed."""
    path, made = Path(__file__).with_name(source), HOME / target
    if made.exists() and made.stat().st_mtime >= path.stat().st_mtime:
        return made
    HOME.mkdir(exist_ok=True)
    compiler = os.environ.get("CC", "cc")
    common = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wshadow"]
    try:
        done = subprocess.run(
            [compiler, *common, "-o", made, path, *flags], capture_output=True, text=True
        )
    except FileNotFoundError:
        raise EnvError(f"no C compiler: {compiler} was not found (set CC)") from None
    if done.returncode:
        raise EnvError(f"{source} does not compile: {done.stderr.strip()}")
    return made


def newer_libpq() -> Path:
    """A folder with greenletio, built with the libpq of the embedded PostgreSQL."""
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "build-libpq.sh", sys.executable], capture_output=True, text=True
    )
    if done.returncode:
        raise EnvError(f"the build with a newer libpq failed: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def shim() -> Path:
    """The preload library of shim.c."""
    return compiled("shim.c", "shim.so", "-fPIC", "-shared", "-fvisibility=hidden")


def load() -> Path:
    """The program of load.c."""
    return compiled("load.c", "load", "-lssl", "-lcrypto")


def delay() -> Path:
    """The program of delay.c."""
    return compiled("delay.c", "delay")


def pg_floor() -> Path:
    """The program of pg_floor.c, with the libpq of pg_config."""

    def ask(what: str) -> str:
        try:
            done = subprocess.run(["pg_config", what], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise EnvError(f"pg_config {what} does not tell where libpq is: {exc}") from None
        return done.stdout.strip()

    return compiled(
        "pg_floor.c",
        "pg_floor",
        f"-I{ask('--includedir')}",
        f"-L{ask('--libdir')}",
        "-lpq",
    )


def certificate() -> Path:
    """A server's certificate and key in one file, for TLS on this machine."""
    made = HOME / "bench.pem"
    if not made.exists():
        import trustme

        HOME.mkdir(exist_ok=True)
        issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
        partial = made.with_suffix(".part")
        partial.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        partial.replace(made)
    return made
