"""PoolConnectionProxy: a leased connection, which ends with its lease."""

from __future__ import annotations

import inspect
import warnings
import weakref
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

from greenletio.pg.aio._connection import Connection
from greenletio.pg.aio._cursor import CursorFactory
from greenletio.pg.aio._transaction import Transaction
from greenletio.pg.errors import InterfaceError

if TYPE_CHECKING:
    from greenletio.pg._pool_slot import Slot

__all__ = ("PoolConnectionProxy",)

# What a connection's methods do without the server: nothing is to be reset after them.
_PASSIVE = {
    "get_server_pid",
    "get_server_version",
    "get_settings",
    "is_closed",
    "is_in_transaction",
}
_RUN = {"execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval"}


def _released(name: str) -> InterfaceError:
    return InterfaceError(
        f"cannot call Connection.{name}(): connection has been released back to the pool"
    )


def _forward(name: str) -> Any:
    passive = name in _PASSIVE
    runs = name in _RUN

    @wraps(getattr(Connection, name))  # it has its signature, too
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        slot = self._slot
        if slot is None:
            raise _released(name)
        if not passive:
            slot.used(args[0] if runs and args else None)
        return getattr(slot.con, name)(*args, **kwargs)

    method.__qualname__ = f"PoolConnectionProxy.{name}"
    return method


def _guard(name: str, function: Any) -> Any:
    """A method of what a lease has given, which is over with it."""

    @wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._connection._slot is None:
            raise InterfaceError(
                f"cannot call {type(self).__name__}.{name}(): the underlying connection has been "
                "released back to the pool"
            )
        made = function(self, *args, **kwargs)
        return self._connection._through(made) if isinstance(made, CursorFactory) else made

    return method


@lru_cache(None)
def _guarded(cls: type[Any]) -> type[Any]:
    """A subclass whose methods look whether the lease is over, before anything is awaited."""
    methods = {
        name: _guard(name, function)
        for base in reversed(cls.__mro__)
        for name, function in vars(base).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }
    if issubclass(cls, CursorFactory):

        async def _open(self: Any) -> Any:
            return self._connection._through(await cls._open(self))

        methods["_open"] = _open
    if issubclass(cls, Transaction):

        async def __aexit__(self: Any, typ: Any, exc: Any, tb: Any) -> None:
            # A generator that was left in the middle ends after the release, which has rolled back.
            if self._connection._slot is not None or typ is not GeneratorExit:
                await cls.__aexit__(self, typ, exc, tb)

        methods["__aexit__"] = __aexit__
    return type(cls.__name__, (cls,), methods)


if TYPE_CHECKING:
    _Base = Connection
else:

    class _Base:
        pass


class PoolConnectionProxy(_Base):
    """A connection for as long as it is leased: released, it refuses what it is asked.

    It has all that the connection has, what its class adds, too.
    """

    __slots__ = ("_slot", "_patience")

    def __init__(self, slot: Slot, patience: float | None) -> None:
        self._slot: Slot | None = slot
        self._patience = patience

    if not TYPE_CHECKING:

        @property
        def __class__(self):
            """For isinstance(): it is a connection."""
            return Connection if self._slot is None else type(self._slot.con)

    @property
    def _con(self) -> Connection | None:
        return None if self._slot is None else self._slot.con

    def __getattr__(self, name: str) -> Any:
        slot = self._slot
        if slot is None:
            raise _released(name)
        slot.dirty = True
        return getattr(slot.con, name)

    @property
    def _transaction(self) -> Any:
        if self._slot is None:
            raise _released("transaction")
        return self._slot.con._transaction

    @_transaction.setter
    def _transaction(self, value: Any) -> None:
        if self._slot is not None:
            self._slot.con._transaction = value

    if not TYPE_CHECKING:
        # What these give goes through the proxy, so that it, too, ends with the lease.

        def cursor(self, *args, **kwargs):
            return self._through(self._used("cursor")(*args, **kwargs))

        def transaction(self, *args, **kwargs):
            return self._through(self._used("transaction")(*args, **kwargs))

        def prepare(self, *args, **kwargs):
            return self._preparing(self._used("prepare")(*args, **kwargs))

        async def _preparing(self, coroutine):
            return self._through(await coroutine)

        # Closed for good, it takes no place of the pool any more.

        async def close(self, *, timeout=None):
            try:
                await self._used("close")(timeout=timeout)
            finally:
                self._closed()

        def terminate(self):
            self._used("terminate")()
            self._closed()

        def _closed(self):
            slot = self._slot
            if slot is not None and slot.con.is_closed() and slot.core.has(slot):
                slot.core.give(slot)

        async def add_listener(self, channel, callback):
            await self._known("add_listener")(channel, callback)

        def add_log_listener(self, callback):
            self._known("add_log_listener")(callback)

        def _known(self, name):
            """For what has listeners called: they get the lease, not the connection under it."""
            method = self._used(name)
            self._slot.con._lease = weakref.ref(self)
            return method

        def _used(self, name):
            slot = self._slot
            if slot is None:
                raise _released(name)
            slot.used()
            return getattr(slot.con, name)

        def _through(self, made):
            made._connection = self
            made.__class__ = _guarded(type(made))
            return made

        @property
        def row_factory(self):
            return self._used("row_factory")

        @row_factory.setter
        def row_factory(self, factory):
            if self._slot is None:
                raise _released("row_factory")
            self._slot.con.row_factory = factory

    def _detach(self) -> Slot | None:
        slot, self._slot = self._slot, None
        return slot

    def __del__(self) -> None:
        slot = self._detach()
        if slot is not None and slot.core.has(slot):
            warnings.warn(f"unreleased {slot.con!r} of a pool", ResourceWarning, 2, source=self)
            slot.core.discard(slot)

    def __repr__(self) -> str:
        what = "released" if self._slot is None else repr(self._slot.con)
        return f"<{type(self).__name__} [{what}] {id(self):#x}>"


for _name in dir(Connection):
    if not _name.startswith("_") and callable(getattr(Connection, _name)):
        if _name not in PoolConnectionProxy.__dict__:
            setattr(PoolConnectionProxy, _name, _forward(_name))
