"""The application in FastAPI without an ORM, on one connection that the requests share: as many at
once as a threaded server would have threads."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from benchmarks.served.asked import asked_of
from greenletio.integrations.starlette import LimitRequests
from greenletio.pg import aio

pool: aio.Pool


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global pool
    async with aio.create_pool(os.environ["DATABASE_URL"], min_size=0, shared=1) as pool:
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(LimitRequests, limit=40)


@app.get("/authors/{number}")
async def author(number: int) -> dict[str, Any]:
    return await asked_of(pool, number)
