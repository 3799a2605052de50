"""The worker processes as the parent sees them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class WorkerError(Exception):
    """A contender could not start, or failed in a bench."""


@dataclass(frozen=True)
class Sample:
    n: int
    cpu_ns: int
    wall_ns: int
    extra: Any


class Worker:
    """One contender's process. It is idle unless a sample is being taken."""

    def __init__(
        self, contender: str, python: Path, extra: Mapping[str, str], preload: Path | None
    ) -> None:
        env = dict(os.environ)
        for name in ("PYTHONPATH", "PYTHONASYNCIODEBUG", "LD_PRELOAD", "DATABASE_URL"):
            env.pop(name, None)
        env.update(extra)
        if preload is not None:
            env["LD_PRELOAD"] = str(preload)
        self._contender = contender
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("worker.py"), contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=tempfile.gettempdir(),
            start_new_session=True,  # Ctrl-C is for the parent, which ends us
        )
        try:
            hello = self._answer()
        except BaseException:
            self.close()
            raise
        self.python: str = hello["python"]
        self.versions: dict[str, str] = hello["versions"]
        self.benches: list[str] = hello["benches"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise WorkerError(f"{self._contender}: the worker died (exit status {code})")
        answer = json.loads(line)
        if "error" in answer:
            sys.stderr.write(answer["trace"])
            raise WorkerError(f"{self._contender}: {answer['error']}")
        return answer["ok"]

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # _answer says what became of the worker
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def sample(
        self, bench: str, n: int, loop: str = "asyncio", args: Mapping[str, Any] | None = None
    ) -> Sample:
        return Sample(**self._ask(bench=bench, n=n, loop=loop, args=dict(args or {})))

    def chunks_reused(self) -> int | None:
        reused: int | None = self._ask(bench="chunks_reused")
        return reused

    def close(self) -> None:
        """End the process: it is asked first by closing its pipe, then killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL to talk to: the one of DATABASE_URL, or an embedded one for this run."""
    if "DATABASE_URL" in os.environ:
        yield os.environ["DATABASE_URL"]
        return
    from greenletio._embedded import EmbeddedServer
    from greenletio.errors import GreenletioError

    running = EmbeddedServer()
    try:
        running.start()
    except GreenletioError as exc:
        raise WorkerError(str(exc)) from exc
    with running:
        # By the Unix socket: it adds the least to what is measured.
        yield f"postgresql://postgres@/postgres?host={running.socket_dir}&port={running.port}"
