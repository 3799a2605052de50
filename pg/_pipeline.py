"""Pipelines for sync code: queries that are sent without waiting for the answers before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenletio import _pg

if TYPE_CHECKING:
    from greenletio.pg._cursor import Cursor

__all__ = ("Ops", "Pipeline")


class Ops:
    """What was sent in a pipeline since its last sync."""

    def __init__(self) -> None:
        self._ops: list[_pg.Op[Any]] = []

    def _settle(self) -> None:
        """All of it is over: the first error that nobody was told of is raised."""
        ops, self._ops = self._ops, []
        for op in ops:
            if op._untold is not None:
                op.run()  # which has ended: it raises

    def _give_up(self) -> None:
        while self._ops:
            self._ops.pop().close()


class Pipeline(Ops):
    """What ``with connection.pipeline() as pipeline:`` gives."""

    def __init__(self, raw: _pg.Connection, idle: bool) -> None:
        super().__init__()
        self._raw = raw
        self.idle = idle  # no transaction was begun
        self._cursors: list[Cursor[Any]] = []

    def sync(self) -> None:
        """Wait until all that was sent is done, and begin anew after an error, which is raised."""
        self._raw._op("sync", "nothing", "").run()
        self._settle()

    def _send(self, op: _pg.Op[Any], cursor: Cursor[Any] | None = None) -> _pg.Op[Any]:
        op.start()
        self._ops.append(op)
        if cursor is not None:
            self._cursors.append(cursor)
        return op

    def _settle(self) -> None:
        cursors, self._cursors = self._cursors, []
        for cursor in cursors:
            cursor._settle()
        super()._settle()

    def _give_up(self) -> None:
        super()._give_up()
        self._cursors.clear()

    def _end_transaction(self, sql: str) -> None:
        if sql == "ROLLBACK":
            self._raw._op("sync", "nothing", "").run()
            self._give_up()  # whatever they said
        if not self.idle:
            self._send(self._raw._op("query", "nothing", sql, ()))
            self.sync()
            self.idle = True
