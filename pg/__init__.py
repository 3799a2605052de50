"""greenletio.pg: PostgreSQL for sync code, by the DB-API 2.0 and psycopg's conventions.

On libpq, with its connection strings, service files, .pgpass, every sslmode and authentication. The
same driver for tasks, by asyncpg's names, is ``greenletio.pg.aio``.
"""

from __future__ import annotations

import datetime
import time as _time

if __name__ != "greenletio.pg":
    raise ImportError(
        f"pg/ is the source of greenletio.pg and was imported as {__name__!r}: import greenletio.pg"
    )

from greenletio._pg import ArrowBatch, Record
from greenletio.pg import errors, rows
from greenletio.pg._arrow import ArrowTable
from greenletio.pg._changes import (
    LSN,
    UNCHANGED,
    CommitPrepared,
    Delete,
    Insert,
    Message,
    Relation,
    RollbackPrepared,
    Slot,
    Truncate,
    Update,
    WalData,
)
from greenletio.pg._connection import Connection, connect
from greenletio.pg._copy import Copy
from greenletio.pg._cursor import Column, Cursor
from greenletio.pg._errors import (
    DatabaseError,
    DataError,
    Diagnostic,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
)
from greenletio.pg._json import Json, Jsonb
from greenletio.pg._listen import Gap, Notification
from greenletio.pg._listen_sync import Listener
from greenletio.pg._lobject_sync import LargeObject
from greenletio.pg._pool_parts import PoolClosed, PoolTimeout, TooManyRequests
from greenletio.pg._pool_sync import Pool
from greenletio.pg._process import reset_type_codec, set_type_codec
from greenletio.pg._range import Range
from greenletio.pg._replication_sync import (
    ChangeStream,
    ReplicatedTransaction,
    Replication,
    connect_replication,
)
from greenletio.pg._retry import retry
from greenletio.pg._tls import TLS, Certificate
from greenletio.pg._tpc import Xid
from greenletio.pg._transaction import Rollback, Transaction
from greenletio.pg._values import (
    BitString,
    Box,
    Circle,
    Line,
    LineSegment,
    Path,
    Point,
    Polygon,
)

__all__ = (
    "ArrowBatch",
    "ArrowTable",
    "BINARY",
    "Binary",
    "BitString",
    "Box",
    "Certificate",
    "ChangeStream",
    "Circle",
    "Column",
    "CommitPrepared",
    "Connection",
    "Copy",
    "Cursor",
    "DATETIME",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Delete",
    "Diagnostic",
    "Error",
    "Gap",
    "Insert",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "Json",
    "Jsonb",
    "LSN",
    "LargeObject",
    "Line",
    "LineSegment",
    "Listener",
    "Message",
    "NUMBER",
    "NotSupportedError",
    "Notification",
    "OperationalError",
    "Path",
    "Point",
    "Polygon",
    "Pool",
    "PoolClosed",
    "PoolTimeout",
    "ProgrammingError",
    "ROWID",
    "Range",
    "Record",
    "Relation",
    "ReplicatedTransaction",
    "Replication",
    "Rollback",
    "RollbackPrepared",
    "STRING",
    "Slot",
    "TLS",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "TooManyRequests",
    "Transaction",
    "Truncate",
    "UNCHANGED",
    "Update",
    "WalData",
    "Warning",
    "Xid",
    "apilevel",
    "connect",
    "connect_replication",
    "errors",
    "paramstyle",
    "reset_type_codec",
    "retry",
    "rows",
    "set_type_codec",
    "threadsafety",
)

apilevel = "2.0"
threadsafety = 2  # threads may share a connection
paramstyle = "pyformat"


class _TypeGroup:
    """Equal to the type codes of a kind of columns."""

    def __init__(self, name: str, *oids: int) -> None:
        self._name = name
        self._oids = frozenset(oids)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return other in self._oids
        return self is other

    def __hash__(self) -> int:
        return hash(self._oids)

    def __repr__(self) -> str:
        return self._name


STRING = _TypeGroup("STRING", 18, 19, 25, 1042, 1043)
BINARY = _TypeGroup("BINARY", 17)
NUMBER = _TypeGroup("NUMBER", 20, 21, 23, 700, 701, 1700)
DATETIME = _TypeGroup("DATETIME", 1082, 1083, 1114, 1184, 1186, 1266)
ROWID = _TypeGroup("ROWID", 26)

Date = datetime.date
Time = datetime.time
Timestamp = datetime.datetime
Binary = bytes


def DateFromTicks(ticks: float) -> datetime.date:
    """The local date of a number of seconds since the epoch."""
    return datetime.date(*_time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> datetime.time:
    """The local time of a number of seconds since the epoch."""
    return datetime.time(*_time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> datetime.datetime:
    """The local date and time of a number of seconds since the epoch."""
    return datetime.datetime(*_time.localtime(ticks)[:6])
