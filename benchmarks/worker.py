"""One contender in a process of its own, driven over pipes by the parent.

Run by path, with the interpreter of the contender's environment. It reads one JSON request per
line and answers each with one JSON line. Nothing but the standard library and the contender is
needed here, and the checkout is the last place that is searched for imports: what is measured
is what the environment has installed.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """A loop of `asyncio`, of another module with new_event_loop(), or of `module:factory`."""
    if name == "asyncio":
        return asyncio.new_event_loop()
    module, _, factory = name.partition(":")
    make = getattr(importlib.import_module(module), factory or "new_event_loop")
    loop: asyncio.AbstractEventLoop = make()
    return loop


def in_loop(main: Callable[[], Any], name: str) -> Any:
    """Run an asynchronous bench in a fresh loop, and a synchronous one as it is."""
    if not inspect.iscoroutinefunction(main):
        return main()
    loop = new_loop(name)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def sample(contender: Any, request: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.meter import Meter

    meter = Meter()
    bench = getattr(contender, request["bench"])
    n: int = request["n"]
    args = request["args"]

    async def main() -> Any:
        return await bench(meter, n, **args)

    run = main if inspect.iscoroutinefunction(bench) else lambda: bench(meter, n, **args)
    extra = in_loop(run, request["loop"])
    return {"n": n, "cpu_ns": meter.cpu_ns, "wall_ns": meter.wall_ns, "extra": extra}


def chunks_reused() -> int | None:
    """How often the preloaded shim spared a mapping; None without the shim."""
    counter = getattr(ctypes.CDLL(None), "bench_chunks_reused", None)
    if counter is None:
        return None
    counter.restype = ctypes.c_ulong
    return int(counter())


def hello(contender: Any) -> dict[str, Any]:
    versions = {}
    for package in contender.packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cannot = getattr(contender, "_cannot", ())
    return {
        "python": sys.version.split()[0],
        "versions": versions,
        "benches": [
            name
            for name, _ in inspect.getmembers(contender, inspect.ismethod)
            if not name.startswith("_") and name not in cannot
        ],
    }


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get between the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes our pipe
    sys.path.append(str(Path(__file__).resolve().parent.parent))

    def reply(answer: Callable[[], Any]) -> None:
        try:
            message = {"ok": answer()}
        except Exception as exc:
            message = {"error": f"{type(exc).__name__}: {exc}", "trace": traceback.format_exc()}
        replies.write(json.dumps(message) + "\n")

    contender: Any = None

    def start() -> dict[str, Any]:
        nonlocal contender
        contender = importlib.import_module(f"benchmarks.contenders.{sys.argv[1]}").Contender()
        gc.collect()
        gc.freeze()
        return hello(contender)

    reply(start)
    for line in sys.stdin:
        request = json.loads(line)
        if request["bench"] == "chunks_reused":
            reply(chunks_reused)
        else:
            reply(partial(sample, contender, request))


if __name__ == "__main__":
    del sys.path[0]
    main()
