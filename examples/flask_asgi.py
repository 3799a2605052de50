"""A Flask application with SQLAlchemy's ORM and psycopg2, unchanged, in an ASGI server.

    pip install flask uvicorn sqlalchemy psycopg2-binary
    DATABASE_URL=postgresql://postgres@127.0.0.1/test uvicorn flask_asgi:app

Every request runs in a greenlet: hundreds wait for the database at once, in one thread.
"""

import os
from collections.abc import Iterator
from typing import Any

from flask import Flask, g, request
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from greenletio import patch_psycopg2
from greenletio.integrations.asgi import as_asgi
from greenletio.integrations.sqlalchemy import GreenQueuePool

patch_psycopg2()

url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
engine = create_engine(
    make_url(url).set(drivername="postgresql+psycopg2"), poolclass=GreenQueuePool, pool_size=10
)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "example_note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


flask = Flask(__name__)


def session() -> Session:
    """The request's own, which ends with it."""
    if "session" not in g:
        g.session = Session(engine)
    found: Session = g.session
    return found


@flask.teardown_appcontext
def end_session(exc: BaseException | None) -> None:
    if "session" in g:
        g.session.close()


@flask.post("/notes")
def post_note() -> dict[str, int]:
    note = Note(text=request.get_json()["text"])
    session().add(note)
    session().commit()
    return {"id": note.id}


@flask.get("/notes")
def get_notes() -> list[dict[str, Any]]:
    notes = session().scalars(select(Note).order_by(Note.id))
    return [{"id": note.id, "text": note.text} for note in notes]


@flask.get("/export")
def export() -> Iterator[str]:
    """Row by row, as fast as the client takes them."""
    with Session(engine) as own, own.begin():
        numbers = select(func.generate_series(1, 100_000)).execution_options(yield_per=1000)
        for n in own.scalars(numbers):
            yield f"{n}\n"


@flask.get("/sleep/<float:seconds>")
def sleep(seconds: float) -> dict[str, int]:
    """Ask for many of these at once: they take as long as one."""
    session().execute(select(func.pg_sleep(seconds)))
    return {"connections_in_use": engine.pool.checkedout()}  # type: ignore[attr-defined]


app = as_asgi(
    flask,
    on_startup=lambda: Base.metadata.create_all(engine),
    on_shutdown=engine.dispose,
)
