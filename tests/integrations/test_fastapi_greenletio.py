"""examples/fastapi_greenletio.py: `def` endpoints as greenlets, asked over HTTP by 200 at once."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import aiohttp
from fix_postgres import Query

LIMIT_S = 100  # against a hang, not a measure


def test_200_clients_some_of_which_go_away(
    serve_example: Callable[[str], str], pg_query: Query
) -> None:
    url = serve_example("fastapi_greenletio")

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as client:

            async def item(left: int) -> int:
                asked = {"name": "thing", "left": left}
                async with client.post("/items", params=asked) as answer:
                    assert answer.status == 200, await answer.text()
                    number: int = (await answer.json())["id"]
                    return number

            async def status(method: str, path: str) -> int:
                async with client.request(method, path) as answer:
                    await answer.read()
                    return answer.status

            async def leave(path: str) -> None:
                how = aiohttp.ClientTimeout(total=0.01 + random.random() / 2)
                with suppress(asyncio.TimeoutError):
                    async with client.post(path, timeout=how):
                        pass

            wanted, other = await item(100), await item(1000)
            takes = [status("POST", f"/items/{wanted}/take") for _ in range(110)]
            gets = [status("GET", f"/items/{wanted}") for _ in range(40)]
            leaves = [leave(f"/items/{other}/take?seconds=0.05") for _ in range(50)]
            requests = [*takes, *gets, *leaves]
            random.shuffle(requests)
            results = await asyncio.gather(*requests)
            assert results.count(404) == 10 and results.count(200) == 140
            # No connection is lost. (FastAPI goes on with a request whose client has gone.)
            assert (
                await asyncio.gather(*(status("POST", f"/items/{other}/take") for _ in range(30)))
                == [200] * 30
            )
        (first,), (second,) = pg_query('SELECT "left" FROM example_item ORDER BY id')
        assert first == 0 and 920 <= second <= 970

    asyncio.run(main())
