"""detect_blocking: who holds a loop, as a watchdog thread sees it.

Nothing is hooked into the loop, so it works on any and costs the loop nothing. Twice per
threshold the watchdog looks at the innermost frame of the loop's thread. If that is the loop
waiting for events, all is well, and the loop is not woken. Otherwise it asks the loop for an
answer (``call_soon_threadsafe``). If that takes longer than the threshold, something holds the
loop, and it is what runs in the loop's thread at that moment. Code that holds the GIL stops the
watchdog, too, which finds out by having slept too long. The answer tells when the loop went on,
and what frames of the loop itself look like, so that they can be left out.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import sys
import threading
import time
from dataclasses import dataclass, replace
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal

from greenletio import _core
from greenletio._stacks import Stack, describe, frame_of, running_frames
from greenletio.errors import BlockingError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ("Detector", "Report", "detect_blocking")

# Per threshold: while the loop waits for events, and while it does not. Waking a thread is what
# all of this costs.
_LOOKS_IDLE = 2
_LOOKS_BUSY = 4


@dataclass(frozen=True)
class Report:
    """One time that the loop was held."""

    #: Seconds for which it was held, at least; at most half the threshold longer.
    duration: float
    #: The joined stack that held it, as soon as that was known.
    stack: Stack
    #: The name of the innermost call of `async_` or `spawn` in it, if there is one.
    call: str | None

    def __str__(self) -> str:
        stack = self.stack
        who = [] if stack.task is None else [f"task {stack.task.get_name()!r}"]
        if self.call is not None:
            who.append(f"green call {self.call}")
        by = ", ".join(who) or "a callback"
        where = ""
        if stack.frames:
            frame = stack.frames[-1]
            where = f", in {frame.function} ({frame.filename}:{frame.lineno})"
        lines = "".join(f"\n  {line}" for line in describe(stack))
        return f"the event loop was held for {self.duration:.3f} s by {by}{where}{lines}"


class Detector:
    """Watches a loop until `stop`, or to the end of its block; see `detect_blocking`."""

    def __init__(
        self,
        threshold: float,
        mode: Literal["log", "count", "raise"],
        loop: asyncio.AbstractEventLoop,
        logger: logging.Logger,
    ) -> None:
        #: How many times the loop was held for longer than the threshold, each counted as it ends.
        self.count = 0
        #: The longest of them, in seconds.
        self.longest = 0.0
        #: The last of them.
        self.last: Report | None = None
        self.threshold = threshold
        self.mode = mode
        self._loop = loop
        self._logger = logger
        self._held: Report | None = None  # under way; its duration is not yet known
        self._since = 0.0
        # Of the loop's thread, as the last answer has shown them.
        self._ident: int | None = None
        self._base: CodeType | None = None  # what calls callbacks
        self._idle: CodeType | None = None  # what waits for events
        self._asked: float | None = math.inf  # when; None once it has answered
        self._answered = 0.0
        if loop.is_running() and asyncio._get_running_loop() is loop:
            self._ident = threading.get_ident()
        self._stop = threading.Lock()
        self._stop.acquire()
        self._thread = threading.Thread(
            target=self._watch, name="greenletio.debug.detect_blocking", daemon=True
        )
        self._thread.start()
        self._ask(time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def current(self) -> Report | None:
        """What holds the loop at this moment, and for how long so far. For other threads."""
        held, now = self._held, time.monotonic()
        return None if held is None else replace(held, duration=now - self._since)

    def stop(self) -> None:
        """End the watchdog's thread. What holds the loop now, our caller maybe, is reported."""
        if self._stop.locked():
            try:
                self._stop.release()
            except RuntimeError:  # another thread was quicker
                pass
        if self._thread is not threading.current_thread():
            self._thread.join()

    # --- in the loop's thread ----------------------------------------------------------------

    def _answer(self) -> None:
        caller = sys._getframe(1)
        self._base = caller.f_code
        # asyncio's own waits in its selector, a loop in C below the frame that it calls back from.
        select = getattr(getattr(self._loop, "_selector", None), "select", None)
        self._idle = getattr(select, "__code__", self._base)
        self._ident = threading.get_ident()
        self._answered = time.monotonic()
        self._asked = None

    # --- in the watchdog's -------------------------------------------------------------------

    def _ask(self, now: float) -> None:
        self._asked = now
        self._loop.call_soon_threadsafe(self._answer)

    def _watch(self) -> None:
        before = time.monotonic()
        look = 0.0
        try:
            while not self._stop.acquire(timeout=look):
                now = time.monotonic()
                idle = self._look(now, before + look)
                look = self.threshold / (_LOOKS_IDLE if idle else _LOOKS_BUSY)
                before = now
        except RuntimeError:
            if not self._loop.is_closed():
                raise
        finally:
            if self._held is not None:
                self._end(self._answered if self._asked is None else time.monotonic())

    def _look(self, now: float, due: float) -> bool:
        """Whether the loop waits for events, or does not run."""
        if not self._loop.is_running():
            if self._held is not None:
                self._end(now)
            if self._loop.is_closed():
                raise RuntimeError("closed")
            if self._asked not in (None, math.inf):
                self._asked = now  # it is answered when the loop runs again
            return True
        asked = self._asked
        if asked is None:
            if self._held is not None:
                self._end(self._answered)
            frame = sys._current_frames().get(self._ident or 0)
            if frame is None or frame.f_code is self._idle:
                return True
            # Nobody lets a thread sleep for so long but who holds the GIL. First of all, before
            # anything here lets go of it: that one goes on then.
            if now - due > self.threshold:
                self._begin(max(due, self._answered), now)
            self._ask(now)
        elif self._held is None and self._ident is not None and now - asked > self.threshold:
            self._begin(asked, now)
        return False

    def _begin(self, since: float, now: float) -> None:
        assert self._ident is not None
        stack = _stack(self._loop, self._ident, self._base)
        if self._answered > now:  # it went on just now, and this is what runs next
            return
        self._since = since
        # Its name now: a call that has ended has none any more.
        call = stack.call.__qualname__ if isinstance(stack.call, _core.AsyncCall) else None
        self._held = Report(now - since, stack, call)
        if self.mode == "raise":
            # Raised by its class, so the report goes with a class of its own.
            attributes = {"report": self._held, "__module__": BlockingError.__module__}
            error = type(BlockingError.__name__, (BlockingError,), attributes)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._ident), ctypes.py_object(error)
            )

    def _end(self, now: float) -> None:
        assert self._held is not None
        report = self.last = replace(self._held, duration=now - self._since)
        self._held = None
        self.longest = max(self.longest, report.duration)
        self.count += 1
        if self.mode == "log":
            self._logger.warning("%s", report)


def _stack(loop: asyncio.AbstractEventLoop, ident: int, base: CodeType | None) -> Stack:
    """What runs in the loop's thread, from its task, or from what the loop called, on."""
    task = asyncio.current_task(loop)
    root: Any = None if task is None else task.get_coro()
    root_frame = getattr(root, "cr_frame", None) or getattr(root, "gi_frame", None)
    frames, innermost = [], None
    for frame, call in running_frames(ident):
        if call is not None:
            innermost = innermost or call
            if call is root:
                break
        elif frame is not None:
            if frame.f_code is base:
                break
            frames.append(frame_of(frame))
            if frame is root_frame:
                break
    frames.reverse()
    name = "callback" if not frames else frames[0].function
    if task is not None:
        name = task.get_name()
    return Stack(name, "running", tuple(frames), None, task, innermost)


def detect_blocking(
    threshold: float = 0.1,
    *,
    mode: Literal["log", "count", "raise"] = "log",
    loop: asyncio.AbstractEventLoop | None = None,
    logger: logging.Logger | None = None,
) -> Detector:
    """Report what holds `loop` (the running one) for longer than `threshold` seconds.

    It goes on until the `Detector` that is returned is stopped, or to the end of its block
    (``with detect_blocking(0.1):``), or until the loop is closed. A `Report` has the joined stack
    of async and green code that ran in the loop's thread, whose last frame is the one that blocks,
    and is made once, as soon as the loop goes on and the duration is known. Every mode counts:
    `count`, `longest` and `last` of the Detector. With "log" the report is also a warning
    of `logger` (``greenletio.debug``). With "raise" a `BlockingError` is raised in the code that
    holds the loop, at its next instruction of Python: a loop that computes is broken off, a call
    of C (``time.sleep``) returns first, and code that does not expect it may leave things half
    done, so that is for development.

    What is held for 1.5 thresholds is seen for certain, what is held for less than one is never
    reported. The costs are those of a thread that wakes up twice in each threshold (four times
    while the loop works); a loop that waits for events is not woken. On loops in C (uvloop) a
    callback that itself is a function of C, such as ``loop.call_soon(time.sleep, 1)``, looks like
    waiting, and is not seen. If many callbacks take the time between them, the report shows the one
    that ran as it was noticed.

    May be called from anywhere, and for several loops, or several times for one. The loop need
    not run yet. Works on asyncio's loops and others that follow its interface.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be a positive number of seconds, not {threshold!r}")
    if mode not in ("log", "count", "raise"):
        raise ValueError(f"mode must be 'log', 'count' or 'raise', not {mode!r}")
    return Detector(
        threshold,
        mode,
        asyncio.get_running_loop() if loop is None else loop,
        logging.getLogger("greenletio.debug") if logger is None else logger,
    )
