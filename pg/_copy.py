"""Copy: what ``cursor.copy()`` gives, for rows in and out in the server's own forms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from greenletio import _pg
from greenletio.pg._quote import quoted
from greenletio.pg.errors import Error, InterfaceError, NotSupportedError

__all__ = ("CHUNK", "HEADER", "TRAILER", "Copy", "target")

CHUNK = 256 * 1024  # bytes that are sent at a time
#: Before and after the rows of a COPY in binary.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

_ESCAPES = str.maketrans(
    {"\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r"}
)
_UNESCAPES = {escaped: chr(code) for code, escaped in _ESCAPES.items()}
_ESCAPED = re.compile(r"\\.")


def target(name: str, schema: str | None, columns: Sequence[str] | None) -> str:
    """A table, and of which columns: as COPY has it."""
    table = quoted(name) if schema is None else f"{quoted(schema)}.{quoted(name)}"
    return table if columns is None else f"{table} ({', '.join(map(quoted, columns))})"


class Copy:
    """A COPY under way: write() to it, or read() from it, inside its ``with`` block.

    Leaving the block ends the COPY; after an exception what was written is undone. Each call waits
    as the connection's do.
    """

    def __init__(self, raw: _pg.Connection, sql: str) -> None:
        self._raw = raw
        self._session = raw._op("copy", "status", sql)
        taken = self._session.run()
        if not isinstance(taken, bool):
            raise InterfaceError("copy() takes a COPY … FROM STDIN or TO STDOUT")
        self._is_in = taken
        #: The server's answer, once it is over.
        self.status: str | None = None

    def _run(self, kind: str, data: Any = None) -> Any:
        return self._raw._op(kind, "nothing", "", data, session=self._session).run()

    def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Send some of the data; it need not be whole rows. Waits while the server is behind."""
        self._run("copy_write", data.encode() if isinstance(data, str) else data)

    def write_row(self, values: Sequence[Any]) -> None:
        """Send a row of a COPY in the text format; each value as ``str`` has it, None as NULL."""
        cells = ("\\N" if v is None else _cell(v).translate(_ESCAPES) for v in values)
        self.write("\t".join(cells) + "\n")

    def read(self) -> bytes:
        """Whole rows, as many as there are; b"" at the end."""
        if self.status is not None:
            return b""
        rows: bytes | str = self._run("copy_read")
        if isinstance(rows, str):
            self.status = rows
            return b""
        return rows

    def __iter__(self) -> Iterator[bytes]:
        while rows := self.read():
            yield rows

    def rows(self) -> Iterator[tuple[str | None, ...]]:
        """The rows of a COPY in the text format, each a tuple of str, or None for NULL."""
        for block in self:
            if block.startswith(HEADER[:11]):
                raise NotSupportedError("rows() reads the text format: leave FORMAT binary out")
            for line in block.decode().split("\n")[:-1]:
                yield tuple(_value(cell) for cell in line.split("\t"))

    def __enter__(self) -> Copy:
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self.status is not None:
            return
        if not self._is_in:
            self._session.close()  # nobody wants the rest
        elif exc is None:
            self.status = self._run("copy_end")
        else:
            try:
                self._run("copy_end", str(exc) or repr(exc))
            except Error:
                pass  # that is what was asked for


def _value(cell: str) -> str | None:
    if "\\" not in cell:
        return cell
    return None if cell == "\\N" else _ESCAPED.sub(lambda found: _UNESCAPES[found[0]], cell)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, (bytes, bytearray)):
        return "\\x" + value.hex()
    return str(value)
