"""connect(): off the loop, every address of every host, each with a time limit of its own."""

import asyncio
import os
import socket
import threading

import psycopg2
import psycopg2.extensions as ext
import pytest
from fix_missing import missing

from greenletio import WouldBlockError, async_


@pytest.fixture
def parts(patched, pg_dsn):
    """The connection's keywords, to be put together anew."""
    return ext.parse_dsn(pg_dsn)


@pytest.fixture
def silent():
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


@pytest.fixture
def refusing():
    """An address where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


@pytest.fixture
def names(monkeypatch):
    """`names[host] = [addresses]`: what the resolver answers; who asked is in `names.threads`."""
    original = socket.getaddrinfo

    class Names(dict):
        threads = []

        def getaddrinfo(self, host, *args, **kwargs):
            self.threads.append(threading.current_thread())
            if host not in self:
                return original(host, *args, **kwargs)
            if not self[host]:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [info for address in self[host] for info in original(address, *args, **kwargs)]

    names = Names()
    names.threads = []
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    return names


def answer(**kwargs):
    conn = psycopg2.connect(**kwargs)
    try:
        with conn.cursor() as cursor:
            cursor.execute("SELECT 42")
            return cursor.fetchone()[0]
    finally:
        conn.close()


def test_names_are_resolved_off_the_loop(run, parts, names):
    parts["host"], host = "some.name", parts["host"]
    names["some.name"] = [host]

    async def main():
        return await async_(answer)(**parts)

    assert run(main()) == 42
    assert names.threads and threading.main_thread() not in names.threads


def test_addresses_need_no_thread(run, parts, names):
    parts["host"] = socket.gethostbyname(parts["host"])

    async def main():
        return await async_(answer)(**parts)

    assert run(main()) == 42
    assert names.threads == []


def test_every_address_of_a_name_is_tried(run, parts, names):
    names["some.name"] = ["127.0.0.9", socket.gethostbyname(parts["host"])]
    parts["host"] = "some.name"

    async def main():
        return await async_(answer)(**parts)

    assert run(main()) == 42


@pytest.mark.parametrize("form", ["keywords", "dsn", "uri", "environment", "service"])
def test_the_second_host_is_reached_wherever_hosts_are_named(
    run, parts, silent, form, monkeypatch, tmp_path, ticking
):
    host = f"{silent[0]},{parts.pop('host')}"
    port = f"{silent[1]},{parts.pop('port', '5432')}"
    common = {**parts, "connect_timeout": "1"}
    if form == "keywords":
        kwargs = {**common, "host": host, "port": port}
    elif form == "dsn":
        kwargs = {"dsn": ext.make_dsn(**common, host=host, port=port)}
    elif form == "uri":
        ends = [":".join(end) for end in zip(host.split(","), port.split(","), strict=True)]
        user = parts["user"] + (f":{parts['password']}" if "password" in parts else "")
        dsn = f"postgresql://{user}@{','.join(ends)}/{parts['dbname']}?connect_timeout=1"
        kwargs = {"dsn": dsn}
    elif form == "environment":
        for name, value in (("PGHOST", host), ("PGPORT", port), ("PGCONNECT_TIMEOUT", "1")):
            monkeypatch.setenv(name, value)
        kwargs = parts
    else:
        service = tmp_path / "services"
        lines = [f"{key}={value}" for key, value in {**common, "host": host, "port": port}.items()]
        service.write_text("\n".join(["[mine]", *lines]) + "\n")
        monkeypatch.setenv("PGSERVICEFILE", str(service))
        kwargs = {"dsn": "service=mine"}

    async def main():
        async with ticking() as ticker:
            assert await async_(answer)(**kwargs) == 42
        return ticker.steps

    assert run(main()) > 20


def test_hostaddr_is_used_and_the_name_is_not_resolved(run, parts, names):
    parts["hostaddr"], parts["host"] = socket.gethostbyname(parts["host"]), "not.resolvable"

    async def main():
        return await async_(answer)(**parts)

    assert run(main()) == 42
    assert names.threads == []


def test_a_silent_server_is_given_up_after_connect_timeout(run, parts, silent, ticking):
    parts.update(host=silent[0], port=silent[1], connect_timeout=1)

    async def main():
        async with ticking() as ticker:
            with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
                await async_(answer)(**parts)
        return ticker.steps

    assert run(main()) > 20


def test_a_silent_server_in_a_plain_program(parts, silent):
    parts.update(host=silent[0], port=silent[1], connect_timeout=1)
    with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
        answer(**parts)


def test_when_all_fail_each_says_why(run, parts, silent, refusing, names):
    names["no.such.name"] = []
    parts.update(
        host=f"{silent[0]},{refusing[0]},no.such.name",
        port=f"{silent[1]},{refusing[1]},5432",
        connect_timeout=1,
    )

    async def main():
        with pytest.raises(psycopg2.OperationalError) as caught:
            await async_(answer)(**parts)
        message = str(caught.value)
        for reason in ("timeout expired", "refused", "could not translate host name"):
            assert reason in message
        assert f'at "{silent[0]}", port {silent[1]} failed: timeout expired' in message
        assert f'at "{refusing[0]}", port {refusing[1]} failed: Connection refused' in message

    run(main())


def test_target_session_attrs_picks_a_host(run, parts, refusing):
    def work(attrs):
        ends = {
            "host": f"{refusing[0]},{parts['host']},{parts['host']}",
            "port": ",".join(str(p) for p in (refusing[1], parts.get("port", 5432)))
            + f",{parts.get('port', 5432)}",
        }
        return answer(**{**parts, **ends, "target_session_attrs": attrs})

    async def main():
        assert await async_(work)("read-write") == 42
        assert await async_(work)("prefer-standby") == 42
        with pytest.raises(psycopg2.OperationalError):
            await async_(work)("standby")

    run(main())


def test_cancelled_while_connecting(run, parts, silent):
    parts.update(host=silent[0], port=silent[1])

    async def main():
        task = asyncio.ensure_future(async_(answer)(**parts))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_cancelled_while_resolving(run, parts, monkeypatch):
    hold, asked = threading.Event(), threading.Event()

    def getaddrinfo(*args, **kwargs):
        asked.set()
        hold.wait(30)
        raise socket.gaierror(socket.EAI_NONAME, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    parts["host"] = "slow.name"

    async def main():
        task = asyncio.ensure_future(async_(answer)(**parts))
        while not asked.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        run(main())
    finally:
        hold.set()


def test_directly_in_a_loop(run, parts):
    async def main():
        with pytest.raises(WouldBlockError, match=r"connect.*async_"):
            psycopg2.connect(**parts)

    run(main())


def test_what_is_wrong_is_said_by_libpq(run, parts):
    async def main():
        with pytest.raises(psycopg2.OperationalError, match="does not exist"):
            await async_(answer)(**{**parts, "dbname": "no_such_database"})
        with pytest.raises(psycopg2.ProgrammingError):
            await async_(psycopg2.connect)("nonsense")
        with pytest.raises(psycopg2.OperationalError, match="host"):
            await async_(answer)(**{**parts, "host": "a,b,c", "port": "1,2"})
        with pytest.raises(psycopg2.OperationalError, match="sslmode"):
            await async_(answer)(**{**parts, "sslmode": "nonsense"})

    run(main())


def test_a_connection_factory_is_used(run, parts):
    class Mine(ext.connection):
        pass

    async def main():
        conn = await async_(psycopg2.connect)(**parts, connection_factory=Mine)
        assert type(conn) is Mine
        await async_(conn.close)()

    run(main())


def test_a_unix_socket(run, parts, pg_query):
    directory = pg_query("SHOW unix_socket_directories")[0][0].split(",")[0].strip()
    parts.setdefault("port", "5432")
    if not os.path.exists(f"{directory}/.s.PGSQL.{parts['port']}"):
        missing("a server on this machine with a unix socket")
    parts["host"] = directory

    async def main():
        try:
            return await async_(answer)(**parts)
        except psycopg2.OperationalError as exc:
            assert "authentication" in str(exc)  # the socket was reached
            return 42

    assert run(main()) == 42
