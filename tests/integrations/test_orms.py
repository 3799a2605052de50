"""ORMs and drivers that know nothing of asyncio: the programs of examples/, and what goes wrong.

Each runs in a process of its own, since the patches and the imports are the process's.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fix_missing import missing

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT_S = 100  # against a hang, not a measure

# Of each example: what holds a connection for a block, and what asks for the server's process.
PID = "SELECT pg_backend_pid()"
HOLDS = {
    "psycopg2": ("example.transaction()", f"held.execute('{PID}') or held.fetchone()[0]"),
    "psycopg": ("example.pool.connection()", f"held.execute('{PID}').fetchone()[0]"),
    "pg8000": ("example.transaction()", f"held.execute('{PID}') or held.fetchone()[0]"),
    "peewee": ("example.database", f"example.database.execute_sql('{PID}').fetchone()[0]"),
    "pony": (
        "example.connections, example.orm.db_session",
        "example.database.select('pg_backend_pid()')[0]",
    ),
}

SCRIPT = """
import asyncio, importlib, random
import greenletio
from greenletio import async_

example = importlib.import_module(NAME)
users = set()

def hold(n):
    with HOLD as held:
        pid = ASK
        assert pid not in users, "two have the same connection"
        users.add(pid)
        greenletio.sleep(0.002)
        assert ASK == pid
        users.remove(pid)

def transfer(n):
    example.transfer(*random.sample(range(1, example.ACCOUNTS + 1), 2), 1)

async def main():
    steps = 0
    async def tick():
        nonlocal steps
        while True:
            await asyncio.sleep(0)
            steps += 1

    def many(function, count):
        return [asyncio.create_task(async_(function)(n)) for n in range(count)]

    ticking = asyncio.create_task(tick())
    await async_(example.prepare)()
    await asyncio.gather(*many(transfer, 100), *many(hold, 50))
    assert await async_(example.total)() == 100 * example.ACCOUNTS

    # Some are cancelled, wherever they are: what they did is undone, and no connection is lost.
    tasks = many(transfer, 60)
    await asyncio.sleep(0)
    for task in random.sample(tasks, 30):
        task.cancel()
        for _ in range(random.randrange(40)):
            await asyncio.sleep(0)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    names = {type(each).__name__ for each in ended}  # Pony's own says which one ended a commit
    assert names <= {"NoneType", "CancelledError", "CommitException"}, ended
    assert any(ended)
    await asyncio.gather(*many(transfer, 30), *many(hold, 30))
    assert await async_(example.total)() == 100 * example.ACCOUNTS
    ticking.cancel()
    assert steps > 300, steps  # nobody has held the loop
    print("at the end")

greenletio.run(main())
"""


def run(code: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def need(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        missing(f"{name} is not installed")


@pytest.mark.parametrize("name", HOLDS)
def test_an_example_runs(name: str, pg_dsn: str) -> None:
    need(name)
    code = f"import runpy; runpy.run_path('{EXAMPLES}/{name}_asyncio.py', run_name='__main__')"
    done = run(code, pg_dsn)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1000\n", "")


@pytest.mark.parametrize("name", HOLDS)
def test_many_greenlets_of_one_loop(name: str, pg_dsn: str) -> None:
    need(name)
    hold, ask = HOLDS[name]
    script = SCRIPT.replace("NAME", f"'{name}_asyncio'").replace("HOLD", hold).replace("ASK", ask)
    done = run(script, pg_dsn)
    assert done.stdout == "at the end\n", done.stderr


# --- ORMs that were imported as they are ---------------------------------------------------------

PEEWEE = """
import asyncio, os, threading
import greenletio
from greenletio import async_, patch_all, patch_blocking, patch_psycopg2
patch_psycopg2()
{imports}
database = peewee.PostgresqlDatabase(os.environ["DATABASE_URL"])
def query():
    with database:
        return database.execute_sql("SELECT 1").fetchone()[0]
{calls}
"""
PONY = """
import asyncio, os, threading
import greenletio
from greenletio import async_, patch_all, patch_blocking, patch_psycopg2
patch_psycopg2()
{imports}
database = orm.Database()
def query():
    if database.provider is None:
        database.bind(provider="postgres", dsn=os.environ["DATABASE_URL"])
        database.generate_mapping()
    with orm.db_session:
        return database.select("1")[0]
{calls}
"""
GREEN = "for _ in range(2): assert asyncio.run(async_(query)()) == 1"
PLAIN = "query()"
CASES = {
    "peewee": (PEEWEE, "import peewee"),
    "pony": (PONY, "from pony import orm"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_orm_that_would_share_its_connection_is_told_of(name: str, pg_dsn: str) -> None:
    need(name)
    script, imports = CASES[name]
    done = run(script.format(imports=imports, calls=GREEN), pg_dsn)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert len(warned) == 1, done.stderr
    assert f"RuntimeWarning: all greenlets of this thread share {name}'s state" in warned[0]
    assert f"import {name} under patch_blocking()" in warned[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["patch_blocking", "patch_all", "plain"])
def test_an_orm_that_is_right_is_not(name: str, way: str, pg_dsn: str) -> None:
    need(name)
    script, imports = CASES[name]
    if way == "patch_blocking":
        imports = f"with patch_blocking(): {imports}"
    elif way == "patch_all":
        imports = f"patch_all()\n{imports}"
    done = run(script.format(imports=imports, calls=PLAIN if way == "plain" else GREEN), pg_dsn)
    assert (done.returncode, done.stderr) == (0, "")
