"""run(coroutine) for the scripts: on the kind of loop their first argument names."""

import asyncio
import sys


def new_loop():
    if sys.argv[1:2] == ["uvloop"]:
        import uvloop

        return uvloop.new_event_loop()
    if sys.argv[1:2] == ["greenletio"]:
        import greenletio

        return greenletio.new_event_loop()
    return asyncio.SelectorEventLoop()


def run(coro):
    loop = new_loop()
    try:
        return loop.run_until_complete(coro)
    finally:
        loop.close()
