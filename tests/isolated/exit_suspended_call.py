"""The program ends while calls that were begun by hand are suspended: they are unwound.

Prints:
    end of main
    finally 0 | finally 1 | finally 2
    finally 0 | finally 1 | finally 2
    finally 0 | finally 1 | finally 2
"""

import types

from greenletio import async_, await_


@types.coroutine
def trap():
    yield


def sync(n):
    try:
        await_(trap())
    finally:
        print("finally", n)


calls = [async_(sync)(n) for n in range(3)]
for call in calls:
    call.send(None)
print("end of main")
