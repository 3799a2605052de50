"""Runs one module of CPython's tests in this process; run.py is the parent.

The request is one JSON line on stdin; what happens is told in JSON lines on stdout, each test's
start before it starts, so that the parent knows what a crash or a hang was in. A test that takes
longer than its limit ends the process, with the stacks of all threads on stderr.
"""

import faulthandler
import json
import os
import signal
import sys
import tempfile
import unittest
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from typing import Any, TextIO

import swap

# Seconds for a test that is known to fail: it may be one that hangs.
KNOWN_LIMIT = 10.0

# They run the tests of a class before them with another selector.
REPEATS = {"PollEventLoopTests", "SelectEventLoopTests"}

# They call the loopback interface a network.
LOCAL_NETWORK = {"test_socketserver"}


def cases(suite: unittest.TestSuite) -> Iterator[Any]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        else:
            yield test


def short_id(test: Any, package: str) -> str:
    """test_events.EPollEventLoopTests.test_call_later"""
    name: str = test.id()
    return name.removeprefix(f"{package}.")


class Result(unittest.TestResult):
    """Tells the parent about every test; a test's outcome is the worst that was heard of it."""

    RANK = ("passed", "skipped", "failed", "error")

    def __init__(
        self, tell: Any, package: str, limit: float, known: list[str], counts: swap.Counts
    ) -> None:
        super().__init__()
        self._tell = tell
        self._package = package
        self._limit = limit
        self._known = known
        self._counts = counts
        self._current: str | None = None
        self._outcome = "passed"
        self._detail = ""
        self._before = replace(counts)

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self._current, self._outcome, self._detail = short_id(test, self._package), "passed", ""
        self._tell(start=self._current)
        known = any(fnmatchcase(self._current, pattern) for pattern in self._known)
        limit = min(self._limit, KNOWN_LIMIT) if known else self._limit
        faulthandler.dump_traceback_later(limit, exit=True)

    def stopTest(self, test: Any) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._current is None:  # Python 3.12.1 does not start what it skips
            return
        # Since the end of the last test: on Python 3.10 some loops are made before the start.
        counted = self._counts - self._before
        self._tell(end=self._current, outcome=self._outcome, detail=self._detail, **asdict(counted))
        self._current, self._before = None, replace(self._counts)
        super().stopTest(test)

    def _heard(self, test: Any, outcome: str, detail: str) -> None:
        if self._current is None and isinstance(test, unittest.TestCase):
            self._tell(end=short_id(test, self._package), outcome=outcome, detail=detail)
        elif self._current is None:  # setUpClass or setUpModule: the tests it is for do not run
            self._tell(fixture=str(test), outcome=outcome, detail=detail)
        elif self.RANK.index(outcome) > self.RANK.index(self._outcome):
            self._outcome, self._detail = outcome, detail

    def _text(self, err: Any, test: Any) -> str:
        text: str = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]
        return text

    def addError(self, test: Any, err: Any) -> None:
        self._heard(test, "error", self._text(err, test))

    def addFailure(self, test: Any, err: Any) -> None:
        self._heard(test, "failed", self._text(err, test))

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            detail = f"{subtest._subDescription()}\n{self._text(err, test)}"
            self._heard(test, "failed" if failed else "error", detail)

    def addSkip(self, test: Any, reason: str) -> None:
        self._heard(test, "skipped", reason)

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._heard(test, "failed", "unexpected success")


def teller(replies: TextIO) -> Callable[..., None]:
    def tell(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    return tell


def run(request: dict[str, Any], replies: TextIO) -> None:
    tell = teller(replies)
    from test import support

    # All that regrtest would have to be asked for, except what needs the internet.
    resources = ["audio", "cpu", "largefile", "subprocess", "walltime"]
    if request["module"] in LOCAL_NETWORK:
        resources.append("network")
    support.use_resources = dict.fromkeys(resources)
    way, package = request["way"], request["package"]
    counts = swap.install(request["loop"]) if way == "loop" else swap.Counts()
    if way == "green":
        swap.install_green()

    def short(test: Any) -> str:
        return short_id(test, package)

    def work() -> None:
        loader = unittest.TestLoader()
        try:
            found = list(cases(loader.loadTestsFromName(f"{package}.{request['module']}")))
        except unittest.SkipTest:
            found = []
        wanted, repeats = [], 0
        for test in found:
            if way == "loop" and type(test).__name__ in REPEATS:
                repeats += 1
            elif any(fnmatchcase(short(test), pattern) for pattern in request["only"]):
                wanted.append(test)
        tell(tests=[short(test) for test in wanted], repeats=repeats)
        done = set(request["done"])
        suite = unittest.TestSuite(test for test in wanted if short(test) not in done)
        suite.run(Result(tell, package, request["limit"], request.get("known", []), counts))
        tell(complete=True)

    if way == "green":
        swap.run_green(work, request["loop"])
    else:
        work()


def main(run: Callable[[dict[str, Any], TextIO], None] = run) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tests print must not get between the replies
    faulthandler.enable()
    # A shell's background job ignores it, and tests of Ctrl-C would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            run(request, replies)
        finally:
            os.chdir("/")


if __name__ == "__main__":
    # Last: a process that a test spawns imports this file again, and needs what it imports.
    sys.path.append(sys.path.pop(0))
    main()
