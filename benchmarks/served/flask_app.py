"""The application in Flask: nothing here knows how it is served."""

from __future__ import annotations

from typing import Any

from flask import Flask
from sqlalchemy.orm import Session

from benchmarks.served import orm

engine = orm.engine()
flask = Flask(__name__)


@flask.get("/authors/<int:number>")
def author(number: int) -> dict[str, Any]:
    with Session(engine) as session:
        return orm.answer(session, number)
