"""What ``python -m greenletio doctor`` says of a process."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from greenletio import doctor, run

APPLICATION = """
import logging, queue  # a library that holds a lock before anything is patched
import psycopg2
{patch}
"""


def examine(tmp_path: Path, *arguments: str, status: int = 0, **modules: str) -> dict:
    for name, code in modules.items():
        (tmp_path / f"{name}.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "greenletio", "doctor", "--json", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (status, "")
    return {line["name"]: line for line in json.loads(done.stdout)["findings"]}


def test_a_plain_process(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    found = examine(tmp_path)
    assert found["Python"]["value"].endswith(sys.executable)
    assert found["libevent"]["value"].endswith("epoll")
    assert "pipelines" in found["libpq"]["value"]
    assert found["patch_all"]["value"] == "not called"
    assert "server" not in found
    assert {line["status"] for line in found.values()} <= {"ok", "note"}


def test_a_server_is_asked(tmp_path, pg_dsn):
    found = examine(tmp_path, "--database", pg_dsn)
    assert found["server"]["value"].startswith("PostgreSQL ")
    assert found["server"]["value"].endswith("primary")
    assert "round trip" in found["connecting"]["value"]


def test_the_page_shows_lines_that_there_are(tmp_path, pg_dsn):
    page = Path(__file__).parents[2] / "docs" / "doctor.md"
    shown = set(re.findall(r"^ [✓!✗]  (\w.*?)  ", page.read_text(), re.MULTILINE))
    assert len(shown) >= 10
    found = examine(tmp_path, "early", "--database", pg_dsn, early="import psycopg2")
    assert shown <= found.keys()


def test_a_server_that_is_not_there_is_said_and_shown_by_the_status(tmp_path):
    found = examine(tmp_path, "--database", "postgresql://127.0.0.1:1/x", status=1)
    assert found["server"]["status"] == "bad"
    assert "127.0.0.1" in found["server"]["value"]


@pytest.mark.parametrize("is_patched", [False, True])
def test_a_driver_that_was_not_patched(tmp_path, monkeypatch, is_patched):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    patch = "import greenletio; greenletio.patch_psycopg2()" if is_patched else ""
    found = examine(tmp_path, "application", application=APPLICATION.format(patch=patch))
    line = found["patch_psycopg2"]
    assert (line["value"], line["status"]) == (
        ("called", "ok") if is_patched else ("not called", "note")
    )
    assert ("patch_psycopg2()" in line["advice"]) is not is_patched


def test_what_was_too_early_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    found = examine(
        tmp_path,
        "application",
        library="import threading\nguard = threading.Lock()\n",
        application="import warnings; warnings.simplefilter('ignore')\n"
        "import library, greenletio\ngreenletio.patch_all()\n",
    )
    assert found["patch_all"]["value"] == "called"
    assert "library.guard" in found["too early"]["value"]


def test_what_was_imported_green(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    found = examine(
        tmp_path,
        "application",
        library="import socket",
        application="import greenletio\nwith greenletio.patch_blocking():\n    import library\n",
    )
    assert found["patch_blocking"]["value"] == "imported green: library"


def test_a_module_that_fails_is_said_and_the_rest_is_shown(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    found = examine(tmp_path, "application", status=1, application="1 / 0")
    assert found["application"]["value"].startswith("ZeroDivisionError")
    assert found["Python"]["status"] == "ok"


def test_the_loop_that_runs_is_said():
    async def ask() -> list[doctor.Finding]:
        return doctor.examine()

    def running(found: list[doctor.Finding]) -> str:
        (line,) = (line for line in found if line.name == "running")
        return line.value

    assert running(asyncio.run(ask())).startswith("asyncio.")
    assert running(run(ask())) == "greenletio._event_loop.EventLoop"


def read(tmp_path: Path, terminal: bool = False, **environment: str) -> str:
    """What the command writes, into a pipe or to a terminal of 60 columns."""
    out, into = os.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "greenletio", "doctor"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "60", "LINES": "24", **environment},
        stdin=subprocess.DEVNULL,
        stdout=into,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(into)
    said = b""
    with open(out, "rb", buffering=0) as file, suppress(OSError):  # a terminal ends with EIO
        while more := file.read(4096):
            said += more
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == (0, "")
    return said.decode()


def test_what_people_read(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    said = read(tmp_path)
    assert "✓ libevent" in said
    assert re.search(", in /.*greenletio\n", said)  # whole, however long
    assert said.startswith("versions\n") and "\nloop\n" in said


def test_what_people_read_in_a_terminal(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    where = re.search(", in (/.*)\n", read(tmp_path))
    said = read(tmp_path, terminal=True)
    lines = said.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.lstrip().startswith("✓  libevent") for line in lines)
    assert where is not None and "".join(where[1].split()) in "".join(said.split())  # not cut off


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_has_no_such_signs(tmp_path, monkeypatch, terminal):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    said = read(tmp_path, terminal, PYTHONIOENCODING="latin-1")
    assert "+ " in said and "libevent" in said and "> " in said


@pytest.mark.parametrize(
    "arguments", [["doctor"], ["doctor", "--json"], ["--help"], ["--version"]], ids=" ".join
)
def test_who_reads_no_further_gets_no_traceback(tmp_path, monkeypatch, arguments):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does when it has enough
    try:
        done = subprocess.run(
            [sys.executable, "-m", "greenletio", *arguments],
            cwd=tmp_path,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
