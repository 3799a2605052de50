"""coverage.py sees every line of green code.

Prints:
    missed: []
Needs: coverage
"""

import asyncio
import inspect

import coverage

import greenletio
from greenletio import async_, await_


def sync():
    total = 0
    for _ in range(3):
        await_(asyncio.sleep(0))
        total += inner()
    return total


def inner():
    try:
        greenletio.sleep(0)
        raise KeyError
    except KeyError:
        greenletio.sleep(0.001)
    return 1


cov = coverage.Coverage(data_file=None, concurrency=["greenlet"], include=[__file__])
cov.start()
assert asyncio.run(async_(sync)()) == 3
cov.stop()
_, _, _, missing, _ = cov.analysis2(__file__)
wanted = set()
for fn in (sync, inner):
    source, first = inspect.getsourcelines(fn)
    wanted |= set(range(first + 1, first + len(source)))
print("missed:", sorted(set(missing) & wanted))
