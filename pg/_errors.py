"""The base of the driver's exceptions: the DB-API's tree, with all that the server says."""

from __future__ import annotations

from typing import Any

from greenletio.errors import GreenletioError

__all__ = (
    "DataError",
    "DatabaseError",
    "Diagnostic",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Warning",
)


class Diagnostic:
    """The fields of an error or notice of the server; those that it has not sent are None."""

    severity: str | None = None
    sqlstate: str | None = None
    message_primary: str | None = None
    message_detail: str | None = None
    message_hint: str | None = None
    statement_position: str | None = None
    internal_position: str | None = None
    internal_query: str | None = None
    context: str | None = None
    schema_name: str | None = None
    table_name: str | None = None
    column_name: str | None = None
    datatype_name: str | None = None
    constraint_name: str | None = None
    source_file: str | None = None
    source_line: str | None = None
    source_function: str | None = None

    def __init__(self, fields: dict[str, str] | None = None) -> None:
        self.__dict__.update(fields or {})

    def __repr__(self) -> str:
        return f"<Diagnostic {self.__dict__}>"


class Warning(Exception):
    """The DB-API's; the driver does not raise it."""


class Error(GreenletioError):
    """The base of all that the driver raises."""

    #: The class's SQLSTATE, then that of the error itself.
    sqlstate: str | None = None
    #: All that the server has said.
    diag: Diagnostic = Diagnostic()

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.args, self.__dict__)

    @property
    def severity(self) -> str | None:
        return self.diag.severity

    @property
    def message(self) -> str:
        return self.diag.message_primary or str(self)

    @property
    def detail(self) -> str | None:
        return self.diag.message_detail

    @property
    def hint(self) -> str | None:
        return self.diag.message_hint

    @property
    def position(self) -> str | None:
        return self.diag.statement_position

    @property
    def internal_position(self) -> str | None:
        return self.diag.internal_position

    @property
    def internal_query(self) -> str | None:
        return self.diag.internal_query

    @property
    def context(self) -> str | None:
        return self.diag.context

    @property
    def schema_name(self) -> str | None:
        return self.diag.schema_name

    @property
    def table_name(self) -> str | None:
        return self.diag.table_name

    @property
    def column_name(self) -> str | None:
        return self.diag.column_name

    @property
    def data_type_name(self) -> str | None:
        return self.diag.datatype_name

    @property
    def constraint_name(self) -> str | None:
        return self.diag.constraint_name


def _rebuild(cls: type[Error], args: tuple[Any, ...], state: dict[str, Any]) -> Error:
    error = cls(*args)
    error.__dict__.update(state)
    return error


class InterfaceError(Error):
    """The driver was used in a way that it cannot be used in."""


class DatabaseError(Error):
    """The base of what concerns the database; what the server reports is of a subclass."""


class DataError(DatabaseError):
    """A value does not fit its type."""


class OperationalError(DatabaseError):
    """The connection or the server failed, and the program need not be to blame."""


class IntegrityError(DatabaseError):
    """A constraint would be violated."""


class InternalError(DatabaseError):
    """The server, or the state of the session, is not as it should be."""


class ProgrammingError(DatabaseError):
    """The SQL is wrong, or does not fit the database."""


class NotSupportedError(DatabaseError):
    """The server, or the driver, cannot do that."""
