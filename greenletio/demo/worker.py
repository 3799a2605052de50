"""The process of one mode: index the files, then serve searches until told to stop.

It reads one JSON line of settings and, later, the end of its input: "stop" means
finish and report, no "stop" means that the conductor is gone. It writes JSON lines.
"""

import asyncio
import gc
import json
import os
import socket
import sys
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import uvicorn

from greenletio.demo import program
from greenletio.demo.app import make_app
from greenletio.demo.watch import Watch, peak_rss_mb
from greenletio.demo.ways import WAYS

__all__ = ("main",)


def tell(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def work(settings: dict[str, Any]) -> dict[str, Any]:
    way = WAYS[settings["mode"]]()
    engine = program.open_engine(settings["url"], settings["schema"], way.poolclass)
    files = [Path(name) for name in settings["files"]]
    indexed = definitions = 0

    def progress() -> None:
        if indexed < len(files):
            tell(event="indexed", files=indexed)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, _read_order, stop)
    gc.collect()
    gc.freeze()

    watch = Watch(progress)
    ticker = asyncio.create_task(watch.run())
    began, cpu = perf_counter(), process_time()
    waiting = iter(files)

    async def indexer() -> None:
        nonlocal indexed, definitions
        for path in waiting:
            found = await way.call(program.index, engine, path, way.courtesy)
            definitions += found
            indexed += 1

    await way.call(program.create_tables, engine)
    await asyncio.gather(*(indexer() for _ in range(settings["tasks"])))
    await way.call(program.tidy, engine)
    index_s = perf_counter() - began
    tell(event="indexed", files=indexed)

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    app = make_app(partial(way.call, program.search, engine))
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    tell(event="serving", port=listener.getsockname()[1])
    await stop.wait()
    server.should_exit = True
    await serving
    ticker.cancel()
    await way.call(engine.dispose)
    return {
        "start": watch.start,
        "index_s": index_s,
        "cpu_s": process_time() - cpu,
        "files": indexed,
        "definitions": definitions,
        "longest_stall_ms": watch.longest_ms,
        "stalls_ms": watch.slots,
        "threads": watch.threads,
        "peak_rss_mb": peak_rss_mb(),
    }


def _read_order(stop: asyncio.Event) -> None:
    if not os.read(0, 64):
        os._exit(1)
    asyncio.get_running_loop().remove_reader(0)
    stop.set()


def main() -> None:
    with open(0, "rb", buffering=0, closefd=False) as orders:
        line = orders.readline()
    if not line:
        return
    settings = json.loads(line)
    tell(event="result", **asyncio.run(work(settings)))


if __name__ == "__main__":
    main()
