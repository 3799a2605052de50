"""ArrowTable: the whole result of a query as Arrow columns; and NumPy's arrays of such columns."""

from __future__ import annotations

import decimal
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from greenletio import _pg
from greenletio._pg import ArrowBatch, ArrowSource
from greenletio.pg.errors import DataError

if TYPE_CHECKING:
    import numpy as np

__all__ = (
    "BATCH_ROWS",
    "ArrowBatch",
    "ArrowLike",
    "ArrowTable",
    "Numeric",
    "source_of",
    "to_numpy",
)

#: What becomes of ``numeric``. "decimal": a decimal where the column declares its precision, up to
#: 38 digits, else text. "float64" rounds.
Numeric = Literal["decimal", "text", "float64"]

BATCH_ROWS = 65536


class ArrowTable:
    """The rows of a query as Arrow columns, in one or more batches.

    It speaks Arrow's PyCapsule protocol: ``pyarrow.table(t)``, ``polars.DataFrame(t)``,
    ``duckdb.from_arrow(t)`` and the like take it, without a copy. None of these is needed here.
    """

    __slots__ = ("batches",)

    def __init__(self, batches: Sequence[ArrowBatch]) -> None:
        #: At least one, which may be empty.
        self.batches = tuple(batches)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Arrow's PyCapsule protocol: all rows."""
        return _pg.arrow_stream(self.batches)

    def __arrow_c_schema__(self) -> object:
        """Arrow's PyCapsule protocol: what columns there are."""
        return self.batches[0].__arrow_c_schema__()

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return sum(len(batch) for batch in self.batches)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns' names."""
        return self.batches[0].column_names

    @property
    def nbytes(self) -> int:
        """The bytes that they take."""
        return sum(batch.nbytes for batch in self.batches)

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"<ArrowTable of {self.num_rows} rows: {', '.join(self.column_names)}>"


class ArrowStreamable(Protocol):
    """Rows of Arrow columns, by Arrow's PyCapsule protocol."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> object: ...


class ArrowArrayLike(Protocol):
    """A record batch, by the same protocol."""

    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[object, object]: ...


ArrowLike = ArrowStreamable | ArrowArrayLike


def source_of(data: ArrowLike) -> ArrowSource:
    """The columns of something that speaks Arrow's PyCapsule protocol."""
    if hasattr(data, "__arrow_c_stream__"):
        return ArrowSource(data.__arrow_c_stream__())
    if hasattr(data, "__arrow_c_array__"):
        return ArrowSource(data.__arrow_c_array__())
    raise TypeError(
        "the source is expected to have Arrow columns (a table of pyarrow, a data frame of Polars "
        f"or pandas …), not to be a {type(data).__name__}"
    )


def to_numpy(batches: Sequence[ArrowBatch]) -> dict[str, np.ndarray[Any, Any]]:
    """NumPy's arrays of the columns, by name.

    Numbers and booleans keep their types; with NULL in them they are masked arrays. Dates and
    timestamps are ``datetime64`` (those with a time zone in UTC), times and intervals
    ``timedelta64``, with NaT for NULL. Everything else is an array of Python objects, with None.
    Of several columns with one name the last is found, as in a Record.
    """
    import numpy as np

    columns = zip(*(batch._parts() for batch in batches), strict=True)
    arrays = {}
    for parts in columns:
        pieces = [_array(part) for part in parts]
        join = np.ma.concatenate if any(part[4] for part in parts) else np.concatenate
        arrays[parts[0][0]] = pieces[0] if len(pieces) == 1 else _join(join, pieces)
    return arrays


def _join(join: Any, pieces: list[Any]) -> Any:
    import numpy as np

    if not any(isinstance(piece, np.ma.MaskedArray) for piece in pieces):
        join = np.concatenate
    return join(pieces)


_NUMBERS = {"s": "i2", "i": "i4", "l": "i8", "I": "u4", "L": "u8", "f": "f4", "g": "f8"}
_TIMES = {"tdD": ("i4", "datetime64[D]"), "ttu": ("i8", "timedelta64[us]")}


def _array(part: Any) -> Any:
    """One column of one batch."""
    import numpy as np

    _name, format, _type, rows, nulls, validity, ends, data, children = part
    valid = None
    if nulls:
        valid = np.unpackbits(np.frombuffer(validity, "u1"), count=rows, bitorder="little") != 0
    if format in _NUMBERS or format == "b":
        if format == "b":
            bits = np.frombuffer(data, "u1")
            values = np.unpackbits(bits, count=rows, bitorder="little") != 0
        else:
            values = np.frombuffer(data, _NUMBERS[format])
        return values if valid is None else np.ma.MaskedArray(values, ~valid)
    if format in _TIMES or format.startswith("tsu"):
        stored, kind = _TIMES.get(format, ("i8", "datetime64[us]"))
        times = np.frombuffer(data, stored).astype(kind)
        if valid is not None:
            times[~valid] = np.timedelta64("NaT") if kind[0] == "t" else np.datetime64("NaT")
        return times
    if format == "tin":
        return _durations(part, valid)
    objects = np.empty(rows, object)
    for i, value in enumerate(_objects(format, rows, ends, data, children)):
        objects[i] = value if valid is None or valid[i] else None
    return objects


def _durations(part: Any, valid: Any) -> Any:
    import numpy as np

    fields = np.frombuffer(part[7], [("months", "i4"), ("days", "i4"), ("ns", "i8")])
    if fields["months"].any():
        raise DataError(
            f"column {part[0]}: an interval of months has no length of its own, which NumPy would "
            "need: select extract(epoch from …)"
        )
    durations = fields["days"].astype("timedelta64[D]").astype("timedelta64[us]")
    durations += (fields["ns"] // 1000).astype("timedelta64[us]")
    if valid is not None:
        durations[~valid] = np.timedelta64("NaT")
    return durations


def _objects(format: str, rows: int, ends: Any, data: Any, children: Any) -> Any:
    """The values that NumPy has no type of; where there is NULL, whatever."""
    if format == "+s":
        names = [child[0] for child in children]
        columns = [_array(child).tolist() for child in children]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if format.startswith("d:"):
        scale = int(format.partition(",")[2])
        exact = decimal.Context(prec=60)
        raw = bytes(data)
        return [
            decimal.Decimal(int.from_bytes(raw[at : at + 16], "little", signed=True)).scaleb(
                -scale, exact
            )
            for at in range(0, 16 * rows, 16)
        ]
    if format == "w:16":
        raw = bytes(data)
        return [uuid.UUID(bytes=raw[at : at + 16]) for at in range(0, 16 * rows, 16)]
    stops = memoryview(ends).cast("i")
    spans = [(stops[i], stops[i + 1]) for i in range(rows)]
    if format == "+l":
        items = _array(children[0])
        return [items[start:end] for start, end in spans]
    view = memoryview(data)
    if format == "z":
        return [bytes(view[start:end]) for start, end in spans]
    return [str(view[start:end], "utf-8") for start, end in spans]
