"""Where everything stands: the stacks of tasks and greenlets, joined across the bridge.

A task that awaits an `async_` function whose code awaits a coroutine has its stack in pieces: the
task's coroutines, a greenlet, further coroutines. `dump` prints the pieces as the one stack they
are, each frame marked ``async`` or ``sync``, and what it waits for at the end::

    task 'Task-1', waiting
      File "app.py", line 8, in main [async]
        await view()
      File "app.py", line 15, in view [sync]
        rows = fetch()
      File "app.py", line 21, in fetch [sync]
        return await_(query())
      File "app.py", line 25, in query [async]
        await asyncio.sleep(10)
      waits for <Future pending cb=[Task.task_wakeup()]>

Nothing here waits, and all of it may be called from anywhere: a task, green code, a callback, a
signal handler, another thread (what a thread does meanwhile is shown as well as can be).

`detect_blocking` reports in the same form who holds a loop for longer than it should.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TextIO

from greenletio._blocking import Detector, Report, detect_blocking
from greenletio._stacks import Frame, Stack, describe, stacks

__all__ = (
    "Detector",
    "Frame",
    "Report",
    "Stack",
    "detect_blocking",
    "dump",
    "install",
    "stacks",
)


def dump(file: TextIO | None = None, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Print every joined stack to `file` (standard error), or only those of `loop`'s tasks."""
    out = sys.stderr if file is None else file
    for stack in stacks(loop=loop):
        what = "call" if stack.task is None else "task"
        print(f"{what} {stack.name!r}, {stack.state}", file=out)
        print("".join(f"  {line}\n" for line in describe(stack)), end="", file=out)
    out.flush()


def install(signum: int = signal.SIGUSR1) -> None:
    """Have `dump` called whenever the process receives signal `signum`. Main thread only."""
    signal.signal(signum, lambda *_: dump())
