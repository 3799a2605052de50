"""The driver's programs of examples/ run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
LIMIT_S = 100  # against a hang, not a measure


def run(name, url, *args):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args],
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def test_a_cache_that_follows_notifications(pg_dsn):
    done = run("pg_listen.py", pg_dsn)
    assert done.stdout == "{'colour': 'green', 'size': 'large'}\n", done.stderr
    assert done.returncode == 0
    assert "has lost its connection" in done.stderr


def test_columns_to_a_file_and_back(pg_dsn):
    done = run("pg_columns.py", pg_dsn, "30000")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "COPY 30000; the mean price is 24.975, and 24.975 in the table\n"


def test_one_pool_for_everybody(pg_dsn):
    done = run("pg_one_pool.py", pg_dsn)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == "100 of asyncio tasks, 100 of greenlets, 100 of threads, 100 of trio tasks"
    assert second.endswith("leases of at most 3 connections")


def test_what_is_asked_is_seen(pg_dsn):
    done = run("pg_observe.py", pg_dsn, "0.5")
    assert done.returncode == 0, done.stderr
    assert "SELECT $1::int * 2" in done.stdout and " leases, " in done.stdout
    assert "SELECT pg_sleep(0.02)" in done.stderr and "in visitor" in done.stderr


@pytest.mark.usefixtures("libpq_with_tls")
def test_trust_on_first_use(system_server, tmp_path):
    url = (
        f"postgresql://by_scram:scram@localhost:{system_server.port}/postgres"
        "?sslmode=require&sslrootcert=/no/such/file"
    )
    file = str(tmp_path / "known")
    for expected in ("a key that was not known before", "a key that is known"):
        done = run("pg_tls.py", url, file)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1] == expected
    with system_server.certificate(trustme.CA().issue_cert("localhost")):
        done = run("pg_tls.py", url, file)
    assert done.returncode == 1
    assert "somebody else answers: the server's key is sha256/" in done.stderr


def test_a_shop_that_follows_its_servers(cluster):
    hosts = ",".join(f"127.0.0.1:{port}" for port in cluster.ports)
    url = f"postgresql://postgres:{cluster.password}@{hosts}/postgres"
    done = run("pg_failover.py", url, "40", "60")
    assert (done.stdout, done.stderr) == ("40 orders, read on a standby\n", "")
    cluster.fail_over()
    done = run("pg_failover.py", url, "20")
    assert (done.stdout, done.stderr) == ("20 orders, read on the primary\n", "")
