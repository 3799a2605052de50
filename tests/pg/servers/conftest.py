"""Both faces of the driver, as one function that connects, asks one thing, and closes."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from fix_missing import missing
from fix_system_postgres import SystemServer

from greenletio import async_, pg
from greenletio.pg import aio, errors

Ask = Callable[..., Any]

TLS = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@pytest.fixture(params=["aio", "green", "plain"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """ask(sql, **options): the first value; by a task, in a greenlet, in code without a loop."""

    async def by_task(sql: str, **options: Any) -> Any:
        c = await aio.connect(**{"timeout": 30, **options})
        try:
            return await c.fetchval(sql)
        finally:
            await c.close()

    def by_sync(sql: str, **options: Any) -> Any:
        with pg.connect(**{"timeout": 30, **options}) as c:
            row = c.execute(sql).fetchone()
            assert row is not None
            return row[0]

    def run(sql: str, **options: Any) -> Any:
        if request.param == "aio":
            return asyncio.run(by_task(sql, **options))
        if request.param == "green":
            return asyncio.run(async_(by_sync)(sql, **options))
        return by_sync(sql, **options)

    return run


@pytest.fixture
def libpq_with_tls() -> None:
    """For tests of which nothing is left without TLS."""
    with pytest.raises(errors.Error) as caught:
        pg.connect("host=127.0.0.1 port=1 sslmode=require")
    if "not compiled in" in str(caught.value):
        missing("this libpq is built without TLS")


class Files:
    """Certificates and keys in files, as libpq wants them."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self._folder = folder
        self.authority = authority

    def root(self, authority: trustme.CA, name: str) -> str:
        path = self._folder / f"{name}.crt"
        authority.cert_pem.write_to_path(path)
        return str(path)

    def client(self, issued: trustme.LeafCert, name: str) -> dict[str, str]:
        """sslcert= and sslkey= of a client's certificate."""
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        key.touch(0o600)
        issued.private_key_pem.write_to_path(key)
        return {"sslcert": str(certificate), "sslkey": str(key)}


@pytest.fixture
def files(tmp_path: Path, system_server: SystemServer) -> Iterator[Files]:
    yield Files(tmp_path, system_server.authority)
