"""``sqlite3`` whose statements run in a small thread pool while the greenlet is suspended.

Connections and cursors are subclasses of the standard ones. The statements of one connection take
turns. A statement that is cancelled or out of time is interrupted, and the connection can be
used again. Deviations: ``check_same_thread`` speaks of threads of the system, not of greenlets;
functions and factories that SQLite calls run in the pool; a row that was quick to fetch is
followed by rows that are fetched without the pool, until one is slow.
"""

from __future__ import annotations

import sqlite3 as _std
import threading as _threading
from collections.abc import Callable, Generator
from time import perf_counter
from typing import Any

from greenletio import _core
from greenletio._threads import run_to_end
from greenletio.green import threading
from greenletio.green._std import adopt, public

__all__ = public(_std)

_PLAIN = 0  # _core.place(): no loop runs in this thread
_QUICK_S = 0.0002  # less than it takes to ask a thread


class Cursor(_std.Cursor):
    """``sqlite3.Cursor``. What runs statements or fetches rows can be cancelled."""

    _quick = False

    def _turn(self, method: Callable[..., Any], *args: Any) -> Any:
        connection: Any = self.connection
        if connection is None:  # not initialised, which the method says
            return method(self, *args)
        return connection._call(method, self, *args)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        self._quick = False
        return self._turn(_std.Cursor.execute, sql, parameters)

    def executemany(self, sql: str, seq_of_parameters: Any, /) -> Any:
        return self._turn(_std.Cursor.executemany, sql, seq_of_parameters)

    def executescript(self, sql_script: str, /) -> Any:
        return self._turn(_std.Cursor.executescript, sql_script)

    def _fetch(self, method: Callable[..., Any]) -> Any:
        connection: Any = self.connection
        if self._quick and not connection._turns.locked():
            connection._check()
            began = perf_counter()
            row = method(self)
        else:
            began = perf_counter()
            row = self._turn(method)
        self._quick = perf_counter() - began < (_QUICK_S if self._quick else 10 * _QUICK_S)
        return row

    def fetchone(self) -> Any:
        return self._fetch(_std.Cursor.fetchone)

    def fetchmany(self, size: int | None = None) -> Any:
        return self._turn(_std.Cursor.fetchmany, self.arraysize if size is None else size)

    def fetchall(self) -> Any:
        return self._turn(_std.Cursor.fetchall)

    def __next__(self) -> Any:
        row = self._fetch(_next_row)
        if row is None:
            raise StopIteration
        return row[0]


def _next_row(cursor: Any) -> Any:
    # StopIteration would not get through a thread that is waited for.
    try:
        return (_std.Cursor.__next__(cursor),)
    except StopIteration:
        return None


class Connection(_std.Connection):
    """``sqlite3.Connection``. What touches the database can be cancelled."""

    _owner: int | None = None  # the thread of the system that may use it
    _runner: int | None = None  # the one that runs a statement, whose functions may use it
    _turns: Any = None  # held while a statement runs

    def __init__(
        self,
        database: Any,
        timeout: float = 5.0,
        detect_types: int = 0,
        isolation_level: Any = "",
        check_same_thread: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self._owner = _threading.get_ident() if check_same_thread else None
        self._turns = threading.Lock()
        run_to_end(
            lambda: None,
            super().__init__,
            database,
            timeout,
            detect_types,
            isolation_level,
            False,
            *args,
            **kwargs,
        )

    def _check(self) -> None:
        if self._owner is not None and _threading.get_ident() not in (self._owner, self._runner):
            raise _std.ProgrammingError(
                "SQLite objects created in a thread can only be used in that same thread. The "
                f"object was created in thread id {self._owner} and this is thread id "
                f"{_threading.get_ident()}."
            )

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        self._check()
        if _core.place() == _PLAIN or self._turns is None:
            return method(*args)
        with self._turns:
            return run_to_end(super().interrupt, self._work, method, *args)

    def _work(self, method: Callable[..., Any], *args: Any) -> Any:
        self._runner = _threading.get_ident()
        try:
            return method(*args)
        finally:
            self._runner = None

    def cursor(self, factory: Any = Cursor) -> Any:
        self._check()
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        return self.cursor().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:
        return self.cursor().executescript(sql_script)

    def commit(self) -> None:
        self._call(_std.Connection.commit, self)

    def rollback(self) -> None:
        self._call(_std.Connection.rollback, self)

    def close(self) -> None:
        self._call(_std.Connection.close, self)

    def backup(self, target: Any, **kwargs: Any) -> None:
        self._call(lambda: _std.Connection.backup(self, target, **kwargs))

    def iterdump(self, **kwargs: Any) -> Generator[str, None, None]:
        self._check()
        return super().iterdump(**kwargs)

    def __enter__(self) -> Connection:
        self._check()
        super().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> Any:
        return self._call(_std.Connection.__exit__, self, *exc_info)


def connect(database: Any, *args: Any, **kwargs: Any) -> Any:
    """``sqlite3.connect``: a green ``Connection``, unless another ``factory`` is given."""
    if len(args) < 5:
        kwargs.setdefault("factory", Connection)
    return _std.connect(database, *args, **kwargs)


adopt(globals(), _std)
Connection.__module__ = Cursor.__module__ = __name__

if not hasattr(_std, "__getattr__"):  # since Python 3.12 it warns of what is going to go

    def __getattr__(name: str) -> Any:
        return getattr(_std, name)
