"""The psycopg2 work that every contender does."""

from __future__ import annotations

import importlib
import os
from typing import Any


def connect() -> Any:
    conn = importlib.import_module("psycopg2").connect(os.environ["DATABASE_URL"])
    conn.autocommit = True  # one round trip for each execute
    return conn


def sql(rows: int) -> str:
    return "SELECT 1" if rows == 1 else f"SELECT * FROM generate_series(1, {rows})"


def query(cursor: Any, statement: str) -> int:
    """Run it, and return the sum of the numbers that came."""
    cursor.execute(statement)
    got = 0
    for row in cursor.fetchall():
        got += row[0]
    return got


def queries(conn: Any, n: int, rows: int) -> int:
    """Ask n times for the numbers 1 to `rows`, and return the sum of all that came."""
    statement = sql(rows)
    got = 0
    with conn.cursor() as cursor:
        for _ in range(n):
            got += query(cursor, statement)
    return got


def total(rows: int) -> int:
    return rows * (rows + 1) // 2
