"""A cache that follows the database: whoever commits, the dict is right a moment later.

The server needs wal_level=logical, the role REPLICATION.

DATABASE_URL=postgresql://postgres@127.0.0.1/test python replication_cache.py
"""

import asyncio
import os
import random
import secrets

import greenletio
from greenletio.pg import Delete, Insert, Update, aio

URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
NAME = f"example_{secrets.token_hex(4)}"  # of the table, the publication and the slot

prices: dict[int, int] = {}


async def follow(stream: aio.ChangeStream) -> None:
    """Do to the dict what others do to the table."""
    async for transaction in stream:
        if not isinstance(transaction, aio.ReplicatedTransaction):
            continue
        async for change in transaction:
            match change:
                case Insert(new=row) | Update(new=row):
                    prices[row["id"]] = row["price"]
                case Delete(old=key) if key is not None:
                    del prices[key["id"]]


async def trade(number: int) -> None:
    """Somebody else's program."""
    connection = await aio.connect(URL)
    for _ in range(20):
        item = number * 100 + random.randrange(10)
        price = random.randrange(1000)
        await connection.execute(
            f"INSERT INTO {NAME} VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET price = $2",
            item,
            price,
        )
        if price < 200:
            await connection.execute(f"DELETE FROM {NAME} WHERE id = $1", item)
    await connection.close()


async def main() -> None:
    connection = await aio.connect(URL)
    await connection.execute(f"CREATE TABLE {NAME} (id int PRIMARY KEY, price int)")
    await connection.execute(f"INSERT INTO {NAME} SELECT i, i FROM generate_series(1, 10) i")
    await connection.execute(f"CREATE PUBLICATION {NAME} FOR TABLE {NAME}")
    async with await aio.connect_replication(URL) as replication:
        # The rows that are there, as of where the stream begins; then what changes.
        slot = await replication.create_slot(NAME, snapshot=True)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(f"SET TRANSACTION SNAPSHOT '{slot.snapshot_name}'")
            rows = await connection.fetch(f"SELECT id, price FROM {NAME}")
            prices.update((row["id"], row["price"]) for row in rows)
        async with replication.stream(NAME, NAME) as stream:
            follower = asyncio.create_task(follow(stream))
            await asyncio.gather(*(trade(number) for number in range(3)))
            rows = await connection.fetch(f"SELECT id, price FROM {NAME}")
            while prices != {row["id"]: row["price"] for row in rows}:
                await asyncio.sleep(0.01)
            follower.cancel()
            await asyncio.wait([follower])
        await replication.drop_slot(NAME)
    await connection.execute(f"DROP PUBLICATION {NAME}; DROP TABLE {NAME}")
    await connection.close()
    print(len(rows), "prices, the same in the table and in the dict")


if __name__ == "__main__":
    greenletio.run(main())
