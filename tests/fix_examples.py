"""The programs of examples/, served by uvicorn.

def test_it(serve_example):
    url = serve_example("flask_asgi")    # its `app`, on the test's database
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_missing import missing

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LIMIT_S = 60  # against a hang, not a measure


@pytest.fixture
def serve_example(pg_dsn: str, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts one and gives its URL. It must end by SIGTERM, and must have reported nothing."""
    started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def serve(name: str) -> str:
        for module in {"uvicorn", *name.split("_")} - {"asgi"}:
            if importlib.util.find_spec(module) is None:
                missing(f"the example needs {module}: pip install {module}")
        # The server inherits the listener: no race for a port.
        listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        log = tmp_path / f"{name}.log"
        command = [sys.executable, "-m", "uvicorn", "--fd", str(listener.fileno())]
        with listener, log.open("w") as output:
            server = subprocess.Popen(
                [*command, "--no-access-log", "--app-dir", str(EXAMPLES), f"{name}:app"],
                env={**os.environ, "DATABASE_URL": pg_dsn},
                pass_fds=[listener.fileno()],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            started.append((server, log))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        give_up = time.monotonic() + LIMIT_S
        while "startup complete" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.02)
        return url

    yield serve
    for server, log in started:
        server.terminate()
        assert server.wait(LIMIT_S) in (0, -signal.SIGTERM), log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
