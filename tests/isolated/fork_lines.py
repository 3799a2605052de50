"""A forked child has none of the parent's other threads: no turn goes to what waits in them.

Prints:
    child: lock free, 1 item, semaphore at 1, 0 notified
    ok
Stderr: multi-threaded.*fork
"""

import asyncio
import gc
import os
import threading as std
import time as real_time

from greenletio import _core, async_
from greenletio.green import queue, threading

lock, condition = threading.Lock(), threading.Condition(threading.Lock())
q, semaphore, event = queue.SimpleQueue(), threading.Semaphore(0), threading.Event()


def notified():
    with condition:
        condition.wait()


WAITS = (lock.acquire, q.get, semaphore.acquire, event.wait, notified)


def standing():
    """How many stand in the lines."""
    return sum(type(obj) is _core.Waiter and not obj.done() for obj in gc.get_objects())


def in_a_loop():
    async def main():
        await asyncio.gather(*(async_(wait)() for wait in WAITS))

    asyncio.run(main())


lock.acquire()
threads = [std.Thread(target=wait, daemon=True) for wait in (*WAITS, in_a_loop)]
for thread in threads:
    thread.start()
while standing() < 2 * len(WAITS):
    real_time.sleep(0.01)
pid = os.fork()
if pid == 0:
    gc.collect()
    q.put(1)
    lock.release()
    semaphore.release()
    event.set()
    with condition:
        waiting = len(condition._waiters)
        condition.notify()
    free = "free" if lock.acquire(False) else "taken"
    left = f"{q.qsize()} item, semaphore at {semaphore._value}, {waiting} notified"
    print(f"child: lock {free}, {left}", flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
for _ in range(2):  # in the parent they are there
    q.put(1)
    semaphore.release()
    lock.release()
    with condition:
        condition.notify()
    while lock.acquire(False) and standing():
        lock.release()
event.set()
for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
print("ok")
