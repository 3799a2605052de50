"""The stacks of tasks and greenlets, joined across the bridge: what `greenletio.debug` shows."""

from __future__ import annotations

import asyncio
import gc
import linecache
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import greenlet

from greenletio import _core

__all__ = ("Frame", "Stack", "describe", "follow", "frame_of", "running_frames", "stacks")

# A coroutine-like object's attributes: its frame, and what it awaits.
_COROUTINE_LIKE = (
    ("cr_frame", "cr_await"),
    ("gi_frame", "gi_yieldfrom"),
    ("ag_frame", "ag_await"),
)
# The modules whose frames are no part of what is shown.
_OURS = (__name__, "greenletio.debug")
# Iterators of CPython's own that stand for the one object they refer to.
_STAND_INS = {
    "FutureIter",
    "anext_awaitable",
    "async_generator_asend",
    "async_generator_athrow",
    "coroutine_wrapper",
}


@dataclass(frozen=True)
class Frame:
    """One frame of a joined stack."""

    function: str
    filename: str
    lineno: int
    kind: Literal["async", "sync"]

    @property
    def line(self) -> str:
        """The source line, empty if it is not to be had."""
        return linecache.getline(self.filename, self.lineno).strip()


@dataclass(frozen=True)
class Stack:
    """A joined stack, outermost frame first, of a task or of a call that no task awaits."""

    name: str
    state: Literal["running", "waiting", "ready"]
    frames: tuple[Frame, ...]
    waits_for: object | None
    task: asyncio.Task[Any] | None
    call: _core._Call | None


def describe(stack: Stack) -> Iterator[str]:
    """Its lines: the frames, outermost first, and what it waits for."""
    for frame in stack.frames:
        yield f'File "{frame.filename}", line {frame.lineno}, in {frame.function} [{frame.kind}]'
        if frame.line:
            yield f"  {frame.line}"
    if stack.waits_for is not None:
        yield f"waits for {_describe(stack.waits_for)}"


def stacks(*, loop: asyncio.AbstractEventLoop | None = None) -> list[Stack]:
    """Every joined stack of the process, or only those of `loop`'s tasks.

    Tasks come first, then the calls of `async_` functions that no asyncio task awaits: those
    driven by hand or by another library.
    """
    seen: dict[int, object] = {}
    found = [_of_task(task, seen) for task in _tasks() if loop in (None, task.get_loop())]
    if loop is None:
        calls = [call for call in _core.calls() if id(call) not in seen]
        below: dict[int, object] = {}
        for call in calls:
            follow(call.cr_await, below)
        found += [_of_call(call) for call in calls if id(call) not in below]
    return found


def _tasks() -> list[asyncio.Task[Any]]:
    """The unfinished tasks of every loop in every thread, in the order they were made."""
    _core._greens_ask()  # of other threads: they are shown as the calls that they are
    # asyncio tells of a loop's tasks, but nobody tells of the loops.
    found = [o for o in gc.get_objects() if issubclass(type(o), asyncio.Task) and not o.done()]
    # One that another thread is about to make has no coroutine yet, and get_coro() would crash.
    made: set[asyncio.Task[Any]] = set()
    for loop in {id(loop): loop for task in found if (loop := _loop_of(task))}.values():
        made |= asyncio.all_tasks(loop)
    return [task for task in found if task in made]


def _loop_of(task: asyncio.Task[Any]) -> asyncio.AbstractEventLoop | None:
    try:
        return task.get_loop()
    except RuntimeError:
        return None  # nor a loop


def _of_task(task: asyncio.Task[Any], seen: dict[int, object]) -> Stack:
    coro = task.get_coro()
    running = asyncio.current_task(task.get_loop()) is task
    suspended, end = follow(coro, seen)
    frames = (running and _of_running(coro, seen)) or [frame_of(f) for f in suspended]
    waiter = getattr(task, "_fut_waiter", None)
    state: Literal["running", "waiting", "ready"] = (
        "running" if running else "ready" if waiter is None else "waiting"
    )
    call = coro if isinstance(coro, _core.AsyncCall | _core.PortalCoroutine) else None
    waits_for = None if state != "waiting" else waiter if end is None else end
    return Stack(task.get_name(), state, tuple(frames), waits_for, task, call)


def _of_call(call: _core._Call) -> Stack:
    suspended, end = follow(call, {})
    frames = [frame_of(f) for f in suspended]
    if call.cr_running:
        frames = _of_running(call, {}) or frames
        return Stack(call.__qualname__, "running", tuple(frames), None, None, call)
    state: Literal["waiting", "ready"] = "waiting" if call.cr_suspended else "ready"
    return Stack(call.__qualname__, state, tuple(frames), end, None, call)


def follow(awaitable: object, seen: dict[int, object]) -> tuple[list[FrameType], object | None]:
    """The frames of a suspended chain of awaitables, and the object at its end, if it has one.

    Every link is noted in `seen`.
    """
    frames: list[FrameType] = []
    while awaitable is not None and id(awaitable) not in seen:
        seen[id(awaitable)] = awaitable
        within = getattr(awaitable, "greenlet", None)
        if isinstance(awaitable, _core.AsyncCall | _core.PortalCoroutine) and within is not None:
            frames += reversed(list(_back_from(within.gr_frame)))
            awaitable = awaitable.cr_await
            continue
        for frame_name, next_name in _COROUTINE_LIKE:
            if hasattr(awaitable, frame_name):
                frame = getattr(awaitable, frame_name)
                if frame is not None:
                    frames.append(frame)
                awaitable = getattr(awaitable, next_name, None)
                break
        else:
            inner = _stands_for(awaitable)
            if inner is None:
                return frames, awaitable
            awaitable = inner
    return frames, None


def _stands_for(awaitable: object) -> object | None:
    if type(awaitable).__name__ not in _STAND_INS:
        return None
    inner: object
    for inner in gc.get_referents(awaitable):
        if asyncio.isfuture(inner) or any(hasattr(inner, name) for name, _ in _COROUTINE_LIKE):
            return inner
    return None


def _of_running(root: object, seen: dict[int, object]) -> list[Frame]:
    """The frames of `root`, which runs in some thread, down to where it is; empty if not found."""
    root_frame = getattr(root, "cr_frame", None) or getattr(root, "gi_frame", None)
    for ident in sys._current_frames():
        frames: list[Frame] = []
        passed: list[object] = []
        for f, call in running_frames(ident):
            if f is not None:
                frames.append(frame_of(f))
            elif call is not None:
                passed.append(call)
            if call is root if isinstance(root, _core.AsyncCall) else f is root_frame is not None:
                seen.update((id(call), call) for call in passed)
                return frames[::-1]
    return []


def running_frames(ident: int) -> Iterator[tuple[FrameType | None, _core._Call | None]]:
    """What runs in thread `ident`, innermost frame first, through the calls that it is made of.

    Each call comes after the frames that run in its greenlet. Our own frames are left out.
    """
    calls = [call for call in _core.calls(ident) if call.cr_running]
    by_greenlet = {call.greenlet: call for call in calls}
    frame = sys._current_frames().get(ident)
    current: greenlet.greenlet | None
    if ident == threading.get_ident():
        current = greenlet.getcurrent()
        frame = sys._getframe()
        while frame is not None and frame.f_globals.get("__name__") in _OURS:
            frame = frame.f_back
    else:
        drivers = {call.driver for call in calls}
        # Not the greenlet of another library's that runs in it, if one does: that can't be asked.
        current = next((g for g in by_greenlet if g not in drivers), None)
        if current is not None and current.gr_frame is not None:
            yield from ((f, None) for f in _back_from(frame))
            frame = current.gr_frame
    while True:
        yield from ((f, None) for f in _back_from(frame))
        if current is None:
            return
        call = by_greenlet.get(current)
        if call is None:
            current = current.parent  # a greenlet of the user's own, inside the one that began it
        else:
            yield None, call
            current = call.driver
        frame = None if current is None else current.gr_frame


# co_flags of coroutines, of generators that are awaitable, and of async generators.
_SUSPENDABLE = 0x80 | 0x100 | 0x200


def _back_from(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def frame_of(frame: FrameType) -> Frame:
    code = frame.f_code
    kind: Literal["async", "sync"] = "async" if code.co_flags & _SUSPENDABLE else "sync"
    name = getattr(code, "co_qualname", code.co_name)
    return Frame(name, code.co_filename, frame.f_lineno or code.co_firstlineno, kind)


def _describe(obj: object) -> str:
    try:
        return repr(obj)
    except Exception as e:
        return f"<{type(obj).__name__}, whose repr fails: {e}>"
