"""The application in FastAPI by SQLAlchemy's asyncio API."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from benchmarks.served import orm

engine = create_async_engine(orm.url(), **orm.pool())
app = FastAPI()


@app.get("/authors/{number}")
async def author(number: int) -> dict[str, Any]:
    async with AsyncSession(engine) as session:
        return await orm.answer_async(session, number)
