"""What every PostgreSQL driver is asked, and what must come of it.

Seven do what MagicStack's benchmark of drivers does: the catalogue of types, a thousand integers,
rows of bytea, rows of arrays, COPY, a batch of inserts, and the smallest of queries.
"""

from __future__ import annotations

from typing import Any

from benchmarks.meter import check

MANY_SETUP = ("CREATE TEMP TABLE bench_many (a int, b text)",)
MANY_ROWS = [(i, f"text {i}") for i in range(1000)]
COPY_ROWS = [(i, f"text {i}", i / 3) for i in range(10_000)]
COPY_SETUP = (
    "CREATE TEMP TABLE bench_copy (a int, b text, c float8)",
    "INSERT INTO bench_copy SELECT i, 'text ' || i, i / 3.0 FROM generate_series(0, 9999) AS i",
)

#: name: (SQL, its arguments, how many rows come, what is done on each connection before)
QUERIES: dict[str, tuple[str, tuple[Any, ...], int | None, tuple[str, ...]]] = {
    "select1": ("SELECT 1 + 1", (), 1, ()),
    "by_key": (
        "SELECT * FROM bench_keys WHERE id = $1",
        (37,),
        1,
        (
            "CREATE TEMP TABLE bench_keys (id int PRIMARY KEY, a int8, b float8, c text, d bool,"
            " e timestamptz, f date, g text)",
            "INSERT INTO bench_keys SELECT i, i, i / 3.0, 'text ' || i, i % 2 = 0, now(),"
            " current_date, NULL FROM generate_series(1, 100) AS i",
        ),
    ),
    "series": ("SELECT i FROM generate_series(1, 1000) AS i", (), 1000, ()),
    "pg_type": (
        "SELECT typname, typnamespace, typowner, typlen, typbyval, typcategory, typispreferred,"
        " typisdefined, typdelim, typrelid, typelem, typarray FROM pg_type"
        " WHERE typtypmod = $1 AND typisdefined = $2",
        (-1, True),
        None,
        (),
    ),
    "bytea": (
        "SELECT b FROM bench_bytea",
        (),
        100,
        (
            "CREATE TEMP TABLE bench_bytea (b bytea)",
            "ALTER TABLE bench_bytea ALTER b SET STORAGE PLAIN",
            "INSERT INTO bench_bytea SELECT repeat('x', 1024)::bytea FROM generate_series(1, 100)",
        ),
    ),
    "arrays": (
        "SELECT a FROM bench_arrays",
        (),
        100,
        (
            "CREATE TEMP TABLE bench_arrays (a int[])",
            "INSERT INTO bench_arrays SELECT (SELECT array_agg(j) FROM generate_series(1, 100) j)"
            " FROM generate_series(1, 100)",
        ),
    ),
    "mixed": (
        "SELECT i, i::int8 * 1000 AS big, i / 7.0::float8 AS f, (i || '.25')::numeric AS n,"
        " 'text ' || i AS t, i % 2 = 0 AS b, timestamptz '2024-01-01' + i * interval '1 hour' AS m,"
        " NULLIF(i % 3, 0) AS maybe FROM generate_series(1, 1000) AS i",
        (),
        1000,
        (),
    ),
}


def check_rows(name: str, found: int) -> None:
    count = QUERIES[name][2]
    check(found == count if count else found > 100, "all rows have come")
