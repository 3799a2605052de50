"""Results as Arrow columns: ``python -m benchmarks.columns``.

A million rows into a pyarrow.Table, by greenletio, by Arrow's own driver (ADBC), and by way of
rows. What is compared is the client's CPU time; wall time, which the server has its part of, stands
beside it. greenletio is measured with a libpq that hands on rows in chunks, as its wheels have, and
ADBC's wheel has a new one, too; beside that, with the libpq that it was built with here. The tables
stay in the database: BENCH_COLUMNS_ROWS makes them smaller.
"""

from __future__ import annotations

from benchmarks import run
from benchmarks.plan import Bench, Contender, Goal, Plan

ARROW = "pyarrow>=18.1"
CONTENDERS = {
    "ours": Contender("greenletio", module="columns_ours", loop="uvloop", newer_libpq=True),
    "ours-here": Contender("greenletio, libpq as here", module="columns_ours", loop="uvloop"),
    "adbc": Contender(
        "ADBC",
        "adbc",
        ("adbc-driver-postgresql>=1.8", "adbc-driver-manager>=1.8", ARROW),
        module="columns_adbc",
    ),
    "asyncpg": Contender(
        "asyncpg, rows",
        "columns-asyncpg",
        ("asyncpg>=0.30", ARROW),
        module="columns_rows",
        loop="uvloop",
    ),
    "psycopg": Contender(
        "psycopg 3, rows",
        "columns-psycopg",
        ("psycopg[binary]>=3.2", ARROW),
        module="columns_psycopg",
        loop="uvloop",
    ),
}

TITLES = {
    "mixed": "8 mixed columns",
    "integers": "8 columns of int4",
    "text": "2 columns of 128 characters",
}
ROWS = ("asyncpg", "psycopg")
BENCHES = [
    *(
        Bench(
            table,
            f"a million rows of {title}",
            "fetch",
            "us",
            n=1,
            postgres=True,
            args={"table": table},
            rounds=9,
            without=() if table == "mixed" else ROWS,
        )
        for table, title in TITLES.items()
    ),
    Bench(
        "memory",
        "memory for a million rows of 8 mixed columns",
        "memory",
        "bytes",
        n=1,
        memory=True,
        postgres=True,
        args={"table": "mixed"},
        rounds=3,
    ),
]
GOALS = [
    Goal("mixed", "adbc", "ours", ">=", 1.5, wall=True),
    Goal("integers", "adbc", "ours", ">=", 1.0, wall=True),
    Goal("text", "adbc", "ours", ">=", 1.0, wall=True),
    *(Goal(table, "adbc", "ours", ">=", 2.0) for table in TITLES),
    Goal("memory", "adbc", "ours", ">=", 1.0),
]

PLAN = Plan("python -m benchmarks.columns", __doc__, CONTENDERS, BENCHES, GOALS, wall=True)

if __name__ == "__main__":
    raise SystemExit(run.main(PLAN))
