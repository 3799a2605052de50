"""Celery's worker, run green: `greenletio --all -m celery ... worker -P threads`."""

import importlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_missing import missing

LIMIT_S = 100  # against a hang, not a measure
MANY = 50
RABBITMQ = ("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")
REDIS = ("REDIS_URL", "redis://127.0.0.1:6379")

TASKS = f"""
import asyncio, os, threading
from celery import Celery
from kombu import Queue
import psycopg2
from greenletio import await_, patch_psycopg2

patch_psycopg2()
app = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.task_queues = [Queue(os.environ["QUEUE"], auto_delete=True)]
app.conf.result_expires = 300
app.conf.broker_connection_retry_on_startup = True
meet = threading.Barrier({MANY}, timeout=60)

@app.task
def together(n):
    meet.wait()  # all are there at once
    with psycopg2.connect(os.environ["DATABASE_URL"]) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s FROM pg_sleep(0.2)", [n])
            (answer,) = cursor.fetchone()
    connection.close()
    meet.wait()
    return answer, len(os.listdir("/proc/self/task"))

@app.task
def fails():
    raise LookupError(await_(asyncio.sleep(0.001, "no")))
"""

ASK = f"""
import celery, json
from tasks import app, fails, together
answers = celery.group(together.s(n) for n in range({MANY})).apply_async().get(timeout=60)
try:
    fails.delay().get(timeout=60)
except LookupError as error:
    print(json.dumps([answers, str(error)]))
late = [together.apply_async((n,), countdown=1) for n in range({MANY})]
assert [each.get(timeout=60)[0] for each in late] == list(range({MANY}))
assert list(app.control.ping(timeout=10, limit=1)[0].values()) == [{{"ok": "pong"}}]
"""


@pytest.fixture(params=["redis", "rabbitmq"])
def environ(
    request: pytest.FixtureRequest, tmp_path: Path, pg_dsn: str, server_of: Any
) -> Iterator[dict[str, str]]:
    if importlib.util.find_spec("celery") is None:
        missing("celery is not installed")
    kombu: Any = importlib.import_module("kombu")
    (tmp_path / "tasks.py").write_text(TASKS)
    redis = request.param == "redis"
    broker = server_of(*(REDIS if redis else RABBITMQ))["url"]
    queue = f"greenletio-{secrets.token_hex(6)}"
    yield {
        **os.environ,
        "BROKER": broker,
        "BACKEND": broker if redis else "rpc://",
        "QUEUE": queue,
        "DATABASE_URL": pg_dsn,
    }
    with kombu.Connection(broker) as connection:
        connection.default_channel.queue_delete(queue)
        for key in (f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}"):
            if redis:
                connection.default_channel.client.delete(key)


@pytest.fixture
def worker(tmp_path: Path, environ: dict[str, str]) -> Iterator[Path]:
    """A worker that runs during the test, and must end by SIGTERM; its log."""
    log = tmp_path / "worker.log"
    command = "greenletio --all -m celery -A tasks worker -P threads -l INFO --without-mingle"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split(), "-c", str(MANY), "-n", environ["QUEUE"]],
            cwd=tmp_path,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    yield log
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(LIMIT_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_tasks_are_greenlets(environ: dict[str, str], worker: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASK)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr + worker.read_text()
    answers: list[Any]
    answers, error = json.loads(done.stdout)
    assert ([n for n, _ in answers], error) == (list(range(MANY)), "no")
    # There are tasks at once, and hardly any thread.
    assert max(threads for _, threads in answers) < 10
    said = worker.read_text()
    assert "before patch_all" not in said, said
