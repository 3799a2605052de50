"""The queries that every PostgreSQL driver makes, and what must come of them."""

from __future__ import annotations

from typing import Any

from benchmarks.meter import check

#: name: (SQL, its arguments, how many rows come)
QUERIES: dict[str, tuple[str, tuple[Any, ...], int | None]] = {
    "select1": ("SELECT 1 + 1", (), 1),
    "by_key": ("SELECT * FROM bench_keys WHERE id = $1", (37,), 1),
    "series": ("SELECT i FROM generate_series(1, 1000) AS i", (), 1000),
    "pg_type": (
        "SELECT typname, typnamespace, typowner, typlen, typbyval, typcategory, typispreferred,"
        " typisdefined, typdelim, typrelid, typelem, typarray FROM pg_type"
        " WHERE typtypmod = -1 AND typisdefined",
        (),
        None,
    ),
    "bytea": ("SELECT repeat('x', 1024)::bytea FROM generate_series(1, 100)", (), 100),
    "arrays": (
        "SELECT (SELECT array_agg(j) FROM generate_series(1, 100) j) FROM generate_series(1, 100)",
        (),
        100,
    ),
    "mixed": (
        "SELECT i, i::int8 * 1000 AS big, i / 7.0::float8 AS f, (i || '.25')::numeric AS n,"
        " 'text ' || i AS t, i % 2 = 0 AS b, timestamptz '2024-01-01' + i * interval '1 hour' AS m,"
        " NULLIF(i % 3, 0) AS maybe FROM generate_series(1, 1000) AS i",
        (),
        1000,
    ),
}

SETUP = (
    "CREATE TEMP TABLE bench_keys (id int PRIMARY KEY, a int8, b float8, c text, d bool,"
    " e timestamptz, f date, g text)",
    "INSERT INTO bench_keys SELECT i, i, i / 3.0, 'text ' || i, i % 2 = 0, now(), current_date,"
    " NULL FROM generate_series(1, 100) AS i",
)


def check_rows(name: str, rows: Any) -> None:
    _, _, count = QUERIES[name]
    check(len(rows) == count if count else len(rows) > 100, "all rows have come")
