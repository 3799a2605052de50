"""pytest plugin: SQL files as pgTAP tests, a pytest item for each assertion.

    pytest --pgtap --pgtap-dsn postgresql:///mydb tests/sql

Off unless ``--pgtap`` is given. A file is run while it is collected, for only then is it known
what it asserts; the items say what came of it, one for each assertion, and one named ``script``
for the rest: it ran to its end without an error, and its plan was kept. ``docs/pgtap.md`` has the
options, what of psql's commands is understood, and how scripts are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from greenletio.integrations._pgtap import Script
    from greenletio.integrations._tap import Assertion

__all__ = (
    "Failed",
    "PgTapFile",
    "PgTapItem",
    "PgTapScript",
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_collect_file",
)


class Failed(Exception):
    """What an item fails with: its text is all there is to say."""


class _Hooks:
    """What conftest.py may define."""

    @pytest.hookspec(firstresult=True)
    def pytest_pgtap_dsn(self, config: pytest.Config) -> str | None:
        """Where the scripts run, unless --pgtap-dsn says so: a connection string or URL.

        It may make a database first, and ``pytest.skip()`` where there is none to be had.
        """


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make ``pytest_pgtap_dsn`` known."""
    pluginmanager.add_hookspecs(_Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, and what pytest.ini or pyproject.toml may say instead."""
    group = parser.getgroup("pgtap", "pgTAP")
    group.addoption("--pgtap", action="store_true", help="run SQL files as pgTAP tests")
    group.addoption("--pgtap-dsn", metavar="DSN", help="the database: a libpq connection string")
    group.addoption(
        "--pgtap-isolation",
        choices=("transaction", "schema"),
        help="run each file in a transaction that is rolled back (the default), or in a schema "
        "that is dropped",
    )
    group.addoption(
        "--pgtap-timeout", type=float, metavar="SECONDS", help="limit of a file (default: 60)"
    )
    parser.addini("pgtap_dsn", "the database: a libpq connection string", default="")
    parser.addini("pgtap_files", "which files are pgTAP tests", type="args", default=["*.sql"])
    parser.addini("pgtap_isolation", "transaction or schema", default="transaction")
    parser.addini("pgtap_timeout", "limit of a file in seconds", default="60")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> PgTapFile | None:
    """A file of the patterns in ``pgtap_files``, or one that is named, is a test."""
    config = parent.config
    if not config.getoption("--pgtap"):
        return None
    patterns: list[str] = config.getini("pgtap_files")
    named = file_path.suffix == ".sql" and parent.session.isinitpath(file_path)
    if named or any(file_path.match(pattern) for pattern in patterns):
        made: PgTapFile = PgTapFile.from_parent(parent, path=file_path)
        return made
    return None


class PgTapFile(pytest.File):
    """A SQL file. Collecting it runs it."""

    def collect(self) -> Iterator[pytest.Item]:
        """Run the script, and give what it said, item by item."""
        from greenletio.integrations._pgtap import Script, Unusable  # only where it is used

        script = Script(self._dsn(), self._isolation(), self._timeout())
        try:
            script.run(self.path)
        except Unusable as exc:
            raise self.CollectError(str(exc)) from None
        names: dict[str, int] = {}
        for assertion in script.tap.assertions:
            # pytest takes "::" in the name of an item for the end of one.
            name = assertion.description.replace("::", ":") or f"test {assertion.number}"
            count = names[name] = names.get(name, 0) + 1
            name = f"{name} ({count})" if count > 1 else name
            yield PgTapItem.from_parent(self, name=name, assertion=assertion)
        yield PgTapScript.from_parent(self, name="script", script=script)

    def _dsn(self) -> str:
        option: str | None = self.config.getoption("--pgtap-dsn")
        if option is None:
            option = self.ihook.pytest_pgtap_dsn(config=self.config)
        return self.config.getini("pgtap_dsn") if option is None else option

    def _isolation(self) -> str:
        chosen: str = self.config.getoption("--pgtap-isolation") or self.config.getini(
            "pgtap_isolation"
        )
        if chosen not in ("transaction", "schema"):
            raise pytest.UsageError(f"pgtap_isolation is 'transaction' or 'schema', not {chosen!r}")
        return chosen

    def _timeout(self) -> float:
        given = self.config.getoption("--pgtap-timeout")
        try:
            seconds = float(self.config.getini("pgtap_timeout") if given is None else given)
        except ValueError:
            seconds = 0.0
        if seconds <= 0:
            raise pytest.UsageError("pgtap_timeout is a number of seconds above 0")
        return seconds


class _Item(pytest.Item):
    line = 1

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.line - 1, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, Failed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)


class PgTapItem(_Item):
    """One assertion of a script."""

    def __init__(self, *, assertion: Assertion, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.assertion = assertion
        self.line = assertion.line
        if assertion.directive == "skip":
            self.add_marker(pytest.mark.skip(reason=assertion.reason))
        elif assertion.directive == "todo":
            self.add_marker(pytest.mark.xfail(reason=assertion.reason, strict=False))

    def runtest(self) -> None:
        """Fail if the assertion did."""
        made = self.assertion
        if not made.passed:
            title = f"{self.path.name}:{made.line}: not ok {made.number} - {made.description}"
            raise Failed("\n".join([title.rstrip(" -"), *made.diagnostics]))


class PgTapScript(_Item):
    """The script as a whole."""

    def __init__(self, *, script: Script, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.script = script
        if script.tap.skipped is not None and not script.problems:
            self.add_marker(pytest.mark.skip(reason=script.tap.skipped))

    def runtest(self) -> None:
        """Fail if it did not end as planned; after ``Bail out!`` nothing else runs."""
        script = self.script
        if script.tap.bailed_out is not None:
            self.session.shouldfail = f"Bail out! {script.tap.bailed_out}".strip()
        if script.problems:
            raise Failed("\n".join([*script.problems, *script.tap.diagnostics]))
