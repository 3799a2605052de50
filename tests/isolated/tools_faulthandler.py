"""faulthandler shows the green function that runs, from within and from another thread.

Prints:
    from within: sync helper
    by a timer: sync spin
    ok
"""

import asyncio
import faulthandler
import os
import tempfile
import time

from greenletio import async_, await_


def names(file):
    text = os.pread(file.fileno(), 1 << 20, 0).decode()
    return [n for n in ("sync", "helper", "spin") if f" in {n}\n" in text]


def helper():
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=False)
        print("from within:", *names(file))


def spin(file):
    faulthandler.dump_traceback_later(0.01, file=file)
    end = time.monotonic() + 60
    while len(names(file)) < 2 and time.monotonic() < end:
        pass
    faulthandler.cancel_dump_traceback_later()


def sync():
    await_(asyncio.sleep(0))
    helper()
    await_(asyncio.sleep(0))
    with tempfile.TemporaryFile("w+") as file:
        spin(file)
        print("by a timer:", *names(file))


asyncio.run(async_(sync)())
print("ok")
