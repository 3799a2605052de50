"""retry(): a transaction again and again, until others are no longer in its way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from greenletio.pg._transaction import RETRIED, delays
from greenletio.pg.aio._connection import Connection
from greenletio.pg.aio._pool import Pool
from greenletio.pg.errors import InterfaceError

__all__ = ("retry",)

T = TypeVar("T")


async def retry(
    source: Connection | Pool,
    function: Callable[..., Awaitable[T]],
    /,
    *args: Any,
    attempts: int = 10,
    delay: float = 0.01,
    max_delay: float = 1.0,
    on: tuple[type[BaseException], ...] = RETRIED,
    isolation: str | None = None,
    readonly: bool = False,
    deferrable: bool = False,
) -> T:
    """Call ``await function(connection, *args)`` in a transaction; again if that could not be done.

    That is, after a serialization failure (40001) or a deadlock (40P01), its COMMIT's, too; after
    the last of `attempts` the error is raised. Between two it waits by chance up to `delay`
    seconds, which doubles up to `max_delay`. A rollback must undo all that the function does.

    `source` is a connection, which must have no transaction open, or a Pool, which gives one for
    each attempt.
    """
    pauses = delays(attempts, delay, max_delay)

    async def attempt(connection: Connection) -> T:
        if connection.is_in_transaction():
            raise InterfaceError(
                "retry() inside a transaction could not undo all of it: commit before, or put the "
                "retry around the outermost one"
            )
        async with connection.transaction(
            isolation=isolation, readonly=readonly, deferrable=deferrable
        ):
            return await function(connection, *args)

    while True:
        try:
            if isinstance(source, Pool):
                async with source.acquire() as connection:
                    return await attempt(connection)
            return await attempt(source)
        except on:
            if not pauses:
                raise
            await asyncio.sleep(pauses.pop(0))
