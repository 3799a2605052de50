"""Parsing in pieces must find what parsing whole files finds: checked on the real library."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

from greenletio.demo.corpus import Entry, entries, module_name, source_files, source_root


def whole(name: str, text: str) -> set[tuple[str, str, int, str]]:
    """(kind, name, line, docstring) of all that a file defines outside of functions."""
    found = {("module", name, 1, ast.get_docstring(ast.parse(text)) or "")}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                qualname = f"{prefix}.{child.name}"
                kind = "class" if isinstance(child, ast.ClassDef) else "function"
                found.add((kind, qualname, child.lineno, ast.get_docstring(child) or ""))
                if isinstance(child, ast.ClassDef):
                    visit(child, qualname)
            elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler):
                visit(child, prefix)

    visit(ast.parse(text), name)
    return found


def in_pieces(name: str, text: str) -> list[Entry]:
    return [entry for piece in entries(name, text) for entry in piece]


def test_pieces_find_what_whole_files_hold() -> None:
    everything = source_files()
    assert len(everything) > 300
    # The largest are cut most; managers.py ends a class inside an `if`; three have form feeds.
    largest = sorted(everything, key=lambda path: path.stat().st_size)[-12:]
    tricky = ("managers.py", "generator.py", "charset.py", "message.py")
    for path in {*source_files(80), *largest, *(p for p in everything if p.name in tricky)}:
        with tokenize.open(path) as file:
            text = file.read()
        name = module_name(path)
        got = in_pieces(name, text)
        assert len(got) == len(set(got)), path
        seen = {
            (e.kind.replace("method", "function"), e.qualname, e.line, e.docstring) for e in got
        }
        clean = {
            (k, n, line, d.encode("utf-8", "replace").decode().replace("\0", ""))
            for k, n, line, d in whole(name, text)
        }
        assert seen == clean, path


def test_no_piece_is_a_whole_large_file() -> None:
    path = source_root() / "_pydecimal.py"
    with tokenize.open(path) as file:
        text = file.read()
    pieces = list(entries("_pydecimal", text))
    lines = [piece[0].line for piece in pieces if piece]
    longest = max(b - a for a, b in zip(lines, lines[1:], strict=False))
    assert len(pieces) > 20
    assert longest < len(io.StringIO(text).readlines()) / 10


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ('"""d\nclass A: pass\n"""\ndef f(): pass\n', ["f"]),
        (
            "class A:\n    '''\n    def no(self): pass\n    '''\n    def m(self): pass\n",
            ["A", "A.m"],
        ),
        ("if 1:\n    def f(): pass\nelse:\n    def g(): pass\n", ["f", "g"]),
    ],
)
def test_strings_are_not_statements(
    monkeypatch: pytest.MonkeyPatch, text: str, names: list[str]
) -> None:
    # Cut wherever it may be cut.
    monkeypatch.setattr("greenletio.demo.corpus.PIECE_LINES", 0)
    assert [e.qualname for e in in_pieces("m", text)] == ["m", *(f"m.{n}" for n in names)]


def test_text_that_is_no_python_says_so() -> None:
    with pytest.raises(SyntaxError):
        in_pieces("m", "def f(:\n")


def test_a_limit_spreads_over_the_library() -> None:
    some = source_files(10)
    assert len(some) == len(set(some)) == 10
    assert set(some) <= set(source_files())
    assert len({Path(path).name[0] for path in some}) > 3
