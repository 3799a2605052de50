"""PostgreSQL drivers side by side: ``python -m benchmarks.pg``.

What is compared is the client's CPU time per query; wall time, which the server has the larger part
of, stands beside it. Every driver runs on uvloop; greenletio on its own loop, too. The C floor is
libpq in a C program that makes no Python objects.
"""

from __future__ import annotations

from benchmarks import envs, run
from benchmarks.contenders._queries import QUERIES
from benchmarks.plan import Bench, Contender, Goal, Plan

CONTENDERS = {
    "ours": Contender("greenletio", module="pg_ours", loop="uvloop"),
    "ours-own": Contender("greenletio, own loop", module="pg_ours", loop="greenletio"),
    **{
        name: Contender(title, name, packages, module=f"pg_{name}", loop="uvloop")
        for name, title, packages in (
            ("asyncpg", "asyncpg", ("asyncpg>=0.30",)),
            ("psycopg", "psycopg 3", ("psycopg[binary]>=3.2",)),
            ("psqlpy", "psqlpy", ("psqlpy>=0.11",)),
            ("aiopg", "aiopg", ("aiopg>=1.4",)),
        )
    },
    "asyncpg-ten": Contender(
        "asyncpg, ten connections",
        "asyncpg",
        ("asyncpg>=0.30",),
        module="pg_asyncpg_ten",
        loop="uvloop",
    ),
    "floor": Contender("libpq in C", module="pg_floor"),
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
    for tasks in (1, 10, 50)
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
FAR = [
    Bench(
        f"far-{query}-50",
        f"{TITLES[query]}, 50 tasks that share one connection, 1 ms round trip",
        "together",
        "us",
        postgres=True,
        multiple=50,
        args={"query": query, "tasks": 50, "round_trip": 1000},
    )
    for query in ("select1", "by_key")
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
    Bench("copy-out", "COPY of 10,000 rows out, as they come", "copy_out", "us", postgres=True),
]

#: asyncpg's CPU time divided by ours, at 10 tasks.
AGAINST_ASYNCPG = {
    "select1": 1.25,
    "by_key": 1.25,
    "series": 2.0,
    "pg_type": 1.3,
    "bytea": 1.0,
    "arrays": 1.1,
    "mixed": 1.5,
}
GOALS = [
    *(Goal(f"{q}-10", "asyncpg", "ours", ">=", limit) for q, limit in AGAINST_ASYNCPG.items()),
    Goal("executemany", "asyncpg", "ours", ">=", 1.1),
    Goal("copy-in", "asyncpg", "ours", ">=", 1.1),
    Goal("copy-out", "asyncpg", "ours", ">=", 1.0),
    *(
        Goal(bench, "ours", "floor", "<=", 1.6)
        for bench in (*(f"{q}-10" for q in QUERIES if q != "mixed"), "executemany", "copy-in")
    ),
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
    *(Goal(bench.name, "asyncpg-ten", "ours", ">=", 4.0, wall=True) for bench in FAR),
]


def environment() -> dict[str, str]:
    return {"BENCH_PG_FLOOR": str(envs.pg_floor()), "BENCH_PG_DELAY": str(envs.delay())}


PLAN = Plan(
    "python -m benchmarks.pg",
    __doc__,
    CONTENDERS,
    [*FETCHES, *TOGETHER, *FAR, *POOLS, *OTHERS],
    GOALS,
    sample_ms=50,
    wall=True,
    environment=environment,
    means={"asyncpg": 1 / 0.65},
)

if __name__ == "__main__":
    raise SystemExit(run.main(PLAN))
