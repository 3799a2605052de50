"""TAP, the Test Anything Protocol: what a test script says, read line by line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

__all__ = ("Assertion", "Tap")

_PLAN = re.compile(r"1\.\.(?P<count>\d+)\s*(?:#\s*skip\S*\s*(?P<why>.*))?$", re.IGNORECASE)
_RESULT = re.compile(r"(?P<failed>not )?ok\b\s*(?P<number>\d+)?\s*(?:- )?(?P<rest>.*)$")
_DIRECTIVE = re.compile(r"(?:^|\s+)#\s*(?P<kind>skip|todo)\S*\s*(?P<why>.*)$", re.IGNORECASE)
_BAIL_OUT = re.compile(r"bail out!\s*(?P<why>.*)$", re.IGNORECASE)
_ESCAPED = re.compile(r"\\([#\\])")


@dataclass
class Assertion:
    """One ``ok`` or ``not ok``."""

    number: int  # that the script gave it, or the next one
    passed: bool
    description: str
    line: int  # of the script
    directive: Literal["skip", "todo"] | None = None
    reason: str = ""
    diagnostics: list[str] = field(default_factory=list)


class Tap:
    """What a script has said so far."""

    def __init__(self) -> None:
        self.assertions: list[Assertion] = []
        self.planned: int | None = None
        self.skipped: str | None = None  # the reason, if the plan is to run nothing
        self.bailed_out: str | None = None
        self.problems: list[str] = []
        self.diagnostics: list[str] = []  # of the script as a whole
        self._indented: list[str] = []

    def feed(self, text: str, line: int) -> None:
        """Take what a statement at a line of the script has said; lines that are no TAP are none of
        our business."""
        for said in text.splitlines():
            self._take(said, line)

    def remark(self, text: str) -> None:
        """Something about what was said last."""
        assertions = self.assertions
        about = assertions[-1].diagnostics if assertions else self.diagnostics
        about.extend(text.splitlines())

    def _take(self, said: str, line: int) -> None:
        if said[:1] in (" ", "\t"):  # a subtest's: it belongs to the result that sums it up
            self._indented.append(said)
        elif found := _RESULT.match(said):
            self._result(found, line)
        elif found := _PLAN.match(said):
            if self.planned is not None:
                self.problems.append(f"line {line}: a second plan: {said}")
            self.planned = int(found["count"])
            if not self.planned and found["why"] is not None:
                self.skipped = found["why"]
        elif found := _BAIL_OUT.match(said):
            self.bailed_out = found["why"]
        elif said.startswith("# Looks like you"):
            self.diagnostics.append(said)
        elif said.startswith("#"):
            self.remark(said)

    def _result(self, found: re.Match[str], line: int) -> None:
        expected = len(self.assertions) + 1
        number = int(found["number"] or expected)
        if number != expected:
            self.problems.append(f"line {line}: test {number} came where {expected} was due")
        made = Assertion(number, found["failed"] is None, found["rest"], line)
        if directive := _DIRECTIVE.search(made.description):
            made.description = made.description[: directive.start()]
            made.directive = "skip" if directive["kind"].lower() == "skip" else "todo"
            made.reason = directive["why"].strip()
        made.description = _ESCAPED.sub(r"\1", made.description).strip()
        made.diagnostics, self._indented = self._indented, []
        self.assertions.append(made)

    def verdict(self) -> list[str]:
        """What is wrong with the script as a whole, now that it has ended by itself."""
        problems = list(self.problems)
        ran = len(self.assertions)
        if self.planned is None:
            problems.append(
                "no plan: begin with SELECT plan(n) or SELECT * FROM no_plan(), and end with "
                "SELECT * FROM finish()"
            )
        elif self.planned != ran:
            problems.append(f"{self.planned} tests were planned, {ran} ran")
        return problems
