"""The interpreter survives what hostile.py does; each case is a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("hostile.py")


def cases():
    """The functions of the script that take a dsn: it is not imported, since it may crash."""
    for line in SCRIPT.read_text().splitlines():
        if line.startswith("def ") and line.endswith("(dsn):"):
            yield line[4:].partition("(")[0]


@pytest.mark.parametrize("case", list(cases()))
def test_no_crash(case, dsn):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(SCRIPT), case, dsn],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
