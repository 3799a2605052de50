"""pgoutput: the messages of the server's own output plugin, versions 1 to 3, as events."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Protocol, cast

from greenletio._pg import Codec, Record, RowReader
from greenletio.pg import _text
from greenletio.pg._changes import (
    LSN,
    UNCHANGED,
    ColumnOf,
    CommitPrepared,
    Delete,
    Insert,
    Message,
    Relation,
    RollbackPrepared,
    Truncate,
    Update,
    moment,
)
from greenletio.pg._errors import InternalError

__all__ = ("PgOutput", "Sink", "TextOnly", "UnknownTypes")

_IDENTITIES = {"d": "default", "n": "nothing", "f": "full", "i": "index"}

_BEGIN = struct.Struct(">QqI")
_COMMIT = struct.Struct(">BQQq")
_PREPARE = struct.Struct(">QQqI")
_PREPARED = struct.Struct(">BQQqI")  # and committed, or to be
_UNDONE = struct.Struct(">BQQqqI")
_ATTRIBUTE = struct.Struct(">Ii")
_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")

#: Bytes of one transaction under way that are kept in memory; more goes to a temporary file.
SPOOL = 16 * 1024 * 1024
#: Messages of such a transaction that are read back at a time.
AT_ONCE = 1000


class UnknownTypes(Exception):
    """Types (oids, or names) that are to be looked up before the message is fed again."""


class TextOnly(Exception):
    """A type of which no binary form is known: the server has to send text."""


class Sink(Protocol):
    """What is told of transactions, in their order."""

    def begin(self, xid: int, lsn: LSN | None, time: Any, gid: str | None = None) -> bool: ...
    def change(self, event: Any) -> None: ...
    def origin(self, name: str) -> None: ...
    def commit(self, end_lsn: LSN, time: Any) -> None: ...
    def single(self, event: Message | CommitPrepared | RollbackPrepared) -> None: ...


class PgOutput:
    """Makes calls to a Sink of the messages that are fed to it.

    `find(type)` gives the codec of a type by its oid, or None. With protocol 2 the server sends
    large transactions before they are committed, in pieces, several at a time: those are kept, in
    files if they are large, and told of when they have been committed.
    """

    def __init__(self, sink: Sink, find: Callable[[Any], Codec | None], binary: bool) -> None:
        self._sink = sink
        self._find = find
        self._spools: dict[int, _Spool] = {}
        self._replayed: _Spool | None = None
        self.restart(binary)

    def restart(self, binary: bool) -> None:
        """The connection is another one: what is not committed comes once more."""
        self._binary = binary
        self._relations: dict[int, Relation] = {}
        self._type_names: dict[int, str] = {}
        for spool in (*self._spools.values(), self._replayed):
            if spool is not None:
                spool.close()
        self._spools.clear()
        self._spool: _Spool | None = None  # of the transaction a piece of which comes just now
        self._replayed = None
        self._replay: Iterator[bytes] | None = None
        self._again: deque[bytes] = deque()
        self._ending: tuple[LSN, Any] | None = None

    def feed(self, data: bytes, lsn: int) -> None:
        """Take a message. UnknownTypes, TextOnly: it was not taken."""
        if not data:
            raise InternalError("the output plugin sent an empty message")
        spool = self._spool
        if spool is not None and data[0] not in b"ES":
            spool.put(data)
            return
        handler = _HANDLERS.get(data[0])
        if handler is None:
            raise InternalError(f"the output plugin sent a message of no known kind: {data[:20]!r}")
        try:
            handler(self, data, 1)
        except (IndexError, OverflowError, struct.error, ValueError) as exc:
            raise InternalError(f"the output plugin sent a malformed message: {exc!r}") from exc

    def feed_kept(self) -> bool:
        """Tell some of a transaction that was kept until its commit; False: there is none."""
        if self._replay is None:
            return False
        for _ in range(AT_ONCE):
            message = self._again.popleft() if self._again else next(self._replay, None)
            if message is None:
                self._replay = None
                if self._replayed is not None:
                    self._replayed.close()
                self._replayed = None
                if self._ending is not None:
                    self._sink.commit(*self._ending)
                break
            try:
                self.feed(message, 0)
            except UnknownTypes:
                self._again.append(message)
                raise
        return True

    # -- transactions

    def _begin(self, data: bytes, at: int) -> None:
        lsn, time, xid = _BEGIN.unpack_from(data, at)
        self._sink.begin(xid, LSN(lsn), moment(time))

    def _commit(self, data: bytes, at: int) -> None:
        _, _, end_lsn, time = _COMMIT.unpack_from(data, at)
        self._sink.commit(LSN(end_lsn), moment(time))

    def _origin(self, data: bytes, at: int) -> None:
        self._sink.origin(_string(data, at + 8)[0])

    # -- transactions that are committed in two phases

    def _begin_prepare(self, data: bytes, at: int) -> None:
        lsn, _, time, xid = _PREPARE.unpack_from(data, at)
        gid, _ = _string(data, at + _PREPARE.size)
        self._sink.begin(xid, LSN(lsn), moment(time), gid)

    def _prepare(self, data: bytes, at: int) -> None:
        _, _, end_lsn, time, _ = _PREPARED.unpack_from(data, at)
        self._sink.commit(LSN(end_lsn), moment(time))

    def _commit_prepared(self, data: bytes, at: int) -> None:
        _, lsn, end_lsn, time, xid = _PREPARED.unpack_from(data, at)
        gid, _ = _string(data, at + _PREPARED.size)
        self._sink.single(CommitPrepared(gid, xid, LSN(lsn), LSN(end_lsn), moment(time)))

    def _rollback_prepared(self, data: bytes, at: int) -> None:
        _, _, end_lsn, _, time, xid = _UNDONE.unpack_from(data, at)
        gid, _ = _string(data, at + _UNDONE.size)
        self._sink.single(RollbackPrepared(gid, xid, LSN(end_lsn), moment(time)))

    def _stream_prepare(self, data: bytes, at: int) -> None:
        _, lsn, end_lsn, time, xid = _PREPARED.unpack_from(data, at)
        gid, _ = _string(data, at + _PREPARED.size)
        self._tell_kept(xid, lsn, end_lsn, time, gid)

    # -- transactions that come before they are committed

    def _stream_start(self, data: bytes, at: int) -> None:
        (xid,) = _U32.unpack_from(data, at)
        self._spool = self._spools.get(xid)
        if self._spool is None:
            self._spool = self._spools[xid] = _Spool()

    def _stream_stop(self, data: bytes, at: int) -> None:
        self._spool = None

    def _stream_abort(self, data: bytes, at: int) -> None:
        xid, subxid = struct.unpack_from(">II", data, at)
        if xid != subxid:
            if xid in self._spools:
                self._spools[xid].aborted.add(subxid)
        elif (spool := self._spools.pop(xid, None)) is not None:
            spool.close()

    def _stream_commit(self, data: bytes, at: int) -> None:
        (xid,) = _U32.unpack_from(data, at)
        _, lsn, end_lsn, time = _COMMIT.unpack_from(data, at + 4)
        self._tell_kept(xid, lsn, end_lsn, time)

    def _tell_kept(
        self, xid: int, lsn: int, end_lsn: int, time: int, gid: str | None = None
    ) -> None:
        self._ending = (LSN(end_lsn), moment(time))
        self._sink.begin(xid, LSN(lsn), moment(time), gid)
        spool = self._spools.pop(xid, None) or _Spool()
        self._replayed = spool
        self._replay = spool.messages()

    # -- tables

    def _type(self, data: bytes, at: int) -> None:
        (oid,) = _U32.unpack_from(data, at)
        schema, at = _string(data, at + 4)
        name, at = _string(data, at)
        self._type_names[oid] = f"{schema}.{name}" if schema else name

    def _relation(self, data: bytes, at: int) -> None:
        (oid,) = _U32.unpack_from(data, at)
        schema, at = _string(data, at + 4)
        name, at = _string(data, at)
        identity = chr(data[at])
        (count,) = _U16.unpack_from(data, at + 1)
        at += 3
        columns, codecs, unknown = [], [], []
        for _ in range(count):
            is_key = data[at] & 1
            column, at = _string(data, at + 1)
            type_oid, modifier = _ATTRIBUTE.unpack_from(data, at)
            at += _ATTRIBUTE.size
            codec = self._find(type_oid)
            if codec is None:
                unknown.append(type_oid)
                continue
            type_name = self._type_names.get(type_oid, codec.name)
            columns.append(ColumnOf(column, type_oid, modifier, type_name, bool(is_key)))
            codecs.append(codec)
        if unknown:
            raise UnknownTypes(unknown)
        if self._binary and any(codec.is_text for codec in codecs):
            raise TextOnly
        relation = Relation(
            schema or "pg_catalog", name, oid, _IDENTITIES.get(identity), tuple(columns)
        )
        names = tuple(column.name for column in columns)
        relation._reader = RowReader(names, tuple(codecs), _text.decode, UNCHANGED)
        self._relations[oid] = relation

    def _of(self, data: bytes, at: int) -> Relation:
        (oid,) = _U32.unpack_from(data, at)
        relation = self._relations.get(oid)
        if relation is None:
            raise InternalError(f"the output plugin has not told of the table with the oid {oid}")
        return relation

    # -- changes

    def _insert(self, data: bytes, at: int) -> None:
        relation = self._of(data, at)
        new, _ = _reader(relation).read(data, at + 5)
        self._sink.change(Insert(relation, new))

    def _update(self, data: bytes, at: int) -> None:
        relation = self._of(data, at)
        at += 4
        old = None
        kind = data[at : at + 1]
        if kind in (b"K", b"O"):
            old, at = _reader(relation).read(data, at + 1)
        new, _ = _reader(relation).read(data, at + 1)
        if old is not None and kind == b"K":
            old = _key(relation, old)
        elif old is not None and any(value is UNCHANGED for value in new):
            pairs = zip(new, old, strict=True)
            new = relation._row([was if value is UNCHANGED else value for value, was in pairs])
        self._sink.change(Update(relation, old, new))

    def _delete(self, data: bytes, at: int) -> None:
        relation = self._of(data, at)
        old, _ = _reader(relation).read(data, at + 5)
        if data[at + 4] == 75:  # K
            old = _key(relation, old)
        self._sink.change(Delete(relation, old))

    def _truncate(self, data: bytes, at: int) -> None:
        count, flags = struct.unpack_from(">IB", data, at)
        relations = tuple(self._of(data, at + 5 + 4 * i) for i in range(count))
        self._sink.change(Truncate(relations, bool(flags & 1), bool(flags & 2)))

    def _message(self, data: bytes, at: int) -> None:
        flags = data[at]
        (lsn,) = _U64.unpack_from(data, at + 1)
        prefix, at = _string(data, at + 9)
        (size,) = _U32.unpack_from(data, at)
        content = data[at + 4 : at + 4 + size]
        message = Message(bool(flags & 1), prefix, content, LSN(lsn))
        if message.transactional:
            self._sink.change(message)
        else:
            self._sink.single(message)


_HANDLERS: dict[int, Callable[[PgOutput, bytes, int], None]] = {
    ord("A"): PgOutput._stream_abort,
    ord("B"): PgOutput._begin,
    ord("C"): PgOutput._commit,
    ord("D"): PgOutput._delete,
    ord("E"): PgOutput._stream_stop,
    ord("I"): PgOutput._insert,
    ord("K"): PgOutput._commit_prepared,
    ord("M"): PgOutput._message,
    ord("O"): PgOutput._origin,
    ord("P"): PgOutput._prepare,
    ord("R"): PgOutput._relation,
    ord("S"): PgOutput._stream_start,
    ord("T"): PgOutput._truncate,
    ord("U"): PgOutput._update,
    ord("Y"): PgOutput._type,
    ord("b"): PgOutput._begin_prepare,
    ord("c"): PgOutput._stream_commit,
    ord("p"): PgOutput._stream_prepare,
    ord("r"): PgOutput._rollback_prepared,
}


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1


def _reader(relation: Relation) -> RowReader:
    return cast(RowReader, relation._reader)  # each of this plugin's has one


def _key(relation: Relation, row: Record) -> Record:
    """Of a row that has only its key: that."""
    pairs = zip(relation.columns, row, strict=True)
    key = [(column.name, value) for column, value in pairs if column.is_key]
    return relation._row([value for _, value in key], tuple(name for name, _ in key))


class _Spool:
    """The messages of a transaction that is not committed yet."""

    def __init__(self) -> None:
        self._file: IO[bytes] = SpooledTemporaryFile(SPOOL)
        self.aborted: set[int] = set()  # subtransactions

    def put(self, data: bytes) -> None:
        self._file.write(_U32.pack(len(data)))
        self._file.write(data)

    def messages(self) -> Iterator[bytes]:
        """Those that were not rolled back, without the transaction's number that they have."""
        self._file.seek(0)
        while head := self._file.read(4):
            data = self._file.read(_U32.unpack(head)[0])
            if data[:1] == b"O":
                yield data
            elif _U32.unpack_from(data, 1)[0] not in self.aborted:
                yield data[:1] + data[5:]

    def close(self) -> None:
        self._file.close()
