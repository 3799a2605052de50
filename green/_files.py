"""Files on pipes, sockets and terminals whose reads and writes suspend the greenlet."""

from __future__ import annotations

import builtins
import io
import os as _os
import stat
import warnings
from typing import Any

from greenletio import _core
from greenletio.green import os

__all__ = ("FileIO", "open")


class FileIO(io.FileIO):
    """``io.FileIO`` of a descriptor that may have to be waited for."""

    def _wait(self, events: int) -> None:
        os._ready(self.fileno(), events)

    def readinto(self, buffer: Any, /) -> Any:
        self._wait(_core.READ)
        return super().readinto(buffer)

    def read(self, size: int | None = -1, /) -> Any:
        if size is None or size < 0:
            return self.readall()
        self._wait(_core.READ)
        return super().read(size)

    def readall(self) -> Any:
        parts = []
        while part := self.read(65536):
            parts.append(part)
        return b"".join(parts) if parts or part is not None else None

    def write(self, data: Any, /) -> Any:
        if not self.writable():
            return super().write(data)  # which refuses
        try:
            return os.write(self.fileno(), data)
        except BlockingIOError:
            return None

    def close(self) -> None:
        if not self.closed and self.closefd:
            _core.fd_closing(self.fileno())
        super().close()


def _may_block(file: Any) -> bool:
    try:
        mode = _os.fstat(file).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


def open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """``io.open``; of a descriptor that may have to be waited for, a file that suspends."""
    plain = set(mode) & set("rwa+")
    if not isinstance(file, int) or "+" in mode or len(plain) != 1 or not _may_block(file):
        return builtins.open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    binary = "b" in mode
    if (
        binary
        and (encoding, errors, newline) != (None, None, None)
        or (buffering == 0 and not binary)
    ):
        return builtins.open(
            file, mode, buffering, encoding, errors, newline, closefd, opener
        )  # refuses
    if binary and buffering == 1:
        warnings.warn(
            "line buffering (buffering=1) isn't supported in binary mode, the default buffer size "
            "will be used",
            RuntimeWarning,
            stacklevel=2,
        )
    raw = FileIO(file, plain.pop(), closefd, opener)
    if buffering == 0:
        return raw
    line = buffering == 1 and not binary or buffering < 0 and raw.isatty()
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    buffer = io.BufferedReader(raw, size) if raw.readable() else io.BufferedWriter(raw, size)
    if binary:
        return buffer
    text = io.TextIOWrapper(buffer, encoding, errors, newline, line)
    text.mode = mode  # type: ignore[misc]
    return text
