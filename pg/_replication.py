"""A session with a walsender, for both faces: its commands, and how slots are made and dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from greenletio import _pg
from greenletio.pg._changes import LSN, Slot, SystemIdentity
from greenletio.pg._cursor import typed
from greenletio.pg._quote import quoted
from greenletio.pg._steps import Connecting, Steps
from greenletio.pg._tls import demand
from greenletio.pg.errors import (
    ConnectionClosed,
    DatabaseError,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
)

if TYPE_CHECKING:
    from greenletio.pg._replication_stream import StreamCore

__all__ = ("CLOSE_LIMIT", "TIMED_OUT", "Session", "literal")

# What text the server makes of values must not depend on its settings.
_FORMS = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex"

#: Seconds in which a session, or a stream, must end when it is closed.
CLOSE_LIMIT = 10.0

TIMED_OUT = (TimeoutError, asyncio.TimeoutError)


def literal(text: str) -> str:
    """A string as SQL has it."""
    if "\0" in text:
        raise ProgrammingError(f"a name has a NUL character in it: {text!r}")
    return "'" + text.replace("'", "''") + "'"


class Session:
    """A connection to a walsender, and its commands."""

    def __init__(
        self,
        options: dict[str, str],
        timeout: float | None,
        tls_pin: str | Iterable[str] | None = None,
    ) -> None:
        self._ordinary = options
        self._options = {
            **options,
            "replication": "database",
            "options": f"{options.get('options', '')} {_FORMS}".strip(),
        }
        self._pins = [tls_pin] if isinstance(tls_pin, str) else tls_pin and list(tls_pin)
        self.timeout = timeout
        self.raw = _pg.Connection()
        self.stream: StreamCore | None = None  # that uses it just now
        self.closed = False

    def connect(self, limit: float | None = None) -> Steps[None]:
        if self.closed:
            raise ConnectionClosed("the replication session is closed")
        if self.raw.is_closed():
            self.raw = _pg.Connection()
            yield self._connecting(self.raw, self._options, limit)

    def connecting(self, raw: _pg.Connection, limit: float | None) -> Connecting:
        """An ordinary connection to the same database."""
        return self._connecting(raw, self._ordinary, limit)

    def _connecting(
        self, raw: _pg.Connection, options: dict[str, str], limit: float | None
    ) -> Connecting:
        timeouts = [t for t in (self.timeout, limit) if t is not None]
        return Connecting(raw, demand(raw, options, self._pins), min(timeouts, default=None))

    def ask(self, sql: str, timeout: float | None = None) -> Steps[list[dict[str, Any]]]:
        """The rows of a command, or of a query, as dicts."""
        if self.stream is not None and self.stream.is_open:
            raise InterfaceError(
                "the replication session is streaming: close the stream, or use another session"
            )
        yield from self.connect(timeout)
        results = yield self.raw._op("script", "tuples", sql, timeout=timeout)
        rows, description, _ = typed(results[-1], {})
        if rows is None or description is None:
            return []
        return [
            {column[0]: value for column, value in zip(description, row, strict=True)}
            for row in rows
        ]

    def identify(self, timeout: float | None) -> Steps[SystemIdentity]:
        (row,) = yield from self.ask("IDENTIFY_SYSTEM", timeout)
        return SystemIdentity(row["systemid"], row["timeline"], LSN(row["xlogpos"]), row["dbname"])

    def create_slot(
        self,
        name: str,
        plugin: str,
        temporary: bool,
        snapshot: bool,
        two_phase: bool,
        failover: bool,
        timeout: float | None,
    ) -> Steps[Slot]:
        yield from self.connect(timeout)
        self.demand_version(150000, two_phase, "two_phase")
        self.demand_version(170000, failover, "failover")
        how = "EXPORT_SNAPSHOT" if snapshot else "NOEXPORT_SNAPSHOT"
        if two_phase or failover:
            named = (f"SNAPSHOT {literal('export' if snapshot else 'nothing')}",)
            words = (*named, "TWO_PHASE" * two_phase, "FAILOVER" * failover)
            how = f"({', '.join(filter(None, words))})"
        (row,) = yield from self.ask(
            f"CREATE_REPLICATION_SLOT {quoted(name)}{' TEMPORARY' if temporary else ''} LOGICAL "
            f"{quoted(plugin)} {how}",
            timeout,
        )
        return Slot(
            row["slot_name"],
            row["output_plugin"],
            LSN(row["consistent_point"]),
            temporary=temporary,
            two_phase=two_phase,
            failover=failover,
            snapshot_name=row["snapshot_name"],
        )

    def demand_version(self, version: int, wanted: object, what: str) -> None:
        if wanted and self.raw._server_version < version:
            raise NotSupportedError(
                f"{what} needs a server of PostgreSQL {version // 10000} or later"
            )

    def drop_slot(self, name: str, wait: bool, timeout: float | None) -> Steps[None]:
        command = f"DROP_REPLICATION_SLOT {quoted(name)}{' WAIT' if wait else ''}"
        yield from self.ask(command, timeout)

    def slot(self, name: str, timeout: float | None) -> Steps[Slot | None]:
        rows = yield from self.ask(
            # Not every server has the last two columns.
            "SELECT slot_name, plugin, confirmed_flush_lsn, restart_lsn, temporary, active_pid,"
            " (pg_catalog.row_to_json(s)->>'two_phase')::bool AS two_phase,"
            " (pg_catalog.row_to_json(s)->>'failover')::bool AS failover"
            f" FROM pg_catalog.pg_replication_slots s WHERE slot_name = {literal(name)}",
            timeout,
        )
        if not rows:
            return None
        row = rows[0]
        if row["plugin"] is None:
            raise NotSupportedError(f"the replication slot {name!r} is not for logical replication")
        restart = row["restart_lsn"]
        return Slot(
            row["slot_name"],
            row["plugin"],
            LSN(row["confirmed_flush_lsn"] or 0),
            None if restart is None else LSN(restart),
            row["temporary"],
            row["active_pid"],
            two_phase=bool(row["two_phase"]),
            failover=bool(row["failover"]),
        )

    def close(self) -> Steps[None]:
        self.closed = True
        if self.stream is not None:
            yield from self.stream.close()
        if not self.raw.is_closed():
            try:
                yield self.raw._op("finish", "nothing", "", timeout=CLOSE_LIMIT)
            except (*TIMED_OUT, DatabaseError):
                self.raw.terminate()
