"""The bridge and psycopg2 against every peer: ``python -m benchmarks.core [--json PATH]``."""

from __future__ import annotations

from benchmarks import envs, run
from benchmarks.plan import Bench, Contender, Goal, Plan, Unit

CONTENDERS = {
    "ours": Contender("greenletio"),
    "greenletio_0_11": Contender("greenletio 0.11", "greenletio-0.11", envs.OLD_GREENLETIO),
    "sqlalchemy": Contender("SQLAlchemy", "peers", envs.PEERS),
    "greenback": Contender("greenback", "peers", envs.PEERS),
    "asgiref": Contender("asgiref", "peers", envs.PEERS),
    "gevent": Contender("gevent", "peers", envs.PEERS),
    "plain": Contender("plain await"),
    "portal": Contender("plain await under portal()"),
    "blocking": Contender("blocking psycopg2"),
}


def _both(name: str, title: str, method: str, unit: Unit = "ns") -> list[Bench]:
    return [
        Bench(f"{name}-{loop}", f"{title}, {loop}", method, unit, loop)
        for loop in ("asyncio", "uvloop")
    ]


def _postgres(loop: str) -> list[Bench]:
    return [
        Bench(f"pg1-{loop}", f"psycopg2 SELECT 1, 1 task, {loop}", "pg1", "us", loop,
              postgres=True),
        Bench(f"pg20-{loop}", f"psycopg2 SELECT 1, 20 tasks, {loop}", "pg20", "us", loop,
              multiple=20, postgres=True),
        Bench(f"pg-rows-{loop}", f"psycopg2 1000 rows, 1 task, {loop}", "pg_rows", "us", loop,
              postgres=True),
    ]  # fmt: skip


BENCHES = [
    Bench("call", "await async_(f)(), f empty", "call"),
    Bench("call-shim", "the same with the mmap cost removed for all", "call", shim=True),
    Bench("immediate", "await_(coroutine that returns at once)", "immediate"),
    *_both("suspend", "await_(asyncio.sleep(0))", "suspend"),
    *_both("deep", "the same below 100 awaiting coroutines", "deep"),
    Bench("tasks", "10,000 tasks x 10 sleep(0)", "tasks", n=10_000, per_n=10),
    *_both("fd", "wait for a socket to become readable", "fd"),
    Bench("spawn", "spawn and join, f empty", "spawn"),
    Bench("rss", "memory of a suspended greenlet", "rss", "bytes", n=10_000, memory=True),
    Bench("rss-task", "the same in a task, waiting for an event", "rss_task", "bytes", n=10_000,
          memory=True),
    *_postgres("uvloop"),
    *_postgres("asyncio"),
]  # fmt: skip


def _at_least(bench: str, limit: float, *peers: str) -> list[Goal]:
    return [Goal(bench, peer, "ours", ">=", limit) for peer in peers]


GOALS = [
    *_at_least("call", 15, "greenletio_0_11", "sqlalchemy"),
    *_at_least("call-shim", 3, "greenletio_0_11", "sqlalchemy"),
    *_at_least("immediate", 8, "greenletio_0_11", "sqlalchemy"),
    Goal("immediate", "ours", "plain", "<=", 1.2),
    *_at_least("suspend-asyncio", 1.1, "sqlalchemy"),
    *_at_least("suspend-asyncio", 2.2, "greenback"),
    *_at_least("suspend-uvloop", 1.1, "sqlalchemy"),
    *_at_least("suspend-uvloop", 2.2, "greenback"),
    *_at_least("tasks", 1.25, "sqlalchemy"),
    *_at_least("fd-asyncio", 2, "greenletio_0_11"),
    *_at_least("fd-uvloop", 2, "greenletio_0_11"),
    Goal("rss", "ours", None, "<=", 7000),
    *[
        goal
        for loop in ("uvloop", "asyncio")
        for goal in (
            Goal(f"pg20-{loop}", "greenletio_0_11", "ours", ">=", 1.6),
            Goal(f"pg20-{loop}", "gevent", "ours", ">=", 1.05),
            Goal(f"pg20-{loop}", "ours", "blocking", "<=", 1.25),
        )
    ],
]

PLAN = Plan("python -m benchmarks.core", __doc__, CONTENDERS, BENCHES, GOALS)

if __name__ == "__main__":
    raise SystemExit(run.main(PLAN))
