"""A loop that is forked with a timer that has passed, and watches an fd that somebody has closed.

Prints:
    child
    parent
Stderr: .*could not be made anew after fork
"""

import asyncio
import os
import time

import greenletio

loop = greenletio.new_event_loop()
reading, writing = os.pipe()
loop.add_reader(reading, lambda: None)
os.close(reading)
loop.run_until_complete(asyncio.wait_for(asyncio.sleep(0), 0.02))
time.sleep(0.05)  # the time that the wait did not need is over before anybody looks
pid = os.fork()
loop.run_until_complete(asyncio.sleep(0.01))
if pid == 0:
    print("child", flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print("parent", flush=True)
os._exit(0)
