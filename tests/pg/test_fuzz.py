"""The fuzzer, for a moment, in a process that may crash: `make fuzz` runs it for minutes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


def python(*args: object, dsn: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "DATABASE_URL": dsn, "PYTHONPATH": str(FUZZ.parent)},
        timeout=100,
    )


@pytest.mark.parametrize("seed", [1, int.from_bytes(os.urandom(4), "big")], ids=["same", "new"])
def test_malformed_bytes_of_every_type_are_errors_and_no_crash(dsn, tmp_path, seed):
    case = tmp_path / "case"
    print(f"again by: make fuzz ARGS='--seed {seed}'")  # pytest shows it where the test fails
    done = python(FUZZ, "--seconds", 1, "--seed", seed, "--case", case, dsn=dsn)
    found = case.read_bytes()[:300].rstrip(b"\0") if case.exists() else b""
    assert done.returncode == 0, (done.stdout, done.stderr[-3000:], found)
    assert "no crash" in done.stdout


def test_one_byte_too_many_is_a_crash(dsn):
    code = "import ctypes, fuzz; m = fuzz.Memory().put(b'abc'); "
    read = "ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(m)), {})"
    assert python("-c", code + read.format(3), dsn=dsn).returncode == 0
    crashed = python("-c", code + read.format(4), dsn=dsn)
    assert crashed.returncode == -signal.SIGSEGV or "AddressSanitizer: SEGV" in crashed.stderr
