"""row_factory for tasks: the same rows as sync code's."""

import asyncio
from dataclasses import dataclass

import pytest

from greenletio.pg import aio, rows

QUERY = "SELECT i AS a, 'x' AS b FROM generate_series(1, 3) AS i"


@dataclass
class Thing:
    a: int
    b: str


@pytest.mark.parametrize(
    ("factory", "made"),
    [
        (rows.tuple_row, (1, "x")),
        (rows.dict_row, {"a": 1, "b": "x"}),
        (rows.namedtuple_row, (1, "x")),
        (rows.class_row(Thing), Thing(1, "x")),
        (rows.args_row(lambda a, b: a), 1),
        (rows.kwargs_row(lambda a, b: b), "x"),
        (rows.scalar_row, 1),
    ],
)
def test_rows_as_a_factory_makes_them(run, connect, factory, made):
    async def main():
        async with connect(row_factory=factory) as c:
            assert (await c.fetch(QUERY))[0] == made
            assert len(await c.fetch(QUERY, timeout=5)) == 3
            assert await c.fetchrow(QUERY) == made
            assert await c.fetch("SELECT 1 WHERE false") == []
            assert await c.fetchrow("SELECT 1 WHERE false") is None
            assert await c.fetchval(QUERY) == 1
            st = await c.prepare(QUERY)
            assert ((await st.fetch())[0], await st.fetchrow()) == (made, made)
            async with c.transaction():
                assert [row async for row in c.cursor(QUERY)][0] == made
                assert (await (await c.cursor(QUERY)).fetch(2))[0] == made
            await c.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=int)
            c.row_factory = None
            assert isinstance(await c.fetchrow(QUERY), aio.Record)
            assert isinstance((await st.fetch())[0], aio.Record)

    run(main())


def test_a_pool_and_what_is_no_factory(dsn):
    async def main():
        async with aio.create_pool(dsn, min_size=0, row_factory=rows.dict_row) as pool:
            assert await pool.fetchrow("SELECT 1 AS a") == {"a": 1}
            async with pool.acquire() as c:
                assert await c.fetch("SELECT 1 AS a") == [{"a": 1}]
        with pytest.raises(TypeError, match="greenletio.pg.rows"):
            await aio.connect(dsn, row_factory=5)

    asyncio.run(main())
