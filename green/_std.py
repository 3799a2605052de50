"""What the green modules share: taking names over from the standard module, executing its source
again, deadlines, and who runs here."""

from __future__ import annotations

import asyncio
import errno
import weakref
from collections.abc import Callable, Collection, Mapping
from sys import getswitchinterval
from time import monotonic
from types import FunctionType, ModuleType
from typing import Any

from greenletio import _core, _twins
from greenletio._patch import green_builtins

__all__ = (
    "Deadline",
    "adopt",
    "become_main",
    "current_call",
    "execute",
    "give_way",
    "interrupt",
    "main_task",
    "public",
    "rebind",
    "until_unlocked",
)

_main: Any = None  # the call that stands for the main thread
_main_task: asyncio.Task[Any] | None = None
_interruptions: weakref.WeakKeyDictionary[Any, BaseException] = weakref.WeakKeyDictionary()


def become_main(task: asyncio.Task[Any] | None, call: Any = None) -> None:
    """Have ``call``, which ``task`` runs, count as the code of the main thread."""
    global _main, _main_task
    _main_task, _main = task, call
    _core._become_main(call)


def main_task() -> asyncio.Task[Any] | None:
    """What runs the code of the main thread, if that is a greenlet."""
    return _main_task


def interrupt(error: BaseException) -> None:
    """Raise ``error`` in the greenlet that stands for the main thread, which waits."""
    task = _main_task
    if task is None or task.done():
        raise error
    waiter = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, _core.Waiter) and waiter.set_exception(error):
        return
    if waiter is None or isinstance(waiter, _core.Waiter):
        # it is about to run: it will wait again, or end
        task.get_loop().call_soon(interrupt, error)
        return
    # It awaits a future of asyncio's, in which nothing can be raised but a cancellation.
    _interruptions[task] = error
    task.cancel()


def interruption(error: BaseException) -> BaseException:
    """What the main greenlet ends with: `error`, or what `interrupt` has cancelled it for."""
    task = _main_task
    if not isinstance(error, asyncio.CancelledError) or task not in _interruptions:
        return error
    instead = _interruptions.pop(task)
    instead.__context__ = error
    return instead


def current_call() -> Any:
    """The call of ``async_`` or ``spawn`` that runs here; None for a thread of the system, and
    for the call that stands for the main thread."""
    call = _core.current_call()
    return None if call is _main else call


def public(module: ModuleType) -> tuple[str, ...]:
    """The names that ``from module import *`` gives, without the modules it imports itself."""
    names = getattr(module, "__all__", None) or (n for n in vars(module) if n[0] != "_")
    return tuple(n for n in names if not isinstance(getattr(module, n), ModuleType))


def rebind(function: Any, namespace: dict[str, Any]) -> Any:
    """The same Python function, looking its global names up in ``namespace``."""
    twin = FunctionType(
        function.__code__,
        namespace,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__doc__ = function.__doc__
    twin.__annotations__ = function.__annotations__
    twin.__qualname__ = function.__qualname__
    return twin


def adopt(namespace: dict[str, Any], module: ModuleType, *, rebound: tuple[str, ...] = ()) -> None:
    """Copy each name of ``module`` that ``namespace`` does not define.

    The functions named in ``rebound`` then call what ``namespace`` holds: the standard
    library's own code, made green. Those that this Python does not have are passed over.
    """
    for name, value in vars(module).items():
        if name in namespace:
            continue
        if name in rebound and isinstance(value, FunctionType):
            value = rebind(value, namespace)
        namespace[name] = value


def execute(
    namespace: dict[str, Any],
    module: ModuleType,
    *,
    derived: Collection[str] = (),
    given: Mapping[str, Any] | None = None,
) -> None:
    """Execute the source of the standard ``module`` in ``namespace``, on the green modules."""
    _twins.execute(
        namespace, module.__spec__, module, green_builtins(), derived=derived, given=given
    )


_turn = 0.0  # when somebody last gave way


def give_way() -> None:
    """Let the others run, if that has not happened for a while.

    For what waits again and again for something that is ready always. In threads the system
    would see to it; the interval is the one after which a thread gives up the GIL.
    """
    global _turn
    now = monotonic()
    if now - _turn > getswitchinterval():
        if _core.place() > 0:
            _core.sleep(0)
            now = monotonic()
        _turn = now


def until_unlocked(attempt: Callable[[], Any]) -> Any:
    """Call ``attempt``, which locks a file or fails, with growing pauses until nobody else has it.

    So a wait that is cancelled has taken no lock. The pauses are of 50 ms at most.
    """
    pause = 0.0005
    while True:
        try:
            return attempt()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        _core.sleep(pause)
        pause = min(pause * 2, 0.05)


class Deadline:
    """The end of a timeout in seconds; None has no end."""

    __slots__ = ("_end",)

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic() + timeout

    def left(self) -> float | None:
        """The seconds left, never below 0."""
        return None if self._end is None else max(0.0, self._end - monotonic())
