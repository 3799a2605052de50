"""The application's five queries by SQLAlchemy's ORM; nothing here knows how a driver waits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import URL, DateTime, Engine, ForeignKey, create_engine, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.served.page import NEWEST, SHOWN, page


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "bench_author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Post(Base):
    __tablename__ = "bench_post"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("bench_author.id"))
    title: Mapped[str]
    body: Mapped[str]
    written: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Comment(Base):
    __tablename__ = "bench_comment"

    id: Mapped[int] = mapped_column(primary_key=True)
    post_id: Mapped[int] = mapped_column(ForeignKey("bench_post.id"))
    text: Mapped[str]


def posts_of(number: int) -> Any:
    return select(Post).where(Post.author_id == number).order_by(Post.id.desc()).limit(SHOWN)


def counts_of(posts: Sequence[Post]) -> Any:
    which = Comment.post_id.in_([post.id for post in posts])
    return select(Comment.post_id, func.count()).where(which).group_by(Comment.post_id)


def newest() -> Any:
    return select(Post).order_by(Post.id.desc()).limit(NEWEST)


def total_of(number: int) -> Any:
    return select(func.count()).select_from(Post).where(Post.author_id == number)


def answer(session: Session, number: int) -> dict[str, Any]:
    author = session.get_one(Author, number)
    posts = session.scalars(posts_of(number)).all()
    counts = dict(session.execute(counts_of(posts)).tuples().all())
    latest = session.scalars(newest()).all()
    return page(author.name, posts, counts, latest, session.scalar(total_of(number)))


async def answer_async(session: AsyncSession, number: int) -> dict[str, Any]:
    author = await session.get_one(Author, number)
    posts = (await session.scalars(posts_of(number))).all()
    counts = dict((await session.execute(counts_of(posts))).tuples().all())
    latest = (await session.scalars(newest())).all()
    return page(author.name, posts, counts, latest, await session.scalar(total_of(number)))


def url() -> URL:
    """The server's, by the driver that the contender uses."""
    return make_url(os.environ["DATABASE_URL"]).set(drivername=os.environ["BENCH_DRIVER"])


def pool() -> dict[str, Any]:
    """The pool's options, whose size is the same for all."""
    return {"pool_size": int(os.environ["BENCH_POOL"]), "max_overflow": 0, "pool_timeout": 60}


def engine() -> Engine:
    """The engine for sync code; with BENCH_GREEN, for sync code in greenlets."""
    options = pool()
    if os.environ.get("BENCH_GREEN"):
        from greenletio import patch_psycopg2
        from greenletio.integrations.sqlalchemy import GreenQueuePool

        if os.environ["BENCH_DRIVER"].endswith("psycopg2"):
            patch_psycopg2()
        options["poolclass"] = GreenQueuePool
    return create_engine(url(), **options)
