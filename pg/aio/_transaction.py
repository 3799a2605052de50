"""Transactions: blocks, savepoints where one is open already."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

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

_STATES = {
    "new": "not yet started",
    "started": "already started",
    "committed": "already committed",
    "rolledback": "already rolled back",
    "failed": "in error state",
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
            raise InterfaceError("cannot enter context: already in an `async with` block")
        self._managed = True
        await self.start()

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            self._check("rollback" if typ else "commit")
            if typ is None:
                await self._end("commit")
            else:
                await self._end("rollback")
        finally:
            self._managed = False

    async def start(self) -> None:
        """Begin: a transaction, or inside one a savepoint."""
        if self._state != "new":
            self._refuse("start")
        connection = self._connection
        if connection._in_pipeline:
            raise InterfaceError(
                "a transaction cannot begin inside a pipeline: open the pipeline inside of it"
            )
        outer = connection._transaction
        if outer is None and connection.is_in_transaction():
            raise InterfaceError(
                "cannot use Connection.transaction() in a manually started transaction"
            )
        if outer is None:
            sql = "BEGIN"
            if self._isolation is not None:
                sql += f" ISOLATION LEVEL {_LEVELS[self._isolation]}"
            if self._readonly:
                sql += " READ ONLY"
            if self._deferrable:
                sql += " DEFERRABLE"
            connection._transaction = self
        else:
            if self._isolation is not None:
                level = outer._isolation or await self._current_level()
                if self._isolation != level:
                    raise InterfaceError(
                        "a nested transaction has the isolation level of the outer one: "
                        f"current {self._isolation!r} != outer {level!r}"
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

    async def _current_level(self) -> str:
        query = "SHOW transaction_isolation"
        level: str = await self._connection._op("query", "value", query, (), plain=True)
        return level.replace(" ", "_")

    def _check(self, what: str) -> None:
        if self._state != "started":
            self._refuse(what)

    def _refuse(self, what: str) -> NoReturn:
        raise InterfaceError(f"cannot {what}; the transaction is {_STATES[self._state]}")

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
        self._state = "committed" if how == "commit" else "rolledback"

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
        self._check("rollback")
        await self._end("rollback")

    def __repr__(self) -> str:
        words = [f"state:{self._state}"]
        if self._isolation is not None:
            words.append(self._isolation)
        if self._readonly:
            words.append("readonly")
        if self._deferrable:
            words.append("deferrable")
        return f"<{type(self).__module__}.{type(self).__name__} {' '.join(words)}>"
