"""The sdist: made of a bare checkout, built where what it needs is there, clear where it is not."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The headers and programs that are named seem to be missing, wherever they are.
SETUP = """
import pathlib, runpy, shutil, sys, sysconfig

sysconfig.get_config_vars()  # of the system that this is
hidden = set({hidden!r})
is_file, which = pathlib.Path.is_file, shutil.which
pathlib.Path.is_file = lambda path: path.name not in hidden and is_file(path)
shutil.which = lambda name, *rest, **more: None if name in hidden else which(name, *rest, **more)
sys.platform = {platform!r}
sys.argv = ["setup.py", "-q", *{arguments!r}]
runpy.run_path("setup.py", run_name="__main__")
"""
NEEDS = {
    "libevent-dev": "event.h",
    "libpq-dev": "libpq-fe.h",
    f"python3.{sys.version_info.minor}-dev": "Python.h",
    "gcc": "no-compiler",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what an sdist is made of, in which nothing was built."""
    copy = tmp_path_factory.mktemp("sdist") / "checkout"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=unwanted, symlinks=True)
    for link in (copy / "greenletio" / "green", copy / "greenletio" / "pg"):
        link.unlink(missing_ok=True)
    return copy


def setup(
    folder: Path, *arguments: str, hidden: tuple[str, ...] = (), platform: str = "linux"
) -> "subprocess.CompletedProcess[str]":
    code = SETUP.format(hidden=hidden, platform=platform, arguments=arguments)
    environment = {key: value for key, value in os.environ.items() if key != "PG_CONFIG"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**environment, "CC": "no-compiler"} if "no-compiler" in hidden else environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    done = setup(checkout, "sdist", "--dist-dir", str(out), hidden=tuple(NEEDS.values()))
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.tar.gz")
    return made


def test_it_is_made_without_what_a_build_needs_and_holds_all_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for pattern in ("csrc/*/*", "greenletio/**/*.py*", "green/*.py", "pg/**/*.py", "docs/**/*.md"):
        files = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}
        files = {name for name in files if not name.endswith((".pyc", ".so"))}
        assert files
        assert sorted(files - names - linked(files)) == []


def linked(files: set[str]) -> set[str]:
    """Those that a build in place shows a second time, below the package."""
    return {name for name in files if name.startswith(("greenletio/green/", "greenletio/pg/"))}


@pytest.mark.parametrize("package", NEEDS)
def test_what_is_missing_is_named_with_the_package_that_has_it(
    checkout: Path, package: str
) -> None:
    done = setup(checkout, "build_ext", hidden=(NEEDS[package],))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "cannot be built" in line]
    assert NEEDS[package] in line and f" {package}" in line
    for other in NEEDS.keys() - {package}:
        assert f" {other}" not in line.partition("Fedora")[0]


def test_all_that_is_missing_is_named_at_once(checkout: Path) -> None:
    done = setup(checkout, "build_ext", hidden=tuple(NEEDS.values()))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "cannot be built" in line]
    assert all(f" {package}" in line for package in NEEDS)


def test_another_system_is_refused_before_anything_is_asked_for(checkout: Path) -> None:
    done = setup(checkout, "build_ext", hidden=tuple(NEEDS.values()), platform="freebsd14")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("Use it on Linux, so far")


@pytest.mark.slow
def test_pip_builds_it_by_itself(sdist: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", sdist], check=True)
    done = subprocess.run(
        [python, "-m", "greenletio", "doctor"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path}/venv/" in done.stdout
