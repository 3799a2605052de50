"""psycopg 3, patched for the test that asks."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import greenletio

Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
def patched() -> Iterator[None]:
    """psycopg 3 waits cooperatively in the test; a slow machine is not taken for a dead server."""
    greenletio.patch_psycopg(cancel_timeout=30)
    try:
        yield
    finally:
        greenletio.unpatch_psycopg()


@pytest.fixture
def connect(patched: None, pg_dsn: str) -> Iterator[Connect]:
    """Connects to the test's database, waiting as the place demands; closes all at the end."""
    made: list[psycopg.Connection[Any]] = []

    def connect(**kwargs: Any) -> psycopg.Connection[Any]:
        made.append(psycopg.connect(pg_dsn, **kwargs))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()
