"""greenletio.pg.aio: PostgreSQL for tasks, by asyncpg's names and semantics.

``import greenletio.pg.aio as asyncpg`` and keep the code. Beneath is libpq: connection strings,
service files, .pgpass, every sslmode and authentication, several hosts.
"""

from __future__ import annotations

from greenletio._pg import Record
from greenletio.pg._range import Range
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
from greenletio.pg.aio._connect import connect
from greenletio.pg.aio._connection import Connection, ServerVersion
from greenletio.pg.aio._prepared import Attribute, PreparedStatement, Type
from greenletio.pg.aio._transaction import Transaction
from greenletio.pg.errors import InterfaceError

__all__ = (
    "Attribute",
    "BitString",
    "Box",
    "Circle",
    "Connection",
    "InterfaceError",
    "Line",
    "LineSegment",
    "Path",
    "Point",
    "Polygon",
    "PreparedStatement",
    "Range",
    "Record",
    "ServerVersion",
    "Transaction",
    "Type",
    "connect",
)
