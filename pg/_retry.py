"""retry(): a transaction again and again, until others are no longer in its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from greenletio import _core
from greenletio.pg._connection import Connection
from greenletio.pg._pool_sync import Pool
from greenletio.pg._transaction import RETRIED, delays
from greenletio.pg.errors import ProgrammingError

__all__ = ("retry",)

P = ParamSpec("P")
T = TypeVar("T")


def retry(
    source: Connection[Any] | Pool,
    function: Callable[Concatenate[Connection[Any], P], T],
    /,
    *args: Any,
    attempts: int = 10,
    delay: float = 0.01,
    max_delay: float = 1.0,
    on: tuple[type[BaseException], ...] = RETRIED,
    isolation: str | None = None,
    readonly: bool | None = None,
    deferrable: bool | None = None,
) -> T:
    """Call ``function(connection, *args)`` in a transaction; again if that could not be done.

    That is, after a serialization failure (40001) or a deadlock (40P01), its COMMIT's, too; after
    the last of `attempts` the error is raised. Between two it waits by chance up to `delay`
    seconds, which doubles up to `max_delay`. A rollback must undo all that the function does.

    `source` is a connection, which must have no transaction open, or a Pool, which gives one for
    each attempt. Waits and can be cancelled as the connection's methods.
    """
    pauses = delays(attempts, delay, max_delay)
    options = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}

    def attempt(connection: Connection[Any]) -> T:
        if connection._raw._transaction_status != 0:
            raise ProgrammingError(
                "retry() inside a transaction could not undo all of it: commit before, or put the "
                "retry around the outermost one"
            )
        with connection.transaction(**options):  # type: ignore[arg-type]
            return function(connection, *args)  # type: ignore[call-arg]
        return cast(T, None)  # it has raised Rollback

    while True:
        try:
            if isinstance(source, Pool):
                with source.connection() as connection:
                    return attempt(connection)
            return attempt(source)
        except on:
            if not pauses:
                raise
            _core.sleep(pauses.pop(0))
