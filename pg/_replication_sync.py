"""Logical replication for sync code: ``connect_replication()``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from greenletio import _pg
from greenletio.pg import _json
from greenletio.pg._changes import (
    Change,
    Single,
    Slot,
    SystemIdentity,
    TransactionBase,
)
from greenletio.pg._connection import Connection
from greenletio.pg._conninfo import options_of
from greenletio.pg._replication import Session
from greenletio.pg._replication_face import ReplicationBase, StreamBase, deadline_of
from greenletio.pg._steps import run

__all__ = ("ChangeStream", "ReplicatedTransaction", "Replication", "connect_replication")


class ReplicatedTransaction(TransactionBase):
    __doc__ = TransactionBase.__doc__

    def __iter__(self) -> Iterator[Change]:
        return self

    def __next__(self) -> Change:
        core = self._core
        change: Change | None
        if core.events and core.current is self:
            change = self._change(core.events.popleft())
        else:
            change = run(core.next_change(self))
        if change is None:
            raise StopIteration
        return change


class ChangeStream(StreamBase):
    """What ``replication.stream(…)`` gives: iterate over it for transactions. It has no end.

    A ``with`` block closes it at its end. One thread or greenlet reads at a time; confirm() may be
    called from any.
    """

    _transaction_class = ReplicatedTransaction

    def __iter__(self) -> Iterator[ReplicatedTransaction | Single]:
        return self

    def __next__(self) -> ReplicatedTransaction | Single:
        return self.get()

    def get(self, timeout: float | None = None) -> ReplicatedTransaction | Single:
        """The next transaction (or what comes between them, or WalData); waits for it.

        TimeoutError after `timeout` seconds, in which nothing is lost: call it again. What was left
        of the transaction before is passed over; with `auto_confirm` it is confirmed.
        """
        item: ReplicatedTransaction | Single
        item = run(self._core.next_item(deadline_of(timeout)))
        return item

    def close(self) -> None:
        """Tell the server what was confirmed, and end the stream: its slot is free then, the
        session can be used. Takes 10 seconds at most.

        A connection that is lost is not made anew for that: what was confirmed last may come again
        to the next program.
        """
        run(self._core.close())

    def __enter__(self) -> ChangeStream:
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


class Replication(ReplicationBase[ChangeStream, Connection[Any]]):
    """A session for logical replication, for sync code: slots, and the stream of one of them.

    Its calls wait as those of a Connection do; `timeout` is in seconds. A ``with`` block closes it.
    """

    _stream_class = ChangeStream
    _codecs = _json.codecs()

    @staticmethod
    def _raw_of(connection: Connection[Any]) -> _pg.Connection:
        return connection.raw

    def identify_system(self, *, timeout: float | None = None) -> SystemIdentity:
        """The server's identity, timeline and position."""
        return run(self._session.identify(timeout))

    def create_slot(
        self,
        name: str,
        plugin: str = "pgoutput",
        *,
        temporary: bool = False,
        snapshot: bool = False,
        two_phase: bool = False,
        failover: bool = False,
        timeout: float | None = None,
    ) -> Slot:
        """Make a slot, whose stream begins now.

        A `temporary` one ends with this session. With `snapshot` the slot's ``snapshot_name`` can
        be given to ``SET TRANSACTION SNAPSHOT`` in another connection, which then sees what the
        stream does not tell of, until this session is used for something else. With `two_phase`
        prepared transactions come when they are prepared; with `failover` the slot is kept on
        standbys, too (PostgreSQL 15, 17). Waits for transactions that are open to end.
        DuplicateObject if there is one of that name.
        """
        create = self._session.create_slot
        return run(create(name, plugin, temporary, snapshot, two_phase, failover, timeout))

    def drop_slot(self, name: str, *, wait: bool = False, timeout: float | None = None) -> None:
        """Drop a slot; one that is in use is an ObjectInUse, or is waited for with `wait`."""
        run(self._session.drop_slot(name, wait, timeout))

    def slot(self, name: str, *, timeout: float | None = None) -> Slot | None:
        """What the server knows of a slot; None: there is none of that name."""
        return run(self._session.slot(name, timeout))

    def close(self) -> None:
        """Close it, and its stream. Takes 20 seconds at most."""
        run(self._session.close())

    def __enter__(self) -> Replication:
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def connect_replication(
    conninfo: str = "",
    *,
    timeout: float | None = None,
    tls_pin: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Replication:
    """Open a session for logical replication: the arguments are those of connect(). `tls_pin` is
    for each connection that the session makes.

    The role needs REPLICATION, the server ``wal_level=logical``.
    """
    session = Session(options_of(conninfo, kwargs), timeout, tls_pin)
    run(session.connect())
    return Replication(session)
