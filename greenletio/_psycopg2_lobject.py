"""psycopg2's large objects, by SQL functions.

libpq's own functions for them block, whatever the connection is set to. These send a megabyte at a
time through ordinary queries, which wait as all queries do.
"""

from __future__ import annotations

from typing import Any

import psycopg2
import psycopg2.extensions as ext

from . import _pq

__all__ = ("LargeObject", "lobject")

_PIECE = 1024 * 1024
_INV_WRITE = 0x20000
_INV_READ = 0x40000


class LargeObject(ext.lobject):
    """A large object of the database, with the methods and the errors of psycopg2's.

    Its methods wait for the server as queries do, and can be cancelled between and in the pieces.
    """

    _fd = -1

    def __init__(
        self,
        conn: ext.connection,
        oid: int = 0,
        mode: str | None = "",
        new_oid: int = 0,
        new_file: str | None = None,
    ) -> None:
        # psycopg2's own __init__ would block: its fields stay empty and are never used.
        self._conn = conn
        self._check_transaction()
        self._mark = _pq.mark(conn)
        reads, writes, self._binary = _parse_mode(mode or "")
        self._oid = oid
        if not oid:
            if new_file is None and new_oid:
                self._oid = self._ask("SELECT lo_create(%s)", new_oid)
            else:
                self._oid = self._ask("SELECT lo_creat(-1)")
            reads, writes = False, True
        access = (_INV_READ if reads else 0) | (_INV_WRITE if writes else 0)
        if access:
            self._fd = self._ask("SELECT lo_open(%s, %s)", self._oid, access)
        letters = ("r" if reads else "") + ("w" if writes else "")
        self._mode = letters + ("b" if self._binary else "t") if letters else "n"
        if not oid and new_file is not None:
            self._import(new_file)

    @property
    def oid(self) -> int:
        return self._oid

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def closed(self) -> bool:
        return self._fd < 0 or bool(self._conn.closed)

    def read(self, size: int = -1) -> Any:
        """Read at most ``size`` bytes, or all that is left."""
        self._check()
        data = self._read(size)
        return data if self._binary else data.decode(ext.encodings[self._conn.encoding])

    def write(self, data: str | bytes) -> int:
        """Write text or bytes; returns how many bytes that was."""
        self._check()
        if isinstance(data, str):
            data = data.encode(ext.encodings[self._conn.encoding])
        elif not isinstance(data, bytes):
            raise TypeError(f"lobject.write requires a string; got {type(data).__name__} instead")
        return self._write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position, which is returned."""
        self._check()
        return int(self._ask("SELECT lo_lseek64(%s, %s, %s)", self._fd, offset, whence))

    def tell(self) -> int:
        """The current position."""
        self._check()
        return int(self._ask("SELECT lo_tell64(%s)", self._fd))

    def truncate(self, len: int = 0) -> None:
        """Cut the object to ``len`` bytes."""
        self._check()
        self._ask("SELECT lo_truncate64(%s, %s)", self._fd, len)

    def close(self) -> None:
        """Close the object; the end of the transaction does so, too."""
        if self.closed or self._conn.autocommit or _pq.mark(self._conn) != self._mark:
            return
        fd, self._fd = self._fd, -1
        self._ask("SELECT lo_close(%s)", fd)

    def unlink(self) -> None:
        """Close the object and remove it from the database."""
        self.close()
        self._ask("SELECT lo_unlink(%s)", self._oid)

    def export(self, filename: str) -> None:
        """Write the whole object into a local file (file I/O holds the thread)."""
        self._check_transaction()
        fd = self._ask("SELECT lo_open(%s, %s)", self._oid, _INV_READ)
        with open(filename, "wb") as file:
            while piece := self._read_piece(fd, _PIECE):
                file.write(piece)
        self._ask("SELECT lo_close(%s)", fd)

    def _import(self, filename: str) -> None:
        try:
            with open(filename, "rb") as file:
                while piece := file.read(_PIECE):
                    self._write(piece)
        except OSError as exc:
            raise psycopg2.OperationalError(
                f'could not open file "{filename}": {exc.strerror}'
            ) from exc
        self._ask("SELECT lo_lseek64(%s, 0, 0)", self._fd)

    def _read(self, size: int) -> bytes:
        pieces = []
        while size != 0:
            wanted = _PIECE if size < 0 else min(size, _PIECE)
            piece = self._read_piece(self._fd, wanted)
            pieces.append(piece)
            size -= len(piece) if size > 0 else 0
            if len(piece) < wanted:
                break
        return b"".join(pieces)

    def _read_piece(self, fd: int, size: int) -> bytes:
        return bytes(self._ask("SELECT loread(%s, %s)", fd, size))

    def _write(self, data: bytes) -> int:
        view = memoryview(data)
        return sum(
            int(self._ask("SELECT lowrite(%s, %s)", self._fd, view[start : start + _PIECE]))
            for start in range(0, len(data), _PIECE)
        )

    def _ask(self, sql: str, *args: object) -> Any:
        """Run one function and return what it returns; its errors become OperationalError."""
        cursor = ext.cursor(self._conn)
        ext.register_type(psycopg2.BINARY, cursor)
        try:
            cursor.execute(sql, args)
        except psycopg2.InterfaceError:
            raise
        except psycopg2.DatabaseError as exc:
            if isinstance(exc, psycopg2.OperationalError):
                raise
            raise psycopg2.OperationalError(str(exc)) from exc
        row = cursor.fetchone()
        assert row is not None
        return row[0]

    def _check(self) -> None:
        if self.closed:
            raise psycopg2.InterfaceError("lobject already closed")
        self._check_transaction()
        if _pq.mark(self._conn) != self._mark:
            raise psycopg2.ProgrammingError("lobject isn't valid anymore")

    def _check_transaction(self) -> None:
        if self._conn.autocommit:
            raise psycopg2.ProgrammingError("can't use a lobject outside of transactions")


def _parse_mode(mode: str) -> tuple[bool, bool, bool]:
    """Of psycopg2's [r|w|rw|n][t|b]: whether it reads, writes, and is binary."""
    rest = mode
    access = next((a for a in ("rw", "r", "w", "n") if mode.startswith(a)), "")
    rest = mode[len(access) :]
    if rest not in ("", "t", "b"):
        raise ValueError(f"bad mode for lobject: '{mode}'")
    return access in ("", "r", "rw"), access in ("w", "rw"), rest == "b"


def _with_base(factory: type[ext.lobject]) -> type[ext.lobject]:
    """A user's subclass of psycopg2's lobject, with ours between the two.

    The user's class itself remembers it, weakly, so that neither outlives its last use.
    """
    bases = (factory, LargeObject)
    for made in factory.__subclasses__():
        if made.__bases__ == bases:
            return made
    return type(factory.__name__, bases, {"__module__": factory.__module__})


def lobject(
    self: ext.connection,
    oid: int = 0,
    mode: str | None = "",
    new_oid: int = 0,
    new_file: str | None = None,
    lobject_factory: Any = None,
) -> Any:
    """Open or create a large object, as psycopg2's method does; waits for the server."""
    if self.closed:
        raise psycopg2.InterfaceError("connection already closed")
    if self.async_:
        raise psycopg2.ProgrammingError("lobject cannot be used in asynchronous mode")
    if self.status == ext.STATUS_PREPARED:
        raise psycopg2.ProgrammingError(
            "lobject cannot be used with a prepared two-phase transaction"
        )
    factory: Any = LargeObject
    if lobject_factory not in (None, ext.lobject):
        factory = lobject_factory
        if isinstance(factory, type) and issubclass(factory, ext.lobject):
            factory = _with_base(lobject_factory)
    result = factory(self, oid, mode, new_oid, *(() if new_file is None else (new_file,)))
    if not isinstance(result, ext.lobject):
        raise TypeError("lobject factory must be subclass of psycopg2.extensions.lobject")
    return result
