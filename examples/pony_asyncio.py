"""Pony ORM in an asyncio program: entities and db_session, many at once.

pip install pony psycopg2-binary
DATABASE_URL=postgresql://postgres@127.0.0.1/test python pony_asyncio.py
"""

import asyncio
import os
import random

import greenletio
from greenletio import async_, patch_blocking, patch_psycopg2
from greenletio.green.threading import BoundedSemaphore

patch_psycopg2()
with patch_blocking():  # each greenlet has a session of its own: Pony keeps it in a local
    from pony import orm

ACCOUNTS = 10
url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/test")
database = orm.Database()
# Pony has a connection for each thread, and so for each greenlet: that many at once, and no more.
connections = BoundedSemaphore(10)


class Account(database.Entity):
    id = orm.PrimaryKey(int)
    balance = orm.Required(int)


def prepare() -> None:
    database.bind(provider="postgres", dsn=url)
    database.generate_mapping(check_tables=False)
    database.drop_all_tables(with_all_data=True)
    database.create_tables()
    with orm.db_session:
        for n in range(1, ACCOUNTS + 1):
            Account(id=n, balance=100)


def transfer(source: int, target: int, amount: int) -> None:
    with connections, orm.db_session:
        pair = Account.select(lambda a: a.id in (source, target)).order_by(Account.id)
        accounts = {each.id: each for each in pair.for_update()}
        accounts[source].balance -= amount
        accounts[target].balance += amount


def total() -> int:
    with connections, orm.db_session:
        return int(orm.sum(a.balance for a in Account))


async def main() -> None:
    await async_(prepare)()
    pairs = [random.sample(range(1, ACCOUNTS + 1), 2) for _ in range(200)]
    await asyncio.gather(*(async_(transfer)(*pair, 1) for pair in pairs))
    print(await async_(total)())


if __name__ == "__main__":
    greenletio.run(main())
