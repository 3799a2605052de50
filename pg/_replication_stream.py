"""A stream of changes, for both faces, that goes on when its connection is lost.

What a stream has told of is remembered by the position of its commit: a new connection begins
behind it, and of a transaction that was told of in part the server sends all once more, of which as
much is skipped. So each change is told of once, in order, as long as the program runs. What the
server may forget (and so is told of by the next program) is said by confirm().
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Any, TypeVar, cast

from greenletio import _pg
from greenletio.pg import _process
from greenletio.pg._changes import (
    LSN,
    CommitPrepared,
    End,
    Message,
    RollbackPrepared,
    TransactionBase,
    WalData,
    moment,
)
from greenletio.pg._connect import dress
from greenletio.pg._heartbeat import Heartbeat
from greenletio.pg._pgoutput import PgOutput, TextOnly, UnknownTypes
from greenletio.pg._quote import quoted
from greenletio.pg._replication import CLOSE_LIMIT, TIMED_OUT, Session, literal
from greenletio.pg._steps import Pause, Steps
from greenletio.pg._test_decoding import TestDecoding
from greenletio.pg.errors import (
    CannotConnect,
    ConnectionClosed,
    DatabaseError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

__all__ = ("StreamCore",)

_T = TypeVar("_T")

_DATA = struct.Struct(">QQq")
_KEEPALIVE = struct.Struct(">QqB")
_STATUS = struct.Struct(">cQQQqB")
_EPOCH_S = 946684800  # 2000-01-01 in Unix time

#: Seconds before a lost connection is tried again, at first and at most.
PAUSE, PAUSE_MOST = 0.02, 2.0
#: Seconds between two reports to the server, at most.
STATUS_INTERVAL = 10.0


def _passes(exc: BaseException) -> bool:
    """Whether another connection may do better."""
    if isinstance(exc, (ConnectionClosed, CannotConnect)):
        return True
    if not isinstance(exc, DatabaseError):
        return False
    state = exc.sqlstate
    if state is None:
        return isinstance(exc, OperationalError)
    # Of the connection, of the server's resources, of a server that ends or starts; a slot that the
    # session before has still.
    return state[:2] in ("08", "53") or state[:3] == "57P" or state == "55006"


class StreamCore:
    """What a slot's consumer is told, one event after the other.

    Events are a transaction, its changes, its End; a Single.
    """

    def __init__(
        self,
        session: Session,
        transaction_class: type[TransactionBase],
        slot: str,
        *,
        publications: Iterable[str],
        start: LSN,
        options: dict[str, str],
        raw: bool,
        binary: bool | None,
        messages: bool,
        streaming: bool,
        two_phase: bool,
        catalog: _pg.Connection | None,
        codecs: dict[int, _pg.Codec],
        auto_confirm: bool,
        resume: float,
        status_interval: float | None,
        receive_timeout: float | None,
    ) -> None:
        self._session = session
        self._transaction_class = transaction_class
        self._slot = slot
        self._publications = tuple(publications)
        self._options = options
        self._is_raw = raw
        self._binary = binary
        self._messages = messages
        self._streaming = streaming
        self._two_phase = two_phase
        self._catalog = catalog
        self._own_codecs = codecs
        #: And the process's, and those found, by oid or name.
        self._codecs: dict[Any, _pg.Codec] = {**codecs, **_process.current().codecs}
        self.auto_confirm = auto_confirm
        self._resume = 0.0 if raw else resume  # of raw data nobody knows what was told
        self._status_interval = status_interval
        self._receive_timeout = receive_timeout

        self._decoder: PgOutput | TestDecoding | None = None
        self._copy: _pg.Op[Any] | None = None  # the START_REPLICATION
        self._reading: _pg.Op[Any] | None = None
        self._waiting_since: float | None = None
        self._heartbeat: Heartbeat | None = None
        self._batch: deque[bytes] = deque()  # messages that were not looked at yet
        self._busy = False
        self._closed = False
        self.events: deque[Any] = deque()
        self.current: Any = None  # what is being iterated over, or was taken last

        self._from = start  # where a new connection begins
        self._transaction: TransactionBase | None = None  # that is being told of
        self._announced = False  # it is among the events
        self._origin: str | None = None
        self._told = 0  # its changes that were
        self._skip = 0  # of those, how many come once more
        self._ignored = False  # a transaction comes that was told of
        self._prepared: set[int] = set()  # transactions that were told of, and not what became of
        self._last_single = 0
        self._ended = 0  # where the last thing ends that was told of
        self._received = 0  # the server's position
        self._confirmed = 0
        self._reported = 0
        self._known: int | None = None  # what the slot had confirmed when the stream began

    @property
    def is_open(self) -> bool:
        """It is streaming just now, or begins to."""
        return self._copy is not None

    # -- events, for whoever iterates

    def next_item(self, deadline: float | None = None) -> Steps[Any]:
        """The next transaction, or what comes by itself; what is left of the one before is passed
        over."""
        current = self.current
        if isinstance(current, TransactionBase):
            while current.end_lsn is None:
                yield from self.next_change(current, deadline)
        if current is not None and self.auto_confirm:
            self.confirm(current.end_lsn)
        self.current = None
        self.current = yield from self.next_event(deadline)
        return self.current

    def next_change(self, of: TransactionBase, deadline: float | None = None) -> Steps[Any]:
        """The next change of a transaction; None: there are no more."""
        if of.end_lsn is not None:
            return None
        if of is not self.current:
            raise InterfaceError("the stream has gone on behind this transaction")
        event = yield from self.next_event(deadline)
        return of._change(event)

    def next_event(self, deadline: float | None = None) -> Steps[Any]:
        """Wait for the next one."""
        if self._busy:
            raise InterfaceError("another task or greenlet waits for this stream's next event")
        self._busy = True
        try:
            while not self.events:
                if self._closed:
                    raise InterfaceError("this stream is closed")
                try:
                    if not self._decode():
                        self._batch.extend((yield from self._insist(self._receive, deadline)))
                except UnknownTypes as unknown:
                    learn = partial(self._learn, unknown.args[0])
                    yield from self._insist(learn, deadline)
                except TextOnly:
                    self._disconnect()
                    self._binary = False
                    cast(PgOutput, self._decoder).restart(False)
            return self.events.popleft()
        except InterfaceError:
            if self._closed:
                raise InterfaceError("this stream is closed") from None
            raise
        finally:
            self._busy = False

    def _decode(self) -> bool:
        """Make events of what has come; False: there is nothing left."""
        decoder = self._decoder
        if decoder is not None and decoder.feed_kept():
            return True
        if not self._batch:
            return False
        while self._batch:
            try:
                self._take(self._batch[0])
            except (OverflowError, struct.error) as exc:
                raise InternalError(f"the server sent a malformed message: {exc!r}") from exc
            self._batch.popleft()
            if decoder is not None and decoder.feed_kept():
                break
        return True

    def _take(self, data: bytes) -> None:
        decoder = self._decoder
        kind = data[:1]
        if kind == b"w":
            lsn, server_lsn, sent = _DATA.unpack_from(data, 1)
            if decoder is None:
                self.events.append(WalData(data[25:], LSN(lsn), LSN(server_lsn), moment(sent)))
            else:
                decoder.feed(data[25:], lsn)
            self._received = max(self._received, lsn)
        elif kind == b"k":
            position, _, wants_answer = _KEEPALIVE.unpack_from(data, 1)
            self._received = max(self._received, position)
            if decoder is not None and self._transaction is None:
                self._all_told(position)
            if wants_answer:
                self._report()
        else:
            raise InternalError(f"the server sent a message of no known kind: {data[:20]!r}")

    def _all_told(self, position: int) -> None:
        """There is nothing for us up to that position: the server need not keep it."""
        if self._confirmed >= self._ended and not self.events:
            self._confirmed = max(self._confirmed, position)

    # -- what the decoder tells

    def begin(self, xid: int, lsn: LSN | None, time: Any, gid: str | None = None) -> bool:
        if gid is not None:
            # One that was prepared before the slot was for that comes when it is committed.
            self._ignored = xid in self._prepared
        else:
            self._ignored = lsn is not None and lsn < self._from
        if self._ignored:
            return False
        was = self._transaction
        if was is not None:  # of the connection before
            if (was.xid, was.lsn) != (xid, lsn):
                raise InternalError(
                    f"the server goes on with transaction {xid}, not with {was.xid}, which was "
                    "sent in part: somebody else has moved the slot"
                )
            self._skip = self._told
        else:
            self._transaction = self._transaction_class(self, xid, lsn, time, gid)
            self._announced = False
            self._told = self._skip = 0
        return True

    def origin(self, name: str) -> None:
        if self._transaction is not None and not self._ignored:
            self._transaction.origin = name

    def change(self, event: Any) -> None:
        if self._ignored:
            return
        if self._skip:
            self._skip -= 1
            return
        self._told += 1
        self._announce()
        self.events.append(event)

    def _announce(self) -> None:
        if not self._announced:
            self.events.append(self._transaction)
            self._announced = True

    def commit(self, end_lsn: LSN, time: Any) -> None:
        if self._ignored:
            self._ignored = False
            return
        if self._skip:
            raise InternalError(
                "the server has sent fewer changes of a transaction than it had sent before"
            )
        if self._transaction is not None and self._transaction.gid is not None:
            self._announce()  # though it may be empty: what becomes of it is told, too
            self._prepared.add(self._transaction.xid)
        transaction, self._transaction = self._transaction, None
        lsn = end_lsn if transaction is None or transaction.lsn is None else transaction.lsn + 1
        self._from = LSN(max(self._from, lsn))
        if self._announced:
            self._ended = max(self._ended, end_lsn)
            self.events.append(End(end_lsn, time))
        self._announced = False

    def single(self, event: Message | CommitPrepared | RollbackPrepared) -> None:
        if event.end_lsn <= max(self._last_single, self._from - 1):
            return
        self._last_single = event.end_lsn
        self._ended = max(self._ended, event.end_lsn)
        if self._transaction is None:
            self._from = max(self._from, event.end_lsn)
        if not isinstance(event, Message):
            self._prepared.discard(event.xid)
        self.events.append(event)

    # -- what the server is told

    def confirm(self, position: int) -> None:
        if position > max(self._ended, self._received):
            raise ProgrammingError(
                f"{LSN(position)} cannot be confirmed: nothing has come from behind "
                f"{LSN(max(self._ended, self._received))}"
            )
        self._confirmed = max(self._confirmed, position)

    def _report(self, ask: bool = False) -> None:
        """Tell the server how far we are, without waiting."""
        copy, confirmed = self._copy, self._confirmed
        if copy is None:
            return
        clock = int((time.time() - _EPOCH_S) * 1e6)
        received = max(self._received, confirmed)
        try:
            copy.put(_STATUS.pack(b"r", received, confirmed, confirmed, clock, ask))
        except InterfaceError:
            return  # it is over: whoever reads finds out
        self._reported = confirmed

    def tick(self) -> None:
        """The heartbeat's. May be in another thread; never waits."""
        since, limit = self._waiting_since, self._receive_timeout
        waited = 0.0 if since is None else monotonic() - since
        if limit is not None and waited > limit:
            self._session.raw.terminate()  # whoever waits finds out
        else:
            self._report(ask=limit is not None and waited > limit / 3)

    # -- the connection

    def _insist(
        self, attempt: Callable[[float | None], Steps[_T]], deadline: float | None
    ) -> Steps[_T]:
        """The same again, on another connection, if one is lost."""
        give_up: float | None = None
        pause = PAUSE
        while True:
            failure: BaseException
            try:
                return (yield from attempt(deadline))
            except (DatabaseError, ConnectionClosed) as exc:
                failure = exc
            now = monotonic()
            give_up = now + self._resume if give_up is None else give_up
            hopeless = self._known is None or self._closed or self._session.closed
            if hopeless or not _passes(failure) or now + pause > give_up:
                raise failure
            if deadline is not None and now + pause > deadline:
                yield Pause(max(0.0, deadline - now))
                raise TimeoutError
            yield Pause(pause)
            pause = min(pause * 2, PAUSE_MOST)

    def _receive(self, deadline: float | None) -> Steps[list[bytes]]:
        """The next messages."""
        try:
            if self._copy is None:
                yield from self._begin(self._limit_of_begin(deadline))
            if self._closed:  # meanwhile
                raise ConnectionClosed("this stream is closed")
            messages = yield from self._read(deadline)
            if isinstance(messages, list):
                return messages
            raise OperationalError("the server has ended the replication")
        except TIMED_OUT as exc:
            if self._copy is not None or _is_past(deadline):
                raise
            self._disconnect()
            raise CannotConnect("no connection could be made in time") from exc
        except (DatabaseError, ConnectionClosed):
            self._disconnect()
            raise

    def _limit_of_begin(self, deadline: float | None) -> float | None:
        """When a new connection is given up for the next one: it may be to a frozen server."""
        limits = [] if deadline is None else [deadline]
        if self._known is not None and self._receive_timeout is not None:
            limits.append(monotonic() + self._receive_timeout)
        return min(limits, default=None)

    def _read(self, deadline: float | None) -> Steps[Any]:
        if self._confirmed != self._reported:
            self._report()
        reading = self._reading
        if reading is None or not reading._succeeded:  # else: whoever waited for it was cancelled
            reading = self._reading = self._session.raw._op(
                "copy_read", "nothing", "", session=self._copy, timeout=_left(deadline)
            )
        self._waiting_since = monotonic()
        try:
            messages = yield reading
        finally:
            self._waiting_since = None
        self._reading = None
        return messages

    def _begin(self, deadline: float | None) -> Steps[None]:
        session = self._session
        self._disconnect(keep=True)
        yield from session.connect(_left(deadline))
        slot = yield from session.slot(self._slot, _left(deadline))
        if slot is None:
            raise ProgrammingError(
                f"there is no replication slot {self._slot!r}: create_slot() makes it (a temporary "
                "one ends with its connection)"
            )
        if self._known is not None and slot.confirmed_flush_lsn > max(self._known, self._reported):
            raise InternalError(
                f"somebody else has moved the replication slot {self._slot!r} on: to "
                f"{slot.confirmed_flush_lsn}, from {LSN(max(self._known, self._reported))}"
            )
        (row,) = yield from session.ask(
            "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'",
            _left(deadline),
        )
        sql = self._command(slot.plugin)
        copy = session.raw._op("replication", "status", sql, timeout=_left(deadline))
        session.stream = self
        self._copy = copy
        try:
            if (yield copy) is not None:
                raise InternalError("the server has not begun to replicate")
        except BaseException as exc:
            self._disconnect()  # nobody knows whether it has begun, and a walsender does so once
            if not isinstance(exc, (DatabaseError, ConnectionClosed)):
                self._known = slot.confirmed_flush_lsn  # it may have the slot for a moment
            raise
        self._heartbeat = Heartbeat(self, self._interval(int(row["setting"]) / 1000))
        self._known = slot.confirmed_flush_lsn
        self._report()

    def _interval(self, server_timeout: float) -> float:
        seconds = STATUS_INTERVAL if self._status_interval is None else self._status_interval
        if server_timeout:
            seconds = min(seconds, server_timeout / 3)
        if self._receive_timeout is not None:
            seconds = min(seconds, self._receive_timeout / 4)
        return max(seconds, 0.01)

    def _command(self, plugin: str) -> str:
        options = dict(self._options)
        version = self._session.raw._server_version
        binary = False
        if self._is_raw:
            self._decoder = None
        elif plugin == "pgoutput":
            if not self._publications:
                raise ProgrammingError("pgoutput needs the names of publications")
            if version < 140000 and (self._binary or self._messages or self._streaming):
                raise NotSupportedError(
                    "binary, messages and streaming need a server of PostgreSQL 14 or later"
                )
            self._session.demand_version(150000, self._two_phase, "two_phase")
            binary = version >= 140000 and self._binary is not False
            names = ",".join(map(quoted, self._publications))
            options = {
                "proto_version": "3" if self._two_phase else "2" if self._streaming else "1",
                "publication_names": names,
                **({"binary": "true"} if binary else {}),
                **({"messages": "true"} if self._messages else {}),
                **({"streaming": "on"} if self._streaming else {}),
                **({"two_phase": "on"} if self._two_phase else {}),
                **options,
            }
            if not isinstance(self._decoder, PgOutput):
                self._decoder = PgOutput(self, self._find, binary)
        elif plugin == "test_decoding":
            if self._publications or self._streaming or self._binary or self._two_phase:
                raise ProgrammingError(
                    "publications, streaming, two_phase and binary are pgoutput's, not "
                    "test_decoding's"
                )
            options = {"include-xids": "on", "include-timestamp": "on", **options}
            options.setdefault("skip-empty-xacts", "on")
            if not isinstance(self._decoder, TestDecoding):
                self._decoder = TestDecoding(self, self._find)
        else:
            raise NotSupportedError(
                f"the output plugin {plugin} is not known here: its data can be had by raw=True"
            )
        if self._decoder is not None:
            self._decoder.restart(binary)
        words = ", ".join(f"{quoted(key)} {literal(value)}" for key, value in options.items())
        return (
            f"START_REPLICATION SLOT {quoted(self._slot)} LOGICAL {self._from}"
            f"{f' ({words})' if words else ''}"
        )

    def _disconnect(self, keep: bool = False) -> None:
        """The stream is over, and what was not looked at comes once more. `keep`: its connection
        can be used."""
        copy, self._copy = self._copy, None
        heartbeat, self._heartbeat = self._heartbeat, None
        self._reading = None
        self._batch.clear()
        if heartbeat is not None:
            heartbeat.stop()
        if copy is not None or not keep:
            self._session.raw.terminate()

    def close(self) -> Steps[None]:
        """Tell the server what was confirmed, and end the stream: the slot is free then."""
        self._closed = True
        copy = self._copy
        if copy is None:
            if self._busy:  # it is being connected
                self._session.raw.terminate()
            return
        self._report()
        self._copy = None
        if self._reading is not None:
            self._reading.close()  # whoever waits for it is told
        raw = self._session.raw
        end = raw._op("copy_end", "nothing", "", session=copy, timeout=CLOSE_LIMIT)
        try:
            yield end
        except (*TIMED_OUT, DatabaseError, InterfaceError):
            pass  # it is closed in any case
        finally:
            self._disconnect()  # a server's walsender streams changes only once

    def abandon(self) -> None:
        """Nobody has it any more."""
        self._closed = True
        if self._copy is not None:
            self._disconnect()

    # -- types

    def _find(self, type_: Any) -> _pg.Codec | None:
        found = None
        if self._catalog is not None:
            found = self._catalog._codecs.get(type_)
        return found or self._codecs.get(type_) or _pg.BUILTIN.get(type_)

    def _learn(self, types: list[Any], deadline: float | None) -> Steps[None]:
        """Look types up, by their oids or names, on an ordinary connection.

        What has come stays: whoever asks again after a failure loses nothing.
        """
        limits = [self._session.timeout, self._receive_timeout, _left(deadline)]
        limit = min((one for one in limits if one is not None), default=None)
        catalog = self._catalog
        own = _pg.Connection() if catalog is None or catalog.is_closed() else None
        raw = cast(_pg.Connection, own or catalog)
        try:
            if own is not None:
                yield self._session.connecting(own, limit)
                if catalog is None:
                    dress(own, self._own_codecs)
                else:
                    own._codecs.update(catalog._codecs)
            if isinstance(types[0], int):
                sql = "SELECT t.oid::int8, pg_catalog.format_type(t.oid, NULL), t.oid::int8 FROM "
                sql += "pg_catalog.pg_type t WHERE t.oid = ANY($1::pg_catalog.oid[])"
            else:
                sql = "SELECT name, name, pg_catalog.to_regtype(name)::pg_catalog.oid::int8 FROM "
                sql += "pg_catalog.unnest($1::text[]) AS name"
            types = list(dict.fromkeys(types))
            found, _, _ = yield raw._op("query", "tuples", sql, (types,), timeout=limit, plain=True)
            known = [row for row in found if row[2] is not None]
            if known:
                nulls = ", ".join(f"NULL::{name}" for _, name, _ in known)
                statement = yield raw._op("prepare", "statement", f"SELECT {nulls}", timeout=limit)
                for (type_, _, _), codec in zip(known, statement.columns, strict=True):
                    self._codecs[type_] = codec
            for type_ in types:  # what was dropped since
                oid = type_ if isinstance(type_, int) else 0
                self._codecs.setdefault(type_, _pg.Codec("foreign", oid, str(type_)))
        except TIMED_OUT as exc:
            if _is_past(deadline):
                raise
            raise CannotConnect("types could not be looked up in time") from exc
        finally:
            if own is not None:
                own.terminate()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and monotonic() + 0.005 >= deadline  # loops' timers are early
