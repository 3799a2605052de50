"""What is there before a module's tests is kept out of the garbage collector's way.

Once every test is collected and every framework imported, one gc.collect() takes a second; there
are hundreds of them.
"""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    gc.collect()
    gc.freeze()
