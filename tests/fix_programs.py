"""Servers as programs of their own, as users start them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


class ServerProgram:
    """A program that serves a port of this machine; what it says goes to a file.

    ``command`` is told the number of the listener's descriptor, which the program inherits: there
    is no race for a port, and connections wait until it accepts them.
    """

    limit_s = 60  # against a hang, not a measure
    ends_with: tuple[int, ...] = (0, -signal.SIGTERM)

    def __init__(
        self,
        command: Callable[[int], list[str]],
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        with (
            socket.create_server(("127.0.0.1", 0), backlog=1000) as listener,
            log.open("wb") as output,
        ):
            self.port: int = listener.getsockname()[1]
            self.process = subprocess.Popen(
                command(listener.fileno()),
                cwd=cwd,
                env={**os.environ, **env},
                pass_fds=[listener.fileno()],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def until(self, ready: Callable[[], Any]) -> Any:
        """What ``ready`` returns once that is true."""
        deadline = time.monotonic() + self.limit_s
        while time.monotonic() < deadline:
            assert self.running, self.log.read_text()
            if found := ready():
                return found
            time.sleep(0.01)
        raise AssertionError(f"that does not come to be\n{self.log.read_text()}")

    def end(self, signum: int = signal.SIGTERM) -> str:
        """Ask it to end, which it must do well; what it has said."""
        self.process.send_signal(signum)
        return self.ended()

    def ended(self) -> str:
        """The same, if it has been asked."""
        try:
            status = self.process.wait(self.limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server does not end\n{self.log.read_text()}", pytrace=False)
        said = self.log.read_text()
        assert status in self.ends_with, said
        return said
