"""Two-phase commit: the DB-API's tpc_ methods, by PREPARE TRANSACTION.

The server must allow it: max_prepared_transactions is 0 by default.
"""

from __future__ import annotations

import binascii
import datetime
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, NamedTuple

from greenletio.pg._quote import literal
from greenletio.pg.errors import ConnectionClosed, ProgrammingError

if TYPE_CHECKING:
    from greenletio import _pg

__all__ = ("TwoPhase", "Xid")


class Xid(NamedTuple):
    """The id of a transaction that several databases take part in.

    One whose text on the server was not made of the three parts has it as `gtrid`, and None for the
    others. The last three are what tpc_recover() has found.
    """

    format_id: int | None
    gtrid: str
    bqual: str | None = None
    prepared: datetime.datetime | None = None
    owner: str | None = None
    database: str | None = None

    def __str__(self) -> str:
        """As the server has it, and psycopg writes it."""
        if self.format_id is None or self.bqual is None:
            return self.gtrid
        parts = (b64encode(part.encode()).decode() for part in (self.gtrid, self.bqual))
        return f"{self.format_id}_{'_'.join(parts)}"


def make(format_id: int, gtrid: str, bqual: str) -> Xid:
    """An Xid of checked parts."""
    if not 0 <= format_id <= 0x7FFFFFFF:
        raise ValueError("format_id is a number from 0 to 0x7fffffff")
    for name, part in (("gtrid", gtrid), ("bqual", bqual)):
        if len(part) > 64 or not all(" " <= character <= "~" for character in part):
            raise ValueError(f"{name} is at most 64 printable ASCII characters")
    return Xid(format_id, gtrid, bqual)


def parse(text: str) -> Xid:
    """The Xid of what the server has."""
    parts = text.split("_")
    try:
        if len(parts) == 3:
            gtrid, bqual = (b64decode(part, validate=True).decode() for part in parts[1:])
            return make(int(parts[0]), gtrid, bqual)
    except (ValueError, binascii.Error):
        pass
    return Xid(None, text)


class TwoPhase:
    """The tpc_ methods of a connection."""

    _raw: _pg.Connection
    _autocommit: bool
    _tpc: Xid | str | None = None
    _tpc_prepared = False

    if TYPE_CHECKING:

        def _turn(self) -> Any: ...
        def _command(self, sql: str) -> None: ...
        def _begin_sql(
            self,
            isolation: str | None = None,
            readonly: bool | None = None,
            deferrable: bool | None = None,
        ) -> str: ...

    def xid(self, format_id: int, gtrid: str, bqual: str) -> Xid:
        """A transaction id: of the transaction as a whole, and of its part here."""
        return make(format_id, gtrid, bqual)

    def tpc_begin(self, xid: Xid | str) -> None:
        """Begin a transaction that is to be prepared."""
        if self._autocommit:
            raise ProgrammingError("tpc_begin() cannot be used with autocommit")
        with self._turn():
            if self._tpc is not None or self._raw._transaction_status != 0:
                raise ProgrammingError("tpc_begin() cannot be used inside a transaction")
            self._command(self._begin_sql())
            self._tpc, self._tpc_prepared = xid, False

    def tpc_prepare(self) -> None:
        """The first phase: what was done will be kept, even if this session ends."""
        if self._tpc is None:
            raise ProgrammingError("tpc_prepare() needs tpc_begin() before it")
        if self._tpc_prepared:
            raise ProgrammingError("tpc_prepare() was called already")
        with self._turn():
            failed = self._raw._transaction_status == 3
            if failed:  # the server would only roll it back, and say nothing
                raise ProgrammingError("the transaction has failed: tpc_rollback() is left")
            try:
                self._command(f"PREPARE TRANSACTION {literal(str(self._tpc))}")
            except BaseException:
                if self._raw._transaction_status == 0:  # refused, it is rolled back
                    self._tpc = None
                raise
            self._tpc_prepared = True

    def tpc_commit(self, xid: Xid | str | None = None) -> None:
        """Keep it: this one, in one phase if it was not prepared, or a recovered one."""
        self._tpc_end("COMMIT", xid)

    def tpc_rollback(self, xid: Xid | str | None = None) -> None:
        """Undo it: this one, prepared or not, or a recovered one."""
        self._tpc_end("ROLLBACK", xid)

    def _tpc_end(self, what: str, xid: Xid | str | None) -> None:
        name = f"tpc_{what.lower()}()"
        with self._turn():
            if xid is not None:
                if self._tpc is not None or self._raw._transaction_status != 0:
                    raise ProgrammingError(f"{name} of another transaction inside a transaction")
                self._command(f"{what} PREPARED {literal(str(xid))}")
                return
            if self._tpc is None:
                raise ProgrammingError(f"{name} needs tpc_begin() before it, or a transaction id")
            if self._tpc_prepared:
                self._command(f"{what} PREPARED {literal(str(self._tpc))}")
            else:
                self._command(what)
            self._tpc, self._tpc_prepared = None, False

    def tpc_recover(self) -> list[Xid]:
        """Those that were prepared, by whomever, and not ended: in any database of the server."""
        if self._raw.is_closed():
            raise ConnectionClosed("the connection is closed")
        query = "SELECT gid, prepared, owner, database FROM pg_catalog.pg_prepared_xacts"
        with self._turn():
            rows = self._raw._op("query", "tuples", query, (), plain=True).run()[0]
        return [
            parse(gid)._replace(prepared=prepared, owner=owner, database=database)
            for gid, prepared, owner, database in rows
        ]
