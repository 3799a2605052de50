"""The program that the demo runs: SQLAlchemy's ORM on psycopg2, all of it synchronous.

Nothing here knows how it is called. ``index`` and ``search`` wait for PostgreSQL
wherever SQLAlchemy does; ``index`` also computes, and ``Courtesy`` is where it
lets others go first.
"""

import tokenize
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Computed, ForeignKey, Index, create_engine, func, make_url, select, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.engine import Engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    contains_eager,
    mapped_column,
    relationship,
)
from sqlalchemy.pool import Pool

from greenletio.demo.corpus import entries, module_name

__all__ = ("Courtesy", "create_tables", "index", "open_engine", "search", "tidy")

CONNECTIONS = 10
FLUSH_EVERY = 40
HITS = 10


@dataclass(frozen=True)
class Courtesy:
    """How computing shares the loop: ``turn()`` surrounds it, ``rest()`` parts its steps."""

    turn: Callable[[], AbstractContextManager[object]]
    rest: Callable[[], object]


class Base(DeclarativeBase):
    pass


class Module(Base):
    __tablename__ = "module"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    path: Mapped[str]
    lines: Mapped[int]
    definitions: Mapped[list["Definition"]] = relationship(back_populates="module")


class Definition(Base):
    __tablename__ = "definition"
    __table_args__ = (Index("definition_words", "words", postgresql_using="gin"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    module_id: Mapped[int] = mapped_column(ForeignKey("module.id"), index=True)
    kind: Mapped[str]
    qualname: Mapped[str]
    line: Mapped[int]
    signature: Mapped[str]
    docstring: Mapped[str]
    words: Mapped[Any] = mapped_column(
        TSVECTOR,
        Computed(
            "setweight(to_tsvector('simple', translate(qualname, '._', '  ')), 'A') || "
            "setweight(to_tsvector('english', docstring), 'B')",
            persisted=True,
        ),
        deferred=True,
    )
    module: Mapped[Module] = relationship(back_populates="definitions")


def open_engine(url: str, schema: str, poolclass: type[Pool]) -> Engine:
    """An engine whose connections work in ``schema``. Nothing is connected yet."""
    # All of this is in memory: a random read costs what a sequential one does.
    options = f"-csearch_path={schema} -crandom_page_cost=1.1"
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg2"),
        poolclass=poolclass,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=120,
        connect_args={"options": options, "application_name": schema},
    )


def create_tables(engine: Engine) -> None:
    Base.metadata.create_all(engine)


def index(engine: Engine, path: Path, courtesy: Courtesy) -> int:
    """Store what one source file defines; returns how many definitions that were."""
    name = module_name(path)
    with courtesy.turn():
        with tokenize.open(path) as file:
            source = file.read()
        found = []
        for piece in entries(name, source):
            found += piece
            courtesy.rest()
    rest = iter(found)
    with Session(engine) as session, session.begin():
        module = Module(name=name, path=str(path), lines=source.count("\n"))
        session.add(module)
        while batch := list(islice(rest, FLUSH_EVERY)):
            session.add_all(
                Definition(
                    module=module,
                    kind=entry.kind,
                    qualname=entry.qualname,
                    line=entry.line,
                    signature=entry.signature,
                    docstring=entry.docstring,
                )
                for entry in batch
            )
            session.flush()
    return len(found)


def search(engine: Engine, words: str) -> list[dict[str, Any]]:
    """The best hits for what a person typed, best first."""
    query = func.websearch_to_tsquery("english", words)
    rank = func.ts_rank(Definition.words, query)
    statement = (
        select(Definition)
        .join(Definition.module)
        .options(contains_eager(Definition.module))
        .where(Definition.words.bool_op("@@")(query))
        .order_by(rank.desc(), Definition.qualname, Module.name, Definition.line)
        .limit(HITS)
    )
    with Session(engine) as session:
        return [
            {
                "name": hit.qualname,
                "kind": hit.kind,
                "file": hit.module.path,
                "line": hit.line,
                "signature": hit.signature,
                "summary": hit.docstring.partition("\n")[0],
            }
            for hit in session.scalars(statement)
        ]


def tidy(engine: Engine) -> None:
    """Merge the index's pending entries and count rows, as autovacuum would a minute later."""
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("VACUUM (ANALYZE) module, definition"))
