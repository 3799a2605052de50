"""psycopg 3's synchronous connections in an asyncio program, with its synchronous pool.

pip install "psycopg[binary,pool]"
DATABASE_URL=postgresql://postgres@127.0.0.1/test python psycopg_asyncio.py
"""

import asyncio
import os
import random

from psycopg_pool import ConnectionPool

import greenletio
from greenletio import async_, patch_psycopg

patch_psycopg()

ACCOUNTS = 10
url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
pool = ConnectionPool(url, min_size=2, max_size=10, open=False)


def prepare() -> None:
    pool.open()
    with pool.connection() as connection:
        connection.execute("DROP TABLE IF EXISTS account")
        connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)")
        connection.execute(
            "INSERT INTO account SELECT n, 100 FROM generate_series(1, %s::int) n", [ACCOUNTS]
        )


def transfer(source: int, target: int, amount: int) -> None:
    with pool.connection() as connection:
        connection.execute(
            "SELECT 1 FROM account WHERE id IN (%s, %s) ORDER BY id FOR UPDATE", [source, target]
        )  # waits for whoever has one of the two
        change = "UPDATE account SET balance = balance + %s WHERE id = %s"
        connection.execute(change, [-amount, source])
        connection.execute(change, [amount, target])


def total() -> int:
    with pool.connection() as connection:
        row = connection.execute("SELECT sum(balance) FROM account").fetchone()
        assert row is not None
        return int(row[0])


async def main() -> None:
    await async_(prepare)()
    pairs = [random.sample(range(1, ACCOUNTS + 1), 2) for _ in range(200)]
    await asyncio.gather(*(async_(transfer)(*pair, 1) for pair in pairs))
    print(await async_(total)())
    await async_(pool.close)()


if __name__ == "__main__":
    greenletio.run(main())
