"""The extension module imported a second time works beside the first, or says no; no crash.

Prints:
    ok
"""

import asyncio
import gc
import sys

import greenletio

first = greenletio.async_(greenletio.sleep)
asyncio.run(first(0))
kept = {n: sys.modules.pop(n) for n in list(sys.modules) if n.split(".")[0] == "greenletio"}
try:
    import greenletio as again

    asyncio.run(again.async_(again.sleep)(0))
    asyncio.run(again.async_(lambda: again.await_(first(0)))())
except ImportError:
    pass
for n in [n for n in sys.modules if n.split(".")[0] == "greenletio"]:
    del sys.modules[n]
again = None
gc.collect()
sys.modules.update(kept)
asyncio.run(first(0))
print("ok")
