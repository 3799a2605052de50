"""Scripts of SQL: where one statement ends and the next begins, as psql sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ("Statement", "statements")

# What is whole comes before what only begins with the same characters.
_TOKEN = re.compile(
    r"""
    (?P<blank>\s+|--[^\n]*)
  | (?P<comment>/\*)
  | (?P<quoted>[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|"(?:[^"]|"")*"
      |\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)
  | (?P<open>'|"|\$(?:[^\W\d]\w*)?\$)
  | (?P<word>[^\W\d][\w$]*)
  | (?P<other>.)
    """,
    re.DOTALL | re.VERBOSE,
)
_COMMENT = re.compile(r"/\*|\*/")
_ROUTINE = re.compile(r"create\s+(?:or\s+replace\s+)?(?:function|procedure)\b", re.IGNORECASE)


class Statement(NamedTuple):
    """One statement, without its semicolon, or one of psql's own commands, with its backslash."""

    line: int  # where it begins, from 1
    text: str


def statements(script: str) -> Iterator[Statement]:
    """The statements of a script; what has no end goes to the end of the script.

    A semicolon within quotes, comments, parentheses, or the body of a routine that is written in
    SQL (``BEGIN ATOMIC``) ends none. A backslash where one could begin is a command of psql,
    which goes to the end of its line.
    """
    at, line, end = 0, 1, len(script)
    start, start_line = -1, 0
    parentheses = blocks = 0
    while at < end:
        found = _TOKEN.match(script, at)
        assert found is not None
        kind, text, after = found.lastgroup, found[0], found.end()
        if kind == "comment":
            after = _comment_end(script, after)
        elif text == ";":
            if start >= 0 and not parentheses and not blocks:
                yield Statement(start_line, script[start:at])
                start = -1
        elif text == "\\" and start < 0:
            after = script.find("\n", at) % (end + 1)
            yield Statement(line, script[at:after].rstrip())
        elif kind != "blank":
            if start < 0:
                start, start_line, parentheses, blocks = at, line, 0, 0
            if text == "(":
                parentheses += 1
            elif text == ")":
                parentheses = max(parentheses - 1, 0)
            elif kind == "open":
                after = end
            elif kind == "word":
                blocks += _nesting(text.lower(), blocks, script, start)
        line += script.count("\n", at, after)
        at = after
    if start >= 0:
        yield Statement(start_line, script[start:].rstrip())


def _nesting(word: str, blocks: int, script: str, start: int) -> int:
    """By how much a word changes the depth inside the body of a routine."""
    if word == "begin" and not blocks:
        return int(_ROUTINE.match(script, start) is not None)
    if not blocks:
        return 0
    return {"begin": 1, "case": 1, "end": -1}.get(word, 0)


def _comment_end(script: str, at: int) -> int:
    """Where the comment ends that has begun before `at`: comments are nested."""
    depth = 1
    while depth:
        found = _COMMENT.search(script, at)
        if found is None:
            return len(script)
        depth += 1 if found[0] == "/*" else -1
        at = found.end()
    return at
