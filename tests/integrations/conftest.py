"""SQLAlchemy engines on the drivers that greenletio makes cooperative."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine

import greenletio
from greenletio.integrations.sqlalchemy import GreenQueuePool

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["psycopg", "psycopg2"])
def driver(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a driver, patched for the length of the test."""
    name: str = request.param
    getattr(greenletio, f"patch_{name}")()
    try:
        yield name
    finally:
        getattr(greenletio, f"unpatch_{name}")()


@pytest.fixture
def make_engine(driver: str, pg_dsn: str) -> Iterator[MakeEngine]:
    """Makes engines with a GreenQueuePool on the test's database; disposes of them at the end."""
    engines: list[Engine] = []

    def make_engine(url: str = pg_dsn, **kwargs: Any) -> Engine:
        dialect_url = sqlalchemy.make_url(url).set(drivername=f"postgresql+{driver}")
        connect_args = {"application_name": "pool", **kwargs.pop("connect_args", {})}
        engines.append(
            sqlalchemy.create_engine(
                dialect_url, poolclass=GreenQueuePool, connect_args=connect_args, **kwargs
            )
        )
        return engines[-1]

    yield make_engine
    for engine in engines:
        engine.dispose()
