"""The servers of benchmarks.apps, each in processes of its own, and wrk, which asks them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.envs import ROOT, EnvError
from benchmarks.workers import WorkerError

SERVE = Path(__file__).with_name("serve.py")
LIMIT_S = 60.0  # against a hang, not a measure
NUMBER = 7  # of the page that all contenders have to answer alike


@dataclass(frozen=True)
class Sample:
    """What one run of wrk saw of a server, and what that server took."""

    requests_s: float
    p50_ms: float
    p99_ms: float
    memory_mb: float  # PSS of all of the server's processes, afterwards
    cpu_ms: float  # of all of the server's processes, for each request


def wrk() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise EnvError("wrk is not installed: apt-get install wrk")
    return found


class Server:
    """A contender's server, from the moment it answers to `close`."""

    def __init__(
        self, name: str, python: Path, command: Sequence[str], environ: Mapping[str, str]
    ) -> None:
        self._name = name
        self._log = tempfile.TemporaryFile("w+")
        # Bound by the server itself: uvicorn takes one that it inherits for a Unix socket, whose
        # answers then wait for the client's delayed acknowledgements in some loops.
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port: int = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [python, SERVE, *(part.format(port=self._port) for part in command)],
            env={**os.environ, **environ},
            cwd=tempfile.gettempdir(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, who end it
        )
        try:
            self._until_it_listens()
            self.page = self._page()
        except BaseException:
            self.close()
            raise

    def _until_it_listens(self) -> None:
        give_up = time.monotonic() + LIMIT_S
        while self._process.poll() is None and time.monotonic() < give_up:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), LIMIT_S).close()
                return
            time.sleep(0.02)
        raise self._failed("does not listen")

    def _page(self) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIMIT_S)
        try:
            connection.request("GET", f"/authors/{NUMBER}")
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise self._failed(f"does not answer: {exc}") from exc
        finally:
            connection.close()
        if answer.status != 200:
            raise self._failed(f"answers with status {answer.status}")
        return json.loads(body)

    def _failed(self, what: str) -> WorkerError:
        self._log.seek(0)
        last = self._log.read().strip().splitlines()[-3:]
        return WorkerError(f"{self._name} {what}{': ' if last else ''}{' '.join(last)}")

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def _cpu_s(self) -> float:
        times = [process.cpu_times() for process in self._processes()]
        return sum(each.user + each.system for each in times)

    def load(self, clients: int, seconds: float) -> Sample:
        """Have `clients` connections ask for page after page for some seconds."""
        before = self._cpu_s()
        try:
            done = subprocess.run(
                [
                    *(wrk(), "-t1", f"-c{clients}", f"-d{max(round(seconds), 1)}"),
                    *("--timeout", f"{LIMIT_S:.0f}", "-s", ROOT / "benchmarks/served/load.lua"),
                    f"http://127.0.0.1:{self._port}/",
                ],
                capture_output=True,
                text=True,
                timeout=seconds + 2 * LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise self._failed(f"held {clients} clients up") from None
        if done.returncode:
            raise self._failed(f"made wrk fail: {done.stderr.strip()}")
        try:
            after = self._cpu_s()
        except psutil.NoSuchProcess:
            raise self._failed("died") from None
        said = json.loads(done.stdout.splitlines()[-1])
        if said["errors"] or said["refused"] or not said["requests"]:
            raise self._failed(f"failed {clients} clients: {said}")
        return Sample(
            requests_s=said["requests"] / said["us"] * 1e6,
            p50_ms=said["p50_us"] / 1000,
            p99_ms=said["p99_us"] / 1000,
            memory_mb=sum(each.memory_full_info().pss for each in self._processes()) / 1e6,
            cpu_ms=(after - before) / said["requests"] * 1000,
        )

    def close(self) -> None:
        """End the server: it is asked first, then killed with all of its processes."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
