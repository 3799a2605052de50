"""cProfile sees the functions of green code, with the calls they really had.

Prints:
    sync 10
    helper 30
    coro 30 or 60
"""

import asyncio
import cProfile
import pstats

from greenletio import async_, await_


def helper():
    await_(coro())
    return sum(range(100))


async def coro():
    await asyncio.sleep(0)


def sync():
    for _ in range(3):
        helper()


async def main():
    await asyncio.gather(*[async_(sync)() for _ in range(10)])


profile = cProfile.Profile()
profile.enable()
asyncio.run(main())
profile.disable()
stats = pstats.Stats(profile).stats
for name in ("sync", "helper"):
    calls = [v[1] for k, v in stats.items() if k[2] == name and "tools_profile" in k[0]]
    print(name, *calls)
# each suspended coroutine is entered again once it is resumed
calls = [v[1] for k, v in stats.items() if k[2] == "coro" and "tools_profile" in k[0]]
print("coro", "30 or 60" if calls[0] in (30, 60) else calls)
