"""What the faces of logical replication have in common."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from time import monotonic
from typing import Any, Generic, TypeVar, cast

from greenletio import _pg
from greenletio.pg._changes import LSN, Single, TransactionBase
from greenletio.pg._replication import Session
from greenletio.pg._replication_stream import StreamCore
from greenletio.pg.errors import ProgrammingError

__all__ = ("ReplicationBase", "StreamBase", "deadline_of")

_S = TypeVar("_S", bound="StreamBase")
_C = TypeVar("_C")


class StreamBase:
    """What both faces' streams have."""

    _transaction_class: type[TransactionBase] = TransactionBase

    def __init__(self, session: Session, slot: str, **options: Any) -> None:
        self._core = StreamCore(session, self._transaction_class, slot, **options)

    @property
    def confirmed_lsn(self) -> LSN:
        """The position up to which all is confirmed; the server may not have heard of it yet."""
        return LSN(self._core._confirmed)

    @property
    def received_lsn(self) -> LSN:
        """The server's position as it was told last: how far behind the consumer is."""
        return LSN(self._core._received)

    def confirm(self, position: int | TransactionBase | Single) -> None:
        """Say that everything up to that position, or up to the end of that transaction, is done:
        the server forgets it. Does not wait: the server is told with the next report.

        ProgrammingError for a transaction that was not read to its end, or a position that the
        stream has not come to.
        """
        if not isinstance(position, int):
            end = position.end_lsn
            if end is None:
                raise ProgrammingError(
                    f"{position!r} cannot be confirmed before its last change was taken"
                )
            position = end
        self._core.confirm(position)

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None:
            core.abandon()


class ReplicationBase(Generic[_S, _C]):
    """What both faces' sessions have."""

    _stream_class: type[_S]
    _codecs: dict[int, _pg.Codec] = {}

    @staticmethod
    def _raw_of(connection: _C) -> _pg.Connection:
        return cast(_pg.Connection, connection)

    def __init__(self, session: Session) -> None:
        self._session = session

    def stream(
        self,
        slot: str,
        *publications: str,
        start: int | str = 0,
        raw: bool = False,
        binary: bool | None = None,
        messages: bool = False,
        streaming: bool = False,
        two_phase: bool = False,
        options: Mapping[str, str] | None = None,
        connection: _C | None = None,
        auto_confirm: bool = True,
        resume: float = 300.0,
        status_interval: float | None = None,
        receive_timeout: float | None = 60.0,
    ) -> _S:
        """The transactions of a slot, decoded, from where it was confirmed on.

        It begins when it is first iterated over. `start` is the ``end_lsn`` of the last transaction
        that a former program has done, if it has not confirmed it. With `raw` it gives what the
        plugin writes, as WalData.

        For pgoutput: with `binary`, None or True, values come in their binary form, as far as they
        have one; with `messages` those of pg_logical_emit_message() come, too; with `streaming` the
        server sends large transactions before they are committed (they are kept in temporary files
        here until then); with `two_phase` prepared ones come when they are prepared, and what
        becomes of them as CommitPrepared or RollbackPrepared (from then on that is the slot's own
        way). `options` are more options of the plugin's. `connection` has the codecs
        for values, and is asked for types that are not known; else a connection is made for that.

        `auto_confirm`: asking for the next transaction confirms the one before; else confirm()
        does. A connection that is lost is replaced, for `resume` seconds at a time (0: the loss is
        raised, as it is with `raw`). The server hears of the stream every `status_interval`
        seconds, by default 10, and at most a third of its wal_sender_timeout; from a server of
        which nothing has come for `receive_timeout` seconds (None: ever) the stream takes another
        connection.
        """
        return self._stream_class(
            self._session,
            slot,
            publications=publications,
            start=LSN(start),
            options=dict(options or {}),
            raw=raw,
            binary=binary,
            messages=messages,
            streaming=streaming,
            two_phase=two_phase,
            catalog=None if connection is None else self._raw_of(connection),
            codecs=self._codecs,
            auto_confirm=auto_confirm,
            resume=resume,
            status_interval=status_interval,
            receive_timeout=receive_timeout,
        )

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._session.closed

    def __repr__(self) -> str:
        raw = self._session.raw
        state = "closed" if raw.is_closed() else f"to server process {raw._pid}"
        return f"<{type(self).__module__}.{type(self).__name__} {state}>"

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and not session.closed and not session.raw.is_closed():
            warnings.warn(f"unclosed replication session {self!r}", ResourceWarning, 2, source=self)
            session.raw.terminate()


def deadline_of(timeout: float | None) -> float | None:
    """The moment by monotonic() that many seconds from now."""
    return None if timeout is None else monotonic() + timeout
