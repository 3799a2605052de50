"""Runs a pgTAP script: its statements one by one, on a connection of its own."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from greenletio import pg
from greenletio.errors import GreenletioError
from greenletio.integrations._tap import Tap
from greenletio.pg._script import statements

__all__ = ("Script", "Unusable")

# Commands of psql that only say how it prints, or what it does after an error.
_PRINTING = frozenset("a echo encoding errverbose f H pset qecho t timing T unset warn x".split())
# Of statements that begin or end a transaction.
_TRANSACTION = re.compile(
    r"(?:begin|start\s+transaction|commit|end|abort|prepare\s+transaction"
    r"|rollback(?!\s+(?:work\s+|transaction\s+)?to\b))\b",
    re.IGNORECASE,
)
_DEEPEST = 16  # inclusion


class Unusable(GreenletioError):
    """The script cannot be begun: no database, or not a script that can be run here."""


class _Step(NamedTuple):
    path: Path
    line: int
    text: str

    def located(self, exc: pg.Error) -> str:
        """An error with its place in the script, and what else the server has said."""
        lines, at = self.text.splitlines() or [""], 0
        if exc.diag.statement_position is not None:
            at = self.text.count("\n", 0, int(exc.diag.statement_position) - 1)
        said = [f"{self.path.name}:{self.line + at}: {type(exc).__name__}: {exc.message}"]
        said += [lines[at]] if lines[at] else []
        for name in ("detail", "hint", "context"):
            if value := getattr(exc, name):
                said.append(f"{name.upper()}:  {value}")
        return "\n".join(said)


class Script:
    """A run of one file: ``tap`` is what it said, ``problems`` what is wrong with it as a whole."""

    def __init__(self, dsn: str, isolation: str, timeout: float) -> None:
        self._dsn = dsn
        self._isolation = isolation
        self._timeout = timeout
        self.tap = Tap()
        self.problems: list[str] = []

    def run(self, path: Path) -> None:
        """Run a file to its end; Unusable if it could not begin. Blocks."""
        steps = list(_steps(path, 0))
        end = time.monotonic() + self._timeout
        try:
            connection = pg.connect(self._dsn, autocommit=True, timeout=self._timeout)
        except (pg.Error, TimeoutError) as exc:
            raise Unusable(
                f"pgTAP has no database: {str(exc) or f'no answer within {self._timeout:g} s'}\n"
                "Name one by --pgtap-dsn, by pgtap_dsn in the configuration, or by libpq's "
                "environment variables (PGHOST, PGDATABASE, ...)."
            ) from exc
        connection.add_notice_handler(
            lambda notice: self.tap.remark(f"# {notice.severity}: {notice.message_primary}")
        )
        try:
            self._run(connection, steps, end)
        finally:
            connection.raw.terminate()  # what the server still does is of no use to anybody

    def _run(self, connection: pg.Connection[Any], steps: list[_Step], end: float) -> None:
        step = _Step(steps[0].path if steps else Path(), 1, "")
        try:
            with self._apart(connection, steps):
                for step in steps:
                    self._take(connection, step, max(end - time.monotonic(), 0.0))
                    if self.tap.bailed_out is not None:
                        self.problems.append(f"Bail out! {self.tap.bailed_out}".strip())
                        break
        except pg.Error as exc:
            self.problems.append(step.located(exc))
            if self.tap.planned is None and not connection.closed:
                connection.rollback()
                self.problems += _what_is_missing(connection)
        except TimeoutError:
            self.problems.append(
                f"{step.path.name}:{step.line}: the script did not end within {self._timeout:g} s"
            )
        if not self.problems:
            self.problems = self.tap.verdict()
        elif self.tap.planned is not None:
            ran = len(self.tap.assertions)
            self.problems.append(f"{ran} of {self.tap.planned} planned tests had run")

    def _take(self, connection: pg.Connection[Any], step: _Step, timeout: float) -> None:
        cursor = connection.execute(step.text, timeout=timeout)
        for row in cursor if cursor.description is not None else ():
            # As psql prints it.
            self.tap.feed("|".join("" if v is None else str(v) for v in row), step.line)

    @contextmanager
    def _apart(self, connection: pg.Connection[Any], steps: list[_Step]) -> Iterator[None]:
        """So that nothing is left of what the script makes."""
        if self._isolation == "transaction":
            own = any(_TRANSACTION.match(step.text) for step in steps)
            if not own:
                connection.execute("BEGIN")
            yield
            return
        name = f"pgtap_{secrets.token_hex(6)}"
        connection.execute(f"CREATE SCHEMA {name}")
        try:
            path = f"concat_ws(', ', '{name}', current_setting('search_path'))"
            connection.execute(f"SELECT set_config('search_path', {path}, false)")
            yield
        finally:
            with pg.connect(self._dsn, timeout=self._timeout) as other:
                if not connection.closed:
                    connection.rollback()
                other.execute(f"DROP SCHEMA {name} CASCADE", timeout=self._timeout)


def _steps(path: Path, depth: int) -> Iterator[_Step]:
    try:
        script = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise Unusable(f"{path} cannot be read: {exc}") from None
    for line, text in statements(script):
        if not text.startswith("\\"):
            yield _Step(path, line, text)
            continue
        name, _, rest = text[1:].partition(" ")
        rest = rest.strip().strip("'\"")
        if name in ("i", "ir", "include", "include_relative") and depth < _DEEPEST:
            yield from _steps((path.parent if "r" in name else Path()) / rest, depth + 1)
        elif name not in _PRINTING and not (name == "set" and rest[:1].isupper()):
            raise Unusable(
                f"{path}:{line}: {text}: this command of psql means nothing here. \\i and \\ir "
                "include files, and what is about printing is passed over."
            )


def _what_is_missing(connection: pg.Connection[Any]) -> list[str]:
    """What to do if pgTAP itself is not there."""
    found = connection.execute(
        "SELECT installed_version FROM pg_available_extensions WHERE name = 'pgtap'"
    ).fetchone()
    if found is None:
        return [
            "The server has no extension pgtap: install it there (Debian's packages "
            "postgresql-15-pgtap and the like, or https://pgtap.org)."
        ]
    if found[0] is None:
        name = connection.execute("SELECT current_database()").fetchall()[0][0]
        return [f"The database {name} has no pgTAP: run CREATE EXTENSION pgtap in it."]
    return []
