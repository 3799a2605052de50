"""Malformed bytes for every decoder: `make fuzz` for minutes under AddressSanitizer, test_fuzz.py
for a moment.

It begins with what the server sends for real values of each type, and changes that. The bytes end
where the memory ends, so that one read too many is a crash in any build. A decoder may raise what
a user is told of (greenletio.pg's errors, ValueError); anything else is a finding, and so is a
crash: the bytes are in the file that --case names.
"""

import argparse
import ctypes
import faulthandler
import mmap
import os
import random
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from greenletio import _pg, pg
from greenletio._embedded import EmbeddedServer
from greenletio.pg import errors

#: Real values, by type, as text.
SAMPLES = {
    "bit": ["101", "11110000111100001"],
    "bool": ["t", "f"],
    "box": ["(1,2),(3,4)"],
    "bpchar": ["x", "abc  "],
    "bytea": ["", "\\x00ff10"],
    "char": ["a"],
    "cid": ["7"],
    "cidr": ["10.0.0.0/8", "2001:db8::/32"],
    "circle": ["<(1,2),3>"],
    "date": ["2024-02-29", "infinity", "-infinity", "0001-01-01", "5874897-12-31"],
    "float4": ["1.5", "NaN", "-Infinity"],
    "float8": ["1.5", "NaN", "Infinity", "-1e300"],
    "inet": ["10.1.2.3", "10.1.2.3/24", "::1", "2001:db8::1/64"],
    "int2": ["0", "-32768"],
    "int4": ["1", "-2147483648"],
    "int8": ["1", "-9223372036854775808"],
    "interval": ["1 year 2 mons 3 days 04:05:06.7", "-178000000 years"],
    "json": ['{"a": [1, null]}'],
    "jsonb": ['{"a": [1, null]}'],
    "jsonpath": ["$.a[*] ? (@ > 1)"],
    "line": ["{1,2,3}"],
    "lseg": ["[(1,2),(3,4)]"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "name": ["pg_class"],
    "numeric": ["0", "-12345.6789", "1e100", "NaN", "Infinity", "0.00000000000000000001"],
    "oid": ["4294967295"],
    "path": ["((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"],
    "pg_lsn": ["16/B374D848"],
    "pg_snapshot": ["10:20:10,14,15"],
    "point": ["(1,2)"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "text": ["", "some text", "ünïcödé"],
    "tid": ["(5,6)"],
    "time": ["00:00:00", "24:00:00", "12:34:56.789"],
    "timestamp": ["2024-02-29 12:34:56.789", "infinity", "294276-12-31 23:59:59"],
    "timestamptz": ["2024-02-29 12:34:56.789+02", "-infinity", "4713-01-01 BC"],
    "timetz": ["12:34:56+05:30", "24:00:00-15:59"],
    "txid_snapshot": ["10:20:10,14,15"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "varbit": ["", "1", "101010101"],
    "varchar": ["x"],
    "xid": ["7"],
    "xid8": ["18446744073709551615"],
    # made of others
    "int4range": ["[1,5)", "empty", "(,)", "(,5]"],
    "tstzrange": ["[2024-01-01,2025-01-01)"],
    "nummultirange": ["{[1,2),[3,4]}", "{}"],
    "fuzz_enum": ["one"],
    "fuzz_row": ['(1,two,"{3,NULL}","[1,2)")', "(,,,)"],
    "fuzz_rows": ['("(1,two,{3},empty)","{""(,,,)""}",{{1}})'],
    "fuzz_domain": ["{1,2}"],
}
SCHEMA = """
    CREATE TYPE pg_temp.fuzz_enum AS ENUM ('one', 'two');
    CREATE TYPE pg_temp.fuzz_row AS (a int, b text, c int[], d int4range);
    CREATE TYPE pg_temp.fuzz_rows AS (e fuzz_row, f fuzz_row[], g numeric[]);
    CREATE DOMAIN pg_temp.fuzz_domain AS int[];
"""
ROWS = ["ROW(1, 'x'::text, NULL, ARRAY[1.5])", "ROW(ROW(ROW(2)))"]
ARRAYS = ["ARRAY[{0}, NULL, {0}]", "ARRAY[[{0}], [NULL]]", "'{{}}'"]
NUMBERS = (0, 1, 2, -1, -2, 4, 7, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, -(2**31))

SIZE = 1 << 16


class Corpus:
    """Each codec with bytes that the server has sent for it."""

    def __init__(self, dsn: str) -> None:
        self.codecs: list[_pg.Codec] = []
        self.seeds: dict[int, list[bytes]] = {}
        with pg.connect(dsn, autocommit=True) as self._c:
            self._c.execute("SET search_path = pg_temp, pg_catalog, public")
            for statement in filter(str.strip, SCHEMA.split(";")):
                self._c.execute(statement)
            for name, texts in SAMPLES.items():
                quoted = f'"{name}"'
                values = [self._literal(text, quoted) for text in texts]
                self._add(quoted, values)
                self._add(f"{quoted}[]", [a.format(v) for a in ARRAYS for v in values])
            self._add("record", ROWS)

    @staticmethod
    def _literal(text: str, type_: str) -> str:
        return "'" + text.replace("'", "''") + f"'::{type_}"

    def _add(self, type_: str, values: list[str]) -> None:
        select = "SELECT " + ", ".join(
            value if type_ == "record" else f"({value})::{type_}" for value in values[:1]
        )
        [codec] = self._c.raw._op("prepare", "statement", select).run().columns
        if codec.is_text:
            return
        send = self._c.execute(
            "SELECT typsend::text FROM pg_type WHERE oid = $1", [codec.oid]
        ).fetchone()
        assert send is not None
        found = self.seeds.setdefault(codec.oid, [])
        for value in values:
            cast = value if type_ == "record" else f"({value})::{type_}"
            row = self._c.execute(f"SELECT {send[0]}({cast})").fetchone()
            assert row is not None
            with suppress(errors.DataError):  # a real value, if not within Python's years
                codec.decode(row[0])
            found.append(row[0])
        self.codecs.append(codec)


class Memory:
    """Bytes after which there is nothing."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, SIZE + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(address + SIZE), mmap.PAGESIZE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        self._view = memoryview(self._map)

    def put(self, data: bytes) -> memoryview:
        place = self._view[SIZE - len(data) : SIZE]
        place[:] = data
        return place


def changed(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """The data with a few changes."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(out) + 1)
        what = chance.randrange(8)
        if what == 0:
            del out[at:]
        elif what == 1:
            out[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif what == 2 and out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        elif what == 3 and out:
            out[at % len(out)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif what in (4, 5):
            at -= at % (2, 4)[what - 4]
            kind = "!H" if what == 4 else "!I"
            number = chance.choice((*NUMBERS, len(out)))
            out[at : at + struct.calcsize(kind)] = struct.pack(
                kind, number % (1 << 8 * struct.calcsize(kind))
            )
        elif what == 6:
            del out[at : at + chance.randrange(1, 9)]
        else:
            other = chance.choice(others)
            out[at:] = other[chance.randrange(len(other) + 1) :]
    return bytes(out[:SIZE])


def cases(corpus: Corpus, chance: random.Random) -> Iterator[tuple[_pg.Codec, bytes]]:
    """Without end: what was read without an error is changed further."""
    while True:
        codec = chance.choice(corpus.codecs)
        seeds = corpus.seeds[codec.oid]
        data = changed(chance.choice(seeds), seeds, chance)
        if (yield codec, data):
            if len(seeds) < 200:
                seeds.append(data)
            else:
                seeds[chance.randrange(20, 200)] = data


def run(corpus: Corpus, seconds: float, seed: int, case: Path) -> tuple[int, int]:
    """How many were decoded, and how many of them were refused."""
    chance = random.Random(seed)
    memory = Memory()
    case.write_bytes(bytes(SIZE + 8))
    done = refused = 0
    with case.open("r+b") as file, mmap.mmap(file.fileno(), 0) as note:
        source: Any = cases(corpus, chance)
        codec, data = next(source)
        end = time.monotonic() + seconds
        while done % 256 or time.monotonic() < end:
            note[: 8 + len(data)] = struct.pack("!II", codec.oid, len(data)) + data
            try:
                codec.decode(memory.put(data))
                good = True
            except (errors.Error, ValueError, OverflowError, RecursionError, MemoryError):
                good = False
            done += 1
            refused += not good
            codec, data = source.send(good)
    case.unlink()
    return done, refused


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--case", type=Path, default=Path("fuzz-case"), help="the bytes of a crash")
    options = parser.parse_args()
    faulthandler.enable()
    print(f"--seed {options.seed}", flush=True)
    url = os.environ.get("DATABASE_URL")
    if url:
        corpus = Corpus(url)
    else:
        with EmbeddedServer() as server:
            corpus = Corpus(server.url)
    done, refused = run(corpus, options.seconds, options.seed, options.case)
    types = len(corpus.codecs)
    print(f"{done} values of {types} types, {refused} refused, no crash")
    if not 0 < refused < done:
        raise SystemExit("either all or none were refused: nothing was tested")


if __name__ == "__main__":
    main()
