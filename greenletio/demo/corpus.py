"""The demo's input: the source files of the running Python's standard library.

A file is parsed in pieces of whole statements, so that no single step computes
for long: ``ast.parse`` of one large module would hold a loop for 50 ms or more.
Nothing here waits.
"""

import ast
import io
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Entry", "entries", "module_name", "source_files")

# Not the library proper: its tests, programs that ship with it, generated data.
SKIPPED = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data")
)
PIECE_LINES = 150
_STATEMENT = re.compile(r"(?:async def|def|class)\b|@")
_MEMBER = re.compile(r"    (?:(?:async def|def|class)\b|@)")


@dataclass(frozen=True)
class Entry:
    """One thing that can be found: a module, class, function or method."""

    kind: str
    qualname: str
    line: int
    signature: str
    docstring: str


def source_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def source_files(limit: int | None = None) -> list[Path]:
    """The files to index, always in the same order; ``limit`` of them, spread evenly."""
    root = source_root()
    files = sorted(
        path
        for path in root.rglob("*.py")
        if SKIPPED.isdisjoint(path.relative_to(root).parts)
        and not path.is_relative_to(root / "config")
    )
    if limit is None or limit >= len(files):
        return files
    return [files[i * len(files) // limit] for i in range(limit)]


def module_name(path: Path) -> str:
    parts = path.relative_to(source_root()).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def entries(name: str, text: str) -> Iterator[list[Entry]]:
    """The entries of one source file, a piece at a time; the first is the module itself.

    Text that this Python cannot parse raises SyntaxError.
    """
    lines = io.StringIO(text).readlines()
    first = True
    for prefix, tree, offset in _pieces(lines):
        found: list[Entry] = []
        if first:
            found.append(Entry("module", name, 1, f"import {name}", _docstring(tree)))
            first = False
        # Only the first statement of a piece with a prefix belongs to its class:
        # what else the module says before its next definition may follow it.
        own = 1 if prefix else 0
        _collect(tree.body[:own], name, prefix, offset, lines, found)
        _collect(tree.body[own:], name, "", offset, lines, found)
        yield found


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    # PostgreSQL's text has no NUL, and UTF-8 no lone surrogates.
    text = ast.get_docstring(node) or ""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _collect(
    body: list[ast.stmt],
    module: str,
    prefix: str,
    offset: int,
    lines: list[str],
    found: list[Entry],
) -> None:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            qualname = f"{prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                kind = "class"
            else:
                kind = "method" if prefix else "function"
            line = node.lineno + offset
            signature = lines[line - 1].strip()
            found.append(Entry(kind, f"{module}.{qualname}", line, signature, _docstring(node)))
            if isinstance(node, ast.ClassDef):
                _collect(node.body, module, f"{qualname}.", offset, lines, found)
        elif isinstance(node, ast.If | ast.Try):
            _collect(node.body, module, prefix, offset, lines, found)
            _collect(node.orelse, module, prefix, offset, lines, found)
            for handler in getattr(node, "handlers", ()):
                _collect(handler.body, module, prefix, offset, lines, found)


def _pieces(lines: list[str]) -> Iterator[tuple[str, ast.Module, int]]:
    """Parse ``lines`` in runs of whole statements: (enclosing class, tree, line offset).

    A cut is tried where a definition seems to begin. If that place is inside a
    string or after a decorator, what precedes it does not parse, and grows to
    the next one; so a cut is never wrong.
    """
    cuts = [i for i in range(1, len(lines)) if _STATEMENT.match(lines[i])]
    cuts.append(len(lines))
    begin = 0
    for n, cut in enumerate(cuts):
        last = cut == len(lines)
        following = len(lines) if last else cuts[n + 1]
        # A small run goes on, unless a large statement comes next.
        if not last and following - begin < PIECE_LINES:
            continue
        head = _STATEMENT.match(lines[begin]) if begin < len(lines) else None
        if head is not None and head[0] == "class" and cut - begin > PIECE_LINES:
            yield from _class_pieces(lines, begin, cut)
            begin = cut
            continue
        tree = _parse(lines, begin, cut, must=last)
        if tree is not None:
            yield "", tree, begin
            begin = cut


def _class_pieces(lines: list[str], begin: int, end: int) -> Iterator[tuple[str, ast.Module, int]]:
    """The same for one large class: its head, then its members."""
    cuts = [i for i in range(begin + 1, end) if _MEMBER.match(lines[i])]
    prefix = ""
    for cut in cuts:
        if prefix and cut - begin < PIECE_LINES:
            continue
        tree = _parse(lines, begin, cut, inside=bool(prefix), head=not prefix)
        # A second statement means that the class has ended: what is left stays whole.
        if tree is None or len(tree.body) > 1:
            continue
        yield prefix, tree, begin - bool(prefix)
        if not prefix:
            assert isinstance(tree.body[0], ast.ClassDef)
            prefix = f"{tree.body[0].name}."
        begin = cut
    tree = _parse(lines, begin, end, inside=bool(prefix), must=True)
    assert tree is not None
    yield prefix, tree, begin - bool(prefix)


def _parse(
    lines: list[str],
    start: int,
    end: int,
    *,
    inside: bool = False,
    head: bool = False,
    must: bool = False,
) -> ast.Module | None:
    """Parse lines[start:end], or return None if they are not whole statements (unless ``must``).

    They are the members of a class if ``inside``, or a class without them if ``head``.
    """
    text = "".join(lines[start:end])
    try:
        return ast.parse(f"if True:\n{text}" if inside else f"{text}    pass\n" if head else text)
    except SyntaxError:
        if must:
            raise
        return None
