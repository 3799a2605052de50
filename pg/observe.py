"""What is asked of PostgreSQL, by whom, and how long it takes: hooks, slow queries, pools.

For the whole process and both faces; what a pool asks by itself (resets, checks) is not told of.
While nobody asks, it costs nothing. OpenTelemetry stands on it
(``greenletio.integrations.opentelemetry``), and so does ``python -m greenletio top``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import Any

import greenlet

from greenletio import Green, _core, _pg
from greenletio._stacks import follow
from greenletio.pg._pool import live_cores

__all__ = ("Caller", "Query", "add_hook", "hook", "log_slow", "pools", "remove_hook")

logger = logging.getLogger("greenletio.pg")

#: Code of these packages is nobody's own: who asks is looked for above it.
LIBRARIES = ("asyncio", "contextlib", "django", "greenletio", "sqlalchemy")
# What starts a query by itself: resets, checks.
_POOLS = frozenset(
    f"greenletio.pg.{name}"
    for name in ("_listen", "_pool", "_pool_parts", "_pool_roles", "_pool_slot", "_pool_sync")
)


@dataclass(frozen=True)
class Caller:
    """The line that asked: the innermost that belongs to no library (`LIBRARIES`).

    Behind the beginning of a greenlet that is the line that has spawned it, if a hook was there
    already, or that waits for it; behind that of a task, the one that waits for the task. Where
    that is not known, or all is libraries', as in a thread of theirs, it is the outermost line.
    """

    filename: str
    lineno: int
    function: str

    def __str__(self) -> str:
        return f"{self.filename}:{self.lineno}, in {self.function}"


@dataclass(frozen=True)
class Query:
    """A query that has ended, or whose caller has given it up."""

    #: As it was sent, with its placeholders. Arguments are told to nobody.
    text: str
    #: ``"query"``, ``"many"``, ``"script"``, ``"copy"``, ``"stream"`` or ``"prepare"``.
    kind: str
    #: Wall-clock time at its beginning, as ``time.time()`` has it.
    started: float
    #: Until its answer was there; of a COPY or stream, until its end.
    seconds: float
    #: What the caller got instead of an answer, a CancelledError included; or None.
    error: BaseException | None
    caller: Caller
    #: What the hook's `at_start` returned; or None.
    at_start: Any = None
    _connection: _pg.Connection = field(repr=False, default=None)  # type: ignore[assignment]

    @property
    def options(self) -> dict[str, str]:
        """libpq's options of the connection, without passwords: host, port, dbname, user, …

        Empty once the connection is closed.
        """
        return self._connection._options()


Hook = Callable[[Query], object]

_hooks: dict[Hook, Callable[[], Any] | None] = {}
_lock = threading.Lock()


def add_hook(hook: Hook, *, at_start: Callable[[], Any] | None = None) -> None:
    """Have ``hook(query)`` called, with a `Query`, for each query that has ended.

    It is called where the query was asked for, in the caller's thread, greenlet or task, before the
    caller goes on; so it should be quick, and must not wait. What it raises is logged.
    ``at_start()`` is called there as the query begins; what it returns is the `Query`'s
    ``at_start``. Queries that are under way are not told of.
    """
    with _lock:
        _hooks[hook] = at_start
        _pg.set_observer(_begin)
        _core._on_spawn(_note_spawn)


def remove_hook(hook: Hook) -> None:
    """Undo `add_hook`; nothing happens if it was not added."""
    with _lock:
        _hooks.pop(hook, None)
        if not _hooks:
            _pg.set_observer(None)
            _core._on_spawn(None)


@contextmanager
def hook(function: Hook) -> Iterator[None]:
    """A block during which ``function`` is a hook: of the process, not of the block's code."""
    add_hook(function)
    try:
        yield
    finally:
        remove_hook(function)


_own: dict[CodeType, bool] = {}  # whether code is a library's; there is only so much of it


def _is_library(frame: FrameType) -> bool:
    found = _own.get(frame.f_code)
    if found is None:
        name = frame.f_globals.get("__name__", "")
        found = _own[frame.f_code] = name.partition(".")[0] in LIBRARIES
    return found


#: The calls that were spawned while somebody asks, and where.
_spawned: weakref.WeakKeyDictionary[Any, Caller] = weakref.WeakKeyDictionary()


def _note_spawn(green: Green[Any]) -> None:
    _spawned[green._call] = _find_caller()


def _find_caller() -> Caller:
    frame = sys._getframe(1)
    call, current = _core.current_call(), greenlet.getcurrent()
    task = _current_task() if call is None else None  # a greenlet may have none yet
    root = None if task is None else getattr(task.get_coro(), "cr_frame", None)
    in_task = True
    while _is_library(frame):
        above = frame.f_back
        if above is None and call in _spawned:
            return _spawned[call]
        while above is None and current.parent is not None:
            # A greenlet begins with what it calls, and that may be a library's.
            current = current.parent
            above = current.gr_frame
        if above is None:
            break
        if in_task and (frame is root or _steps_tasks(above)):
            in_task = False
            if found := _find_waiting(task or _current_task()):
                return found
        frame = above
    return _caller(frame)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return None


def _caller(frame: FrameType) -> Caller:
    code = frame.f_code
    name = code.co_qualname if sys.version_info >= (3, 11) else code.co_name
    return Caller(code.co_filename, frame.f_lineno, name)


_LOOPS = frozenset(
    (
        "asyncio.base_events",
        "asyncio.events",
        "asyncio.runners",
        "greenletio._event_loop",
        "greenletio._loops",
    )
)
_STEPS = frozenset(("_run", "_run_once", "run", "run_forever", "run_until", "run_until_complete"))


def _steps_tasks(frame: FrameType) -> bool:
    """Whether it is the loop's, and what it has called a step of a task or a greenlet."""
    return frame.f_code.co_name in _STEPS and frame.f_globals.get("__name__") in _LOOPS


def _find_waiting(task: asyncio.Task[Any] | None) -> Caller | None:
    """The line of whoever waits for a task, or for the task that does so, or None."""
    while task is not None:
        task = _who_waits(task)
        frames = [] if task is None else follow(task.get_coro(), {})[0]
        for frame in reversed(frames):
            if not _is_library(frame):
                return _caller(frame)
    return None


def _who_waits(task: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    """The task that waits for another one, by itself or in gather() and the like."""
    futures: list[Any] = [task]
    for future in futures:
        for callback, _ in getattr(future, "_callbacks", None) or ():
            owner: Any = getattr(callback, "__self__", None)
            if isinstance(owner, asyncio.Task):
                return owner
            if hasattr(owner, "_parent_task"):  # a TaskGroup
                parent: asyncio.Task[Any] = owner._parent_task
                return parent
            # What it is to end: in its closure, or among the arguments of a partial().
            others = gc.get_referents(*(getattr(callback, "__closure__", None) or ()))
            others += callback.args if isinstance(callback, partial) else ()
            futures += [one for one in others if asyncio.isfuture(one) and one not in futures]
    return None


def _begin(
    kind: str, text: str, connection: _pg.Connection
) -> Callable[[float, BaseException | None], None] | None:
    if sys._getframe(1).f_globals.get("__name__") in _POOLS:
        return None
    caller = _find_caller()
    started = time.time()
    told = [(hook, at_start and at_start()) for hook, at_start in list(_hooks.items())]

    def end(seconds: float, error: BaseException | None) -> None:
        for hook, at_start in told:
            try:
                hook(Query(text, kind, started, seconds, error, caller, at_start, connection))
            except Exception:
                logger.exception("the hook %r failed", hook)

    return end


# ---- slow queries -----------------------------------------------------------------------------

_slow: Hook | None = None


def log_slow(seconds: float | None, *, level: int = logging.WARNING) -> None:
    """Log each query that takes `seconds` or more, with the line that asked; None: no longer.

    The logger is ``greenletio.pg``. Arguments are not logged.
    """
    global _slow
    if seconds is not None and not seconds >= 0:
        raise ValueError(f"a number of seconds is needed, not {seconds!r}")
    if _slow is not None:
        remove_hook(_slow)
        _slow = None
    if seconds is None:
        return

    def tell(query: Query) -> None:
        if query.seconds >= seconds:
            how = "" if query.error is None else f", {type(query.error).__name__}"
            text = " ".join(query.text.split())
            text = text if len(text) <= 500 else f"{text[:500]}…"
            logger.log(level, "%.3f s%s: %s (%s)", query.seconds, how, text, query.caller)

    _slow = tell
    add_hook(tell)


# ---- pools ------------------------------------------------------------------------------------


def pools() -> dict[str, dict[str, int]]:
    """The statistics of every open pool, by its name: those of ``pool.stats()``.

    Two of the same name have a number after it. Any thread.
    """
    found: dict[str, dict[str, int]] = {}
    for core in live_cores():
        name, n = core.name, 1
        while name in found:
            n += 1
            name = f"{core.name} ({n})"
        found[name] = core.as_dict()
    return found
