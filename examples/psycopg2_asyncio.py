"""psycopg2 as it is, in an asyncio program: many transfers between accounts at once.

pip install psycopg2-binary
DATABASE_URL=postgresql://postgres@127.0.0.1/test python psycopg2_asyncio.py
"""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg2.pool import ThreadedConnectionPool

import greenletio
from greenletio import async_, patch_psycopg2
from greenletio.green.threading import BoundedSemaphore

patch_psycopg2()

ACCOUNTS = 10
url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
pool = ThreadedConnectionPool(0, 10, url)
free = BoundedSemaphore(10)  # psycopg2's pool does not wait for a connection: it refuses


@contextmanager
def transaction() -> Iterator[Any]:
    with free:
        connection = pool.getconn()
        try:
            with connection, connection.cursor() as cursor:
                yield cursor
        finally:
            pool.putconn(connection)


def prepare() -> None:
    with transaction() as cursor:
        cursor.execute("DROP TABLE IF EXISTS account")
        cursor.execute("CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)")
        cursor.execute(f"INSERT INTO account SELECT n, 100 FROM generate_series(1, {ACCOUNTS}) n")


def transfer(source: int, target: int, amount: int) -> None:
    with transaction() as cursor:
        cursor.execute(
            "SELECT 1 FROM account WHERE id IN (%s, %s) ORDER BY id FOR UPDATE", [source, target]
        )  # waits for whoever has one of the two
        cursor.execute("UPDATE account SET balance = balance - %s WHERE id = %s", [amount, source])
        cursor.execute("UPDATE account SET balance = balance + %s WHERE id = %s", [amount, target])


def total() -> int:
    with transaction() as cursor:
        cursor.execute("SELECT sum(balance) FROM account")
        return int(cursor.fetchone()[0])


async def main() -> None:
    await async_(prepare)()
    pairs = [random.sample(range(1, ACCOUNTS + 1), 2) for _ in range(200)]
    await asyncio.gather(*(async_(transfer)(*pair, 1) for pair in pairs))
    print(await async_(total)())


if __name__ == "__main__":
    greenletio.run(main())
