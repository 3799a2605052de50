"""greenletio.pg.aio: PostgreSQL for tasks, by asyncpg's names and semantics.

``import greenletio.pg.aio as asyncpg`` and keep the code. Beneath is libpq: connection strings,
service files, .pgpass, every sslmode and authentication, several hosts.
"""

from __future__ import annotations

from typing import Any

from greenletio._pg import ArrowBatch, Record
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
from greenletio.pg._process import reset_type_codec, set_type_codec
from greenletio.pg._range import Range
from greenletio.pg._tls import TLS, Certificate
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
from greenletio.pg.aio import exceptions
from greenletio.pg.aio._columns import ArrowStream
from greenletio.pg.aio._connect import connect
from greenletio.pg.aio._connection import Connection, ServerVersion
from greenletio.pg.aio._cursor import Cursor, CursorFactory
from greenletio.pg.aio._listen import Gap, Listener, Notification
from greenletio.pg.aio._lobject import LargeObject
from greenletio.pg.aio._logging import LoggedQuery
from greenletio.pg.aio._pipeline import Pipeline
from greenletio.pg.aio._pool import Pool, PoolAcquireContext, create_pool
from greenletio.pg.aio._pool_proxy import PoolConnectionProxy
from greenletio.pg.aio._prepared import Attribute, PreparedStatement, Type
from greenletio.pg.aio._replication import (
    ChangeStream,
    ReplicatedTransaction,
    Replication,
    connect_replication,
)
from greenletio.pg.aio._retry import retry
from greenletio.pg.aio._stream import Stream
from greenletio.pg.aio._transaction import Transaction
from greenletio.pg.errors import InterfaceError

__all__ = (
    "ArrowBatch",
    "ArrowStream",
    "ArrowTable",
    "Attribute",
    "BitString",
    "Box",
    "Certificate",
    "ChangeStream",
    "Circle",
    "CommitPrepared",
    "Connection",
    "Cursor",
    "CursorFactory",
    "Delete",
    "Gap",
    "Insert",
    "InterfaceError",
    "LSN",
    "LargeObject",
    "Line",
    "LineSegment",
    "Listener",
    "LoggedQuery",
    "Message",
    "Notification",
    "Path",
    "Pipeline",
    "Point",
    "Polygon",
    "Pool",
    "PoolAcquireContext",
    "PoolConnectionProxy",
    "PreparedStatement",
    "Range",
    "Record",
    "Relation",
    "ReplicatedTransaction",
    "Replication",
    "RollbackPrepared",
    "ServerVersion",
    "Slot",
    "Stream",
    "TLS",
    "Transaction",
    "Truncate",
    "Type",
    "UNCHANGED",
    "Update",
    "WalData",
    "connect",
    "connect_replication",
    "create_pool",
    "exceptions",
    "reset_type_codec",
    "retry",
    "set_type_codec",
)


def __getattr__(name: str) -> Any:
    """Exceptions are here, too, as in asyncpg."""
    if name in exceptions.__all__:
        return getattr(exceptions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
