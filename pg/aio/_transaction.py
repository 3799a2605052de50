"""Transactions: blocks, savepoints where one is open already."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from greenletio.pg.errors import InterfaceError

if TYPE_CHECKING:
    from greenletio.pg.aio._connection import Connection

__all__ = ("Transaction",)

_LEVELS = {
    "read_committed": "READ COMMITTED",
    "read_uncommitted": "READ UNCOMMITTED",
    "serializable": "SERIALIZABLE",
    "repeatable_read": "REPEATABLE READ",
}


class Transaction:
    """What ``connection.transaction()`` gives: an ``async with`` block, or start() and its ends."""

    def __init__(
        self,
        connection: Connection,
        isolation: str | None,
        readonly: bool,
        deferrable: bool,
    ) -> None:
        if isolation is not None and isolation not in _LEVELS:
            raise ValueError(
                f"isolation is expected to be one of {sorted(_LEVELS)}, got {isolation!r}"
            )
        self._connection = connection
        self._isolation = isolation
        self._readonly = readonly
        self._deferrable = deferrable
        self._state = "new"
        self._savepoint: str | None = None
        self._managed = False

    async def __aenter__(self) -> None:
        if self._managed:
            raise InterfaceError("a transaction block cannot be entered twice")
        self._managed = True
        await self.start()

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            self._check("leave")
            if typ is None:
                await self._end("commit")
            else:
                await self._end("rollback")
        finally:
            self._managed = False

    async def start(self) -> None:
        """Begin: a transaction, or inside one a savepoint."""
        if self._state != "new":
            raise InterfaceError(f"a transaction that is {self._state} cannot be started")
        connection = self._connection
        if connection._in_pipeline:
            raise InterfaceError(
                "a transaction cannot begin inside a pipeline: open the pipeline inside of it"
            )
        if connection._transaction is None and connection.is_in_transaction():
            raise InterfaceError(
                "cannot use Connection.transaction() in a manually started transaction"
            )
        if connection._transaction is None:
            sql = "BEGIN"
            if self._isolation is not None:
                sql += f" ISOLATION LEVEL {_LEVELS[self._isolation]}"
            if self._readonly:
                sql += " READ ONLY"
            if self._deferrable:
                sql += " DEFERRABLE"
            connection._transaction = self
        else:
            outer = connection._transaction
            if self._isolation is not None and self._isolation != outer._isolation:
                raise InterfaceError(
                    f"a nested transaction has the isolation level of the outer one "
                    f"({outer._isolation}), not {self._isolation}"
                )
            self._savepoint = connection._new_name("savepoint")
            sql = f"SAVEPOINT {self._savepoint}"
        try:
            await connection.execute(sql)
        except BaseException:
            self._state = "failed"
            if self._savepoint is None:
                connection._transaction = None
            raise
        self._state = "started"

    def _check(self, what: str) -> None:
        if self._state != "started":
            raise InterfaceError(f"cannot {what} a transaction that is {self._state}")

    async def _end(self, how: str) -> None:
        connection = self._connection
        name = self._savepoint
        if name is None:
            sql = f"{how.upper()};"
            connection._transaction = None
        elif how == "commit":
            sql = f"RELEASE SAVEPOINT {name};"
        else:
            sql = f"ROLLBACK TO {name}; RELEASE SAVEPOINT {name};"
        try:
            if not connection.is_closed() or how == "commit":
                await connection.execute(sql)
        except BaseException:
            self._state = "failed"
            raise
        self._state = "committed" if how == "commit" else "rolled back"

    async def commit(self) -> None:
        """Make what was done last."""
        if self._managed:
            raise InterfaceError("cannot manually commit from within an `async with` block")
        self._check("commit")
        await self._end("commit")

    async def rollback(self) -> None:
        """Undo it all."""
        if self._managed:
            raise InterfaceError("cannot manually rollback from within an `async with` block")
        self._check("roll back")
        await self._end("rollback")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state}>"
