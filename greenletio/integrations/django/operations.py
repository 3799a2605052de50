"""SQL with the values in it, for what the server takes no parameters in."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.backends.postgresql import operations
from django.db.backends.postgresql.psycopg_any import get_adapters_template

from greenletio.integrations.django._values import Adapters, compose

__all__ = ("DatabaseOperations",)


class DatabaseOperations(operations.DatabaseOperations):
    def compose_sql(self, sql: str, params: Any) -> str:
        """The query with its values in their places, as psycopg writes them."""
        wrapper = self.connection
        context = wrapper.connection
        if context is None:
            context = Adapters(get_adapters_template(settings.USE_TZ, wrapper.timezone))
        return compose(sql, params, context)
