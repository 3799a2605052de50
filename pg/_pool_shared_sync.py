"""Shared: what ``pool.shared`` is for sync code."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, cast

from greenletio.pg import _json
from greenletio.pg._connect import dress
from greenletio.pg._cursor import Cursor, Result
from greenletio.pg._pool_parts import may_wait, run
from greenletio.pg._pool_shared import AGAIN, ALONE, Lane, Lanes
from greenletio.pg._query import is_script, prepare

if TYPE_CHECKING:
    from greenletio.pg._connection import Connection
    from greenletio.pg._pool_sync import Pool

__all__ = ("Shared",)


def _dress(raw: Any) -> None:
    """A new connection as this face has it."""
    for oid in dress(raw, _json.codecs()):
        raw._own_codecs[oid] = raw._codecs[oid]  # types that are looked up anew leave these
    raw._forget_codecs()


class Shared:
    """Queries on connections that all greenlets and threads share: they are on their way together.

    Each has its own result and its own error, and is a transaction by itself. One that cannot share
    a connection (SET, BEGIN, COPY, a script of several statements) is run on one of its own, which
    is reset afterwards. What a function does to the session (``set_config()``,
    ``pg_advisory_lock()``) is not seen, stays, and is everybody's.

    A query that is cancelled or timed out is dropped before it is sent; later its answer is thrown
    away, and the server goes on with it: a neighbour's is never cancelled. When a connection is
    lost, the queries that the server cannot have begun are asked again on the next one; the others
    raise QueryInDoubt.
    """

    def __init__(self, pool: Pool, count: int) -> None:
        self._pool = pool
        self._lanes = Lanes(pool._core, count, _dress)

    def execute(
        self,
        query: str,
        params: Any = None,
        *,
        timeout: float | None = None,
        row_factory: Any = None,
    ) -> Cursor[Any]:
        """Run a query; a cursor with its result, as ``Connection.execute()``.

        Waits for the server, and before that up to the pool's timeout for a connection where there
        is none (PoolTimeout); can be cancelled. `timeout`: seconds for the query.
        """
        pool = cast("Connection[Any]", self)
        cursor = Cursor(pool, row_factory or self._pool._row_factory)
        return cursor.execute(query, params, timeout=timeout)

    def _run(
        self, query: str, params: Any, timeout: float | None, cursor: Any = None
    ) -> list[Result]:
        """What the cursor asks for."""
        if not isinstance(query, str):
            raise TypeError(f"a query is a str, not {type(query).__name__}")
        self._pool._check_open()
        may_wait()
        sql, args, oids = prepare(query, params)
        then: str | None = ALONE if not args and is_script(sql) else AGAIN
        lanes = self._lanes
        while then is AGAIN:
            lane: Lane = lanes.pick() or run(lanes.ready(self._pool.timeout, patient=True))
            answers, since = lane.answers, monotonic()
            op = lane.con._op("query", "tuples", sql, args or (), oids=oids, timeout=timeout)
            try:
                result = op.run()
                lane.answers += 1
                return [result]
            except BaseException as exc:
                then = lanes.failed(lane, op, exc, answers, since)
                if then is None:
                    raise
            finally:
                lanes.leave(lane)
        with self._pool.connection() as connection:
            connection.autocommit = True
            return cast("list[Result]", connection._run(query, params, timeout))

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"pool.shared has execute(), and no {name}: take a connection by pool.connection()"
        )
