"""The soak: a minute of it among the slow tests, and what it must not overlook."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("soak.py")


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_minute_leaves_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(SCRIPT), "--minutes", "1"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "flat"


FLAT = {"memory, KiB": 50_000, "blocks": 100_000, "fds": 15, "tasks": 1}


def verdict(soak: Any, samples: list[dict[str, int]], **after: int) -> list[str]:
    it = soak.Soak(1, (None, None))
    it.done = Counter({fn.__name__: 1 for fn in soak.MOVES})
    found: list[str] = soak.verdict(it, [*samples, {**FLAT, **after}, FLAT])
    return found


def test_what_stays_is_flat(soak: ModuleType) -> None:
    assert verdict(soak, [FLAT] * 12) == []


@pytest.mark.parametrize(
    "what, each", [("memory, KiB", 2000), ("blocks", 400), ("fds", 1)], ids=lambda x: str(x)
)
def test_what_grows_is_told(soak: ModuleType, what: str, each: int) -> None:
    samples = [{**FLAT, what: FLAT[what] + each * n} for n in range(12)]
    (wrong,) = verdict(soak, samples)
    assert wrong.startswith(f"{what} grows")


def test_what_is_left_is_told(soak: ModuleType) -> None:
    assert verdict(soak, [FLAT] * 12, fds=30) == ["fds: 15 before, 30 after"]
    assert verdict(soak, [FLAT] * 12, tasks=2) == ["tasks: 1 before, 2 after"]


def test_a_run_that_tells_nothing_is_none(soak: ModuleType) -> None:
    assert "too short" in verdict(soak, [FLAT] * 4)[-1]
    assert soak.verdict(soak.Soak(1, (None, None)), [FLAT] * 14)[0].startswith("never done")
