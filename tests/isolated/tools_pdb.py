r"""pdb in green code: it shows the frame and its variables, steps over a wait, and goes on.

Prints:
    ...
    (Pdb) ('here:', 42)
    ...
    (Pdb) ('after the wait:', 43)
    (Pdb) result 43
Stdin: p "here:", x\nwhere\nnext\nnext\np "after the wait:", x\ncontinue\n
"""

import asyncio
import pdb

from greenletio import async_, await_


def sync():
    x = 42
    pdb.set_trace()
    x += 1
    await_(asyncio.sleep(0))
    return x


print("result", asyncio.run(async_(sync)()))
