"""Large objects for sync code: files in the database."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING, Any, TypeVar

from greenletio.pg import _steps
from greenletio.pg._lobject import CHUNK, IDLE, LargeObjectCore, busy, create, open_object, unlink
from greenletio.pg._steps import Steps
from greenletio.pg.errors import NotSupportedError

if TYPE_CHECKING:
    from greenletio.pg._connection import Connection

__all__ = ("LargeObject", "LargeObjectMethods")

_T = TypeVar("_T")

Source = str | os.PathLike[str] | IO[bytes] | Iterable[bytes]
Target = str | os.PathLike[str] | IO[bytes] | Callable[[bytes], Any]


class LargeObject(io.RawIOBase):
    """What ``connection.lo_open()`` gives: a binary file, by the conventions of Python's.

    It reads ahead and writes behind, half a megabyte at a time: what was written is at the server
    after flush() or close(), and an error of it may be raised by a later call. It is open until its
    transaction ends; then ProgrammingError. For lines, wrap it in an io.BufferedReader. Calls wait
    as those of the connection do.
    """

    def __init__(self, connection: Connection[Any], core: LargeObjectCore) -> None:
        self._connection = connection
        self._core = core

    def _do(self, steps: Steps[_T]) -> _T:
        core = self._core
        if core.busy:
            raise busy()
        core.busy = True
        try:
            return self._connection._run_steps(steps, begin=False)
        finally:
            core.busy = False

    @property
    def oid(self) -> int:
        """Its number in the database."""
        return self._core.oid

    @property
    def mode(self) -> str:
        """As it was opened."""
        return self._core.mode

    @property
    def closed(self) -> bool:
        return self._core.closed

    def readable(self) -> bool:
        return self._core.reads

    def writable(self) -> bool:
        return self._core.writes

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """That many bytes, fewer only at the end; all that is left if negative or None."""
        return self._do(self._core.read(-1 if size is None else size))

    def readall(self) -> bytes:
        """All that is left."""
        return self.read(-1)

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer, as much as it takes; the number of bytes, 0 at the end."""
        with memoryview(buffer) as whole, whole.cast("B") as view:
            data = self.read(len(view))
            view[: len(data)] = data
            return len(data)

    def write(self, data: Any, /) -> int:
        """Write all of the bytes; their number."""
        return self._do(self._core.write(data))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position (4 TB at most); gives it. It may be behind the end: what is written
        there has zeros before it."""
        return self._do(self._core.seek(offset, whence))

    def tell(self) -> int:
        """The position."""
        self._core._check()
        return self._core.position

    def truncate(self, size: int | None = None, /) -> int:
        """Make it that long, by zeros if it is shorter; None: up to the position. The size."""
        return self._do(self._core.truncate(size))

    def flush(self) -> None:
        """Wait until the server has what was written."""
        if not self._core.closed:
            self._do(self._core.flush())

    def close(self) -> None:
        """Send what was written, and close it. ProgrammingError if that comes too late."""
        if not self._core.closed:
            self._do(self._core.close())

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None and not core.closed and (core._out or core._pending):
            warnings.warn(
                f"what was written to large object {core.oid} may be lost: close() it",
                ResourceWarning,
                2,
                source=self,
            )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"open as {self.mode!r}"
        return f"<{type(self).__module__}.{type(self).__name__} {self.oid}, {state}>"


class LargeObjectMethods:
    """A connection's methods for large objects."""

    def _run_steps(self: Any, steps: Steps[_T], begin: bool = True) -> _T:
        if self._pipeline is not None:
            raise NotSupportedError("large objects cannot be part of a pipeline: use them outside")
        with self._turn():
            if begin:
                self._begin()
            return _steps.run(steps)

    def lo_create(self, oid: int = 0) -> int:
        """Make an empty large object; gives its oid: a new one, or the one that is named."""
        made: int = self._run_steps(create(self._raw, oid))  # type: ignore[attr-defined]
        return made

    def lo_open(self: Any, oid: int, mode: str = "rb") -> LargeObject:
        """Open a large object as a file: ``"rb"``, ``"r+b"``, ``"wb"`` or ``"w+b"`` (the last two
        empty it), in a transaction, with whose end it is closed.

        UndefinedObject if there is none with that oid; ProgrammingError outside a transaction.
        """
        core: LargeObjectCore = self._run_steps(open_object(self._raw, oid, mode))
        return LargeObject(self, core)

    def lo_unlink(self, oid: int) -> None:
        """Remove a large object. UndefinedObject if there is none with that oid."""
        self._run_steps(unlink(self._raw, oid))  # type: ignore[attr-defined]

    def lo_import(self, source: Source, oid: int = 0) -> int:
        """Make a large object of a path, a file, or an iterable of bytes; gives its oid.

        Outside a transaction it is one by itself. Local files are read in blocking calls.
        """
        with self._own_transaction():
            oid = self.lo_create(oid)
            with self.lo_open(oid, "wb") as target:
                for chunk in _chunks(source):
                    target.write(chunk)
        return oid

    def lo_export(self, oid: int, target: Target) -> int:
        """Write a large object to a path, a file, or a function; gives the number of bytes."""
        if isinstance(target, str | os.PathLike):
            with open(target, "wb") as file:
                return self.lo_export(oid, file)
        write: Any = getattr(target, "write", target)
        with self._own_transaction(), self.lo_open(oid) as source:
            while chunk := source.read(CHUNK):
                write(chunk)
            return source.tell()

    def _own_transaction(self: Any) -> AbstractContextManager[Any]:
        open_already = self._raw._transaction_status != IDLE or not self.autocommit
        return nullcontext() if open_already else self.transaction()


def _chunks(source: Source) -> Iterator[Any]:
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            yield from _chunks(file)
    elif hasattr(source, "read"):
        while chunk := source.read(CHUNK):
            yield chunk
    elif isinstance(source, bytes | bytearray | memoryview):
        yield source
    else:
        yield from source
