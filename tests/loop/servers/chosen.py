"""The loop that the servers beside this file run on: GREENLETIO_TEST_LOOP=module:Class."""

import asyncio
import importlib
import os


def new_loop() -> asyncio.AbstractEventLoop:
    module, _, attribute = os.environ["GREENLETIO_TEST_LOOP"].partition(":")
    loop: asyncio.AbstractEventLoop = getattr(importlib.import_module(module), attribute)()
    return loop


def running() -> str:
    """The class of the loop that runs."""
    cls = type(asyncio.get_running_loop())
    return f"{cls.__module__}.{cls.__qualname__}"
