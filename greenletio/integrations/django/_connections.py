"""Whose connections are whose: ``django.db.connections`` has a set of them for each task.

Django keeps a thread's connections in a local of the thread: all requests of a loop would share
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from django.db import connections

from greenletio._lock import FairLock

__all__ = ("Scope", "get_native_id", "install", "joined", "scope")

Owned = dict[str, Any]

get_native_id = threading.get_native_id


class Scope:
    """Code that belongs to whoever has called it: it has the caller's connections."""

    def __init__(self, owned: Owned) -> None:
        self.owned = owned
        self.lock = FairLock()  # sync code of several tasks takes turns
        self.thread = get_native_id()


_scope: ContextVar[Scope | None] = ContextVar("greenletio.integrations.django", default=None)
_of_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], Owned] = weakref.WeakKeyDictionary()


def scope() -> Scope | None:
    """The one that the caller is in."""
    found = _scope.get()
    return found if found is not None and found.thread == get_native_id() else None


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _leave(task: asyncio.Task[Any]) -> None:
    for connection in _of_tasks.pop(task, {}).values():
        connection.leave()


class _Connections:
    """In place of the local that ``django.db.connections`` has: connections by their alias."""

    __slots__ = ("_kind", "_threads")

    def __init__(self, kind: type, threads: Any) -> None:
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_threads", threads)

    def _owned(self) -> Owned | None:
        found = scope()
        if found is not None:
            return found.owned
        task = _task()
        return None if task is None else _of_tasks.get(task, {})

    def __getattr__(self, alias: str) -> Any:
        owned = self._owned()
        if owned is not None and alias in owned:
            return owned[alias]
        connection = getattr(self._threads, alias)
        if owned is not None and isinstance(connection, self._kind):
            raise AttributeError(alias)  # the thread's, and not ours
        return connection

    def __setattr__(self, alias: str, connection: Any) -> None:
        found, task = scope(), _task()
        if not isinstance(connection, self._kind) or (found is None and task is None):
            setattr(self._threads, alias, connection)
        elif found is not None:
            found.owned[alias] = connection
        elif task is not None:
            if task not in _of_tasks:
                _of_tasks[task] = {}
                task.add_done_callback(_leave)
            connection.of_task = get_native_id()
            _of_tasks[task][alias] = connection

    def __delattr__(self, alias: str) -> None:
        owned = self._owned()
        if owned is not None and alias in owned:
            del owned[alias]
        else:
            delattr(self._threads, alias)


def install(kind: type) -> None:
    """Have ``django.db.connections`` keep connections of a class by task."""
    threads = connections._connections
    if not isinstance(threads, _Connections):
        connections._connections = _Connections(kind, threads)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """A block whose coroutines take part in the caller's transaction, if there is one."""
    local = connections._connections
    owned: Owned = {}
    if isinstance(local, _Connections) and local._owned() is None:
        for connection in connections.all(initialized_only=True):
            if isinstance(connection, local._kind) and connection.in_atomic_block:
                owned[connection.alias] = connection
    if not owned:
        yield
        return
    callers = set(owned)
    token = _scope.set(Scope(owned))
    try:
        yield
    finally:
        _scope.reset(token)
        for alias in owned.keys() - callers:
            owned[alias].close()
