"""A thread has ended and left suspended calls to others, or to nobody, at the program's end.

Prints:
    refused
    end of main
"""

import gc
import threading
import types

from greenletio import async_, await_


@types.coroutine
def trap():
    yield


def sync():
    await_(trap())


def work():
    for _ in range(3):
        call = async_(sync)()
        call.send(None)
        left.append(call)


left = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
left.pop()
gc.collect()
try:
    left[0].send(None)
except RuntimeError:
    print("refused")
print("end of main")
