"""Cursors at the server, by name, as psycopg's connections have them: for SQLAlchemy and Django."""

from __future__ import annotations

from typing import Any

from greenletio import pg

__all__ = ("IDLE", "IN_ERROR", "NamedCursor", "NamedCursors")

IDLE, IN_ERROR = 0, 3  # of libpq's PGTransactionStatusType


class NamedCursor(pg.Cursor[Any]):
    """A cursor at the server, for results that are not wanted as a whole."""

    def __init__(self, connection: NamedCursors, name: str) -> None:
        super().__init__(connection, connection.row_factory)
        self._name = name
        self._open = False

    def execute(
        self, query: str, params: Any = None, *, timeout: float | None = None
    ) -> NamedCursor:
        # HOLD: it works in autocommit mode, too, where nothing else keeps it.
        hold = self.connection.autocommit
        super().execute(
            f"DECLARE {self._name} NO SCROLL CURSOR {'WITH' if hold else 'WITHOUT'} HOLD"
            f" FOR {query}",
            params,
            timeout=timeout,
        )
        self._open = True
        if hold:
            self.connection.held.add(self._name)  # type: ignore[attr-defined]
        self._take(0)  # for the description
        return self

    def _take(self, count: int | str) -> list[Any]:
        super().execute(f"FETCH {count} FROM {self._name}")
        return super().fetchall()

    def fetchone(self) -> Any:
        return next(iter(self._take(1)), None)

    def fetchmany(self, size: int = 0) -> list[Any]:
        return self._take(size or self.arraysize)

    def fetchall(self) -> list[Any]:
        return self._take("ALL")

    def close(self) -> None:
        if self._open:
            self._open = False
            self.connection.end_cursor(self._name)  # type: ignore[attr-defined]
        super().close()


class NamedCursors(pg.Connection[Any]):
    """A connection that has cursors at the server."""

    @property
    def held(self) -> set[str]:
        """The cursors at the server that no transaction's end ends."""
        names: set[str] = vars(self).setdefault("_held", set())
        return names

    def end_cursor(self, name: str) -> None:
        """Close a cursor at the server, if it is there still; no transaction begins, nor fails."""
        with self._lock:
            status = IN_ERROR if self.closed else self.raw._transaction_status
            if status == IN_ERROR or (status == IDLE and name not in self.held):
                return  # its transaction's end is its own
            there = f"SELECT 1 FROM pg_catalog.pg_cursors WHERE name = '{name}'"
            ((rows, *_),) = self.raw._op("script", "tuples", there).run()
            if rows:
                self._command(f"CLOSE {name}")
            self.held.discard(name)
