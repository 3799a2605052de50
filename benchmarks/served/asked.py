"""What the applications without an ORM ask."""

from __future__ import annotations

from typing import Any

from benchmarks.served import tables
from benchmarks.served.page import page


async def asked_of(connection: Any, number: int) -> dict[str, Any]:
    """The page, by five queries to a connection or to what has its methods."""
    name = (await connection.fetchrow(tables.AUTHOR_QUERY, number))["name"]
    posts = await connection.fetch(tables.POSTS_QUERY, number)
    counts = await connection.fetch(tables.COUNTS_QUERY, [post["id"] for post in posts])
    newest = await connection.fetch(tables.NEWEST_QUERY)
    total = await connection.fetchval(tables.TOTAL_QUERY, number)
    return page(name, posts, dict(counts), newest, total)
