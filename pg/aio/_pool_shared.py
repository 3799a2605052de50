"""Shared: what ``pool.shared`` is for tasks."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, cast

from greenletio.pg._pool_parts import wait
from greenletio.pg._pool_shared import AGAIN, ALONE, Lane, Lanes
from greenletio.pg.aio._pool_queries import Single

if TYPE_CHECKING:
    from greenletio.pg.aio._pool import Pool

__all__ = ("Shared",)


def as_it_is(raw: Any) -> None:
    """What is done to a new connection for this face."""


class Shared(Single):
    """The pool's queries on connections that all tasks share: they are on their way together.

    Each has its own answer and its own error, and is a transaction by itself. One that cannot
    share a connection (SET, BEGIN, COPY, a script of several statements) is run on one of its own,
    as the pool runs it; so nothing is left of what it does to the session. What a function does to
    the session (``set_config()``, ``pg_advisory_lock()``) is not seen, stays, and is everybody's.

    A query that is cancelled or timed out is dropped before it is sent; later its answer is thrown
    away, and the server goes on with it: a neighbour's is never cancelled. When a connection is
    lost, the queries that the server cannot have begun are asked again on the next one; the others
    raise QueryInDoubt.
    """

    def __init__(self, pool: Pool, count: int) -> None:
        self._pool = pool
        self._lanes = Lanes(pool._core, count, as_it_is)

    async def _one(self, name: str, query: str, args: tuple[Any, ...], **options: Any) -> Any:
        given = {option: value for option, value in options.items() if value is not None}
        lanes = self._lanes
        self._pool._check_usable()
        while True:
            lane = lanes.pick() or cast(Lane, await wait(lanes.ready(INF)))
            answers, since = lane.answers, monotonic()
            op = None
            try:
                op = getattr(lane.con, name)(query, *args, **given)
                answer = await op
                lane.answers += 1
                return answer
            except BaseException as exc:
                then = None if op is None else lanes.failed(lane, op, exc, answers, since)
                if then is None:
                    raise
            finally:
                lanes.leave(lane)
            if then is ALONE:
                return await self._pool._alone(name, query, args, **options)
            assert then is AGAIN

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"pool.shared has execute(), fetch(), fetchrow() and fetchval(), and no {name}: what "
            f"needs a connection of its own is pool.{name}, or has one by pool.acquire()"
        )


INF = float("inf")
