"""Runs each script beside this file in a process of its own, and holds it to its docstring.

    Prints:           what stdout must be, line by line; `a | b` allows either, `...` anything
    Stderr: REGEX     what stderr may hold (otherwise it must be empty)
    Exits: N          the exit code, if it is not 0
    Stdin: TEXT       what the script reads (with \\n)
    Needs: PACKAGE    what else must be installed

A script that imports something from _loop is run once for each kind of loop.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fix_missing import missing

HERE = Path(__file__).parent
KINDS = ("asyncio", "uvloop", "greenletio")
SCRIPTS = sorted(p for p in HERE.glob("[a-z]*.py") if not p.name.startswith(("test_", "conftest")))


def cases():
    for path in SCRIPTS:
        source = path.read_text()
        for kind in KINDS if "from _loop import" in source else ("",):
            yield pytest.param(path, kind, id=f"{path.stem}-{kind}".rstrip("-"))


def claims(path):
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    one_line = dict(re.findall(r"^(Exits|Stdin|Needs|Stderr): (.*)$", doc, re.M))
    block = re.search(r"^Prints:\n((?:    .*\n?)*)", doc, re.M)
    assert block, f"{path.name} does not say what it prints"
    return [line[4:] for line in block[1].splitlines()], one_line


def run(path, *args, stdin=None, env=(), options=()):
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *options, str(path), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # PYTHONPATH: the scripts share _loop.py, also where PYTHONSAFEPATH is set (make asan).
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(path.parent), **dict(env)},
    )
    try:
        out, err = process.communicate(stdin, timeout=100)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"{path.name} hangs\n--- stdout\n{out}\n--- stderr\n{err}")
    return process.returncode, out, err


def check(path, code, out, err):
    expected, rest = claims(path)
    said = f"--- stdout\n{out}\n--- stderr\n{err}"
    assert code == int(rest.get("Exits", "0")), f"{path.name} exits with {code}\n{said}"
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else f"(?:{'|'.join(map(re.escape, line.split(' | ')))})\n"
        for line in expected
    )
    assert re.fullmatch(pattern, out.rstrip("\n") + "\n"), f"{path.name} prints\n{said}"
    if "Stderr" in rest:
        assert not err or re.search(rest["Stderr"], err), f"{path.name}\n{said}"
        for bad in ("Fatal Python error", "Segmentation", "AddressSanitizer"):
            assert bad not in err, f"{path.name}\n{said}"
    else:
        assert not err, f"{path.name}\n{said}"


@pytest.mark.parametrize("path, kind", list(cases()))
def test_script(path, kind):
    _, rest = claims(path)
    if "Needs" in rest and importlib.util.find_spec(rest["Needs"]) is None:
        missing(f"the package {rest['Needs']}")
    stdin = rest.get("Stdin", "").replace("\\n", "\n")
    check(path, *run(path, *([kind] if kind else []), stdin=stdin))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how",
    [
        {"options": ["-X", "dev"]},
        {"options": ["-W", "error"]},
        {"env": [("PYTHONMALLOC", "debug")]},
        {"env": [("PYTHONASYNCIODEBUG", "1")]},
        {"env": [("PYTHONHASHSEED", "0")], "options": ["-O"]},
    ],
    ids=lambda how: "-".join(str(x) for v in how.values() for x in v),
)
def test_workout_under_other_settings(kind, how):
    path = HERE / "workout.py"
    code, out, err = run(path, kind, **how)
    err = re.sub(r"^Executing <.*> took .* seconds\n", "", err, flags=re.M)
    check(path, code, out, err)
