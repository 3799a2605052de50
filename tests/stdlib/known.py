"""asyncio.toml: the tests that our loop is known to fail, each with its reason."""

import sys
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def match(path: Path, tests: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Test to reason, as far as this Python is concerned; and the patterns that match nothing."""
    reasons: dict[str, str] = {}
    unmatched = []
    for entry in _entries(path):
        for pattern in entry["tests"]:
            found = [test for test in tests if fnmatchcase(test, pattern)]
            reasons |= dict.fromkeys(found, entry["reason"])
            if not found:
                unmatched.append(pattern)
    return reasons, unmatched


def _entries(path: Path) -> list[dict[str, Any]]:
    here = "{}.{}".format(*sys.version_info)
    entries = tomllib.loads(path.read_text()).get("fails", [])
    return [entry for entry in entries if here in entry.get("pythons", [here])]


def patterns(path: Path) -> list[str]:
    """All that concern this Python."""
    return [pattern for entry in _entries(path) for pattern in entry["tests"]]
