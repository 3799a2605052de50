"""Test databases."""

from __future__ import annotations

import sys
from typing import Any

from django.db.backends.base.creation import BaseDatabaseCreation
from django.db.backends.postgresql import creation
from django.db.backends.postgresql.psycopg_any import errors

from greenletio.pg.errors import DuplicateDatabase

__all__ = ("DatabaseCreation",)


class DatabaseCreation(creation.DatabaseCreation):
    """PostgreSQL's, which knows the exceptions of psycopg alone."""

    def _execute_create_test_db(
        self, cursor: Any, parameters: dict[str, str], keepdb: bool = False
    ) -> None:
        if keepdb and self._database_exists(cursor, parameters["dbname"]):
            return
        try:
            BaseDatabaseCreation._execute_create_test_db(self, cursor, parameters, keepdb)
        except Exception as exc:
            if not isinstance(exc.__cause__, (DuplicateDatabase, errors.DuplicateDatabase)):
                self.log(f"Got an error creating the test database: {exc}")
                sys.exit(2)
            if not keepdb:
                raise
