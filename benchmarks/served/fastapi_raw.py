"""The application in FastAPI without an ORM: by asyncpg, or by what has its names."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from benchmarks.served.asked import asked_of

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
        return await asked_of(connection, number)
