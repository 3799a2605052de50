"""Cooperative psycopg2: one call at start-up, and psycopg2 waits without holding the loop.

What waits is written in C (``greenletio._pq``). Here stand the public functions, and those methods
of psycopg2 that need no speed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import psycopg2
import psycopg2.extensions as ext
import psycopg2.pool

from . import _core, _pq
from ._lock import FairLockFor
from ._psycopg2_connect import connector
from ._psycopg2_lobject import lobject

__all__ = ("is_patched", "patch_psycopg2", "psycopg2_blocking", "unpatch_psycopg2")

_undo: list[Callable[[], object]] = []


def is_patched() -> bool:
    """Whether psycopg2 is cooperative now."""
    return bool(_undo)


def patch_psycopg2(*, cancel_timeout: float | None = None) -> None:
    """Make psycopg2 cooperative, in the whole process and for connections that exist already.

    Where a connection waits is decided at each wait. In a greenlet under ``async_`` or ``spawn``
    the greenlet is suspended and the loop goes on. Where no loop runs in the thread (scripts,
    migrations, worker threads) the thread blocks, as without the patch. Directly in a running loop
    ``WouldBlockError`` is raised before anything is sent, and the connection stays usable.

    Also under the patch:

    - COPY (``copy_from``, ``copy_to``, ``copy_expert``) and large objects wait the same way.
    - ``connect()`` resolves names off the loop, tries every address of every host, and gives each
      ``connect_timeout`` seconds. A host that answers with an error is followed by the next one,
      whatever the error (libpq stops at a refused password).
    - Several greenlets or threads that use one connection take turns, in the order they came.
      So they do at a ``psycopg2.pool.ThreadedConnectionPool``, which connects under a lock.
    - Cancelling the task, ``greenletio.timeout``, or Ctrl-C cancels the query on the server, waits
      for that, and leaves the connection usable (in an aborted transaction, as after any error).
      The ``CancelledError`` is raised afterwards, psycopg2's ``QueryCanceled`` as its context. A
      server that does not answer within ``cancel_timeout`` seconds (default 5) gets its connection
      closed: the context then is an ``OperationalError`` that says so. When a ``commit()`` is
      cancelled, the context says what became of the transaction: ``QueryCanceled`` if it was
      rolled back, an ``OperationalError`` if it was committed nevertheless, or nobody knows.

    Methods of connections and cursors that were looked up before the patch, and are called
    later, wait too, but an interruption closes their connection. ``cursor.executemany`` keeps the
    connection's turn until its iterable ends. Replication cursors and asynchronous connections
    (``async_=True``) stay as psycopg2 has them.

    Any thread may call it; a second call only changes ``cancel_timeout``.
    """
    if cancel_timeout is not None:
        _pq.set_cancel_timeout(cancel_timeout)
    if _undo:
        return
    driver: Any = psycopg2  # _connect is not in its stubs
    before, connect = ext.get_wait_callback(), driver._connect
    _pq.patch(
        {
            ext.cursor: {"copy_from": copy_from, "copy_to": copy_to, "copy_expert": copy_expert},
            ext.connection: {"lobject": lobject},
        }
    )
    _undo.append(_pq.unpatch)
    ext.set_wait_callback(_pq.wait)
    _undo.append(lambda: ext.set_wait_callback(before))
    driver._connect = connector(connect)
    _undo.append(lambda: setattr(driver, "_connect", connect))
    pool: Any = psycopg2.pool.ThreadedConnectionPool
    pool._lock = FairLockFor("_lock")
    _undo.append(lambda: delattr(pool, "_lock"))
    putconn = pool.putconn
    pool.putconn = _put_whatever_happens(putconn)
    _undo.append(lambda: setattr(pool, "putconn", putconn))


def _put_whatever_happens(putconn: Callable[..., None]) -> Callable[..., None]:
    """The pool's own would count a connection as used for ever whose return is interrupted, in the
    wait for its turn or for the rollback: such a one is closed.
    """

    @functools.wraps(putconn)
    def put(self: Any, conn: Any = None, key: Any = None, close: bool = False) -> None:
        try:
            putconn(self, conn, key, close)
        except psycopg2.pool.PoolError:
            raise
        except BaseException:
            _core.shield(True)
            try:
                putconn(self, conn, key, True)
            finally:
                _core.shield(False)
            raise

    return put


def unpatch_psycopg2() -> None:
    """Put back all that ``patch_psycopg2`` replaced. Harmless when nothing is patched.

    Call it while no greenlet waits for a connection. Connections made under the patch stay usable.
    """
    while _undo:
        _undo.pop()()


def psycopg2_blocking(connection: ext.connection, blocking: bool = True) -> None:
    """Let one connection hold its thread, and the loop that runs there, while it waits.

    For the connection whose work must not be interleaved with other tasks. It may be used directly
    in a running loop, too. Only Ctrl-C interrupts its waits. ``blocking=False`` takes it back.
    """
    _pq.set_blocking(connection, blocking)


def copy_expert(self: ext.cursor, sql: Any, file: Any, size: int = 8192) -> None:
    """Run a COPY statement with a file: read for COPY FROM STDIN, written to for COPY TO STDOUT.

    Waits for the server, and lets other tasks run between pieces of data; can be cancelled. The
    file's own methods run in the calling greenlet. Raises what psycopg2 raises.
    """
    if not hasattr(file, "read") and not hasattr(file, "write"):
        raise TypeError(
            "file must be a readable file-like object for COPY FROM; "
            "a writable file-like object for COPY TO."
        )
    _pq.copy(self, sql, file, size)


def copy_from(
    self: ext.cursor,
    file: Any,
    table: str,
    sep: str = "\t",
    null: str = "\\N",
    size: int = 8192,
    columns: Iterable[str] | None = None,
) -> None:
    """Read rows from a file into a table. Waits and can be cancelled as ``copy_expert``."""
    if not hasattr(file, "read"):
        raise TypeError("argument 1 must have a .read() method")
    _pq.copy(self, _copy_sql(self, "FROM stdin", table, sep, null, columns), file, size)


def copy_to(
    self: ext.cursor,
    file: Any,
    table: str,
    sep: str = "\t",
    null: str = "\\N",
    columns: Iterable[str] | None = None,
) -> None:
    """Write a table's rows into a file. Waits and can be cancelled as ``copy_expert``."""
    if not hasattr(file, "write"):
        raise TypeError("argument 1 must have a .write() method")
    _pq.copy(self, _copy_sql(self, "TO stdout", table, sep, null, columns), file, 8192)


def _copy_sql(
    cursor: ext.cursor,
    direction: str,
    table: str,
    sep: str,
    null: str,
    columns: Iterable[str] | None,
) -> bytes:
    if cursor.closed:
        raise psycopg2.InterfaceError("cursor already closed")
    conn = cursor.connection
    names = [] if columns is None else [_name(column, conn) for column in columns]
    parts = (
        f"COPY {_name(table, conn)}{'(' + ','.join(names) + ')' if names else ''} {direction}",
        f"WITH DELIMITER AS {_literal(sep, conn)} NULL AS {_literal(null, conn)}",
    )
    return " ".join(parts).encode(ext.encodings[conn.encoding])


def _name(name: str, conn: ext.connection) -> str:
    return ext.quote_ident(name, conn)


def _literal(value: str, conn: ext.connection) -> str:
    quoted = ext.QuotedString(value)
    quoted.prepare(conn)
    literal: bytes = quoted.getquoted()
    return literal.decode(ext.encodings[conn.encoding])
