"""The programs of examples/, served by uvicorn.

def test_it(serve_example):
    url = serve_example("flask_asgi")    # its `app`, on the test's database
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_missing import missing
from fix_programs import ServerProgram

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def serve_example(pg_dsn: str, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts one and gives its URL. It must end by SIGTERM, and must have reported nothing."""
    started: list[ServerProgram] = []

    def serve(name: str) -> str:
        for module in {"uvicorn", *name.split("_")} - {"asgi"}:
            if importlib.util.find_spec(module) is None:
                missing(f"the example needs {module}: pip install {module}")
        # httpx keeps an idle connection for 5 s, as uvicorn does by itself: a client can send on
        # one that the server is closing.
        keep = ("--timeout-keep-alive", "60")
        options = [*keep, "--no-access-log", "--app-dir", str(EXAMPLES), f"{name}:app"]
        server = ServerProgram(
            lambda fd: [sys.executable, "-m", "uvicorn", "--fd", str(fd), *options],
            tmp_path / f"{name}.log",
            {"DATABASE_URL": pg_dsn},
        )
        started.append(server)
        server.until(lambda: "startup complete" in server.log.read_text())
        return f"http://127.0.0.1:{server.port}"

    yield serve
    for server in started:
        said = server.end()
        assert "Traceback" not in said, said
