"""The WSGI application of test_gunicorn.py: knows nothing of greenletio, except for /facts."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

lock = threading.Lock()  # made when the application is imported
everybody = threading.Barrier(int(os.environ.get("PARTIES", "1")))
inside: set[int] = set()
most = 0


def facts(environ: dict[str, Any]) -> bytes:
    import psycopg2.extensions  # type: ignore[import-untyped]

    loop = asyncio.get_running_loop()
    thread: list[bool] = []
    starter = threading.Thread(target=lambda: thread.append(asyncio.get_running_loop() is loop))
    starter.start()
    starter.join()
    return json.dumps(
        {
            "pid": os.getpid(),
            "loop": type(loop).__module__.partition(".")[0],
            "lock": type(lock).__module__,
            "thread_is_green": thread == [True],
            "psycopg2": psycopg2.extensions.get_wait_callback().__module__,
            "asyncio.run": asyncio.run(asyncio.sleep(0, "ran")),
            "multithread": environ["wsgi.multithread"],
            "scheme": environ["wsgi.url_scheme"],
            "port": environ.get("REMOTE_PORT"),
        }
    ).encode()


def hold(environ: dict[str, Any]) -> bytes:
    """Until the file that the query names is there."""
    global most
    me = threading.get_ident()
    inside.add(me)
    most = max(most, len(inside))
    while not Path(environ["QUERY_STRING"]).exists():
        time.sleep(0.005)
    inside.discard(me)
    return b"held"


def block(environ: dict[str, Any]) -> bytes:
    while not Path(environ["QUERY_STRING"]).exists():  # and never waits
        pass
    return b""


PAGES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "/facts": facts,
    "/hold": hold,
    "/block": block,
    "/pid": lambda environ: str(os.getpid()).encode(),
    "/meet": lambda environ: str(everybody.wait(30)).encode(),
    "/echo": lambda environ: environ["wsgi.input"].read(),
    "/most": lambda environ: f"{len(inside)} {most}".encode(),
    "/never": lambda environ: str(threading.Event().wait()).encode(),
    "/fail": lambda environ: str(1 / 0).encode(),
}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    headers = [("Content-Type", "text/plain")]
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", headers)  # without a length: in chunks
        return stream()
    body = PAGES[environ["PATH_INFO"]](environ)
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]


def stream() -> Iterable[bytes]:
    for n in range(1000):
        time.sleep(0)
        yield b"%07d\n" % n * 100
