"""ORM sessions and models, sync as they are, in greenlets; lazy attributes in and out of them."""

import asyncio
from collections.abc import Callable

import pytest
from fix_loops import Run
from fix_progress import Ticker
from sqlalchemy import Engine, ForeignKey, func, select, text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from greenletio import WouldBlockError, async_, await_

MakeEngine = Callable[..., Engine]


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list["Book"]] = relationship(back_populates="author", order_by="Book.id")


class Book(Base):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    engine = make_engine(pool_size=3, max_overflow=0)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for a in range(3):
            books = [Book(title=f"book {a}.{b}") for b in range(4)]
            session.add(Author(name=f"author {a}", books=books))
    return engine


def titles_of(author: Author) -> list[str]:
    return [book.title for book in author.books]


def test_many_sessions_at_once(run: Run, engine: Engine) -> None:
    @async_
    def work(n: int) -> tuple[str, int]:
        with Session(engine) as session, session.begin():
            author = Author(name=f"new {n}", books=[Book(title=f"{n}.{b}") for b in range(3)])
            session.add(author)
            session.flush()
            session.execute(text("SELECT pg_sleep(0.01)"))
            session.expire_all()
            return author.name, len(author.books)

    async def main() -> list[tuple[str, int]]:
        async with Ticker():
            return await asyncio.gather(*(work(n) for n in range(30)))

    assert run(main()) == [(f"new {n}", 3) for n in range(30)]
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(Book)) == 12 + 90


def test_a_lazy_attribute_loads_in_a_greenlet(run: Run, engine: Engine) -> None:
    async def main() -> None:
        async with Ticker() as ticker:
            with Session(engine) as session:
                author = await async_(session.get)(Author, 1)
                assert author is not None
                assert await async_(titles_of)(author) == [f"book 0.{b}" for b in range(4)]
                await async_(session.close)()
            while ticker.steps < ticker.enough:
                await asyncio.sleep(0.001)

    run(main())


def test_a_lazy_attribute_outside_names_the_frame_that_lacks_async(
    run: Run, engine: Engine
) -> None:
    async def main() -> None:
        session = Session(engine)
        author = await async_(session.get)(Author, 1)
        assert author is not None
        with pytest.raises(WouldBlockError, match=r"titles_of .*test_sqlalchemy_orm.py.*main"):
            titles_of(author)
        # The transaction and the object are as they were.
        assert await async_(titles_of)(author) == [f"book 0.{b}" for b in range(4)]
        await async_(session.close)()

    run(main())


def test_a_lazy_attribute_after_commit(run: Run, engine: Engine) -> None:
    """Expired attributes need a new transaction: a checkout, BEGIN and the query."""

    async def main() -> None:
        session = Session(engine)
        author = await async_(session.get)(Author, 2)
        assert author is not None
        await async_(session.commit)()
        with pytest.raises(WouldBlockError, match="test_sqlalchemy_orm.py"):
            print(author.name)
        assert await async_(lambda: author.name)() == "author 1"
        assert await async_(titles_of)(author) == [f"book 1.{b}" for b in range(4)]
        await async_(session.close)()
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    run(main())


def test_async_code_below_a_session(run: Run, engine: Engine) -> None:
    """Sync code that holds a session may wait for async code in between."""

    @async_
    def work(n: int) -> int:
        with Session(engine) as session:
            before = session.scalar(text("SELECT pg_backend_pid()"))
            await_(asyncio.sleep(0.01))
            assert session.scalar(text("SELECT pg_backend_pid()")) == before
            return n

    async def main() -> list[int]:
        return await asyncio.gather(*(work(n) for n in range(12)))

    assert run(main()) == list(range(12))


def test_sessions_scoped_to_the_task(run: Run, engine: Engine) -> None:
    sessions = scoped_session(sessionmaker(engine), scopefunc=asyncio.current_task)

    @async_
    def work(n: int) -> list[str]:
        sessions.add(Author(name=f"scoped {n}"))
        sessions.flush()
        sessions.execute(text("SELECT pg_sleep(0.01)"))
        mine = sessions.scalars(select(Author.name).where(Author.name.like("scoped%"))).all()
        sessions.remove()
        return list(mine)

    async def main() -> list[list[str]]:
        return await asyncio.gather(*(asyncio.create_task(work(n)) for n in range(9)))

    assert run(main()) == [[f"scoped {n}"] for n in range(9)]


def test_a_cancelled_session_rolls_back(run: Run, engine: Engine) -> None:
    @async_
    def work() -> None:
        with Session(engine) as session, session.begin():
            session.add(Author(name="never"))
            session.flush()
            session.execute(text("SELECT pg_sleep(600)"))

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    with Session(engine) as session:
        assert session.scalars(select(Author).where(Author.name == "never")).all() == []
