"""The application in FastAPI with a plain function: in Starlette's thread pool."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from sqlalchemy.orm import Session

from benchmarks.served import orm

engine = orm.engine()
app = FastAPI()


@app.get("/authors/{number}")
def author(number: int) -> dict[str, Any]:
    with Session(engine) as session:
        return orm.answer(session, number)
