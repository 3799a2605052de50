"""The leak check itself: it must find each kind of leak, and nothing in a clean test."""

import re
from pathlib import Path

import fix_leaks
import pytest

LEAKS = """
import os, ctypes, threading
import fix_leaks, pytest

pytestmark = pytest.mark.leaks
kept = []
class Thing: pass

@pytest.fixture
def fixture(): return 1
def test_object(fixture): kept.append(Thing())
def test_descriptor(): os.dup(0)
def test_malloc(): ctypes.CDLL(None).malloc(100_000)
@pytest.mark.leaks(False)
def test_not_repeated(): assert False
def test_clean(fixture):
    things = [Thing() for _ in range(1000)]
    things[0].cycle = things

@pytest.fixture(scope="session")
def session(): return 1
@pytest.fixture
def whole(session):
    yield [Thing()]
@pytest.mark.leaks(fresh=True)
def test_uses_its_fixture_up(whole): whole.pop()
@pytest.mark.leaks(fresh=True)
def test_keeps_its_fixture(whole): kept.append(whole)

cache = []
fix_leaks.forget.append(cache.clear)
def test_cache(): cache.append(Thing())
"""


@pytest.fixture
def outcome(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.RunResult:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text()
    tunables = re.search(r"GLIBC_TUNABLES=(\S+)", makefile)
    assert tunables is not None
    monkeypatch.setenv("GLIBC_TUNABLES", tunables[1])
    monkeypatch.setenv("PYTHONPATH", str(Path(fix_leaks.__file__).parent))
    pytester.makepyfile(LEAKS, test_other="def test_not_marked(): assert False")
    return pytester.runpytest_subprocess("-p", "fix_leaks", "--leaks", "-p", "no:cacheprovider")


def test_every_kind_of_leak_is_found_and_named(outcome: pytest.RunResult) -> None:
    outcome.assert_outcomes(failed=4, passed=3, deselected=2)
    outcome.stdout.fnmatch_lines(
        [
            "*objects of type *.Thing",
            "*open file descriptors",
            "*bytes of malloc",
            "*_ test_keeps_its_fixture _*",
        ],
        consecutive=False,
    )
