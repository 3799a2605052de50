"""What is in a database."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql import introspection

from greenletio import pg

__all__ = ("DatabaseIntrospection", "Described")


class _Column(pg.Column):
    type_display: str


class Described:
    """A cursor whose columns have their types' names, as psycopg's; newer Djangos look for them."""

    def __init__(self, cursor: Any, types: Any) -> None:
        self._cursor = cursor
        self._types = types

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    @property
    def description(self) -> list[_Column]:
        columns = [_Column(*column) for column in self._cursor.description]
        for column in columns:
            known = self._types.get(column.type_code)
            column.type_display = str(column.type_code) if known is None else known.name
        return columns


class DatabaseIntrospection(introspection.DatabaseIntrospection):
    def get_table_description(self, cursor: Any, table_name: str) -> Any:
        types = self.connection.connection.adapters.types
        return super().get_table_description(Described(cursor, types), table_name)
