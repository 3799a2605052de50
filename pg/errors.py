"""Exceptions: a class per SQLSTATE, in the DB-API's tree, named after PostgreSQL's conditions.

``UniqueViolation`` (23505), say, is an ``IntegrityConstraintViolation`` (all of class 23) and so
an ``IntegrityError``. ``exc.diag`` has every field that the server has sent, ``exc.sqlstate`` the
code.
"""

from __future__ import annotations

import re

from greenletio.pg import _errors, _sqlstates
from greenletio.pg._errors import *  # noqa: F403
from greenletio.pg._errors import (
    DatabaseError,
    Diagnostic,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from greenletio.pg._sqlstates import *  # noqa: F403
from greenletio.pg._sqlstates import ConnectionException, FeatureNotSupported

__all__ = (
    *_errors.__all__,
    *_sqlstates.__all__,
    "ArgumentsMismatch",
    "CannotConnect",
    "ConnectionClosed",
    "PipelineAborted",
    "StalePlan",
    "lookup",
)


class ConnectionClosed(InterfaceError):
    """The connection was closed before, or has not been opened."""


class CannotConnect(ConnectionException):
    """No connection could be made; the message is libpq's."""


class ArgumentsMismatch(ProgrammingError, InterfaceError):
    """A query was given more or fewer arguments than it has parameters."""


class PipelineAborted(OperationalError):
    """An operation before this one in its pipeline has failed, so that nothing of it was done.

    The server goes on after the next ``sync()``.
    """


class StalePlan(FeatureNotSupported):
    """What a prepared statement gives has changed, inside a transaction.

    Outside one the driver prepares it anew. Roll back, and do it again.
    """


_BY_STATE: dict[str, type[DatabaseError]] = {}
for _name in _sqlstates.__all__:
    _class = getattr(_sqlstates, _name)
    _BY_STATE[_class.sqlstate] = _class


def lookup(sqlstate: str) -> type[DatabaseError]:
    """The class of a SQLSTATE; one that is not known is of its class's, by two characters."""
    found = _BY_STATE.get(sqlstate) or _BY_STATE.get(f"{sqlstate[:2]}000")
    return found or DatabaseError


_REFUSED = re.compile(r"(?<=: ) ?(\w+):  ([0-9A-Z]{5}): ")


def _cannot_connect(message: str) -> DatabaseError:
    """The exception for a failed connect (internal): libpq has the SQLSTATE in its message only."""
    found = _REFUSED.search(message)
    if found is None:
        return CannotConnect(message)
    text = message[: found.start()] + f"{found[1]}:  " + message[found.end() :]
    error = lookup(found[2])(text.partition("\nLOCATION: ")[0])
    error.sqlstate = found[2]
    return error


def _from_fields(fields: dict[str, str], message: str) -> DatabaseError:
    """The exception for an error of the server (internal)."""
    state = fields.get("sqlstate")
    text = message.rstrip("\n")
    prefix, colon, rest = text.partition(":  ")
    if colon and prefix.isupper():
        text = rest
    if state is None:  # libpq's own, of a connection that is lost
        return OperationalError(text)
    cls = lookup(state)
    if state == "0A000" and fields.get("source_function") == "RevalidateCachedQuery":
        cls = StalePlan
    error = cls(text)
    error.sqlstate = state
    error.diag = Diagnostic(fields)
    return error


del _name, _class
