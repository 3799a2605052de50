"""What Django is told that this backend can do."""

from __future__ import annotations

from django.db.backends.postgresql import features
from django.db.utils import DataError

__all__ = ("DatabaseFeatures",)


class DatabaseFeatures(features.DatabaseFeatures):
    # Parameters go to the server apart from the query, as with psycopg's server_side_binding.
    uses_server_side_binding = True
    prohibits_null_characters_in_text_exception = (
        DataError,
        "text cannot have a NUL character in it",
    )
    # Of Django's own tests: queries that compare parameters work here.
    django_test_expected_failures: frozenset[str] = frozenset()
