"""Logical replication: ``python -m benchmarks.replication [rows]``.

How fast a backlog is read: one transaction of so many inserted rows of eight columns, from a server
of its own, decoded to Records by greenletio; by psycopg2's replication cursor the messages as they
are, which is all that it does. Least of three rounds each, in turns.
"""

from __future__ import annotations

import asyncio
import resource
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from greenletio import pg
from greenletio._embedded import EmbeddedServer
from greenletio.pg import aio

ROUNDS = 3
SLOT = "bench"
TABLE = (
    "CREATE TABLE bench (id int PRIMARY KEY, a int, b bigint, name text, note text, "
    "at timestamptz, price numeric, ok bool)"
)
ROWS = (
    "INSERT INTO bench SELECT i, i * 2, i * 3, 'name ' || i, repeat('x', 30), now(), i * 1.25, "
    "i > 5 FROM generate_series(1, %s::int) i"
)
PLUGIN = {"proto_version": "1", "publication_names": "everything", "binary": "true"}


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ours(url: str, **options: Any) -> int:
    with pg.connect_replication(url) as replication:
        with replication.stream(SLOT, "everything", auto_confirm=False, **options) as stream:
            transaction: Any = stream.get()
            return sum(1 for _ in transaction)


def ours_as_text(url: str) -> int:
    return ours(url, binary=False)


def ours_async(url: str) -> int:
    async def main() -> int:
        async with await aio.connect_replication(url) as replication:
            async with replication.stream(SLOT, "everything", auto_confirm=False) as stream:
                transaction: Any = await stream.get()
                return len([1 async for _ in transaction])

    return asyncio.run(main())


def psycopg2_raw(url: str) -> int:
    import psycopg2.extras

    factory = psycopg2.extras.LogicalReplicationConnection
    connection = psycopg2.connect(url, connection_factory=factory)
    cursor = connection.cursor()
    cursor.start_replication(slot_name=SLOT, decode=False, options=PLUGIN)
    count = 0
    while True:
        message = cursor.read_message()
        if message is None:
            select.select([cursor], [], [], 10)
        elif message.payload[:1] == b"C":
            break
        else:
            count += message.payload[:1] == b"I"
    connection.close()
    return count


def main(rows: int) -> None:
    readers: list[Callable[[str], int]] = [psycopg2_raw, ours, ours_async, ours_as_text]
    least: dict[str, tuple[float, float]] = {}
    with EmbeddedServer(settings={"wal_level": "logical", "max_wal_size": "8GB"}) as server:
        with pg.connect(server.url, autocommit=True) as connection:
            connection.execute(TABLE)
            connection.execute("CREATE PUBLICATION everything FOR ALL TABLES")
            connection.execute(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
            connection.execute("SET synchronous_commit = on")
            connection.execute(ROWS, [rows])
            free = f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND NOT active"
            for reader in readers * ROUNDS:
                while not connection.execute(free).fetchall():
                    time.sleep(0.01)
                wall, used = time.perf_counter(), cpu()
                if reader(server.url) != rows:
                    raise SystemExit(f"{reader.__name__} has not read all rows")
                wall, used = time.perf_counter() - wall, cpu() - used
                before = least.get(reader.__name__, (wall, used))
                least[reader.__name__] = min(wall, before[0]), min(used, before[1])
    for name, (wall, used) in least.items():
        print(
            f"{name:14} {rows / wall:9,.0f} rows/s   client {used / rows * 1e6:6.2f} us CPU a row"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
