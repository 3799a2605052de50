"""Tasks under a portal that are parked when their thread ends, and when the program does.

Prints:
    in a thread: parked
    in a thread: unwound
    thread has ended
    at exit: parked
    at exit: unwound
"""

import asyncio
import threading

import greenlet
from _loop import new_loop

import greenletio
from greenletio import portal

kept = []


async def handler(where):
    kept.append(greenlet.getcurrent())  # so that its worker stays with it, between steps too
    await asyncio.sleep(0)
    print(f"{where}: parked")
    try:
        greenletio.sleep(100)
    finally:
        print(f"{where}: unwound")


async def waits():
    kept.append(greenlet.getcurrent())
    await asyncio.sleep(100)


async def main(where):
    portal()
    tasks = [asyncio.create_task(handler(where)), asyncio.create_task(waits())]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def thread():
    loop = new_loop()
    loop.set_exception_handler(lambda *_: None)  # tasks that are destroyed pending are the point
    kept.append((loop, loop.run_until_complete(main("in a thread"))))


t = threading.Thread(target=thread)
t.start()
t.join()
print("thread has ended")
loop = new_loop()
loop.set_exception_handler(lambda *_: None)
kept.append((loop, loop.run_until_complete(main("at exit"))))
