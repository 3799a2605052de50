"""Logical replication for tasks: ``connect_replication()``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

from greenletio.pg import _steps
from greenletio.pg._changes import (
    Change,
    Single,
    Slot,
    SystemIdentity,
    TransactionBase,
)
from greenletio.pg._replication import Session
from greenletio.pg._replication_face import ReplicationBase, StreamBase, deadline_of
from greenletio.pg.aio._connect import options_for
from greenletio.pg.aio._connection import Connection

__all__ = ("ChangeStream", "ReplicatedTransaction", "Replication", "connect_replication")


class ReplicatedTransaction(TransactionBase):
    __doc__ = TransactionBase.__doc__

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        core = self._core
        change: Change | None
        if core.events and core.current is self:
            change = self._change(core.events.popleft())
        else:
            change = await _steps.wait(core.next_change(self))
        if change is None:
            raise StopAsyncIteration
        return change


class ChangeStream(StreamBase):
    """What ``replication.stream(…)`` gives: iterate over it for transactions. It has no end.

    An ``async with`` block closes it at its end. One task reads at a time; confirm() may be
    called by any.
    """

    _transaction_class = ReplicatedTransaction

    def __aiter__(self) -> AsyncIterator[ReplicatedTransaction | Single]:
        return self

    async def __anext__(self) -> ReplicatedTransaction | Single:
        return await self.get()

    async def get(self, timeout: float | None = None) -> ReplicatedTransaction | Single:
        """The next transaction (or what comes between them, or WalData); waits for it.

        TimeoutError after `timeout` seconds, in which nothing is lost: call it again. What was left
        of the transaction before is passed over; with `auto_confirm` it is confirmed.
        """
        item: ReplicatedTransaction | Single
        item = await _steps.wait(self._core.next_item(deadline_of(timeout)))
        return item

    async def close(self) -> None:
        """Tell the server what was confirmed, and end the stream: its slot is free then, the
        session can be used. Takes 10 seconds at most.

        A connection that is lost is not made anew for that: what was confirmed last may come again
        to the next program.
        """
        await _steps.wait(self._core.close())

    async def __aenter__(self) -> ChangeStream:
        return self

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()


class Replication(ReplicationBase[ChangeStream, Connection]):
    """A session for logical replication, for tasks: slots, and the stream of one of them.

    Its calls can be cancelled; `timeout` is in seconds. An ``async with`` block closes it.
    """

    _stream_class = ChangeStream

    async def identify_system(self, *, timeout: float | None = None) -> SystemIdentity:
        """The server's identity, timeline and position."""
        return await _steps.wait(self._session.identify(timeout))

    async def create_slot(
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
        return await _steps.wait(
            create(name, plugin, temporary, snapshot, two_phase, failover, timeout)
        )

    async def drop_slot(
        self, name: str, *, wait: bool = False, timeout: float | None = None
    ) -> None:
        """Drop a slot; one that is in use is an ObjectInUse, or is waited for with `wait`."""
        await _steps.wait(self._session.drop_slot(name, wait, timeout))

    async def slot(self, name: str, *, timeout: float | None = None) -> Slot | None:
        """What the server knows of a slot; None: there is none of that name."""
        return await _steps.wait(self._session.slot(name, timeout))

    async def close(self) -> None:
        """Close it, and its stream. Takes 20 seconds at most."""
        await _steps.wait(self._session.close())

    async def __aenter__(self) -> Replication:
        return self

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()


async def connect_replication(
    dsn: str | None = None,
    *,
    timeout: float | None = 60,
    tls_pin: str | Sequence[str] | None = None,
    **options: Any,
) -> Replication:
    """Open a session for logical replication: the arguments are those of connect() that say where
    and how to connect. `tls_pin` is for each connection that the session makes.

    The role needs REPLICATION, the server ``wal_level=logical``.
    """
    session = Session(await options_for(dsn, **options), timeout, tls_pin)
    await _steps.wait(session.connect())
    return Replication(session)
