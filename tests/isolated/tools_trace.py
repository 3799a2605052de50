"""A trace function sees each line of green code, across waits, in every greenlet.

Prints:
    sync: [1, 2, 3, 4]
    spawned: [1, 2, 3]
    ok
"""

import asyncio
import sys
from collections import defaultdict

import greenletio
from greenletio import async_, await_, spawn

lines = defaultdict(list)


def tracer(frame, event, arg):
    if event == "line" and frame.f_code.co_name in ("sync", "spawned"):
        lines[frame.f_code.co_name].append(frame.f_lineno - frame.f_code.co_firstlineno)
    return tracer


def sync():
    x = 1
    await_(asyncio.sleep(0))
    x = spawn(spawned).get()
    return x


def spawned():
    greenletio.sleep(0)
    greenletio.sleep(0.001)
    return 2


sys.settrace(tracer)
assert asyncio.run(async_(sync)()) == 2
sys.settrace(None)
for name in ("sync", "spawned"):
    print(f"{name}: {lines[name]}")
print("ok")
