"""Infinite recursion through the bridge in each form is a RecursionError, again and again.

Prints:
    nested: RecursionError
    spawn: RecursionError
    by hand: RecursionError
    plain: RecursionError
    ok
"""

import asyncio

from _loop import run

from greenletio import async_, await_, spawn


def nested():
    await_(async_(nested)())


def by_hand():
    try:
        async_(by_hand)().send(None)
    except StopIteration:
        pass


def plain():
    plain()


async def main():
    for _ in range(2):
        for name, fn in (("nested", nested), ("by hand", by_hand), ("plain", plain)):
            try:
                await async_(fn)()
            except RecursionError:
                seen[name] = "RecursionError"
    await async_(lambda: await_(asyncio.sleep(0)))()


def limited(n):
    """A chain of greens has no common stack: it may be long, and it ends."""
    return 0 if n == 0 else spawn(limited, n - 1).get() + 1


def overflow():
    def down():
        down()

    spawn(down).get()


seen = {}
run(main())
try:
    run(async_(overflow)())
except RecursionError:
    seen["spawn"] = "RecursionError"
assert run(async_(limited)(500)) == 500
for name in ("nested", "spawn", "by hand", "plain"):
    print(f"{name}: {seen.get(name)}")
print("ok")
