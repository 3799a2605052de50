"""What README.md and the pages under docs/ show works as it stands there."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import greenletio

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGES.md", *PAGES)
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {
    f"{document}-{number}": block
    for document in ("README.md", *PAGES)
    for number, (language, block) in enumerate(BLOCK.findall((ROOT / document).read_text()))
    if language == "python" and not block.startswith("# env.py\n")  # Alembic's tests run that one
}
TESTS = [name for name in BLOCKS if "\ndef test_" in BLOCKS[name]]
PROGRAMS = [name for name in BLOCKS if name not in TESTS]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_block_runs_as_a_program(name: str, pg_dsn: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(BLOCKS[name])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, "DATABASE_URL": pg_dsn},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", TESTS)
def test_a_block_of_tests_passes(name: str, tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(BLOCKS[name])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_there_are_blocks_to_run() -> None:
    assert len(PROGRAMS) > 50 and TESTS


@pytest.mark.parametrize("document", ["README.md", *PAGES])
def test_what_is_python_says_so(document: str) -> None:
    text = (ROOT / document).read_text()
    others = [block for language, block in BLOCK.findall(text) if language == ""]
    others += re.findall(r"^    (\S.*)$", BLOCK.sub("", text), re.MULTILINE)
    python = re.compile(r"^(import |from |def |async |class |with |@|\w+ = )", re.MULTILINE)
    assert [other for other in others if python.search(other)] == []


def test_the_names_that_the_migration_page_gives_exist() -> None:
    page = (ROOT / "docs/migrating.md").read_text()
    rows = re.findall(r"^\|[^|]*\|[^|]*\|([^|]*)\|$", page, re.MULTILINE)
    later = [re.search(r"\(Python 3\.(\d+)\)", cell) for cell in rows]
    rows = [
        cell
        for cell, since in zip(rows, later, strict=True)
        if since is None or int(since[1]) <= sys.version_info[1]
    ]
    names = {name for cell in rows for name in re.findall(r"`([A-Za-z_][\w.]*)", cell)}
    checked = 0
    for name in names:
        first, _, rest = name.partition(".")
        if first == "green" and rest:
            name = f"greenletio.{name}"
        elif first in ("debug", "io", "threads") or hasattr(greenletio, first):
            name = f"greenletio.{name}"
        else:
            continue
        pkgutil.resolve_name(name)
        checked += 1
    assert checked > 40


@pytest.mark.parametrize("module", ["greenletio", "greenletio.pg", "greenletio.pg.aio"])
def test_the_reference_has_every_public_name(module: str) -> None:
    pages = "".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    named = set(re.findall(r"\w+", pages)) | set(greenletio.errors.__all__)
    assert sorted(set(importlib.import_module(module).__all__) - named) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = re.findall(r"`([^`\n]+)`", text) + text.split("```")[1::2]
    made = {name for part in code for name in re.findall(r"\bmake ([a-z-]+)", part)}
    assert made <= {*targets, "git"}
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", text)
    files = [link.partition("#")[0] for link in links]  # `make docs` looks at the rest
    assert [file for file in files if not (ROOT / document).parent.joinpath(file).exists()] == []


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page, and MyST as well."""
    text = BLOCK.sub("", page.read_text())
    if included := re.search(r"^```{include} (\S+)", page.read_text()):
        return anchors(page.parent / included[1])
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_where_a_document_leads_within_a_page_is_a_heading(document: str) -> None:
    page = ROOT / document
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / path if path else page), (path, anchor)
