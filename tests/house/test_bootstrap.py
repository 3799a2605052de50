"""scripts/bootstrap.sh: what it says when it cannot go on, how little it does the second time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# All that a minimal system has for sure.
TOOLS = "cat cksum dirname env find id mkdir pwd rm sed sh sort uname".split()


class System:
    """A PATH with few programs on it, and a checkout without a virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            self.add(tool, f'exec {found} "$@"')
        self.checkout = folder / "checkout"
        (self.checkout / "scripts").mkdir(parents=True)
        shutil.copy2(ROOT / "scripts" / "bootstrap.sh", self.checkout / "scripts")
        self.python = shutil.which("python3", path=os.path.dirname(sys.executable))

    def add(self, name: str, script: str) -> None:
        program = self.programs / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def bootstrap(self, **environment: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            ["/bin/sh", str(self.checkout / "scripts" / "bootstrap.sh")],
            env={"PATH": str(self.programs), "CC": "no-such-compiler", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout.splitlines()


@pytest.fixture
def system(tmp_path: Path) -> System:
    system = System(tmp_path)
    system.add("python3", f'exec {system.python} "$@"')
    return system


def test_a_python_that_is_too_old_is_refused_by_name(system: System) -> None:
    system.add("python-old", "exit 1")
    code, lines = system.bootstrap(PYTHON="python-old")
    assert code == 1
    assert len(lines) == 1
    assert "python-old" in lines[0]
    assert "3.10" in lines[0]


def test_a_newer_python_is_found_beside_an_old_one(system: System) -> None:
    (system.programs / "python3").rename(system.programs / "python3.12")
    system.add("python3", "exit 1")
    _, lines = system.bootstrap()
    assert "python3-venv" not in lines[0]  # so it does not ask for a Python


def test_without_a_package_manager_one_line_names_what_is_missing(system: System) -> None:
    code, lines = system.bootstrap()
    assert code == 1
    assert len(lines) == 1
    for word in ("gcc", "dnf install"):
        assert word in lines[0]


def test_another_system_than_linux_is_refused_before_anything_else(system: System) -> None:
    system.add("uname", "echo Darwin")
    (system.programs / "python3").unlink()
    code, lines = system.bootstrap()
    assert code == 1
    assert len(lines) == 1
    assert "Linux" in lines[0]
    assert (ROOT / "docs" / "install.md").is_file()


def test_without_python_it_is_what_is_missing(system: System) -> None:
    (system.programs / "python3").unlink()
    code, lines = system.bootstrap()
    assert code == 1
    assert len(lines) == 1
    assert "python3 python3-venv python3-dev" in lines[0]


def test_without_root_one_line_says_what_root_has_to_run(system: System) -> None:
    system.add("apt-get", "echo apt-get was run; exit 1")
    system.add("id", "echo 1000")
    code, lines = system.bootstrap()
    assert code == 1
    assert len(lines) == 1
    assert "apt-get install -y --no-install-recommends gcc libc6-dev" in lines[0]


def test_as_root_it_says_what_it_installs_and_what_failed(system: System) -> None:
    system.add("apt-get", 'echo "apt-get $*"; [ "$1" = update ]')
    system.add("id", "echo 0")
    code, lines = system.bootstrap()
    assert code == 1
    assert lines[0].startswith("greenletio: missing: gcc libc6-dev")
    assert lines[1] == "apt-get update -q"
    assert lines[2].startswith("apt-get install -y --no-install-recommends gcc libc6-dev")
    assert "apt-get failed" in lines[3]
    assert len(lines) == 4


def run(checkout: Path, *command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "VENV"}
    done = subprocess.run(
        command,
        cwd=checkout,
        env={**environment, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_a_checkout_is_made_ready_once_and_again_when_something_changed(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    unwanted = shutil.ignore_patterns(".git", ".venv*", "build", "*.so", "green", "pg", ".*_cache")
    shutil.copytree(ROOT, checkout, ignore=unwanted)
    for name in ("green", "pg"):
        shutil.copytree(ROOT / name, checkout / name)
    use = (".venv/bin/python", "-c", "import greenletio._core, greenletio.green, greenletio.pg")

    assert "making .venv" in run(checkout, "scripts/bootstrap.sh")
    run(checkout, *use)
    assert run(checkout, "scripts/bootstrap.sh") == ""

    # Interrupted: the environment is there, and what marks it as finished is not.
    for stamp in (checkout / ".venv" / "greenletio-stamps").iterdir():
        stamp.unlink()
    assert "making .venv" in run(checkout, "scripts/bootstrap.sh")

    # New code.
    (checkout / "greenletio" / "new.py").write_text("")
    assert "building" in run(checkout, "scripts/bootstrap.sh")
    run(checkout / "tests", "../.venv/bin/python", "-c", "import greenletio.new")

    # Moved.
    moved = checkout.rename(tmp_path / "moved")
    assert "making .venv" in run(moved, "scripts/bootstrap.sh")
    run(moved, *use)
