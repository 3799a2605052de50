"""Exceptions: a class per SQLSTATE, in the DB-API's tree, named after PostgreSQL's conditions.

``UniqueViolation`` (23505), say, is an ``IntegrityConstraintViolation`` (all of class 23) and so
an ``IntegrityError``. ``exc.diag`` has every field that the server has sent, ``exc.sqlstate`` the
code.
"""

from __future__ import annotations

import re
import ssl

from greenletio.pg import _errors, _sqlstates
from greenletio.pg._errors import *  # noqa: F403
from greenletio.pg._errors import (
    DatabaseError,
    Diagnostic,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from greenletio.pg._sqlstates import *  # noqa: F403
from greenletio.pg._sqlstates import (
    ConnectionDoesNotExist,
    ConnectionException,
    FeatureNotSupported,
)

__all__ = (
    *_errors.__all__,
    *_sqlstates.__all__,
    "ArgumentsMismatch",
    "CannotConnect",
    "ConnectionClosed",
    "NoBinaryForm",
    "OutdatedTypes",
    "PipelineAborted",
    "QueryInDoubt",
    "StalePlan",
    "TlsFailed",
    "TlsPinMismatch",
    "lookup",
)


class ConnectionClosed(InterfaceError):
    """The connection was closed before, or has not been opened."""


class CannotConnect(ConnectionException, ConnectionError):
    """No connection could be made; the message is libpq's."""


class TlsFailed(CannotConnect, ssl.SSLCertVerificationError):
    """The connection could not be encrypted, or not as its options demand."""

    def __str__(self) -> str:  # ssl's own would show a tuple
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class TlsPinMismatch(TlsFailed):
    """The server's key is none of those that ``tls_pin`` names: it was not shown the password."""


class ArgumentsMismatch(ProgrammingError, InterfaceError):
    """A query was given more or fewer arguments than it has parameters."""


class NoBinaryForm(NotSupportedError, InternalError):
    """Records cannot be copied to a column: of its type, or by its codec, only text is known."""


class PipelineAborted(OperationalError):
    """An operation before this one in its pipeline has failed, so that nothing of it was done.

    The server goes on after the next ``sync()``.
    """


class QueryInDoubt(ConnectionDoesNotExist):
    """A connection that many share was lost while the query was at the server.

    It was done, or it was not: only whoever asked it can find that out. One that the server cannot
    have begun is asked again by itself, on another connection.
    """


class OutdatedTypes(InternalError):
    """A value is not as its type was when that was looked up: somebody has altered the type.

    What is known of types is forgotten; do it again.
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


_POOLERS = (
    "A pooler that shares server connections by transactions or statements (pgbouncer, say) loses "
    "prepared statements: connect with statement_cache_size=0."
)
_TLS = re.compile("SSL error|certificate|private key file|SSL_", re.IGNORECASE)
_REFUSED = re.compile(r"(?<=: ) ?(\w+):  ([0-9A-Z]{5}): ")
_LOCATION = re.compile(r"\nLOCATION:  .*")


def _cannot_connect(message: str) -> DatabaseError:
    """The exception for a failed connect (internal): libpq has the SQLSTATE in its message only."""
    found = _REFUSED.search(message)
    if found is None and "does not support SSL" in message:
        return CannotConnect(
            f"{message}\nIt rejected SSL: it must be switched on at the server, or sslmode=prefer"
        )
    if found is None and _TLS.search(message):
        return TlsFailed(message)
    if found is None:
        return CannotConnect(message)
    # There may be more attempts in it, and remarks of libpq's own.
    text = _LOCATION.sub("", _REFUSED.sub(r"\1:  ", message))
    error = lookup(found[2])(text)
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
        text = "cached statement plan is invalid: what it gives has changed, by an ALTER, say"
    elif state in ("26000", "42P05"):
        hint = f"{fields['message_hint']}\n" if "message_hint" in fields else ""
        fields["message_hint"] = hint + _POOLERS
    error = cls(text)
    error.sqlstate = state
    error.diag = Diagnostic(fields)
    return error


del _name, _class
