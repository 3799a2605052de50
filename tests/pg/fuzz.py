"""Malformed bytes for every decoder: `make fuzz` for minutes under AddressSanitizer, test_fuzz.py
for a moment.

It begins with what the server sends for real values of each type, and changes that; so it is for
columns, and for what the output plugins of logical replication send. The bytes of values end
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from greenletio import _pg, pg
from greenletio._embedded import EmbeddedServer
from greenletio.pg import UNCHANGED, _text, errors
from greenletio.pg._pgoutput import PgOutput, TextOnly, UnknownTypes
from greenletio.pg._test_decoding import TestDecoding

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


@dataclass
class Target:
    """What reads bytes, and bytes that it can read."""

    name: str
    read: Callable[[memoryview], object]
    seeds: list[bytes]


class Columns:
    """A value as columns have it; some of what was read is looked at, too."""

    def __init__(self, raw: _pg.Connection, statement: _pg.Statement, numeric: Any) -> None:
        self._make = lambda: _pg.ArrowBatch(raw, statement, numeric=numeric)
        self._batch = self._make()

    def __call__(self, data: memoryview) -> None:
        batch = self._batch
        try:
            batch._append((data,))
            if data and data[0] % 4 == 0:
                batch._append((None,))
        except BaseException:
            self._batch = self._make()
            raise
        if len(batch) >= 50:
            self._batch = self._make()
            batch.__arrow_c_array__()
            for part in batch._parts():
                look(part, len(batch))


def look(part: Any, rows: int) -> None:
    """Whether the parts of a column fit together."""
    _, format, _, found, nulls, validity, ends, data, children = part
    if format[0] != "+" or children:  # a struct without fields has no parts
        assert found == rows and 0 <= nulls <= rows, part
    if nulls:
        bits = [validity_bit(validity, i) for i in range(rows)]
        assert bits.count(0) == nulls, part
    if memoryview(ends).nbytes:
        stops = memoryview(ends).cast("i").tolist()
        last = children[0][3] if children else len(memoryview(data))
        assert len(stops) == rows + 1 and stops == sorted(stops), part
        assert stops[0] == 0 and stops[-1] == last, part
    for child in children:
        look(child, child[3] if format == "+l" else rows)


def validity_bit(validity: Any, at: int) -> int:
    return memoryview(validity)[at // 8] >> at % 8 & 1


class Sink:
    """Takes what an output plugin's decoder tells."""

    def begin(self, xid: int, lsn: Any, time: Any, gid: str | None = None) -> bool:
        return True

    def change(self, event: Any) -> None:
        repr(event)

    def commit(self, end_lsn: Any, time: Any) -> None:
        pass

    origin = single = change


def length(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


def rows_of(codecs: list[_pg.Codec], seeds: dict[int, list[bytes]]) -> tuple[Any, list[bytes]]:
    """A reader of rows, and rows for it."""
    names = tuple(f"c{i}" for i in range(len(codecs)))
    reader = _pg.RowReader(names, tuple(codecs), _text.decode, UNCHANGED)
    rows = [
        b"xy" + struct.pack("!H", len(codecs)) + b"".join(kind + value for kind, value in values)
        for values in (
            [(b"b", length(seeds[codec.oid][0])) for codec in codecs],
            [(b"t", length(b"1")) for _ in codecs],
            [(b"nu"[i % 2 : i % 2 + 1], b"") for i, _ in enumerate(codecs)],
        )
    ]
    return reader, rows


def pgoutput_messages() -> list[bytes]:
    """One of each kind; the relation with the oid 7 first, which the others are of."""
    row = b"\0\2b" + length(struct.pack("!i", 5)) + b"t" + length(b"text")
    commit = struct.pack("!BQQq", 0, 16, 32, 10**15)
    prepared = struct.pack("!BQQqI", 0, 16, 32, 10**15, 9) + b"gid\0"
    columns = b"\1id\0" + struct.pack("!Ii", 23, -1) + b"\0note\0" + struct.pack("!Ii", 25, -1)
    relation = struct.pack("!I", 7) + b"public\0table\0d\0\2" + columns
    message = struct.pack("!BQ", 0, 16) + b"prefix\0" + length(b"content")
    seven, nine = struct.pack("!I", 7), struct.pack("!I", 9)
    return [
        b"R" + relation,
        b"B" + struct.pack("!QqI", 16, 10**15, 9),
        b"I" + seven + b"N" + row,
        b"U" + seven + b"N" + row,
        b"U" + seven + b"K" + b"\0\2b" + length(struct.pack("!i", 5)) + b"nN" + row,
        b"U" + seven + b"O" + row + b"N\0\2uu",
        b"D" + seven + b"K" + row,
        b"T" + struct.pack("!IB", 1, 3) + seven,
        b"M" + message,
        b"M\1" + message[1:],
        b"O" + struct.pack("!Q", 16) + b"origin\0",
        b"Y" + struct.pack("!I", 23) + b"\0int4\0",
        b"C" + commit,
        b"b" + struct.pack("!QQqI", 16, 32, 10**15, 9) + b"gid\0",
        b"P" + prepared,
        b"K" + prepared,
        b"r" + struct.pack("!BQQqqI", 0, 16, 32, 10**15, 10**15, 9) + b"gid\0",
        b"S" + nine + b"\1",
        b"R" + nine + relation,
        b"I" + nine + seven + b"N" + row,
        b"E",
        b"A" + nine + struct.pack("!I", 10),
        b"p" + prepared,
        b"c" + nine + commit,
    ]


TEST_DECODING = [
    b"BEGIN 9",
    b"COMMIT 9 (at 2024-02-29 12:34:56.789+02)",
    b"""table public."odd ""name": INSERT: id[integer]:1 t[text]:'it''s' b[bit varying]:B'1'""",
    b"table public.t: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 t[text]:null",
    b"table public.t: UPDATE: id[integer]:1 t[text]:unchanged-toast-datum",
    b"table public.t: DELETE: (no-tuple-data)",
    b"table public.t, public.u: TRUNCATE: restart_seqs cascade",
    b"message: transactional: 1 prefix: p, sz: 4 content:text",
]


def plugin(decoder: PgOutput | TestDecoding, relation: bytes) -> Callable[[memoryview], None]:
    """Feeds it, and begins anew after what it refuses."""

    def read(data: memoryview) -> None:
        try:
            decoder.feed(bytes(data), 1)
            while decoder.feed_kept():
                pass
        except BaseException:
            decoder.restart(True)
            decoder.feed(relation, 1)
            raise

    decoder.feed(relation, 1)
    return read


class Corpus:
    """Everything that reads bytes, with bytes that the server has sent for it."""

    def __init__(self, dsn: str) -> None:
        self.codecs: list[_pg.Codec] = []
        self.seeds: dict[int, list[bytes]] = {}
        self.targets: list[Target] = []
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
            self._add_columns()
        self.targets += [
            Target(codec.name, codec.decode, self.seeds[codec.oid]) for codec in self.codecs
        ]
        for at in range(0, len(self.codecs), 8):
            codecs = self.codecs[at : at + 8]
            reader, rows = rows_of(codecs, self.seeds)
            self.targets.append(Target("a row", partial(read_row, reader), rows))
        for decoder, messages in (
            (PgOutput(Sink(), _pg.BUILTIN.get, True), pgoutput_messages()),
            (TestDecoding(Sink(), by_name), TEST_DECODING),
        ):
            read = plugin(decoder, messages[0])
            self.targets.append(Target(type(decoder).__name__, read, list(messages)))

    def _add_columns(self) -> None:
        """The same types as columns; numerics in each form that they have there."""
        oids = {codec.oid: codec for codec in self.codecs}
        numeric = self.seeds[1700]
        forms: list[tuple[str, list[bytes], Any]] = [
            ("numeric(38,4)", numeric, "decimal"),
            ("numeric", numeric, "text"),
            ("numeric", numeric, "float64"),
        ]
        asked = self._c.execute(
            "SELECT oid::int8, pg_catalog.format_type(oid, NULL) FROM pg_catalog.pg_type "
            "WHERE oid = ANY($1::oid[]) AND typtype <> 'p'",
            [list(oids)],
        )
        forms += [(name, self.seeds[oid], "decimal") for oid, name in asked.fetchall()]
        for name, seeds, how in forms:
            select = f"SELECT NULL::{name}"
            statement = self._c.raw._op("prepare", "statement", select).run()
            columns = Columns(self._c.raw, statement, how)
            self.targets.append(Target(f"column of {name} as {how}", columns, list(seeds)))

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


def read_row(reader: _pg.RowReader, data: memoryview) -> None:
    reader.read(bytes(data), 2)


def by_name(name: str) -> _pg.Codec | None:
    return _pg.BUILTIN[{"integer": 23, "text": 25, "bit varying": 1562}.get(name, 25)]


def cases(corpus: Corpus, chance: random.Random) -> Iterator[tuple[int, bytes]]:
    """Without end, a target's number and bytes for it: what was read without an error is changed
    further."""
    while True:
        number = chance.randrange(len(corpus.targets))
        seeds = corpus.targets[number].seeds
        data = changed(chance.choice(seeds), seeds, chance)
        if (yield number, data):
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
        number, data = next(source)
        end = time.monotonic() + seconds
        while done % 256 or time.monotonic() < end:
            note[: 8 + len(data)] = struct.pack("!II", number, len(data)) + data
            try:
                corpus.targets[number].read(memory.put(data))
                good = True
            except (errors.Error, ValueError, OverflowError, RecursionError, MemoryError):
                good = False
            except (UnknownTypes, TextOnly):
                good = True
            done += 1
            refused += not good
            number, data = source.send(good)
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
    print(f"{done} values for {len(corpus.targets)} readers, {refused} refused, no crash")
    if not 0 < refused < done:
        raise SystemExit("either all or none were refused: nothing was tested")


if __name__ == "__main__":
    main()
