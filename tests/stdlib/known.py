"""asyncio.toml: the tests that our loop is known to fail, each with its reason."""

import sys
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def match(path: Path, tests: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Test to reason, as far as this Python is concerned; and the patterns that match nothing."""
    here = "{}.{}".format(*sys.version_info)
    reasons: dict[str, str] = {}
    unmatched = []
    for entry in tomllib.loads(path.read_text()).get("fails", []):
        if here not in entry.get("pythons", [here]):
            continue
        for pattern in entry["tests"]:
            found = [test for test in tests if fnmatchcase(test, pattern)]
            reasons |= dict.fromkeys(found, entry["reason"])
            if not found:
                unmatched.append(pattern)
    return reasons, unmatched


def patterns(path: Path) -> list[str]:
    """All that are in it."""
    entries = tomllib.loads(path.read_text()).get("fails", [])
    return [pattern for entry in entries for pattern in entry["tests"]]
