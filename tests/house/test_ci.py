"""What runs the project elsewhere names what is there: GitHub's workflows, and the Makefile."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
RECIPES = dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def jobs(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_is_there(workflow: Path) -> None:
    everything = "\n".join(command for job in jobs(workflow).values() for command in commands(job))
    assert set(re.findall(r"\bmake (\S+)", everything)) <= RECIPES.keys()
    for path in re.findall(r"(?:\.ci|scripts)/\S+", everything):
        assert (ROOT / path).is_file()


def test_root_installs_the_servers_before_the_tests_look_for_them() -> None:
    """.ci/run tries, but is not root there; and what is missing fails under CI=true."""
    run = commands(jobs(ROOT / ".github/workflows/ci.yml")["test"])
    assert run.index("sudo scripts/servers.sh") < run.index(".ci/run")


def test_every_python_that_is_promised_has_a_wheel() -> None:
    classifiers = "\n".join(PROJECT["project"]["classifiers"])
    promised = re.findall(r"^Programming Language :: Python :: 3\.(\d+)$", classifiers, re.M)
    assert PROJECT["project"]["requires-python"] == f">=3.{promised[0]}"
    wheels = PROJECT["tool"]["cibuildwheel"]["build"].split()
    assert wheels == [f"cp3{minor}-*" for minor in promised]
    tested = jobs(ROOT / ".github/workflows/ci.yml")["test"]["strategy"]["matrix"]["python"]
    assert {python.partition(".")[2] for python in tested} <= set(promised)


def test_test_all_is_all_that_needs_no_checkout() -> None:
    own = {name for name, recipe in RECIPES.items() if "CHECKOUT" not in recipe}
    wanted = {name for name in own if name.startswith("test-")} - {"test-all"}
    (called,) = re.findall(r"\$\(MAKE\) (.*)", RECIPES["test-all"])
    assert set(called.split()) == wanted | {"leaks", "asan", "fuzz"}
