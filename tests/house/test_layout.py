"""Rules of the layout that a reader relies on."""

import ast
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from types import ModuleType

import pytest
from fix_missing import missing

import greenletio

ROOT = Path(__file__).resolve().parents[2]
C_FILES = sorted(ROOT.glob("csrc/*/*.c"))
STUBS = sorted(ROOT.glob("greenletio/_*.pyi"))


def public_modules() -> list[str]:
    """All that users import: no underscore in the path, and not the demo, which is a program."""
    found = [greenletio.__name__]
    for module in pkgutil.walk_packages(greenletio.__path__, "greenletio."):
        parts = module.name.split(".")[1:]
        if not any(part.startswith("_") for part in parts) and parts[0] != "demo":
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", ["green", "pg"])
def test_a_folder_imported_under_its_bare_name_says_what_to_import(name: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"import greenletio.{name}" in last


@pytest.mark.parametrize("name", ["greenletio.green", "greenletio.pg"])
def test_the_folder_beside_the_package_is_part_of_it(name: str) -> None:
    assert importlib.import_module(name).__name__ == name


@pytest.mark.parametrize("name", public_modules())
def test_all_names_what_is_public_and_nothing_else(name: str) -> None:
    module = importlib.import_module(name)
    assert isinstance(module.__all__, tuple)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        if not hasattr(module, public):  # as `from package import *` does
            importlib.import_module(f"{name}.{public}")
    if not name.startswith("greenletio.green."):  # there it is the standard library's
        assert sorted(defined_in(module) - set(module.__all__)) == []


#: By type(): a lazy object, such as Django's settings, is not to be woken by isinstance().
DEFINED = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def defined_in(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and issubclass(type(value), DEFINED)
        and value.__module__ == module.__name__
    }


def test_importing_makes_no_thread_file_or_loop() -> None:
    code = f"""
import asyncio, importlib, os, sys, threading
before = os.listdir("/dev/fd")
made = []
asyncio.set_event_loop = made.append
new_event_loop = asyncio.new_event_loop
asyncio.new_event_loop = lambda: made.append(1) or new_event_loop()
for name in {public_modules()!r}:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
assert os.listdir("/dev/fd") == before
assert made == []
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_everybody_imports_needs_no_package_that_is_not_declared() -> None:
    optional = ("greenletio.integrations.", "greenletio.pg")
    code = f"""
import importlib, sys
declared = {{"greenlet", "greenletio", "exceptiongroup", *sys.stdlib_module_names}}
declared.add("typing_extensions" if sys.version_info < (3, 11) else "")  # exceptiongroup's

class Refuse:
    def find_spec(self, name, path, target=None):
        if path is None and name not in declared and not name.startswith("__editable__"):
            raise ImportError(f"{{name}} is not declared", name=name)

sys.meta_path.insert(0, Refuse())
for name in {[name for name in public_modules() if not name.startswith(optional)]!r}:
    importlib.import_module(name)
import greenletio
greenletio.patch_all, greenletio.portal, greenletio.patch_blocking
greenletio.patch_all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: path.stem)
def test_a_stub_has_the_names_of_its_module(stub: Path) -> None:
    # Signatures are compared by `make types`; the names here, on every Python.
    declared = set()
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            declared.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared.add(node.target.id)
    module = importlib.import_module(f"greenletio.{stub.stem}")
    public = {name for name in vars(module) if not name.startswith("_")}
    assert public == {name for name in declared if not name.startswith("_")}


def test_an_extension_exports_nothing_but_its_init_function() -> None:
    if os.environ.get("GREENLETIO_SANITIZE") == "1":
        pytest.skip("an instrumented build exports the sanitizer's symbols")
    if shutil.which("nm") is None:
        missing("nm is not installed: apt-get install binutils")
    for stub in STUBS:
        file = importlib.import_module(f"greenletio.{stub.stem}").__file__
        assert file is not None
        listed = subprocess.run(
            ["nm", "-D", "--defined-only", file], capture_output=True, text=True
        )
        names = {line.split()[-1] for line in listed.stdout.splitlines()}
        assert names - {"_init", "_fini"} == {f"PyInit_{stub.stem}"}


def test_exactly_one_file_includes_greenlet() -> None:
    # greenlet's header makes its API pointer static: a second file would have an empty one.
    including = [
        path.name
        for path in C_FILES
        if re.search(r"#\s*include.*greenlet/greenlet\.h", path.read_text())
    ]
    assert len(including) == 1


def test_the_map_of_the_code_names_every_file_in_c() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w*]+\.c)`", text))
    files = {re.sub("^codec_.*", "codec_*.c", path.name) for path in C_FILES}
    assert sorted(files - named) == []


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_c_file_says_its_job_and_has_one(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("/* ")
    assert text.count("\n") <= 700
