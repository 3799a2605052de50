"""Types whose values are seldom many: networks, bits, geometry. Read and written here.

Importing it adds their codecs to those that every connection starts with.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from greenletio._pg import BUILTIN, Codec
from greenletio.pg._errors import InternalError

__all__ = (
    "BitString",
    "Box",
    "Circle",
    "Line",
    "LineSegment",
    "Path",
    "Point",
    "Polygon",
    "by_send_function",
    "from_text",
    "make",
)

# ---- networks ---------------------------------------------------------------------------------

_INET, _INET6 = 2, 3


def _read_inet(data: bytes) -> Any:
    family, bits, is_cidr, length = data[:4]
    if (family, length) not in ((_INET, 4), (_INET6, 16)) or len(data) != 4 + length:
        raise ValueError("a malformed network address")
    address = ipaddress.ip_address(data[4:])
    if is_cidr:
        return ipaddress.ip_network((address, bits))
    return address if bits == address.max_prefixlen else ipaddress.ip_interface((address, bits))


def _write_inet(value: Any, is_cidr: bool) -> bytes:
    if not isinstance(value, _ADDRESSES):
        value = ipaddress.ip_network(value) if is_cidr else ipaddress.ip_interface(value)
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        address, bits = value.network_address, value.prefixlen
    elif isinstance(value, ipaddress.IPv4Interface | ipaddress.IPv6Interface):
        address, bits = value.ip, value.network.prefixlen
    else:
        address, bits = value, value.max_prefixlen
    packed = address.packed
    family = _INET if len(packed) == 4 else _INET6
    return bytes((family, bits, is_cidr, len(packed))) + packed


_ADDRESSES = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


def _mac(length: int) -> tuple[Callable[[bytes], str], Callable[[str], bytes]]:
    def read(data: bytes) -> str:
        return data.hex(":")

    def write(value: str) -> bytes:
        data = bytes.fromhex("".join(c for c in value if c not in ":-."))
        if length == 8 and len(data) == 6:
            data = data[:3] + b"\xff\xfe" + data[3:]
        if len(data) != length:
            raise ValueError(f"a MAC address of {length} bytes is expected")
        return data

    return read, write


# ---- bits -------------------------------------------------------------------------------------


class BitString:
    """A value of the types bit and varbit: an immutable sequence of bits."""

    __slots__ = ("_bytes", "_length")

    def __init__(self, bitstring: str | bytes | None = None) -> None:
        if isinstance(bitstring, bytes):
            self._bytes, self._length = bitstring, len(bitstring) * 8
            return
        bits = "".join((bitstring or "").split())
        if bits.strip("01"):
            raise ValueError(f"a bit string consists of 0 and 1, not {bitstring!r}")
        self._length = len(bits)
        size = (len(bits) + 7) // 8
        self._bytes = int(bits.ljust(size * 8, "0") or "0", 2).to_bytes(size, "big")

    @classmethod
    def frombytes(cls, bytes_: bytes, bitlength: int | None = None) -> BitString:
        """From bytes, of which the first bits count."""
        made = cls(bytes_)
        if bitlength is not None:
            if not len(bytes_) * 8 - 8 < bitlength <= len(bytes_) * 8:
                raise ValueError("the bytes do not have that many bits")
            made._length = bitlength
            spare = len(bytes_) * 8 - bitlength
            if spare:
                made._bytes = bytes_[:-1] + bytes([bytes_[-1] >> spare << spare])
        return made

    @classmethod
    def from_int(
        cls, x: int, length: int, bitorder: str = "big", *, signed: bool = False
    ) -> BitString:
        """From an integer: the first bit is the highest, or with "little" the lowest.

        With `signed`, the highest is the sign, in two's complement.
        """
        if bitorder not in ("big", "little"):
            raise ValueError("bitorder must be either 'little' or 'big'")
        low, high = (-(1 << length >> 1), 1 << length >> 1) if signed else (0, 1 << length)
        if length < 0 or not low <= x < high:
            raise ValueError(f"{x} does not fit {length} bits")
        bits = format(x % (1 << length), f"0{length}b") if length else ""
        return cls(bits if bitorder == "big" else bits[::-1])

    def to_int(self, bitorder: str = "big", *, signed: bool = False) -> int:
        """The bits as an integer: as from_int() takes them."""
        if bitorder not in ("big", "little"):
            raise ValueError("bitorder must be either 'little' or 'big'")
        bits = "".join(map(str, self))[:: 1 if bitorder == "big" else -1]
        value = int(bits or "0", 2)
        return value - (1 << self._length) if signed and bits.startswith("1") else value

    @property
    def bytes(self) -> bytes:
        """The bits, filled up with zeros."""
        return self._bytes

    def as_string(self) -> str:
        """The bits as text, in groups of four."""
        bits = "".join(map(str, self))
        return " ".join(bits[at : at + 4] for at in range(0, len(bits), 4))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        at = index + self._length if index < 0 else index
        if not 0 <= at < self._length:
            raise IndexError("bit string index out of range")
        return self._bytes[at // 8] >> (7 - at % 8) & 1

    def __iter__(self) -> Iterator[int]:
        return (self[at] for at in range(self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BitString):
            return NotImplemented
        return (self._bytes, self._length) == (other._bytes, other._length)

    def __hash__(self) -> int:
        return hash((self._bytes, self._length))

    def __reduce__(self) -> Any:
        return BitString.frombytes, (self._bytes, self._length)

    def __repr__(self) -> str:
        return f"<BitString {self.as_string()}>"


def _read_bits(data: bytes) -> BitString:
    (length,) = struct.unpack_from("!i", data)
    return BitString.frombytes(data[4:], length) if length else BitString()


def _write_bits(value: BitString | str | bytes | bytearray | memoryview) -> bytes:
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    bits = value if isinstance(value, BitString) else BitString(value)
    return struct.pack("!i", len(bits)) + bits.bytes


# ---- geometry ---------------------------------------------------------------------------------


class Point(NamedTuple):
    """A point of the plane."""

    x: float
    y: float


class Line(NamedTuple):
    """An infinite line: a*x + b*y + c = 0."""

    a: float
    b: float
    c: float


class LineSegment(NamedTuple):
    """A line from one point to another."""

    p1: Point
    p2: Point


class Box(NamedTuple):
    """A rectangle, by its upper right and its lower left corner."""

    high: Point
    low: Point


class Circle(NamedTuple):
    """A circle."""

    center: Point
    radius: float


class Path:
    """Points that are joined by lines, closed or open."""

    __slots__ = ("is_closed", "points")

    def __init__(self, *points: Iterable[float], is_closed: bool = False) -> None:
        self.points = tuple(Point(*point) for point in points)
        self.is_closed = is_closed

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Point:
        return self.points[index]

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Path):
            return NotImplemented
        return (type(self), self.points, self.is_closed) == (
            type(other),
            other.points,
            other.is_closed,
        )

    def __hash__(self) -> int:
        return hash((self.points, self.is_closed))

    def __repr__(self) -> str:
        kind = "closed" if self.is_closed else "open"
        return f"<{type(self).__name__} {kind} {self.points}>"


class Polygon(Path):
    """The same, always closed, with what is inside."""

    __slots__ = ()

    def __init__(self, *points: Iterable[float]) -> None:
        super().__init__(*points, is_closed=True)


def _floats(data: bytes, count: int) -> tuple[float, ...]:
    return struct.unpack(f"!{count}d", data)


def _points(data: bytes) -> list[Point]:
    (count,) = struct.unpack_from("!i", data)
    if len(data) != 4 + 16 * count:
        raise ValueError("a malformed list of points")
    numbers = _floats(data[4:], 2 * count)
    return [Point(*numbers[at : at + 2]) for at in range(0, 2 * count, 2)]


def _write_points(points: Iterable[Iterable[float]]) -> bytes:
    flat = [number for x, y in points for number in (x, y)]
    return struct.pack(f"!i{len(flat)}d", len(flat) // 2, *flat)


def _corners(data: bytes) -> tuple[Point, Point]:
    x1, y1, x2, y2 = _floats(data, 4)
    return Point(x1, y1), Point(x2, y2)


def _write_corners(value: Iterable[Iterable[float]]) -> bytes:
    (x1, y1), (x2, y2) = value
    return struct.pack("!4d", x1, y1, x2, y2)


def _read_circle(data: bytes) -> Circle:
    x, y, radius = _floats(data, 3)
    return Circle(Point(x, y), radius)


def _write_circle(value: Any) -> bytes:
    (x, y), radius = value
    return struct.pack("!3d", x, y, radius)


def _write_path(value: Any) -> bytes:
    closed = value.is_closed if isinstance(value, Path) else isinstance(value, tuple)
    return bytes([closed]) + _write_points(value)


# ---- extensions ------------------------------------------------------------------


def _read_hstore(data: bytes) -> dict[str, str | None]:
    at = 4
    found: dict[str, str | None] = {}
    parts: list[str | None] = []
    for _ in range(2 * struct.unpack_from("!i", data)[0]):
        (length,) = struct.unpack_from("!i", data, at)
        at += 4
        if length < 0:
            parts.append(None)
            continue
        parts.append(data[at : at + length].decode())
        at += length
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        found[key or ""] = value
    return found


def _write_hstore(value: Any) -> bytes:
    pairs = list(value.items() if hasattr(value, "items") else value)
    out = [struct.pack("!i", len(pairs))]
    for key, item in pairs:
        if key is None:
            raise ValueError("null value not allowed in hstore key")
        for text in (key, item):
            if not isinstance(text, str | None):
                raise TypeError(f"an hstore has keys and values that are str, not {text!r}")
            if text is None:
                out.append(b"\xff\xff\xff\xff")
            else:
                octets = text.encode()
                out.append(struct.pack("!i", len(octets)) + octets)
    return b"".join(out)


def _read_vector(data: bytes) -> list[float]:
    (count,) = struct.unpack_from("!H", data)
    return list(struct.unpack_from(f"!{count}f", data, 4))


def _write_vector(value: Iterable[float]) -> bytes:
    numbers = list(value)
    return struct.pack(f"!HH{len(numbers)}f", len(numbers), 0, *numbers)


def _read_snapshot(data: bytes) -> tuple[int, int, tuple[int, ...]]:
    (count,) = struct.unpack_from("!i", data)
    low, high, *between = struct.unpack(f"!{count + 2}Q", data[4:])
    return low, high, tuple(between)


def _write_snapshot(value: Any) -> bytes:
    low, high, between = value
    return struct.pack(f"!i{len(between) + 2}Q", len(between), low, high, *between)


def _snapshot_text(text: str) -> tuple[int, int, tuple[int, ...]]:
    low, high, between = text.split(":")
    return int(low), int(high), tuple(map(int, filter(None, between.split(","))))


#: By the name of the function that sends a type of an extension: what reads and writes it.
by_send_function: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    "hstore_send": (_read_hstore, _write_hstore),
    "vector_send": (_read_vector, _write_vector),
}

_BYTES = BUILTIN[17]


def make(
    oid: int,
    name: str,
    read: Callable[[bytes], Any],
    write: Any,
    schema: str = "pg_catalog",
) -> Codec:
    """A codec whose values are read from and written as bytes by Python functions."""

    def checked(data: bytes) -> Any:
        try:
            return read(data)
        except (struct.error, IndexError, ValueError) as exc:
            raise InternalError(f"the server sent a malformed value of type {name}") from exc

    return Codec("wrapped", oid, name, _BYTES, decoder=checked, encoder=write, schema=schema)


#: By oid: what reads the server's text form of these types.
from_text: dict[int, Callable[[str], Any]] = {}


def _add(
    oid: int,
    array: int,
    name: str,
    read: Callable[[bytes], Any],
    write: Callable[[Any], bytes],
    read_text: Callable[[str], Any],
) -> None:
    codec = BUILTIN[oid] = make(oid, name, read, write)
    BUILTIN[array] = Codec("array", array, f"{name}[]", codec)
    from_text[oid] = read_text


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[^\[\](){}<>,\s]+", text)]


def _pairs(text: str) -> list[Point]:
    numbers = _numbers(text)
    return [Point(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]


def _inet_text(text: str) -> Any:
    address = ipaddress.ip_interface(text)
    return address if address.network.prefixlen < address.max_prefixlen else address.ip


def _circle_text(text: str) -> Circle:
    x, y, radius = _numbers(text)
    return Circle(Point(x, y), radius)


_TWO = struct.Struct("!2d")
_THREE = struct.Struct("!3d")

_add(
    600,
    1017,
    "point",
    lambda data: Point(*_floats(data, 2)),
    lambda value: _TWO.pack(*value),
    lambda text: Point(*_numbers(text)),
)
_add(
    601,
    1018,
    "lseg",
    lambda data: LineSegment(*_corners(data)),
    _write_corners,
    lambda text: LineSegment(*_pairs(text)),
)
_add(
    602,
    1019,
    "path",
    lambda data: Path(*_points(data[1:]), is_closed=data[0] != 0),
    _write_path,
    lambda text: Path(*_pairs(text), is_closed=text[0] == "("),
)
_add(
    603,
    1020,
    "box",
    lambda data: Box(*_corners(data)),
    _write_corners,
    lambda text: Box(*_pairs(text)),
)
_add(
    604,
    1027,
    "polygon",
    lambda data: Polygon(*_points(data)),
    _write_points,
    lambda text: Polygon(*_pairs(text)),
)
_add(
    628,
    629,
    "line",
    lambda data: Line(*_floats(data, 3)),
    lambda value: _THREE.pack(*value),
    lambda text: Line(*_numbers(text)),
)
_add(718, 719, "circle", _read_circle, _write_circle, _circle_text)
_add(650, 651, "cidr", _read_inet, lambda v: _write_inet(v, True), ipaddress.ip_network)
_add(869, 1041, "inet", _read_inet, lambda v: _write_inet(v, False), _inet_text)
_add(829, 1040, "macaddr", *_mac(6), str)
_add(774, 775, "macaddr8", *_mac(8), str)
_add(1560, 1561, "bit", _read_bits, _write_bits, BitString)
_add(1562, 1563, "varbit", _read_bits, _write_bits, BitString)
for _oid, _array, _name in ((2970, 2949, "txid_snapshot"), (5038, 5039, "pg_snapshot")):
    _add(_oid, _array, _name, _read_snapshot, _write_snapshot, _snapshot_text)

# They have no binary form, or none that says what they are: as text.
for _oid, _array, _name in (
    (24, 1008, "regproc"),
    (790, 791, "money"),
    (1033, 1034, "aclitem"),
    (2202, 2207, "regprocedure"),
    (2203, 2208, "regoper"),
    (2204, 2209, "regoperator"),
    (2205, 2210, "regclass"),
    (2206, 2211, "regtype"),
    (3614, 3643, "tsvector"),
    (3615, 3645, "tsquery"),
    (3734, 3735, "regconfig"),
    (3769, 3770, "regdictionary"),
    (4089, 4090, "regnamespace"),
    (4096, 4097, "regrole"),
    (4191, 4192, "regcollation"),
):
    BUILTIN[_oid] = Codec("foreign", _oid, _name)
    BUILTIN[_array] = Codec("array", _array, f"{_name}[]", BUILTIN[_oid])
