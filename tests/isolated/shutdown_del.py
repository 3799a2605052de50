"""Waits in the __del__ of objects that die while the interpreter shuts down.

Prints:
    end of main
    gone
Stderr: .
"""

import asyncio
import builtins

from _loop import run

import greenletio
from greenletio import async_, await_, io, spawn, timeout


class Dies:
    waits = (
        lambda sleep=greenletio.sleep: sleep(0.001),
        lambda await_=await_, sleep=asyncio.sleep: await_(sleep(0)),
        lambda spawn=spawn: spawn(int).get(),
        lambda wait=io.wait_readable: wait(0, timeout=0.001),
        lambda async_=async_: async_(int)().send(None),
        lambda timeout=timeout: timeout(1).__enter__().__exit__(None, None, None),
    )

    def __del__(self, print=print):
        for wait in self.waits:
            try:
                wait()
            except BaseException:
                pass
        print("gone", flush=True)


run(async_(greenletio.sleep)(0))
spawn(greenletio.sleep, 0).get()
builtins.kept_to_the_very_end = Dies()
print("end of main")
