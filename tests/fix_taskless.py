"""What the tests of greenlets without a task share."""

import inspect
import sys

import pytest

from greenletio import async_

lazy = pytest.mark.skipif(
    not (3, 11) <= sys.version_info < (3, 14), reason="here a spawned greenlet is always a task"
)


def has_task(green):
    return not green._taskless


def green_test(fn):
    """The test is sync code, called by a task of the loop."""

    def test(run, **kwargs):
        run(async_(fn)(**kwargs))

    parameters = [inspect.Parameter("run", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += inspect.signature(fn).parameters.values()
    test.__signature__ = inspect.Signature(parameters)
    return test
