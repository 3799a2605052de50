"""Large objects for tasks: files in the database."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType
from typing import IO, Any, TypeVar

from greenletio.pg import _steps
from greenletio.pg._lobject import CHUNK, LargeObjectCore, busy, create, open_object, unlink
from greenletio.pg._steps import Steps
from greenletio.pg.aio._copy import Source, _chunks

__all__ = ("LargeObject", "LargeObjectMethods")

_T = TypeVar("_T")

Target = str | os.PathLike[str] | IO[bytes] | Callable[[bytes], Awaitable[Any]]


class LargeObject:
    """What ``await connection.lo_open()`` gives: a binary file whose methods are awaited.

    It reads ahead and writes behind, half a megabyte at a time: what was written is at the server
    after flush() or close(), and an error of it may be raised by a later call. It is open until its
    transaction ends; then ProgrammingError. ``async for`` gives its bytes in pieces. A call that is
    cancelled while it waits fails the transaction, as every query does.
    """

    def __init__(self, core: LargeObjectCore) -> None:
        self._core = core

    async def _do(self, steps: Steps[_T]) -> _T:
        core = self._core
        if core.busy:
            raise busy()
        core.busy = True
        try:
            return await _steps.wait(steps)
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

    async def read(self, size: int | None = -1, /) -> bytes:
        """That many bytes, fewer only at the end; all that is left if negative or None."""
        return await self._do(self._core.read(-1 if size is None else size))

    async def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer, as much as it takes; the number of bytes, 0 at the end."""
        with memoryview(buffer) as whole, whole.cast("B") as view:
            data = await self.read(len(view))
            view[: len(data)] = data
            return len(data)

    async def write(self, data: Any, /) -> int:
        """Write all of the bytes; their number."""
        return await self._do(self._core.write(data))

    async def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position (4 TB at most); gives it. It may be behind the end: what is written
        there has zeros before it."""
        return await self._do(self._core.seek(offset, whence))

    def tell(self) -> int:
        """The position."""
        self._core._check()
        return self._core.position

    async def truncate(self, size: int | None = None, /) -> int:
        """Make it that long, by zeros if it is shorter; None: up to the position. The size."""
        return await self._do(self._core.truncate(size))

    async def flush(self) -> None:
        """Wait until the server has what was written."""
        await self._do(self._core.flush())

    async def close(self) -> None:
        """Send what was written, and close it. ProgrammingError if that comes too late."""
        if not self._core.closed:
            await self._do(self._core.close())

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read(CHUNK)
        if not data:
            raise StopAsyncIteration
        return data

    async def __aenter__(self) -> LargeObject:
        return self

    async def __aexit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

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

    async def lo_create(self, oid: int = 0) -> int:
        """Make an empty large object; gives its oid: a new one, or the one that is named."""
        return await _steps.wait(create(self, oid))  # type: ignore[arg-type]

    async def lo_open(self, oid: int, mode: str = "rb") -> LargeObject:
        """Open a large object as a file: ``"rb"``, ``"r+b"``, ``"wb"`` or ``"w+b"`` (the last two
        empty it), in a transaction, with whose end it is closed.

        UndefinedObject if there is none with that oid; ProgrammingError outside a transaction.
        """
        return LargeObject(await _steps.wait(open_object(self, oid, mode)))  # type: ignore[arg-type]

    async def lo_unlink(self, oid: int) -> None:
        """Remove a large object. UndefinedObject if there is none with that oid."""
        await _steps.wait(unlink(self, oid))  # type: ignore[arg-type]

    async def lo_import(self, source: Source | Iterable[bytes], oid: int = 0) -> int:
        """Make a large object of a path, a file, bytes, or an iterable of bytes, asynchronous or
        not; gives its oid.

        Outside a transaction it is one by itself. Local files are read in blocking calls.
        """
        async with self._own_transaction():
            oid = await self.lo_create(oid)
            async with await self.lo_open(oid, "wb") as target:
                async for chunk in _chunks_of(source):
                    await target.write(chunk)
        return oid

    async def lo_export(self, oid: int, target: Target) -> int:
        """Write a large object to a path, a file, or a coroutine function; gives the number of
        bytes."""
        if isinstance(target, str | os.PathLike):
            with open(target, "wb") as file:
                return await self.lo_export(oid, file)
        write: Any = getattr(target, "write", target)
        async with self._own_transaction(), await self.lo_open(oid) as source:
            async for chunk in source:
                answer = write(chunk)
                if inspect.isawaitable(answer):
                    await answer
            return source.tell()

    def _own_transaction(self: Any) -> AbstractAsyncContextManager[Any]:
        return nullcontext() if self.is_in_transaction() else self.transaction()


async def _chunks_of(source: Any) -> AsyncIterator[Any]:
    plain = isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)
    if plain or hasattr(source, "read") or hasattr(source, "__aiter__"):
        async for chunk in _chunks(source):
            yield chunk
    else:
        for chunk in source:
            yield chunk
