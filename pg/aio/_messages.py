"""What the server says that is no error: asyncpg's classes, by SQLSTATE."""

from __future__ import annotations

from greenletio.pg._errors import Diagnostic, Fields

__all__ = (
    "DeprecatedFeature",
    "DynamicResultSetsReturned",
    "ImplicitZeroBitPadding",
    "NoAdditionalDynamicResultSetsReturned",
    "NoData",
    "NullValueEliminatedInSetFunction",
    "PostgresLogMessage",
    "PostgresWarning",
    "PrivilegeNotGranted",
    "PrivilegeNotRevoked",
    "StringDataRightTruncation",
    "message_of",
)


class PostgresLogMessage(Diagnostic, Fields):
    """A message of the server: what log listeners are called with."""

    sqlstate: str | None = None

    @property
    def diag(self) -> Diagnostic:
        return self

    @property
    def message(self) -> str | None:  # type: ignore[override]
        return self.message_primary

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.message_primary}"


class PostgresWarning(PostgresLogMessage, Warning):
    """A warning."""

    sqlstate = "01000"


class DynamicResultSetsReturned(PostgresWarning):
    sqlstate = "0100C"


class ImplicitZeroBitPadding(PostgresWarning):
    sqlstate = "01008"


class NullValueEliminatedInSetFunction(PostgresWarning):
    sqlstate = "01003"


class PrivilegeNotGranted(PostgresWarning):
    sqlstate = "01007"


class PrivilegeNotRevoked(PostgresWarning):
    sqlstate = "01006"


class StringDataRightTruncation(PostgresWarning):
    sqlstate = "01004"


class DeprecatedFeature(PostgresWarning):
    sqlstate = "01P01"


class NoData(PostgresWarning):
    sqlstate = "02000"


class NoAdditionalDynamicResultSetsReturned(NoData):
    sqlstate = "02001"


def _below(cls: type[PostgresWarning]) -> list[type[PostgresWarning]]:
    return [cls, *(each for sub in cls.__subclasses__() for each in _below(sub))]


_BY_STATE: dict[str | None, type[PostgresLogMessage]] = {
    cls.sqlstate: cls for cls in _below(PostgresWarning)
}


def message_of(fields: dict[str, str]) -> PostgresLogMessage:
    """The message that has these fields."""
    default: type[PostgresLogMessage] = PostgresLogMessage
    if fields.get("severity") == "WARNING":
        default = PostgresWarning
    return _BY_STATE.get(fields.get("sqlstate"), default)(fields)
