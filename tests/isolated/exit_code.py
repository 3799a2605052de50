"""sys.exit in green code ends the program with that code, and unwinds.

Prints:
    finally
    finally outside
Exits: 3
"""

import asyncio
import sys

from _loop import run

from greenletio import async_, await_


def sync():
    try:
        await_(asyncio.sleep(0))
        sys.exit(3)
    finally:
        print("finally")


async def main():
    try:
        await async_(sync)()
    finally:
        print("finally outside")


run(main())
