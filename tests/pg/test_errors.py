"""Exceptions: the class of a SQLSTATE, the DB-API's tree, what the server says of it."""

import pickle

import pytest

from greenletio import pg
from greenletio.errors import GreenletioError
from greenletio.pg import aio, errors


def test_the_tree():
    assert issubclass(errors.UniqueViolation, errors.IntegrityConstraintViolation)
    assert issubclass(errors.IntegrityConstraintViolation, pg.IntegrityError)
    for name in ("InterfaceError", "DatabaseError"):
        assert issubclass(getattr(pg, name), pg.Error)
    assert issubclass(pg.Error, GreenletioError)
    assert errors.lookup("23505") is errors.UniqueViolation
    assert errors.lookup("23ZZZ") is errors.IntegrityConstraintViolation
    assert errors.lookup("99999") is pg.DatabaseError
    assert issubclass(errors.QueryCanceled, pg.OperationalError)
    assert issubclass(errors.UndefinedTable, pg.ProgrammingError)
    assert issubclass(errors.InvalidTextRepresentation, pg.DataError)


def test_asyncpgs_names():
    import asyncpg
    from asyncpg import exceptions as theirs

    missing = []
    for name in theirs.__all__:
        ours = getattr(aio, name, None)
        state = getattr(getattr(theirs, name), "sqlstate", None)
        if ours is None:
            missing.append(name)
        elif state and ours.sqlstate is not None:
            assert ours.sqlstate == state, name
    # Classes of notices, and of SQLSTATEs newer than our table.
    assert all(
        issubclass(getattr(theirs, name), asyncpg.PostgresWarning | asyncpg.PostgresLogMessage)
        or getattr(theirs, name).sqlstate[:2] in ("01", "02", "10", "25", "58")
        for name in missing
    ), missing
    assert aio.UniqueViolationError is errors.UniqueViolation
    assert aio.exceptions.PostgresError is pg.DatabaseError
    with pytest.raises(AttributeError):
        _ = aio.NoSuchError


def test_every_field_of_an_error(sync):
    sync.execute("CREATE TEMP TABLE t (a int CONSTRAINT small CHECK (a < 5))")
    with pytest.raises(errors.CheckViolation) as caught:
        sync.execute("INSERT INTO t VALUES (7)")
    exc = caught.value
    assert (exc.sqlstate, exc.severity) == ("23514", "ERROR")
    assert exc.message == 'new row for relation "t" violates check constraint "small"'
    assert str(exc).startswith(exc.message)
    assert (exc.table_name, exc.constraint_name) == ("t", "small")
    assert exc.detail == exc.diag.message_detail == "Failing row contains (7)."
    again = pickle.loads(pickle.dumps(exc))
    assert (type(again), str(again), again.detail) == (type(exc), str(exc), exc.detail)
    sync.rollback()
    with pytest.raises(errors.SyntaxError) as caught:
        sync.execute("SELECT 1 +")
    assert caught.value.position == "11"


def test_errors_of_ones_own(sync):
    with pytest.raises(pg.DatabaseError) as caught:
        sync.execute(
            "DO $$ BEGIN RAISE 'look' USING"
            " ERRCODE = 'AB123', HINT = 'up', DETAIL = 'there'; END $$"
        )
    assert type(caught.value) is pg.DatabaseError
    assert (caught.value.sqlstate, caught.value.hint, caught.value.detail) == (
        "AB123",
        "up",
        "there",
    )
