"""What a test does when something it needs is not there."""

import importlib
import os
from typing import Any, NoReturn

import pytest

IN_CI = os.environ.get("CI") == "true"


def missing(what: str) -> NoReturn:
    """Skip the test and say what is missing; under CI=true, where all must be there, fail it."""
    if IN_CI:
        pytest.fail(f"needed under CI=true: {what}", pytrace=False)
    pytest.skip(what, allow_module_level=True)


def need(package: str) -> Any:
    """The package, which is imported; where it is not installed, that is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing(f"{error}: pip install {package}")
