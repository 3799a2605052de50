"""Importing creates no loop, thread or file.

Prints:
    ok
"""

import asyncio
import os
import sys
import threading

fds = os.listdir("/proc/self/fd")


def forbidden(*args, **kwargs):
    raise AssertionError("a loop was made")


asyncio.BaseEventLoop.__init__ = forbidden
asyncio.new_event_loop = forbidden
import greenletio  # noqa: E402
import greenletio.debug  # noqa: E402
import greenletio.errors  # noqa: E402
import greenletio.io  # noqa: E402

assert threading.active_count() == 1
assert len(os.listdir("/proc/self/fd")) == len(fds)
assert "uvloop" not in sys.modules and "trio" not in sys.modules
assert "sqlalchemy" not in sys.modules and "psycopg2" not in sys.modules
greenletio.async_(int)
print("ok")
