"""The base of the driver's exceptions: the DB-API's tree, with all that the server says."""

from __future__ import annotations

from typing import Any

from greenletio.errors import GreenletioError

__all__ = (
    "DataError",
    "DatabaseError",
    "Diagnostic",
    "Error",
    "Fields",
    "IntegrityError",
    "InterfaceError",
    "InterfaceWarning",
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


class _Field:
    """A field of ``diag`` by another name; None at the class."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, cls: Any = None) -> str | None:
        if owner is None:
            return None
        value: str | None = getattr(owner.diag, self._name)
        return value


class Fields:
    """The fields of ``diag`` by asyncpg's names."""

    severity = _Field("severity")
    severity_en = _Field("severity")
    message = _Field("message_primary")
    detail = _Field("message_detail")
    hint = _Field("message_hint")
    position = _Field("statement_position")
    internal_position = _Field("internal_position")
    internal_query = _Field("internal_query")
    context = _Field("context")
    schema_name = _Field("schema_name")
    table_name = _Field("table_name")
    column_name = _Field("column_name")
    data_type_name = _Field("datatype_name")
    constraint_name = _Field("constraint_name")
    server_source_filename = _Field("source_file")
    server_source_line = _Field("source_line")
    server_source_function = _Field("source_function")
    sqlstate: str | None

    def as_dict(self) -> dict[str, str]:
        """Those that the server has sent."""
        names = [name for name, value in vars(Fields).items() if isinstance(value, _Field)]
        values = {name: getattr(self, name) for name in (*names, "sqlstate")}
        return {name: value for name, value in values.items() if value is not None}


class Warning(Exception):
    """The DB-API's; the driver does not raise it."""


class InterfaceWarning(UserWarning):
    """The driver is used in a way that can lead to trouble."""


class Error(Fields, GreenletioError):
    """The base of all that the driver raises."""

    #: The class's SQLSTATE, then that of the error itself.
    sqlstate: str | None = None
    #: All that the server has said.
    diag: Diagnostic = Diagnostic()
    #: The query that it is about, where there is one.
    query: str | None = None

    @property
    def message(self) -> str:  # type: ignore[override]
        return self.diag.message_primary or str(self)

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.args, self.__dict__)


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
