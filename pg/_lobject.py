"""Large objects, for both faces: reads ahead, writes behind, by the server's own functions.

Each call of a function says where it reads or writes, so that the position is kept here, and names
the transaction that the object was opened in: the server numbers open objects anew in each one.
"""

from __future__ import annotations

import io
from collections import deque
from typing import Any

from greenletio import _pg
from greenletio.pg._steps import Steps
from greenletio.pg.errors import InterfaceError, OperationalError, ProgrammingError

__all__ = ("CHUNK", "LargeObjectCore", "create", "open_object", "unlink")

#: Bytes that are asked for, or sent, at a time. Twice as many are read at less than half the speed:
#: what a piece passes through does not stay in the caches any more.
CHUNK = 512 * 1024
#: Pieces that may be on their way to the server.
BEHIND = 2
#: Pieces that are asked for at a time, at most, of an object that is read from end to end.
AHEAD = 8

INV_WRITE, INV_READ = 0x20000, 0x40000
#: mode: (reads, writes, is emptied)
_MODES = {
    "rb": (True, False, False),
    "r+b": (True, True, False),
    "wb": (False, True, True),
    "w+b": (True, True, True),
}

_STAMP = "(extract(epoch FROM pg_catalog.transaction_timestamp()) * 1000000)::int8"
_OPEN = f"SELECT pg_catalog.lo_open($1, $2), {_STAMP}"
_AT = (
    f"SELECT CASE WHEN {_STAMP} = $4 THEN CASE WHEN pg_catalog.lo_lseek64($1, $2, 0) >= 0 "
    "THEN pg_catalog.%s($1, $3) END END"
)
_WRITE = _AT % "lowrite"
_LARGEST = (2**31 - 1) * 2048
_READ = (
    f"SELECT CASE WHEN {_STAMP} = $5 THEN CASE WHEN pg_catalog.lo_lseek64($1, "
    f"least($2::int8 + i * $3::int4, {_LARGEST}), 0) >= 0 THEN pg_catalog.loread($1, $3) END END "
    "FROM pg_catalog.generate_series(0, $4::int8 - 1) AS i"
)
_SIZE = f"SELECT CASE WHEN {_STAMP} = $2 THEN pg_catalog.lo_lseek64($1, 0, 2) END"
_TRUNCATE = f"SELECT CASE WHEN {_STAMP} = $3 THEN pg_catalog.lo_truncate64($1, $2) END"
_CLOSE = f"SELECT CASE WHEN {_STAMP} = $2 THEN pg_catalog.lo_close($1) END"

IDLE, FAILED = 0, 3  # libpq's PQTRANS_IDLE, PQTRANS_INERROR


def _ask(raw: _pg.Connection, want: str, sql: str, *args: Any) -> _pg.Op[Any]:
    """Whatever codecs the user has set: an object has bytes."""
    return raw._op("query", want, sql, args, plain=True)


def create(raw: _pg.Connection, oid: int) -> Steps[int]:
    made: int = yield _ask(raw, "value", "SELECT pg_catalog.lo_create($1)", oid)
    return made


def unlink(raw: _pg.Connection, oid: int) -> Steps[None]:
    yield _ask(raw, "value", "SELECT pg_catalog.lo_unlink($1)", oid)


def open_object(raw: _pg.Connection, oid: int, mode: str) -> Steps[LargeObjectCore]:
    words = "".join(sorted(mode.replace("b", ""))) + "b"
    flags = {"rb": "rb", "+rb": "r+b", "rwb": "r+b", "wb": "wb", "+wb": "w+b"}.get(words)
    if flags is None or len(set(mode)) != len(mode):
        raise ValueError(f"a large object is opened as 'rb', 'r+b', 'wb' or 'w+b', not {mode!r}")
    reads, writes, emptied = _MODES[flags]
    if raw._transaction_status == IDLE:
        raise ProgrammingError(
            "a large object is open until its transaction ends, and no transaction is open: use "
            "it in a block of connection.transaction()"
        )
    access = (INV_READ if reads else 0) | (INV_WRITE if writes else 0)
    fd, stamp = yield _ask(raw, "record", _OPEN, oid, access)
    core = LargeObjectCore(raw, oid, fd, stamp, flags, reads, writes)
    if emptied:
        yield from core.truncate(0)
    return core


class LargeObjectCore:
    """An object that is open."""

    def __init__(
        self,
        raw: _pg.Connection,
        oid: int,
        fd: int,
        stamp: int,
        mode: str,
        reads: bool,
        writes: bool,
    ) -> None:
        self._raw = raw
        self.oid = oid
        self._fd = fd
        self._stamp = stamp
        self.mode = mode
        self.reads = reads
        self.writes = writes
        self.closed = False
        self.busy = False
        self.position = 0
        self._block = b""  # what was read last, and where it is
        self._block_at = 0
        self._end: int | None = None  # where the object ends, if that was seen
        self._blocks: deque[bytes] = deque()  # that follow it
        self._ahead: tuple[int, _pg.Op[Any]] | None = None
        self._at_once = 1
        self._out = bytearray()  # what was written and not sent, and where it goes
        self._out_at = 0
        self._pending: deque[tuple[_pg.Op[Any], int]] = deque()

    def _ask(self, sql: str, *args: Any, want: str = "value") -> _pg.Op[Any]:
        if self._raw._transaction_status == IDLE:
            raise _over()
        return _ask(self._raw, want, sql, self._fd, *args, self._stamp)

    def _answer(self, op: _pg.Op[Any]) -> Steps[Any]:
        value = yield op
        if value is None:
            raise _over()
        return value

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed large object")

    # -- reading

    def read(self, size: int) -> Steps[bytes]:
        self._check()
        if not self.reads:
            raise io.UnsupportedOperation(f"the large object was opened as {self.mode!r}: not read")
        if self._out or self._pending:
            yield from self.flush()
        pieces = []
        left = size
        while left != 0:
            piece = yield from self._piece(left)
            if not piece:
                break
            pieces.append(piece)
            self.position += len(piece)
            left -= len(piece) if left > 0 else 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, wanted: int) -> Steps[bytes]:
        """Some of what is at the position; negative: as much as comes."""
        at = self.position - self._block_at
        if not 0 <= at < len(self._block):
            if self._end is not None and self.position >= self._end:
                return b""
            yield from self._load()
            at = 0
        return self._block[at:] if wanted < 0 else self._block[at : at + wanted]

    def _load(self) -> Steps[None]:
        """Read the block at the position; after two in a row the next ones are asked for, too."""
        offset = self.position
        in_turn = offset == self._block_at + len(self._block)
        if not in_turn or not self._blocks:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == offset:
                op = ahead[1]
            else:
                self._at_once = 1
                op = self._ask_blocks(offset)
            rows = yield op
            if any(row[0] is None for row in rows):
                raise _over()
            self._blocks = deque(row[0] for row in rows)
        self._block, self._block_at = self._blocks.popleft(), offset
        if len(self._block) < CHUNK:
            self._end = offset + len(self._block)
            self._blocks.clear()
        elif (
            in_turn and self._ahead is None and (not self._blocks or len(self._blocks[-1]) == CHUNK)
        ):
            self._at_once = min(2 * self._at_once, AHEAD)
            following = offset + CHUNK * (1 + len(self._blocks))
            self._ahead = following, self._ask_blocks(following).start()

    def _ask_blocks(self, offset: int) -> _pg.Op[Any]:
        return self._ask(_READ, offset, CHUNK, self._at_once, want="records")

    def _changed(self) -> None:
        """What was read may not be so any more."""
        self._block, self._block_at = b"", 0
        self._blocks.clear()
        self._end = self._ahead = None

    # -- writing

    def write(self, data: Any) -> Steps[int]:
        self._check()
        if not self.writes:
            raise io.UnsupportedOperation(
                f"the large object was opened as {self.mode!r}: not written"
            )
        if isinstance(data, str):
            raise TypeError("a large object has bytes: encode the text")
        self._changed()
        with memoryview(data) as whole, whole.cast("B") as view:
            if self._out_at + len(self._out) != self.position:
                yield from self._send(0)
                self._out_at = self.position
            at = 0
            if not self._out:
                while len(view) - at >= CHUNK:
                    yield from self._put(bytes(view[at : at + CHUNK]))
                    at += CHUNK
            self._out += view[at:]
            self.position += len(view)
            yield from self._send(CHUNK)
            return len(view)

    def _send(self, limit: int) -> Steps[None]:
        """Send what was written, but for less than that many bytes."""
        while self._out and len(self._out) >= limit:
            piece = bytes(self._out[:CHUNK])
            yield from self._put(piece)
            del self._out[: len(piece)]

    def _put(self, piece: bytes) -> Steps[None]:
        while len(self._pending) >= BEHIND:
            yield from self._settle()
        op = self._ask(_WRITE, self._out_at, piece)
        self._pending.append((op.start(), len(piece)))
        self._out_at += len(piece)

    def _settle(self) -> Steps[None]:
        op, size = self._pending.popleft()
        written = yield from self._answer(op)
        if written != size:
            raise OperationalError(f"the server has written {written} bytes of {size}")

    def flush(self) -> Steps[None]:
        self._check()
        yield from self._send(0)
        while self._pending:
            yield from self._settle()

    # -- the rest

    def seek(self, offset: int, whence: int) -> Steps[int]:
        self._check()
        if whence == 1:
            offset += self.position
        elif whence == 2:
            yield from self.flush()
            offset += yield from self._answer(self._ask(_SIZE))
        elif whence != 0:
            raise ValueError(f"whence is 0, 1 or 2, not {whence!r}")
        if offset < 0:
            raise ValueError(f"there is no position {offset}")
        self.position = offset
        return offset

    def truncate(self, size: int | None) -> Steps[int]:
        self._check()
        if not self.writes:
            raise io.UnsupportedOperation(
                f"the large object was opened as {self.mode!r}: not written"
            )
        if size is None:
            size = self.position
        if size < 0:
            raise ValueError(f"a large object cannot have {size} bytes")
        yield from self.flush()
        yield from self._answer(self._ask(_TRUNCATE, size))
        self._changed()
        return size

    def close(self) -> Steps[None]:
        if self.closed:
            return
        status = FAILED if self._raw.is_closed() else self._raw._transaction_status
        try:
            if status == IDLE and (self._out or self._pending):
                raise _over("what was written last is lost: close() or flush() it before")
            if status not in (IDLE, FAILED):
                yield from self.flush()
                yield from self._answer(self._ask(_CLOSE))
        finally:
            self.closed = True
            self._changed()
            self._out.clear()
            self._pending.clear()


def _over(more: str = "open it again") -> ProgrammingError:
    return ProgrammingError(f"the transaction that the large object was opened in is over: {more}")


def busy() -> InterfaceError:
    return InterfaceError("another task, greenlet or thread uses this large object just now")
