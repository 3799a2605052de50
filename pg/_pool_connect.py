"""What a pool waits for beside a free connection: a new one, a function of the user's.

Users' functions may be coroutine functions or plain ones. A plain one is called from a task in a
greenlet; an asynchronous one from a thread without a loop has a loop for itself.
"""

from __future__ import annotations

import asyncio
import inspect
import warnings
from asyncio import _get_running_loop
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenletio import _core
from greenletio._threads import run_in_thread
from greenletio.pg._connect import connect_async, connect_sync
from greenletio.pg._errors import InterfaceWarning
from greenletio.pg._pool_parts import Step
from greenletio.pg.errors import InterfaceError

if TYPE_CHECKING:
    from greenletio import _pg
    from greenletio.pg._pool_slot import Slot
    from greenletio.pg.aio._connection import Connection

__all__ = ("Connect", "Run", "leave", "report_transaction")


class Run(Step):
    """Call ``function(argument)`` and wait for it."""

    def __init__(self, function: Callable[[Any], Any], argument: Any) -> None:
        self._function = function
        self._argument = argument

    async def wait(self) -> Any:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(self._argument)
        answer = await _core.async_(self._function)(self._argument)
        return await answer if inspect.isawaitable(answer) else answer

    def run(self) -> Any:
        answer = self._function(self._argument)
        return run_async(answer) if inspect.isawaitable(answer) else answer


def run_async(awaitable: Any) -> Any:
    """Wait for it in sync code."""
    if _get_running_loop() is not None:
        return _core.await_(awaitable)

    async def main() -> Any:
        return await awaitable

    return run_in_thread(asyncio.run, main())


async def _open_sync(c: _pg.Connection, options: dict[str, str], timeout: float | None) -> None:
    connect_sync(c, options, timeout)


class Connect(Step):
    """Make the connection of a slot: ``make(open)`` does, then `init` gets it."""

    def __init__(
        self,
        slot: Slot,
        make: Callable[[Any], Any],
        init: Callable[[Any], Any] | None,
        expected: type[Any] | None = None,
    ) -> None:
        self._slot = slot
        self._make = make
        self._init = init
        self._expected = expected

    def _check(self, con: Any) -> None:
        good, bad = self._expected, type(con)
        if good is not None and not isinstance(con, good):
            name = f"{bad.__module__}.{bad.__name__}".removeprefix("builtins.")
            raise InterfaceError(
                "expected pool connect callback to return an instance of "
                f"'{good.__module__}.{good.__name__}', got '{name}'"
            )

    async def wait(self) -> None:
        self._slot.loop = asyncio.get_running_loop()
        con = await self._make(connect_async)
        self._check(con)
        try:
            if self._init is not None:
                await Run(self._init, con).wait()
        except BaseException:
            con.terminate()
            raise
        self._slot.take(con)

    def run(self) -> None:
        self._slot.loop = _get_running_loop()
        making = self._make(_open_sync)
        try:
            making.send(None)  # ours waits as sync code does, and is over
        except StopIteration as stop:
            con = stop.value
        else:
            making.close()
            raise InterfaceError("a connect= function of one's own works in tasks only")
        self._check(con)
        try:
            if self._init is not None:
                Run(self._init, con).run()
        except BaseException:
            con.terminate()
            raise
        self._slot.take(con)


def leave(slot: Slot) -> None:
    """What a lease has left on a connection's Python side is dropped."""
    con = slot.con
    con._transaction = None
    if con.row_factory is not slot.row_factory:
        con.row_factory = slot.row_factory
    for what, listeners in (("notification", con._listeners), ("log", con._log_listeners)):
        if listeners:
            count = len(listeners)
            warnings.warn(
                f"{con!r} is being released to the pool but has {count} active {what} "
                f"listener{'s' * (count > 1)}",
                InterfaceWarning,
                stacklevel=4,
            )
            listeners.clear()


def report_transaction(con: Connection) -> None:
    """A transaction that was begun by hand and not ended is said to the loop, as asyncpg does."""
    managed = con._transaction is not None and con._transaction._managed
    if con.is_in_transaction() and not managed:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"Resetting connection with an active transaction {con!r}"}
        )
