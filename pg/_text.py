"""Values in the server's text form: for results with a column whose type we know no binary form of.

libpq asks for a whole result either as binary or as text, so then all its columns come as text.
"""

from __future__ import annotations

import datetime
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar, cast
from uuid import UUID

from greenletio._pg import Codec
from greenletio.pg._errors import InternalError
from greenletio.pg._values import from_text
from greenletio.pg.errors import DataError

__all__ = ("decode", "read_array", "write_array")

_T = TypeVar("_T")

BYTEA = 17


def decode(codec: Codec, data: bytes | str) -> Any:
    """A value of the codec's type; of a type that is not known here, the text itself."""
    text = data if isinstance(data, str) else data.decode()
    return _decode(codec, text)


def _decode(codec: Codec, text: str) -> Any:
    form, element = codec.form, codec.element
    if form in ("text", "foreign"):
        return text
    if form == "range" and codec.decoder is not None:
        return _range(codec, text)
    if form == "multirange" and element is not None:
        return [_range(element, found[0]) for found in _RANGE.finditer(text)]
    if form == "wrapped" and element is not None and element.oid != BYTEA:
        value = _decode(element, text)
        return value if codec.decoder is None else codec.decoder(value)
    read = _READERS.get(codec.oid) or from_text.get(codec.oid)
    if read is not None:
        try:
            return read(text)
        except (ArithmeticError, LookupError, TypeError, ValueError) as exc:
            raise InternalError(
                f"the server sent a malformed value of type {codec.name}: {text[:60]!r}"
            ) from exc
    if element is not None and codec.name.endswith("[]"):
        return read_array(element, text)
    return text


_BOUND = r'((?:"(?:[^"\\]|\\.|"")*"|[^",\[\](){}\\]|\\.)*)'
_RANGE = re.compile(rf"empty|([\[(]){_BOUND},{_BOUND}([\])])", re.DOTALL)


def _range(codec: Codec, text: str) -> Any:
    found = _RANGE.fullmatch(text)
    element, make = codec.element, cast(Any, codec.decoder)
    if found is None or element is None:
        raise InternalError(f"the server sent a malformed range: {text[:60]!r}")
    if found[1] is None:
        return make(None, None, False, False, True)
    lower, upper = (
        _decode(element, re.sub(r'\\(.)|""|"', _unquoted, bound, flags=re.DOTALL))
        if bound
        else None
        for bound in found.group(2, 3)
    )
    return make(lower, upper, found[1] == "[", found[4] == "]")


def _unquoted(found: re.Match[str]) -> str:
    return found[1] or ('"' if found[0] == '""' else "")


def _bytes(text: str) -> bytes:
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    octets = re.sub(r"\\(\\|[0-7]{3})", _octet, text)
    return octets.encode("latin-1")


def _octet(found: re.Match[str]) -> str:
    return "\\" if found[1] == "\\" else chr(int(found[1], 8))


_MOMENT = re.compile(
    r"(?:(\d{4,})-(\d\d)-(\d\d))?[ T]?(?:(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
    r"(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?"
)


def _moment(text: str) -> tuple[list[int], list[int], datetime.timezone | None]:
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise DataError(f"{text!r} is outside of Python's dates, or not in the ISO style")
    date = [int(part) for part in found.group(1, 2, 3) if part is not None]
    time = [int(part) for part in found.group(4, 5, 6) if part is not None]
    time.append(int((found[7] or "").ljust(6, "0")))
    zone = None
    if found[8]:
        hours, minutes, seconds = (int(part or 0) for part in found.group(9, 10, 11))
        offset = datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds)
        zone = datetime.timezone(-offset if found[8] == "-" else offset)
    return date, time, zone


def _date(text: str) -> datetime.date:
    if text in ("infinity", "-infinity"):
        return datetime.date.max if text == "infinity" else datetime.date.min
    return _checked(datetime.date, *_moment(text)[0])


def _time(text: str) -> datetime.time:
    _, (hour, minute, second, micro), zone = _moment(text)
    return datetime.time(hour % 24, minute, second, micro, zone)


def _timestamp(text: str) -> datetime.datetime:
    if text in ("infinity", "-infinity"):
        return datetime.datetime.max if text == "infinity" else datetime.datetime.min
    date, time, _ = _moment(text)
    return _checked(datetime.datetime, *date, *time)


def _timestamptz(text: str) -> datetime.datetime:
    if text in ("infinity", "-infinity"):
        return _timestamp(text).replace(tzinfo=datetime.timezone.utc)
    date, time, zone = _moment(text)
    moment = _checked(datetime.datetime, *date, *time, tzinfo=zone)
    return moment.astimezone(datetime.timezone.utc)


def _checked(make: Callable[..., _T], *args: int, **kwargs: Any) -> _T:
    try:
        return make(*args, **kwargs)
    except (ValueError, OverflowError) as exc:
        raise DataError(f"outside the years 1 to 9999 of Python's dates: {args}") from exc


_INTERVAL = re.compile(
    r"(?:([+-]?\d+) years? ?)?(?:([+-]?\d+) mons? ?)?(?:([+-]?\d+) days? ?)?"
    r"(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
)


def _interval(text: str) -> datetime.timedelta:
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise DataError(f"the interval {text!r} is not in the server's own style")
    years, months, days = (int(part or 0) for part in found.group(1, 2, 3))
    hours, minutes, seconds = (int(part or 0) for part in found.group(5, 6, 7))
    micro = int((found[8] or "").ljust(6, "0"))
    try:
        clock = datetime.timedelta(
            hours=hours, minutes=minutes, seconds=seconds, microseconds=micro
        )
        whole = datetime.timedelta(days=years * 365 + months * 30 + days)
        return whole + (-clock if found[4] == "-" else clock)
    except OverflowError as exc:
        raise DataError(f"the interval {text!r} is outside of Python's timedelta") from exc


def _float4(text: str) -> float:
    value: float = struct.unpack("f", struct.pack("f", float(text)))[0]
    return value


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def _tid(text: str) -> tuple[int, int]:
    block, _, offset = text.strip("()").partition(",")
    return int(block), int(offset)


_READERS: dict[int, Callable[[str], Any]] = {
    16: lambda text: text == "t",
    17: _bytes,
    18: str.encode,
    20: int,
    21: int,
    23: int,
    26: int,
    27: _tid,
    28: int,
    29: int,
    700: _float4,
    701: float,
    1082: _date,
    1083: _time,
    1114: _timestamp,
    1184: _timestamptz,
    1186: _interval,
    1266: _time,
    1700: Decimal,
    2278: lambda text: None,
    2950: UUID,
    3220: _lsn,
    5069: int,
}

_ITEM = re.compile(r'[{}]|"(?:[^"\\]|\\.)*"|[^{},"]+', re.DOTALL)


def read_array(element: Codec, text: str) -> list[Any]:
    """An array in its text form."""
    try:
        return _array(element, text)
    except IndexError:
        raise InternalError(f"the server sent a malformed array: {text[:60]!r}") from None


def _array(element: Codec, text: str) -> list[Any]:
    if text.startswith("["):  # its bounds
        text = text.partition("=")[2]
    top: list[Any] = []
    levels = [top]
    for item in _ITEM.findall(text):
        if item == "{":
            levels.append([])
        elif item == "}":
            done = levels.pop()
            levels[-1].append(done)
        elif item == "NULL":
            levels[-1].append(None)
        else:
            if item.startswith('"'):
                item = re.sub(r"\\(.)", r"\1", item[1:-1], flags=re.DOTALL)
            levels[-1].append(_decode(element, item))
    result: list[Any] = top[0]
    return result


def write_array(element: Codec, items: list[Any] | tuple[Any, ...]) -> str:
    """The text form of an array whose elements travel as text."""
    parts = []
    for item in items:
        if item is None:
            parts.append("NULL")
        elif isinstance(item, list):
            parts.append(write_array(element, item))
        else:
            text = element.encode(item).decode()
            parts.append('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return "{" + ",".join(parts) + "}"
