"""SQLAlchemy's compliance suite on ``postgresql+greenletio``: `make test-sqlalchemy CHECKOUT=path`.

CHECKOUT is a copy of SQLAlchemy's repository, 2.0 or newer; nothing of it is in ours. The suite
runs for create_engine() and for create_async_engine(), in a database that is made for it on the
server in DATABASE_URL, else on an embedded one. With ``--driver psycopg2``: the measure.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fix_postgres import SETTINGS, TemporaryDatabase, ask

from greenletio._embedded import EmbeddedServer

# The suite knows by their names which drivers' cursors are at the server (it says itself that this
# is of no use to others), and which drivers read an infinite float where Infinity is written.
BY_NAME = ("test_ss_cursor_status", "test_conn_option", "test_infinity_floats")


@contextlib.contextmanager
def database() -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        url = os.environ.get("DATABASE_URL")
        if url is None:
            settings = {**SETTINGS, "max_prepared_transactions": 10}
            url = stack.enter_context(EmbeddedServer(settings=settings)).url
        made = stack.enter_context(TemporaryDatabase(url))
        for schema in ("test_schema", "test_schema_2"):
            ask(made.url, f"CREATE SCHEMA {schema}")
        for extension in ("hstore", "citext"):
            ask(made.url, f"CREATE EXTENSION {extension}")
        yield made.url


def run(checkout: Path, url: str, driver: str, rest: list[str]) -> int:
    ours = driver.startswith("greenletio")
    left_out = " and ".join(f"not {name}" for name in BY_NAME)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"),
        *("test/dialect/test_suite.py", "--dburi", f"postgresql+{driver}:{url.partition(':')[2]}"),
        *([] if driver.endswith("_async") else ["--disable-asyncio"]),
        *(["-k", left_out] if ours else []),
    ]
    print(f"{driver}: {' '.join(command[2:])}", flush=True)
    return subprocess.run([*command, *rest], cwd=checkout).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="make test-sqlalchemy", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("checkout", type=Path, help="a copy of SQLAlchemy's repository")
    parser.add_argument("--driver", nargs="+", default=["greenletio", "greenletio_async"])
    options, rest = parser.parse_known_args()
    if not (options.checkout / "test/dialect/test_suite.py").exists():
        parser.error(f"{options.checkout} is no copy of SQLAlchemy's repository")
    with database() as url:
        codes = [run(options.checkout, url, driver, rest) for driver in options.driver]
    sys.exit(max(codes))
