"""docker-compose.yml, and the same topology from local processes."""

import configparser
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_missing import missing
from fix_postgres import SETTINGS, need_embedded

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "cluster.py"

# Writes through PgBouncer, then waits until the standby has it.
PROGRAM = """
import asyncio, os, asyncpg

async def main():
    bouncer = await asyncpg.connect(os.environ["PGBOUNCER_URL"], statement_cache_size=0)
    await bouncer.execute("CREATE TABLE seen AS SELECT 42 AS answer")
    standby = await asyncpg.connect(os.environ["STANDBY_URL"])
    print(await standby.fetchval("SELECT pg_is_in_recovery()"))
    while await standby.fetchval("SELECT to_regclass('seen')") is None:
        await asyncio.sleep(0.05)
    print(await standby.fetchval("SELECT answer FROM seen"))
    primary = await asyncpg.connect()  # by libpq's variables
    print(await primary.fetchval("SELECT pg_is_in_recovery()"))
    assert f":{await primary.fetchval('SELECT inet_server_port()')}/" in os.environ["PRIMARY_URL"]

asyncio.run(asyncio.wait_for(main(), 60))
"""


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def published(compose: dict[str, Any], service: str) -> int:
    host, port, _ = compose["services"][service]["ports"][0].split(":")
    assert host == "127.0.0.1"
    return int(port)


def test_the_script_and_docker_publish_the_same_ports(compose: dict[str, Any]) -> None:
    usage = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert usage.returncode == 0, usage.stderr
    source = SCRIPT.read_text()
    assert f"default={published(compose, 'primary')}," in source
    assert published(compose, "standby") == published(compose, "primary") + 1
    assert published(compose, "pgbouncer") == published(compose, "primary") + 2


def test_the_script_and_docker_configure_pgbouncer_alike(compose: dict[str, Any]) -> None:
    docker = configparser.ConfigParser()
    docker.read_string(compose["configs"]["pgbouncer"]["content"])
    local = configparser.ConfigParser()
    local.read_string(SCRIPT.read_text().split('PGBOUNCER = """')[1].split('"""')[0])
    for key in ("pool_mode", "max_client_conn", "default_pool_size"):
        assert docker["pgbouncer"][key] == local["pgbouncer"][key]


def test_their_servers_are_configured_as_the_one_of_the_tests(compose: dict[str, Any]) -> None:
    primary = shlex.split(compose["services"]["primary"]["command"])
    said = dict(word.split("=") for word in primary if "=" in word)
    assert said == {name: str(value) for name, value in SETTINGS.items()}
    standby = compose["services"]["standby"]["command"][-1]
    for name in SETTINGS.keys() - {"wal_level"}:  # a standby's may not be less
        assert f"-c {name}={said[name]}" in standby
    assert f"SETTINGS = {json.dumps(SETTINGS)}" in SCRIPT.read_text()


def test_docker_runs_the_tests_against_its_primary(compose: dict[str, Any]) -> None:
    tests = compose["services"]["tests"]
    assert "make test" in tests["command"][-1]
    assert tests["environment"]["DATABASE_URL"] == "postgresql://postgres@primary/postgres"
    assert set(tests["depends_on"]) == set(compose["services"]) - {"tests"}


@pytest.fixture
def free_ports() -> int:
    """Three ports in a row that nobody listens on."""
    for base in range(20000, 60000, 97):
        try:
            for port in range(base, base + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


@pytest.mark.slow
def test_the_local_cluster_replicates_and_pools(free_ports: int) -> None:
    need_embedded()
    if shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        missing("PgBouncer is not installed: apt-get install pgbouncer")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--port", str(free_ports), "--"] + [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "42", "False"], done.stderr
