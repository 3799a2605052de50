"""Wrappers, calls and results that are nested without end are freed and refused: no crash.

Prints:
    warnings: 100000
    attribute: RecursionError
    call: RecursionError
    freed
"""

import contextlib
import warnings

from greenletio import _core, async_

DEPTH = 100_000


def fn(*_):
    pass


def attempt(name, attack):
    try:
        attack()
    except RecursionError:
        print(f"{name}: RecursionError")


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    call = None
    for _ in range(DEPTH):
        call = async_(fn)(call)
    del call
print("warnings:", len(caught))

result = None
for _ in range(DEPTH):
    waiter = _core.Waiter()
    waiter.set(result)
    result = waiter
del result, waiter

wrapped, awaited = fn, fn
for _ in range(DEPTH):
    wrapped, awaited = async_(wrapped), _core.AwaitFunction(awaited)
attempt("attribute", lambda: wrapped.nothing)
with contextlib.suppress(RecursionError):  # Python 3.14 has the stack for it
    wrapped.__get__(1)
attempt("call", lambda: awaited())
wrapped = awaited = fn
print("freed")
