"""os.register_at_fork: hooks that wait, run a loop, or close one, in the parent and in the child.

Prints:
    before
    child: 7
    parent: 7
    parent goes on
Stderr: multi-threaded.*fork
"""

import asyncio
import os
import sys

import greenletio
from greenletio import async_, spawn


async def seven():
    await async_(greenletio.sleep)(0.001)
    return await asyncio.get_running_loop().run_in_executor(None, lambda: 7)


def hook(where):
    greenletio.sleep(0.001)
    assert spawn(lambda: 7).get() == 7
    kept.run_until_complete(asyncio.sleep(0.001))
    if where == "before":
        text = where
    else:
        text = f"{where}: {greenletio.run(seven())}"
        kept.close()
    order.append(text)


order = []
kept = greenletio.new_event_loop()
kept.run_until_complete(seven())
os.register_at_fork(
    before=lambda: hook("before"),
    after_in_parent=lambda: hook("parent"),
    after_in_child=lambda: hook("child"),
)
pid = os.fork()
if pid == 0:
    print(*order, sep="\n", flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(order[-1])
assert greenletio.run(seven()) == 7
print("parent goes on")
sys.stdout.flush()
