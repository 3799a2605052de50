"""FastAPI with plain `def` endpoints and dependencies, and SQLAlchemy's ORM on greenletio's driver.

    pip install fastapi uvicorn sqlalchemy greenletio
    DATABASE_URL=postgresql://postgres@127.0.0.1/test uvicorn fastapi_greenletio:app

Endpoints and dependencies run in greenlets of the server's loop instead of a pool of 40 threads.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from greenletio import async_
from greenletio.integrations.starlette import patch_starlette

patch_starlette()

url = make_url(os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test"))
engine = create_engine(url.set(drivername="postgresql+greenletio"), pool_size=10)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "example_item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    left: Mapped[int]


def open_session() -> Iterator[Session]:
    """The request's own: committed if it succeeds, rolled back if it fails."""
    with Session(engine) as session, session.begin():
        yield session


Request = Annotated[Session, Depends(open_session, scope="function")]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await async_(Base.metadata.create_all)(engine)
    yield
    await async_(engine.dispose)()


app = FastAPI(lifespan=lifespan)


@app.post("/items")
def post_item(session: Request, name: str, left: int) -> dict[str, int]:
    item = Item(name=name, left=left)
    session.add(item)
    session.flush()
    return {"id": item.id}


@app.post("/items/{number}/take")
def take(session: Request, number: int, seconds: float = 0.0) -> dict[str, int]:
    """Take one of those that are left; all who want the same item wait for each other."""
    item = session.get(Item, number, with_for_update=True)
    if item is None or item.left == 0:
        raise HTTPException(404, "there is none left")
    item.left -= 1
    session.execute(select(func.pg_sleep(seconds)))
    return {"left": item.left}


@app.get("/items/{number}")
def get_item(session: Request, number: int) -> dict[str, Any]:
    item = session.get(Item, number)
    if item is None:
        raise HTTPException(404, "there is no such item")
    return {"name": item.name, "left": item.left}
