"""What logical replication tells: positions, tables, changes of rows, transactions."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from greenletio import _pg

__all__ = (
    "LSN",
    "UNCHANGED",
    "Change",
    "ColumnOf",
    "CommitPrepared",
    "Delete",
    "Insert",
    "Message",
    "Relation",
    "RollbackPrepared",
    "Single",
    "Slot",
    "SystemIdentity",
    "TransactionBase",
    "Truncate",
    "Update",
    "WalData",
    "moment",
)

_EPOCH = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)


def moment(microseconds: int) -> datetime.datetime:
    """A point in time as the replication protocol has it."""
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


class LSN(int):
    """A position in the server's write-ahead log: an integer, as text ``16/B374D848``.

    Made of either; ValueError for other text, and for what has more than 64 bits.
    """

    def __new__(cls, position: int | str = 0) -> LSN:
        if isinstance(position, str):
            high, slash, low = position.partition("/")
            if not slash or not 0 < len(high) <= 8 or not 0 < len(low) <= 8:
                raise ValueError(f"an LSN is like '16/B374D848', not {position!r}")
            position = int(high, 16) << 32 | int(low, 16)
        if not 0 <= position < 1 << 64:
            raise ValueError(f"an LSN has 64 bits, {position} has more")
        return super().__new__(cls, position)

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"LSN({str(self)!r})"


class _Unchanged:
    """A value that the server did not send: it is stored apart (TOAST) and was not changed."""

    def __repr__(self) -> str:
        return "UNCHANGED"

    def __reduce__(self) -> str:
        return "UNCHANGED"


#: In place of a value that was not sent, since it is large and has not changed.
UNCHANGED = _Unchanged()


class SystemIdentity(NamedTuple):
    """What the server says of itself."""

    systemid: str
    timeline: int
    position: LSN
    database: str | None


@dataclass(frozen=True)
class Slot:
    """A replication slot: as it is, or just after it was made.

    ``confirmed_flush_lsn`` is the position up to which its consumer has confirmed everything (of
    a new slot: where it begins), ``snapshot_name`` that of the snapshot that was exported with it.
    With ``two_phase`` prepared transactions come when they are prepared; with ``failover`` standbys
    have it, too.
    """

    name: str
    plugin: str
    confirmed_flush_lsn: LSN
    restart_lsn: LSN | None = None
    temporary: bool = False
    active_pid: int | None = None
    snapshot_name: str | None = None
    two_phase: bool = False
    failover: bool = False


class ColumnOf(NamedTuple):
    """A column of a table: its type's oid, modifier and name where the server sends them, and
    whether it is part of the key that tells rows apart."""

    name: str
    type_oid: int
    type_modifier: int
    type_name: str | None
    is_key: bool


@dataclass(eq=False)
class Relation:
    """A table, as it was when its rows were changed.

    ``replica_identity`` is ``"default"``, ``"nothing"``, ``"full"``, ``"index"``, or None where the
    plugin does not say it.
    """

    schema: str
    name: str
    oid: int | None
    replica_identity: str | None
    columns: tuple[ColumnOf, ...]
    _names: tuple[str, ...] = field(default=(), repr=False)
    #: What reads rows of pgoutput's, or the codecs for test_decoding's text.
    _reader: _pg.RowReader | None = field(default=None, repr=False)
    _codecs: tuple[_pg.Codec, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self._names = tuple(column.name for column in self.columns)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    def _row(self, values: list[Any], names: tuple[str, ...] | None = None) -> _pg.Record:
        return _pg.make_record(_pg.Record, names or self._names, tuple(values))


@dataclass(slots=True)
class Insert:
    """A row was inserted."""

    relation: Relation
    new: _pg.Record


@dataclass(slots=True)
class Update:
    """A row was updated. ``old`` has what the replica identity gives of the row before: with FULL
    all of it, else the key's columns if one of those has changed, else it is None. In ``new``,
    UNCHANGED stands for values that were not sent."""

    relation: Relation
    old: _pg.Record | None
    new: _pg.Record


@dataclass(slots=True)
class Delete:
    """A row was deleted: its key's columns, or with the replica identity FULL all of it; None if
    the table has neither."""

    relation: Relation
    old: _pg.Record | None


@dataclass(slots=True)
class Truncate:
    """Tables were truncated, in one command."""

    relations: tuple[Relation, ...]
    cascade: bool
    restart_identity: bool


@dataclass(slots=True)
class Message:
    """What somebody has sent by ``pg_logical_emit_message()``.

    A transactional one is among the changes of its transaction; another one comes by itself, as
    soon as it was written, and can be confirmed as a transaction is.
    """

    transactional: bool
    prefix: str
    content: bytes
    lsn: LSN

    @property
    def end_lsn(self) -> LSN:
        return self.lsn  # it is where the message ends, and the next thing may begin


Change = Insert | Update | Delete | Truncate | Message


@dataclass(slots=True)
class CommitPrepared:
    """The transaction that came when it was prepared, with that ``gid``, was committed."""

    gid: str
    xid: int
    lsn: LSN
    end_lsn: LSN
    time: datetime.datetime


@dataclass(slots=True)
class RollbackPrepared:
    """The transaction that came when it was prepared, with that ``gid``, was rolled back: nothing
    of it is so."""

    gid: str
    xid: int
    end_lsn: LSN
    time: datetime.datetime


@dataclass(slots=True)
class WalData:
    """What an output plugin wrote, as it is: the ``data``, its position, the server's position and
    clock when that was sent."""

    data: bytes
    lsn: LSN
    server_lsn: LSN
    sent: datetime.datetime

    @property
    def end_lsn(self) -> LSN:
        return self.lsn


#: What comes between transactions.
Single = Message | CommitPrepared | RollbackPrepared | WalData


class TransactionBase:
    """A transaction that was committed: iterate over it for its changes, once.

    ``lsn`` is the position of its commit: transactions come in its order, and no two have the same
    (test_decoding does not tell it: None). ``end_lsn`` is where the next one may begin, what is
    confirmed, and what a program that remembers it starts a stream from; it is known when the last
    change was taken, until then it is None. ``commit_time`` is by the server's clock (of
    test_decoding known at the end), ``origin`` the name of the replication origin, if it has one.

    Of a slot with ``two_phase``, one that was prepared has a ``gid``, and these are of its
    PREPARE TRANSACTION; a CommitPrepared or RollbackPrepared with that gid says what became of it.
    """

    def __init__(
        self,
        core: Any,
        xid: int,
        lsn: LSN | None,
        commit_time: datetime.datetime | None,
        gid: str | None = None,
    ) -> None:
        self._core = core
        self.xid = xid
        self.lsn = lsn
        self.end_lsn: LSN | None = None
        self.commit_time = commit_time
        self.origin: str | None = None
        self.gid = gid

    def __repr__(self) -> str:
        where = self.end_lsn if self.lsn is None else self.lsn
        return f"<{type(self).__name__} {self.xid}{'' if where is None else f' at {where}'}>"

    def _change(self, event: Any) -> Change | None:
        """An event of the stream as the next change; None: that was the last one."""
        if isinstance(event, End):
            self.commit_time = event.commit_time
            self.end_lsn = event.end_lsn
            return None
        return cast(Change, event)


class End(NamedTuple):
    """The event after the last change of a transaction."""

    end_lsn: LSN
    commit_time: datetime.datetime | None
