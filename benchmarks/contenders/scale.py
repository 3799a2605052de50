"""greenletio with very many greenlets at once; each bench needs a process of its own."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import resource
import time
from typing import Any, ClassVar

from benchmarks.meter import Meter, check, rss

greenletio = importlib.import_module("greenletio")

CONNECTIONS = 20


def _peak() -> int:
    """The largest resident memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _result(n: int, before: int, began: float) -> dict[str, float]:
    peak = _peak()
    return {
        "greenlets": n,
        "peak_rss": peak,
        "bytes_each": (peak - before) / n,
        "wall_s": time.perf_counter() - began,
    }


class Contender:
    packages: ClassVar[tuple[str, ...]] = (
        "greenletio",
        "greenlet",
        "uvloop",
        "SQLAlchemy",
        "psycopg2",
        "psycopg2-binary",
    )

    async def suspended(self, meter: Meter, n: int) -> dict[str, float]:
        """n spawned greenlets, all of them waiting at once, then all resumed."""
        event = asyncio.Event()
        waiting = 0
        await_ = greenletio.await_

        def work(i: int) -> int:
            nonlocal waiting
            waiting += 1
            await_(event.wait())
            return i

        gc.collect()
        before, began = rss(), time.perf_counter()
        greens = [greenletio.spawn(work, i) for i in range(n)]
        while waiting < n:
            await asyncio.sleep(0)
        event.set()
        for i, green in enumerate(greens):
            check(await green == i, "each greenlet returns its own number")
        return _result(n, before, began)

    async def pool(self, meter: Meter, n: int) -> dict[str, float]:
        """n green tasks at once, each with a query of its own, through 20 pooled connections."""
        sqlalchemy = importlib.import_module("sqlalchemy")
        green_pool = importlib.import_module("greenletio.integrations.sqlalchemy").GreenQueuePool
        greenletio.patch_psycopg2()
        url = sqlalchemy.make_url(os.environ["DATABASE_URL"])
        engine: Any = sqlalchemy.create_engine(
            url.set(drivername="postgresql+psycopg2"),
            poolclass=green_pool,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=600,
        )
        statement = sqlalchemy.text("SELECT :i * 2, pg_backend_pid()")
        inside = most_inside = 0

        def work(i: int) -> tuple[int, int]:
            nonlocal inside, most_inside
            inside += 1
            most_inside = max(most_inside, inside)
            with engine.connect() as conn:
                doubled, backend = conn.execute(statement, {"i": i}).one()
            inside -= 1
            return doubled, backend

        gc.collect()
        before, began = rss(), time.perf_counter()
        greens = [greenletio.spawn(work, i) for i in range(n)]
        backends = set()
        for i, green in enumerate(greens):
            doubled, backend = await green
            check(doubled == i * 2, "each task gets the answer to its own query")
            backends.add(backend)
        result = _result(n, before, began)
        await greenletio.async_(engine.dispose)()
        check(most_inside == n, "all tasks were in their work at once")
        check(len(backends) == CONNECTIONS, f"{len(backends)} connections served them")
        return result
