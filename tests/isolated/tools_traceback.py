"""An exception nobody catches is printed with the frames of both worlds, once each.

Prints:
    main coro sync helper
    ours: 0
"""

import asyncio
import io
import re
import traceback

from _loop import run

from greenletio import async_, await_


def helper():
    await_(asyncio.sleep(0))
    raise ValueError("here")


def sync():
    helper()


async def coro():
    await async_(sync)()


async def main():
    await async_(lambda: await_(coro()))()


text = io.StringIO()
try:
    run(main())
except ValueError:
    traceback.print_exc(file=text)
found = re.findall(r"in (\w+)\n", text.getvalue())
print(*[n for n in found if n in ("main", "coro", "sync", "helper")])
print("ours:", len(re.findall(r"greenletio/(?!tests)\w+\.py", text.getvalue())))
