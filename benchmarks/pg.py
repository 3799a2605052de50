"""PostgreSQL drivers side by side: ``python -m benchmarks.pg``.

What is compared is the client's CPU time per query; wall time, which the server has the larger part
of, stands beside it. Every driver runs on uvloop; greenletio on its own loop, too.
"""

from __future__ import annotations

from benchmarks import run
from benchmarks.contenders._queries import QUERIES
from benchmarks.plan import Bench, Contender, Goal, Plan

CONTENDERS = {
    "ours": Contender("greenletio", module="pg_ours", loop="uvloop"),
    "ours-own": Contender("greenletio, own loop", module="pg_ours", loop="greenletio"),
    "asyncpg": Contender(
        "asyncpg", "drivers", ("asyncpg>=0.30",), module="pg_asyncpg", loop="uvloop"
    ),
    "asyncpg-ten": Contender(
        "asyncpg, ten connections",
        "drivers",
        ("asyncpg>=0.30",),
        module="pg_asyncpg_ten",
        loop="uvloop",
    ),
}

TITLES = {
    "select1": "SELECT 1 + 1",
    "by_key": "a row of 8 columns by its key",
    "series": "1000 integers",
    "pg_type": "pg_type, 12 columns",
    "bytea": "100 times 1 KiB of bytea",
    "arrays": "100 arrays of 100 integers",
    "mixed": "1000 rows of 8 columns",
}

FETCHES = [
    Bench(
        f"{query}-{tasks}",
        f"{TITLES[query]}, {tasks} task{'s' if tasks > 1 else ''}",
        "fetch",
        "us",
        postgres=True,
        multiple=tasks,
        args={"query": query, "tasks": tasks},
    )
    for query in QUERIES
    for tasks in (1, 10)
]
TOGETHER = [
    Bench(
        f"shared-{query}-{tasks}",
        f"{TITLES[query]}, {tasks} tasks that share one connection",
        "together",
        "us",
        postgres=True,
        multiple=tasks,
        args={"query": query, "tasks": tasks},
    )
    for query in ("select1", "by_key")
    for tasks in (10, 50)
]
POOLS = [
    Bench(
        f"pool-{tasks}",
        f"SELECT 1 from a pool of ten connections, {tasks} tasks",
        "pool",
        "us",
        postgres=True,
        multiple=tasks,
        args={"tasks": tasks},
    )
    for tasks in (10, 50)
]
OTHERS = [
    Bench("executemany", "executemany of 1000 rows", "executemany", "us", postgres=True),
    Bench("copy-in", "COPY of 10,000 records in", "copy_in", "us", postgres=True),
]

GOALS = [
    *(
        Goal(f"{query}-10", "asyncpg", "ours", ">=", limit)
        for query, limit in {
            "select1": 1.25,
            "by_key": 1.25,
            "series": 2.0,
            "pg_type": 1.3,
            "bytea": 1.0,
            "arrays": 1.1,
            "mixed": 1.5,
        }.items()
    ),
    Goal("executemany", "asyncpg", "ours", ">=", 1.1),
    Goal("copy-in", "asyncpg", "ours", ">=", 1.1),
    *(
        Goal(f"shared-{query}-{tasks}", peer, "ours", ">=", limit, wall)
        for query in ("select1", "by_key")
        for tasks, one, ten in ((10, 2.0, 1.5), (50, 3.5, 2.5))
        for peer, limit, wall in (
            ("asyncpg", one, True),
            ("asyncpg-ten", ten, True),
            ("asyncpg-ten", 2.0, False),
        )
    ),
]

PLAN = Plan(
    "python -m benchmarks.pg",
    __doc__,
    CONTENDERS,
    [*FETCHES, *TOGETHER, *POOLS, *OTHERS],
    GOALS,
    sample_ms=50,
    wall=True,
    means={"asyncpg": None},
)

if __name__ == "__main__":
    raise SystemExit(run.main(PLAN))
