"""peewee in an asyncio program: models, transactions and its pool, many at once.

pip install peewee psycopg2-binary
DATABASE_URL=postgresql://postgres@127.0.0.1/test python peewee_asyncio.py
"""

import asyncio
import os
import random

import greenletio
from greenletio import async_, patch_blocking, patch_psycopg2

patch_psycopg2()
with patch_blocking():  # each greenlet has a connection of its own: peewee keeps it in a local
    import peewee
    from playhouse.pool import PooledPostgresqlDatabase

ACCOUNTS = 10
url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
database = PooledPostgresqlDatabase(url, max_connections=10, timeout=0)  # 0: waits without a limit


class Account(peewee.Model):
    id = peewee.IntegerField(primary_key=True)
    balance = peewee.IntegerField()

    class Meta:
        database = database


def prepare() -> None:
    with database:
        database.drop_tables([Account])
        database.create_tables([Account])
        rows = [{"id": n, "balance": 100} for n in range(1, ACCOUNTS + 1)]
        Account.insert_many(rows).execute()


def transfer(source: int, target: int, amount: int) -> None:
    with database:  # a connection and a transaction
        pair = Account.select().where(Account.id.in_([source, target]))
        accounts = {each.id: each for each in pair.order_by(Account.id).for_update()}
        accounts[source].balance -= amount
        accounts[target].balance += amount
        for account in accounts.values():
            account.save()


def total() -> int:
    with database:
        return int(Account.select(peewee.fn.SUM(Account.balance)).scalar())


async def main() -> None:
    await async_(prepare)()
    pairs = [random.sample(range(1, ACCOUNTS + 1), 2) for _ in range(200)]
    await asyncio.gather(*(async_(transfer)(*pair, 1) for pair in pairs))
    print(await async_(total)())


if __name__ == "__main__":
    greenletio.run(main())
