"""pg8000, a driver in Python, in an asyncio program: many transfers between accounts at once.

pip install pg8000
DATABASE_URL=postgresql://postgres@127.0.0.1/test python pg8000_asyncio.py
"""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import greenletio
from greenletio import async_, patch_blocking
from greenletio.green.queue import LifoQueue

with patch_blocking():
    import pg8000.dbapi

ACCOUNTS = 10
url = urlsplit(os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test"))
pool: LifoQueue[Any] = LifoQueue()
for _ in range(10):
    pool.put(None)  # a connection that is not yet made


def close(connection: Any) -> None:
    if connection is not None:
        with suppress(pg8000.dbapi.Error):
            connection.close()


@contextmanager
def transaction() -> Iterator[Any]:
    connection = pool.get()
    try:
        if connection is None:
            connection = pg8000.dbapi.connect(
                unquote(url.username or "postgres"),
                host=url.hostname or "127.0.0.1",
                port=url.port or 5432,
                password=unquote(url.password or "") or None,
                database=url.path[1:],
            )
        yield connection.cursor()
        connection.commit()
    except BaseException:
        # A cancelled query's answer is still to come: the connection is of no more use.
        broken, connection = connection, None
        close(broken)
        raise
    finally:
        pool.put(connection)


def prepare() -> None:
    with transaction() as cursor:
        cursor.execute("DROP TABLE IF EXISTS account")
        cursor.execute("CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)")
        cursor.execute(f"INSERT INTO account SELECT n, 100 FROM generate_series(1, {ACCOUNTS}) n")


def transfer(source: int, target: int, amount: int) -> None:
    with transaction() as cursor:
        cursor.execute(
            "SELECT 1 FROM account WHERE id IN (%s, %s) ORDER BY id FOR UPDATE", (source, target)
        )  # waits for whoever has one of the two
        change = "UPDATE account SET balance = balance + %s WHERE id = %s"
        cursor.execute(change, (-amount, source))
        cursor.execute(change, (amount, target))


def total() -> int:
    with transaction() as cursor:
        cursor.execute("SELECT sum(balance) FROM account")
        return int(cursor.fetchone()[0])


async def main() -> None:
    await async_(prepare)()
    pairs = [random.sample(range(1, ACCOUNTS + 1), 2) for _ in range(200)]
    await asyncio.gather(*(async_(transfer)(*pair, 1) for pair in pairs))
    print(await async_(total)())
    for _ in range(pool.qsize()):
        await async_(close)(pool.get_nowait())


if __name__ == "__main__":
    greenletio.run(main())
