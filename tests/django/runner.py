"""Django's test runner, for settings.py: what is listed is expected to fail."""

from __future__ import annotations

import json
import os
from typing import Any

from django.test.runner import DiscoverRunner
from django.test.utils import iter_test_cases

FAILS = frozenset(json.loads(os.environ["GREENLETIO_DJANGO_TESTS"])["fails"])


class Runner(DiscoverRunner):
    def build_suite(self, *args: Any, **kwargs: Any) -> Any:
        suite = super().build_suite(*args, **kwargs)
        for test in iter_test_cases(suite):
            if test.id() in FAILS:
                test.__unittest_expecting_failure__ = True
        return suite
