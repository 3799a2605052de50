"""Transactions of sync code; what both faces know of doing one again that failed."""

from __future__ import annotations

import random
from types import TracebackType
from typing import TYPE_CHECKING, Any

from greenletio.pg import _sqlstates
from greenletio.pg._quote import quoted
from greenletio.pg.errors import InterfaceError, ProgrammingError

if TYPE_CHECKING:
    from greenletio.pg._connection import Connection

__all__ = ("RETRIED", "Rollback", "Transaction", "begin", "delays", "level")

#: What is worth another try: the transaction has done nothing, and others were in its way.
RETRIED = (_sqlstates.SerializationFailure, _sqlstates.DeadlockDetected)

_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def level(name: str | None) -> str | None:
    """An isolation level as SQL has it; ValueError if it is none."""
    if name is None:
        return None
    found = str(name).replace("_", " ").upper()
    if found not in _LEVELS:
        known = ", ".join(repr(one.lower().replace(" ", "_")) for one in _LEVELS)
        raise ValueError(f"isolation is expected to be one of {known}, got {name!r}")
    return found


def begin(isolation: str | None, readonly: bool | None, deferrable: bool | None) -> str:
    """The BEGIN; None: as the session's defaults are."""
    parts = []
    if isolation is not None:
        parts.append(f"ISOLATION LEVEL {level(isolation)}")
    if readonly is not None:
        parts.append("READ ONLY" if readonly else "READ WRITE")
    if deferrable is not None:
        parts.append("DEFERRABLE" if deferrable else "NOT DEFERRABLE")
    return f"BEGIN {', '.join(parts)}".strip()


def delays(attempts: int, delay: float, max_delay: float) -> list[float]:
    """Seconds to wait before each further attempt: by chance, up to a limit that doubles."""
    if attempts < 1:
        raise ValueError("attempts is expected to be at least 1")
    if delay < 0 or max_delay < delay:
        raise ValueError("delay and max_delay are seconds, the second not less than the first")
    limits = (min(delay * 2.0**n, max_delay) for n in range(attempts - 1))
    return [random.uniform(0, limit) for limit in limits]


class Rollback(Exception):
    """Raised in a block of transaction() it undoes the block, and goes no further than that.

    With a Transaction as its argument it goes to that one's block, through those inside it.
    """

    def __init__(self, transaction: Transaction | None = None) -> None:
        super().__init__(transaction)
        self.transaction = transaction


class Transaction:
    """A block of ``connection.transaction()``: a transaction, or inside one a savepoint."""

    def __init__(
        self,
        connection: Connection[Any],
        options: tuple[str | None, bool | None, bool | None],
        savepoint_name: str | None,
        force_rollback: bool,
    ) -> None:
        level(options[0])
        if savepoint_name is not None and (not savepoint_name or "\0" in savepoint_name):
            raise ProgrammingError(f"a savepoint cannot be named {savepoint_name!r}")
        self.connection = connection
        self.savepoint_name = savepoint_name
        self._options = options
        self._force_rollback = force_rollback
        self._outermost = False
        self._state = "new"

    def __enter__(self) -> Transaction:
        if self._state != "new":
            raise InterfaceError("a block of transaction() cannot be entered twice")
        connection = self.connection
        with connection._turn():
            self._outermost = connection._raw._transaction_status == 0
            if self._outermost:
                sql = connection._begin_sql(*self._options)
            else:
                if any(option is not None for option in self._options):
                    raise ProgrammingError(
                        "isolation, readonly and deferrable are the outermost transaction's: "
                        "this one is inside another"
                    )
                connection._savepoints += 1
                name = self.savepoint_name or f"_gio_savepoint_{connection._savepoints}"
                self._name = quoted(name)
                sql = f"SAVEPOINT {self._name}"
            connection._command(sql)
            connection._blocks += 1
        self._state = "open"
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        self._state = "ended"
        connection = self.connection
        connection._blocks -= 1
        is_kept = exc is None and not self._force_rollback
        if is_kept and not connection._holds():
            connection._command("COMMIT" if self._outermost else f"RELEASE SAVEPOINT {self._name}")
            return False
        if not connection.closed:
            connection._let_go()
            undo = "ROLLBACK"
            if not self._outermost:
                undo = f"ROLLBACK TO {self._name}; RELEASE SAVEPOINT {self._name}"
            connection._command(undo)
        if is_kept:
            raise InterfaceError(
                "the transaction was undone, for a stream of rows, or a COPY, was left open in it"
            )
        return isinstance(exc, Rollback) and exc.transaction in (None, self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state} of {self.connection!r}>"
