"""Alembic's migrations on both dialects of engines: from its own program, and from green code."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from fix_missing import missing
from fix_postgres import Query
from fix_progress import Ticker

from greenletio import async_

LIMIT_S = 100  # against a hang, not a measure

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "sqlalchemy.md"
ENV = DOCUMENT.read_text().partition("```python\n# env.py\n")[2].partition("```")[0]
FIRST = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None

def upgrade():
    columns = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text)]
    op.create_table("fruit", *columns)
    op.execute("SELECT pg_sleep(0.3)")

def downgrade():
    op.drop_table("fruit")
"""
SECOND = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "2", "1"

def upgrade():
    op.add_column("fruit", sa.Column("price", sa.Numeric(10, 2), server_default="1"))
    with op.get_context().autocommit_block():
        op.create_index("by_name", "fruit", ["name"], postgresql_concurrently=True)

def downgrade():
    op.drop_index("by_name", "fruit")
    op.drop_column("fruit", "price")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of migrations."""
    if importlib.util.find_spec("alembic") is None:
        missing("alembic is not installed")
    (tmp_path / "versions").mkdir()
    for name, text in {
        "alembic.ini": f"[alembic]\nscript_location = {tmp_path}\n",
        "env.py": ENV,
        "versions/first.py": FIRST,
        "versions/second.py": SECOND,
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name = 'fruit' ORDER BY 1"


@pytest.fixture
def url(pg_dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    made = sa.make_url(pg_dsn).set(drivername="postgresql+greenletio")
    url = made.render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    return url


def test_by_its_own_program(project: Path, url: str, pg_query: Query) -> None:
    def alembic(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *args],
            cwd=project,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    alembic("upgrade", "head")
    assert pg_query(COLUMNS) == [("id",), ("name",), ("price",)]
    assert alembic("current").strip() == "2 (head)"
    alembic("downgrade", "1")
    assert pg_query(COLUMNS) == [("id",), ("name",)]
    alembic("downgrade", "base")
    assert pg_query(COLUMNS) == []


def test_when_an_application_starts(
    run: Callable[..., object], project: Path, url: str, pg_query: Query
) -> None:
    """In a greenlet of its loop, which goes on."""
    from alembic import command
    from alembic.config import Config

    async def main() -> None:
        async with Ticker():
            await async_(command.upgrade)(Config(project / "alembic.ini"), "head")

    run(main())
    assert pg_query(COLUMNS) == [("id",), ("name",), ("price",)]


def test_what_autogenerate_sees(url: str, pg_query: Query) -> None:
    """The dialect reflects what is there as the models have it: nothing is to be done."""
    if importlib.util.find_spec("alembic") is None:
        missing("alembic is not installed")
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy.dialects import postgresql

    metadata = sa.MetaData()
    fruit = sa.Table(
        "fruit",
        metadata,
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("name", sa.String(50), nullable=False, unique=True, server_default="pear"),
        sa.Column("price", sa.Numeric(10, 2)),
        sa.Column("tags", postgresql.ARRAY(sa.Text)),
        sa.Column("more", postgresql.JSONB),
        sa.Column("kind", sa.Enum("a", "b", name="fruit_kind")),
        sa.Index("by_price", "price"),
    )
    engine = sa.create_engine(url)
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, metadata) == []
            fruit.append_column(sa.Column("new", sa.Integer))
            (change,) = compare_metadata(context, metadata)
            assert (change[0], change[3].name) == ("add_column", "new")
    finally:
        engine.dispose()
