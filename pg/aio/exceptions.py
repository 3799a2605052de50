"""The exceptions by asyncpg's names: the same classes as those of ``greenletio.pg.errors``.

Where asyncpg has a class for which there is no SQLSTATE, the nearest of ours has its name.
"""

from __future__ import annotations

import re
from typing import Any

from greenletio.pg import _sqlstates, errors
from greenletio.pg._errors import InterfaceWarning
from greenletio.pg.aio import _messages

# Where the rule (SQL and FDW in capitals, no "Exception", "Error" at the end) does not hold.
_OTHERWISE = {
    "08000": "PostgresConnectionError",
    "08001": "ClientCannotConnectError",
    "08004": "ConnectionRejectionError",
    "22P01": "PostgresFloatingPointError",
    "38002": "ModifyingExternalRoutineSQLDataNotPermittedError",
    "38003": "ProhibitedExternalRoutineSQLStatementAttemptedError",
    "38004": "ReadingExternalRoutineSQLDataNotPermittedError",
    "39004": "NullValueInExternalRoutineNotAllowedError",
    "40001": "SerializationError",
    "42000": "SyntaxOrAccessError",
    "42601": "PostgresSyntaxError",
    "58000": "PostgresSystemError",
    "58030": "PostgresIOError",
    "P0000": "PLPGSQLError",
    "P0001": "RaiseError",
    "P0004": "AssertError",
}


_names: dict[str, type[Any]] = {
    "ClientConfigurationError": errors.ProgrammingError,
    "DataError": errors.DataError,
    "FatalPostgresError": errors.DatabaseError,
    "InterfaceError": errors.InterfaceError,
    "InterfaceWarning": InterfaceWarning,
    "InternalClientError": errors.InternalError,
    "InvalidCachedStatementError": errors.StalePlan,
    "OutdatedSchemaCacheError": errors.OutdatedTypes,
    "PostgresError": errors.DatabaseError,
    "ProtocolError": errors.InternalError,
    "TargetServerAttributeNotMatched": errors.CannotConnect,
    "UnknownPostgresError": errors.DatabaseError,
    "UnsupportedClientFeatureError": errors.NotSupportedError,
    "UnsupportedServerFeatureError": errors.NotSupportedError,
}


def _name(cls: type[errors.DatabaseError]) -> str:
    if cls.sqlstate in _OTHERWISE:
        return _OTHERWISE[cls.sqlstate]
    name = re.sub("^Fdw", "FDW", re.sub("Sql(?=[A-Z])", "SQL", cls.__name__))
    name = name.removesuffix("Exception")
    return name if name.endswith("Error") else f"{name}Error"


for _ours in _sqlstates.__all__:
    _class = getattr(_sqlstates, _ours)
    _names.setdefault(_name(_class), _class)

for _ours in _messages.__all__:
    if _ours != "message_of":
        _names[_ours] = getattr(_messages, _ours)

globals().update(_names)

__all__ = tuple(sorted(_names))

del _ours, _class


def __getattr__(name: str) -> type[errors.DatabaseError]:  # for type checkers, and the message
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
