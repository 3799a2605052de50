"""A FastAPI application on plain, synchronous SQLAlchemy ORM code and psycopg2.

    pip install fastapi uvicorn sqlalchemy psycopg2-binary
    DATABASE_URL=postgresql://postgres@127.0.0.1/test uvicorn sqlalchemy_fastapi:app

No thread pool, no AsyncSession: the handlers call sync functions through async_, the driver waits
cooperatively, and the pool hands out its connections without blocking the loop.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import ForeignKey, create_engine, func, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from greenletio import async_, patch_psycopg2
from greenletio.integrations.sqlalchemy import GreenQueuePool

patch_psycopg2()

url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
engine = create_engine(
    make_url(url).set(drivername="postgresql+psycopg2"), poolclass=GreenQueuePool, pool_size=10
)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "example_author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list["Book"]] = relationship(back_populates="author", order_by="Book.title")


class Book(Base):
    __tablename__ = "example_book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("example_author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


class NewBook(BaseModel):
    author: str
    title: str


# Synchronous code, as any SQLAlchemy program has it. Lazy attributes just load.


def add_book(new: NewBook) -> int:
    with Session(engine) as session, session.begin():
        author = session.scalar(select(Author).where(Author.name == new.author))
        book = Book(title=new.title, author=author or Author(name=new.author))
        session.add(book)
        session.flush()
        return book.id


def books_of(name: str) -> list[str] | None:
    with Session(engine) as session:
        author = session.scalar(select(Author).where(Author.name == name))
        return None if author is None else [book.title for book in author.books]


def wait_in_the_database(seconds: float) -> int:
    with Session(engine) as session:
        session.execute(select(func.pg_sleep(seconds)))
        return engine.pool.checkedout()  # type: ignore[attr-defined,no-any-return]


# The asynchronous rim.


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await async_(Base.metadata.create_all)(engine)
    yield
    await async_(engine.dispose)()


app = FastAPI(lifespan=lifespan)


@app.post("/books")
async def post_book(new: NewBook) -> dict[str, int]:
    return {"id": await async_(add_book)(new)}


@app.get("/authors/{name}/books")
async def get_books(name: str) -> list[str]:
    books = await async_(books_of)(name)
    if books is None:
        raise HTTPException(404, f"no author is named {name}")
    return books


@app.get("/sleep/{seconds}")
async def get_sleep(seconds: float) -> dict[str, int]:
    """Ask for many of these at once: they take as long as one."""
    return {"connections_in_use": await async_(wait_in_the_database)(seconds)}
