"""The cold paths of the core: other event loops, the loop of plain code, explanations.

``_core`` calls these by name; nothing here is public. A thread's *own loop* is what runs
when its plain code (no loop running) awaits something or has spawned a greenlet.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import inspect
import os
import select
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from greenletio import _core
from greenletio.errors import WouldBlockError

if TYPE_CHECKING:
    import trio

#: Seconds that cancelled greenlets of a plain program may clean up for when it ends.
_CLEAN_UP_S = 5.0

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class _NoLoop:
    def get_debug(self) -> bool:
        return False


#: What tasks are woken with: a future of no loop, with the result None.
done: asyncio.Future[None] = asyncio.Future(loop=cast("Any", _NoLoop()))
done.set_result(None)

# --- joining a loop ------------------------------------------------------------------------


def watch(loop: asyncio.AbstractEventLoop, fd: int, dispatch: Callable[[], object]) -> None:
    """Have `loop` call `dispatch` whenever `fd` is readable, in an empty context."""
    contextvars.Context().run(loop.add_reader, fd, dispatch)


def current_task() -> asyncio.Task[Any] | None:
    """The task that runs, None where no loop does."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def cancelling() -> int:
    """How many cancellations of the current task are pending (always 0 before Python 3.11)."""
    task = current_task()
    return task.cancelling() if task is not None and sys.version_info >= (3, 11) else 0


def cancel_current() -> bool:
    """Cancel the current task as asyncio.timeout does, so that whoever counts knows of it.

    False if there is none, or none that counts (before Python 3.11).
    """
    task = current_task()
    return task is not None and sys.version_info >= (3, 11) and task.cancel()


def uncancel() -> None:
    """Take cancel_current() back: what it was for has ended."""
    task = current_task()
    if task is not None and sys.version_info >= (3, 11):
        task.uncancel()


def traced() -> None:
    """Called where a greenlet goes on while tracing is on, for the call and return events."""


# --- explaining a refusal --------------------------------------------------------------------


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return getattr(code, "co_qualname", code.co_name)


def would_block(what: str) -> WouldBlockError:
    """The error for a wait in a running loop; it names the frame that lacks ``async_``."""
    caller: FrameType | None = None  # the innermost function that is not ours
    called: FrameType | None = None  # the outermost sync function below the async one
    generic = what.startswith("waiting")  # else the caller of the core has named itself
    frame: FrameType | None = sys._getframe(1)  # whatever called into the core
    while frame is not None:
        if frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            break
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            called = frame
            caller = caller or frame
        elif caller is None and generic:
            what = frame.f_code.co_name  # the public function that was called
        frame = frame.f_back
    if frame is None:
        where = f" by {_name(caller)} ({_place(caller)})" if caller is not None else ""
        return WouldBlockError(
            f"{what} would block the running event loop: it was called{where} in a callback of the "
            "loop, outside of any greenlet. Start the function with greenletio.spawn() instead."
        )
    if called is None:
        return WouldBlockError(
            f"{what} would block the running event loop: it was called directly in the async "
            f"function {_name(frame)} ({_place(frame)}). Use await there, or move the call into a "
            "function that is called with `await async_(function)(...)`."
        )
    return WouldBlockError(
        f"{what} would block the running event loop: {_name(called)} ({_place(called)}) was called "
        f"by the async function {_name(frame)} ({_place(frame)}) without async_. Call it with "
        f"`await async_({called.f_code.co_name})(...)`."
    )


def refused(why: str) -> WouldBlockError:
    """The error for a wait that can't be made where it was."""
    return WouldBlockError(f"waiting here would block the running event loop: {why}.")


# --- the loop of plain code ------------------------------------------------------------------


class _OwnLoop(threading.local):
    """The thread's own loop, closed when the thread ends if we made it."""

    loop: asyncio.AbstractEventLoop | None = None
    made: bool = False

    def close(self) -> None:
        loop, self.loop = self.loop, None
        if loop is not None and not loop.is_closed() and not loop.is_running():
            loop.close()

    def __del__(self) -> None:
        if self.made and not sys.is_finalizing():
            self.close()


_own = _OwnLoop()


def _current_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that was set for this thread, if any; none is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            if sys.version_info >= (3, 12):
                return asyncio.get_event_loop()
            return asyncio.get_event_loop_policy().get_event_loop()
        except RuntimeError:
            return None


def own_loop() -> asyncio.AbstractEventLoop:
    """The loop that this thread's plain code runs: the one that is set, else one of our own."""
    loop = _own.loop
    if loop is None or loop.is_closed():
        loop = _current_loop()
        made = loop is None or loop.is_closed()
        if loop is None or loop.is_closed():
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        _own.loop, _own.made = loop, made
        _core._set_own_loop(loop)
    return loop


def busy(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether something that was started on the thread's own loop has not ended."""
    return not loop.is_closed() and not loop.is_running() and bool(asyncio.all_tasks(loop))


def run_until(loop: asyncio.AbstractEventLoop, waiter: _core.Waiter[Any]) -> None:
    """Run the own loop until `waiter` has ended, however it ends."""
    waiting = True

    def wake(_: object) -> None:
        if waiting:  # else it would end whatever runs the loop next
            loop.stop()

    if not waiter.done():
        waiter.add_done_callback(wake)
        try:
            while not waiter.done():
                loop.run_forever()
        finally:
            waiting = False


async def _within(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def start(awaitable: Awaitable[Any], waiter: _core.Waiter[Any]) -> asyncio.Future[Any]:
    """Begin to await `awaitable` on the thread's own loop, or on the loop it belongs to.

    `waiter` is set when the future that is returned is done.
    """
    future: asyncio.Future[Any]
    if not isinstance(awaitable, _core.Waiter) and asyncio.isfuture(awaitable):
        future = awaitable
        loop = future.get_loop()
        if loop.is_closed() or loop.is_running():
            raise RuntimeError(f"{future!r} belongs to a loop that this thread can't run")
        if _own.loop is None:
            _own.loop = loop
            _core._set_own_loop(loop)
    else:
        coroutine = awaitable if asyncio.iscoroutine(awaitable) else _within(awaitable)
        future = own_loop().create_task(coroutine)
    future.add_done_callback(lambda _: waiter.set())
    return future


def give_up(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
    """Cancel what `start` began and let it clean up; its other failures are raised."""
    if future.done() or loop.is_closed() or loop.is_running():
        return
    future.cancel()
    try:
        loop.run_until_complete(future)
    except asyncio.CancelledError:
        pass


# --- trio --------------------------------------------------------------------------------------


def in_trio() -> bool:
    """Whether this is called from within trio.run in this thread; trio is imported already."""
    from trio.lowlevel import in_trio_run

    return in_trio_run()


async def trio_within(awaitable: Awaitable[Any], seconds: float) -> Any:
    """`awaitable`, ended after `seconds`; the wait that follows meets the deadline and says so."""
    import trio

    with trio.move_on_after(max(seconds, 0)):
        return await awaitable
    _core.sleep(0)  # past the deadline: raises CancelledError on behalf of the timeout


def trio_wait(waiter: _core.Waiter[Any], seconds: float, shielded: bool) -> None:
    """Suspend the current trio task until `waiter` has ended or `seconds` (< 0: never) are over."""

    async def wait() -> None:
        import trio

        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()

        def wake(_: object) -> None:
            token.run_sync_soon(resume)

        def resume() -> None:
            if parked:
                parked.clear()
                trio.lowlevel.reschedule(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            parked.clear()
            waiter.remove_done_callback(wake)
            return trio.lowlevel.Abort.SUCCEEDED

        parked = [True]
        waiter.add_done_callback(wake)
        with trio.move_on_after(seconds if seconds >= 0 else float("inf")) as scope:
            scope.shield = bool(shielded)
            await trio.lowlevel.wait_task_rescheduled(abort)

    _core.await_(wait())


def trio_wait_fds(fds: list[tuple[int, int]], seconds: float, shielded: bool) -> bool:
    """Suspend the current trio task until one of `fds` is ready; False after `seconds`."""
    # trio waits for one fd and one event at a time, so it is given an epoll of them.
    with select.epoll() as poll:
        for fd, events in fds:
            mask = select.EPOLLOUT if events & _core.WRITE else 0
            if events & _core.READ:
                mask |= select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP
            try:
                poll.register(fd, mask)
            except PermissionError:  # a regular file: always ready
                return True

        async def wait() -> bool:
            import trio

            with trio.move_on_after(seconds if seconds >= 0 else float("inf")) as scope:
                scope.shield = bool(shielded)
                await trio.lowlevel.wait_readable(poll.fileno())
                return True
            return False

        return _core.await_(wait())


# --- the end -----------------------------------------------------------------------------------


@atexit.register
def _at_exit() -> None:
    """Unwind what is suspended in the main thread while Python still works, and close our loop.

    What was spawned by plain code is cancelled first and may clean up for a few seconds.
    """
    loop = _own.loop
    if loop is not None and busy(loop):
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        try:
            loop.run_until_complete(asyncio.wait(tasks, timeout=_CLEAN_UP_S))
        except KeyboardInterrupt:
            pass  # in a hurry: what is left is unwound without waiting
    _core._close_calls()
    _own.close()


def _after_fork() -> None:
    # The loop shares its epoll with the parent, and the child has no part in what runs on it.
    if _own.loop is not None:
        if _own.loop is _current_loop():
            asyncio.set_event_loop(None)
        _own.loop = None
    loop: Any
    for loop in _core._after_fork():
        # Not of EventLoop, or not initialized: it has none.
        if getattr(loop, "_csock", None) is not None:
            loop._renew_self_pipe()


os.register_at_fork(after_in_child=_after_fork)
