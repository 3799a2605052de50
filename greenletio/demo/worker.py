"""The process of one mode: index the files, then serve searches, when and for as long as told.

It reads JSON lines, the settings and then one order after the other, and writes JSON lines.
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


class Orders:
    """The lines of standard input, read without a thread and without blocking the loop.

    Once there are no more, the conductor is gone: the process ends on the spot.
    """

    def __init__(self) -> None:
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._partial = b""
        os.set_blocking(0, False)
        asyncio.get_running_loop().add_reader(0, self._read)

    async def next_line(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(await self._lines.get())
        return line

    async def next(self) -> str:
        return str((await self.next_line())["order"])

    def _read(self) -> None:
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(1)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._lines.put_nowait(line)


async def work(settings: dict[str, Any], orders: Orders) -> None:
    way = WAYS[settings["mode"]]()
    engine = program.open_engine(settings["url"], settings["schema"], way.poolclass)
    files = [Path(name) for name in settings["files"]]
    indexed = definitions = 0

    def progress() -> None:
        if indexed < len(files):
            tell(event="indexed", files=indexed)

    waiting = iter(files)

    async def indexer() -> None:
        nonlocal indexed, definitions
        for path in waiting:
            found = await way.call(program.index, engine, path, way.courtesy)
            definitions += found
            indexed += 1

    watch = Watch(progress)
    assert await orders.next() == "index"
    gc.collect()
    gc.freeze()
    watch.resume()
    began, cpu = perf_counter(), process_time()
    await way.call(program.create_tables, engine)
    await asyncio.gather(*(indexer() for _ in range(settings["tasks"])))
    await way.call(program.tidy, engine)
    index_s, index_cpu_s = perf_counter() - began, process_time() - cpu
    watch.pause()
    tell(event="indexed", files=indexed)

    # asyncio sets TCP_NODELAY only on sockets that say they are TCP.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    app = make_app(partial(way.call, program.search, engine))
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    tell(event="ready", port=listener.getsockname()[1])
    while (order := await orders.next()) != "stop":
        if order == "serve":
            clock, active_s = watch.resume()
            tell(event="serving", clock=clock, active_s=active_s)
        else:
            watch.pause()
    cpu_s = process_time() - cpu
    server.should_exit = True
    await serving
    await way.call(engine.dispose)
    tell(
        event="result",
        index_s=index_s,
        index_cpu_s=index_cpu_s,
        cpu_s=cpu_s,
        files=indexed,
        definitions=definitions,
        stalls_ms=watch.slots,
        own_stall_ms=watch.own_ms,
        threads=watch.threads,
        peak_rss_mb=peak_rss_mb(),
    )


async def main() -> None:
    orders = Orders()
    await work(await orders.next_line(), orders)


if __name__ == "__main__":
    asyncio.run(main())
