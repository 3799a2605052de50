"""The application in FastAPI without an ORM: by asyncpg, or by what has its names."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from benchmarks.served import tables
from benchmarks.served.page import page

driver = importlib.import_module(os.environ["BENCH_DRIVER"])
pool: Any = None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global pool
    size = int(os.environ["BENCH_POOL"])
    async with driver.create_pool(os.environ["DATABASE_URL"], min_size=size, max_size=size) as pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/authors/{number}")
async def author(number: int) -> dict[str, Any]:
    async with pool.acquire() as connection:
        name = (await connection.fetchrow(tables.AUTHOR_QUERY, number))["name"]
        posts = await connection.fetch(tables.POSTS_QUERY, number)
        counts = await connection.fetch(tables.COUNTS_QUERY, [post["id"] for post in posts])
        newest = await connection.fetch(tables.NEWEST_QUERY)
        total = await connection.fetchval(tables.TOTAL_QUERY, number)
    return page(name, posts, dict(counts), newest, total)
