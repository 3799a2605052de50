"""Large objects, beside COPY of the same bytes: ``python -m benchmarks.lobject [megabytes]``.

How fast an object is written and read, in pieces of a megabyte, on a server of its own: by
greenletio in sync code and in a task, by psycopg2's lobject; and COPY to and from a table whose
rows are such pieces, stored as large objects are, uncompressed in parts of 2 KB. Least of five
rounds, in turns.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from greenletio import pg
from greenletio._embedded import EmbeddedServer
from greenletio.pg import aio

ROUNDS = 5
MEGABYTE = 1 << 20
PIECE = bytes(range(256)) * (MEGABYTE // 256)
TABLE = (
    "CREATE TABLE pieces (n int, piece bytea);ALTER TABLE pieces ALTER piece SET STORAGE external"
)
COPIED = "SELECT piece FROM pieces ORDER BY n"


def written(url: str, pieces: int) -> int:
    with pg.connect(url) as connection:
        oid = connection.lo_create()
        with connection.lo_open(oid, "wb") as file:
            for _ in range(pieces):
                file.write(PIECE)
    return oid


def read(url: str, oid: int) -> int:
    with pg.connect(url) as connection, connection.lo_open(oid) as file:
        return sum(len(piece) for piece in iter(lambda: file.read(MEGABYTE), b""))


def written_in_a_task(url: str, pieces: int) -> int:
    async def main() -> int:
        connection = await aio.connect(url)
        async with connection.transaction():
            oid = await connection.lo_create()
            async with await connection.lo_open(oid, "wb") as file:
                for _ in range(pieces):
                    await file.write(PIECE)
        await connection.close()
        return oid

    return asyncio.run(main())


def read_in_a_task(url: str, oid: int) -> int:
    async def main() -> int:
        size = 0
        connection = await aio.connect(url)
        async with connection.transaction():
            async with await connection.lo_open(oid) as file:
                while piece := await file.read(MEGABYTE):
                    size += len(piece)
        await connection.close()
        return size

    return asyncio.run(main())


def written_by_psycopg2(url: str, pieces: int) -> int:
    import psycopg2

    with psycopg2.connect(url) as connection:
        file = connection.lobject(0, "wb")
        for _ in range(pieces):
            file.write(PIECE)
        oid: int = file.oid
        file.close()
    connection.close()
    return oid


def read_by_psycopg2(url: str, oid: int) -> int:
    import psycopg2

    with psycopg2.connect(url) as connection:
        file = connection.lobject(oid, "rb")
        size = sum(len(piece) for piece in iter(lambda: file.read(MEGABYTE), b""))
    connection.close()
    return size


def copied_in(url: str, pieces: int) -> int:
    async def main() -> None:
        connection = await aio.connect(url)
        await connection.execute("TRUNCATE pieces")
        rows = ((n, PIECE) for n in range(pieces))
        await connection.copy_records_to_table("pieces", records=rows)
        await connection.close()

    asyncio.run(main())
    return 0


def copied_out(url: str, _oid: int) -> int:
    async def main() -> int:
        size = 0

        async def take(data: bytes) -> None:
            nonlocal size
            size += len(data)

        connection = await aio.connect(url)
        await connection.copy_from_query(COPIED, output=take, format="binary")
        await connection.close()
        return size // MEGABYTE * MEGABYTE  # without the rows' headers

    return asyncio.run(main())


WAYS: dict[str, tuple[Callable[[str, int], int], Callable[[str, int], int]]] = {
    "greenletio": (written, read),
    "greenletio, a task": (written_in_a_task, read_in_a_task),
    "psycopg2": (written_by_psycopg2, read_by_psycopg2),
    "COPY": (copied_in, copied_out),
}


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(function: Callable[[str, int], int], url: str, number: int) -> tuple[int, Any]:
    wall, used = time.perf_counter(), cpu()
    result = function(url, number)
    return result, (time.perf_counter() - wall, cpu() - used)


def main(megabytes: int) -> None:
    least: dict[tuple[str, str], tuple[float, float]] = {}

    def note(name: str, what: str, found: tuple[float, float]) -> None:
        before = least.get((name, what), found)
        least[name, what] = min(found[0], before[0]), min(found[1], before[1])

    with EmbeddedServer(settings={"max_wal_size": "8GB"}) as server:
        with pg.connect(server.url, autocommit=True) as connection:
            connection.execute(TABLE)
            for _ in range(ROUNDS):
                for name, (write, read) in WAYS.items():
                    oid, found = timed(write, server.url, megabytes)
                    note(name, "written", found)
                    size, found = timed(read, server.url, oid)
                    note(name, "read", found)
                    if size != megabytes * MEGABYTE:
                        raise SystemExit(f"{name} has not read all")
                    if oid:
                        connection.lo_unlink(oid)
    for (name, what), (wall, used) in least.items():
        print(
            f"{name:20} {what:8} {megabytes / wall:6,.0f} MB/s   "
            f"client {used / megabytes * 1e3:5.2f} ms CPU a MB"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
