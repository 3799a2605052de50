"""The scripts here are for `pytest --pgtap`, which `make test` says."""

import pytest
from fix_system_postgres import start_pgtap_database


def pytest_pgtap_dsn(config: pytest.Config) -> str:
    return start_pgtap_database(config)
