"""The command ``greenletio``: a program runs as python would run it, and is green."""

from __future__ import annotations

import py_compile
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]

SCRIPT = """
import sys, threading, time
print(__name__, __file__, sys.argv, sys.path[0], threading.current_thread().name)
turns = []
def work():
    for _ in range(3):
        turns.append(threading.current_thread().name)
        time.sleep(0.001)
threads = [threading.Thread(target=work, name=str(n)) for n in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(turns) == ["0"] * 3 + ["1"] * 3, threading.active_count())
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """command(*args) runs ``greenletio *args`` in an empty folder, where files are written."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)

    def call(*args: str, stdin: str = "", **files: str) -> subprocess.CompletedProcess[str]:
        for name, source in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return subprocess.run(
            [sys.executable, "-m", "greenletio", *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )

    return call


@pytest.mark.parametrize("all_", [(), ("--all",)], ids=["imports", "all"])
@pytest.mark.parametrize("loop", ["greenletio", "asyncio", "uvloop"])
def test_a_script_finds_what_python_gives_it(
    command: Command, tmp_path: Path, loop: str, all_: tuple[str, ...]
) -> None:
    done = command(*all_, "--loop", loop, "script.py", "-x", "--all", script=SCRIPT)
    first, second = done.stdout.splitlines()
    args = "['script.py', '-x', '--all']"
    assert first == f"__main__ {tmp_path}/script.py {args} {tmp_path} MainThread"
    assert second == "True 1"
    assert done.returncode == 0 and done.stderr == ""


def test_modules_code_and_standard_input(command: Command, tmp_path: Path) -> None:
    done = command("-m", "mod", "a", mod="import sys; print(__name__, __spec__.name, sys.argv[1:])")
    assert done.stdout == "__main__ mod ['a']\n"
    done = command("-c", "import sys, socket; print(sys.argv, socket.__name__)", "a")
    assert done.stdout == "['-c', 'a'] greenletio.green.socket\n"
    done = command("-", "a", stdin="import sys; print(sys.argv)")
    assert done.stdout == "['-', 'a']\n"
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "__main__.py").write_text("import helper; print(helper.x)")
    (folder / "helper.py").write_text("x = 1")
    assert command("app").stdout == "1\n"


TELL = """
import inspect, sys
x: int = 1
names = ("__name__", "__file__", "__cached__", "__package__", "__annotations__", "__doc__")
print(*(repr(globals().get(name)) for name in names), type(__loader__), __spec__ and __spec__.name)
print(sys.argv, sys.path[0], inspect.getsource(inspect.currentframe()))
def fail():
    raise ZeroDivisionError
fail()
"""


@pytest.mark.parametrize("all_", [(), ("--all",)], ids=["imports", "all"])
@pytest.mark.parametrize(
    "way", ["file", "link", "folder", "archive", "pyc", "module", "gone", "bare"]
)
def test_a_program_is_told_what_python_tells_it(
    command: Command, tmp_path: Path, way: str, all_: tuple[str, ...]
) -> None:
    for folder in ("app", "bare"):
        (tmp_path / folder).mkdir()
    (tmp_path / "app" / "__main__.py").write_text(TELL)
    (tmp_path / "app" / "mod.py").write_text(TELL)
    (tmp_path / "link.py").symlink_to("app/mod.py")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", TELL)
    py_compile.compile(str(tmp_path / "app" / "mod.py"), cfile=str(tmp_path / "mod.pyc"))
    args = {
        "file": ["./app/mod.py"],
        "link": ["link.py"],
        "folder": ["app"],
        "archive": ["app.zip"],
        "pyc": ["mod.pyc"],
        "module": ["-m", "app.mod"],
    }.get(way, [way])
    plain = subprocess.run(
        [sys.executable, *args, "a"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    done = command(*all_, *args, "a")
    assert done.stdout == plain.stdout
    # There is no frame of runpy in ours.
    assert plain.stderr.endswith(done.stderr.removeprefix("Traceback (most recent call last):\n"))
    assert done.returncode == plain.returncode != 0
    assert done.stderr.endswith("ZeroDivisionError\n") or way in ("gone", "bare")


@pytest.mark.parametrize("safe", ["", "1"], ids=["", "safe"])
def test_where_a_program_looks_for_modules(
    command: Command, tmp_path: Path, safe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder comes first, unless Python was told that it shall not."""
    monkeypatch.setenv("PYTHONSAFEPATH", safe)
    (tmp_path / "app").mkdir()
    for name in ("app/__main__.py", "mod.py"):
        (tmp_path / name).write_text("import sys; print(sys.path)")
    for args in (["mod.py"], ["app"], ["-m", "mod"], ["-c", "import sys; print(sys.path)"], ["-"]):
        stdin = "import sys; print(sys.path)" if args == ["-"] else ""
        plain = subprocess.run(
            [sys.executable, *args],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
        )
        done = command(*args, stdin=stdin)
        assert (done.stdout, done.returncode) == (plain.stdout, plain.returncode), args


@pytest.mark.parametrize("all_", [(), ("--all",)], ids=["imports", "all"])
def test_exit_statuses_are_pythons(command: Command, all_: tuple[str, ...]) -> None:
    def status(code: str) -> tuple[int, str]:
        done = command(*all_, "-c", code)
        return done.returncode, done.stderr

    assert status("pass") == (0, "")
    assert status("import sys; sys.exit(7)") == (7, "")
    assert status("import sys; sys.exit('no')") == (1, "no\n")
    code, said = status("def f(): 1 / 0\nf()")
    assert code == 1
    plain = subprocess.run(
        [sys.executable, "-c", "def f(): 1 / 0\nf()"], capture_output=True, text=True
    )
    assert said == plain.stderr
    code, said = status("x = (")
    assert code == 1 and "SyntaxError" in said and "greenletio" not in said
    code, said = status("raise KeyboardInterrupt")
    assert code == -signal.SIGINT


def test_what_cannot_be_run(command: Command) -> None:
    done = command("nothing.py")
    assert done.returncode == 2 and "can't open file" in done.stderr
    done = command("-m", "no_such_module")
    assert done.returncode == 1 and "No module named no_such_module" in done.stderr
    for args in ((), ("--loop",), ("--no-such-option", "x"), ("-m",), ("--loop", "no:loop", "x")):
        done = command(*args)
        assert done.returncode == 2 and done.stdout == "" and "greenletio: " in done.stderr
    assert "usage: greenletio" in command("--help").stdout


def test_an_interrupt_is_raised_in_the_main_thread(command: Command) -> None:
    done = command(
        "-c",
        """
import os, signal, threading, time
def hit():
    os.kill(os.getpid(), signal.SIGINT)
for wait in (lambda: time.sleep(60), threading.Event().wait, threading.Lock().acquire):
    lock = threading.Lock()
    threading.Thread(target=hit).start()
    try:
        if wait.__name__ == "acquire":
            lock.acquire()
            lock.acquire()
        else:
            wait()
    except KeyboardInterrupt:
        print("raised", threading.current_thread().name)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
def alarm(*args):
    raise ZeroDivisionError
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.01)
try:
    time.sleep(60)
except ZeroDivisionError:
    print("raised", signal.getsignal(signal.SIGALRM) is alarm)
""",
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["raised MainThread"] * 3 + ["True", "raised True"]


def test_threads_are_waited_for_unless_they_are_daemons(command: Command) -> None:
    done = command(
        "-c",
        """
import atexit, threading, time
def work():
    time.sleep(0.01)
    print("worked")
def idle():
    try:
        time.sleep(60)
    finally:
        print("unwound")
threading.Thread(target=work).start()
threading.Thread(target=idle, daemon=True).start()
atexit.register(print, "at exit")
print("end of main")
""",
    )
    assert done.stdout.splitlines() == ["end of main", "worked", "unwound", "at exit"]
    assert done.returncode == 0 and done.stderr == ""


def test_asyncio_in_a_program(command: Command) -> None:
    done = command(
        "-c",
        """
import asyncio, threading
async def main():
    await asyncio.sleep(0)
    return threading.current_thread() is threading.main_thread()
print(asyncio.run(main()))
""",
    )
    assert done.returncode == 0, done.stderr


def test_main_can_be_pickled_and_stays_after_the_end(command: Command) -> None:
    done = command(
        "--all",
        "-c",
        """
import atexit, pickle, sys
class Thing: pass
print(type(pickle.loads(pickle.dumps(Thing()))) is Thing)
@atexit.register
def end():
    print(sys.modules["__main__"].Thing is Thing)
""",
    )
    assert done.stdout == "True\nTrue\n"


def test_an_interrupt_ends_a_program_that_awaits(command: Command) -> None:
    """What it awaits is asyncio's: cancelled, as asyncio.run does, and the interrupt is told."""
    done = command(
        "-c",
        """
import asyncio, os, signal
from greenletio import await_
async def wait():
    asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGINT)
    await asyncio.sleep(60)
try:
    await_(wait())
except asyncio.CancelledError:
    print("cancelled")
    raise
""",
    )
    assert done.stdout == "cancelled\n"
    assert done.returncode == -signal.SIGINT
