"""Clients of databases and caches. The servers are the PostgreSQL of all tests, and those that
MARIADB_URL and REDIS_URL name, by default this machine's."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit


def test_pymysql(client: Any, server_of: Any, silent: Any) -> None:
    server = server_of("MARIADB_URL", "mysql://root@127.0.0.1:3306")
    del server["url"]
    client(
        "pymysql",
        """
        with patch_blocking():
            import pymysql

        def work(i):
            with pymysql.connect(**server) as connection, connection.cursor() as cursor:
                meet()
                cursor.execute("SELECT SLEEP(0.05), %s", (i,))
                assert cursor.fetchone() == (0, i)
                cursor.execute("SELECT REPEAT('x', 100000)")
                return len(cursor.fetchone()[0])
        assert together(work) == [100_000] * MANY

        host, port = silent
        timing_out(
            lambda i: pymysql.connect(host=host, port=port, read_timeout=0.2),
            pymysql.err.OperationalError,
        )

        def slow(i):
            with pymysql.connect(**server, read_timeout=0.2) as connection:
                connection.cursor().execute("SELECT SLEEP(1)")
        timing_out(slow, pymysql.err.OperationalError)
        """,
        server=server,
        silent=silent,
    )


def test_pg8000(client: Any, pg_dsn: str, silent: Any) -> None:
    parts = urlsplit(pg_dsn)
    server = {
        "host": parts.hostname,
        "port": parts.port or 5432,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or "") or None,
        "database": parts.path[1:],
    }
    client(
        "pg8000",
        """
        with patch_blocking():
            import pg8000.dbapi

        def work(i):
            connection = pg8000.dbapi.connect(**server)
            meet()
            cursor = connection.cursor()
            cursor.execute("SELECT %s::int, repeat('x', 100000) FROM pg_sleep(0.05)", (i,))
            number, text = cursor.fetchone()
            connection.close()
            assert number == i
            return len(text)
        assert together(work) == [100_000] * MANY

        late = (TimeoutError, pg8000.dbapi.InterfaceError)
        host, port = silent
        timing_out(lambda i: pg8000.dbapi.connect("x", host=host, port=port, timeout=0.2), late)

        def slow(i):
            connection = pg8000.dbapi.connect(**server, timeout=0.5)
            connection.cursor().execute("SELECT pg_sleep(60)")
        timing_out(slow, late)
        """,
        server=server,
        silent=silent,
    )


def test_redis(client: Any, server_of: Any, silent: Any) -> None:
    client(
        "redis",
        """
        with patch_blocking():
            import redis, os, threading
        pool = redis.BlockingConnectionPool.from_url(url, max_connections=MANY, timeout=30)
        server = redis.Redis(connection_pool=pool)
        few = redis.Redis(
            connection_pool=redis.BlockingConnectionPool.from_url(
                url, max_connections=4, timeout=30
            )
        )
        key = f"greenletio-test-{os.getpid()}"

        def meet_there(i):  # each holds its connection until the last has come
            if i:
                return server.blpop([f"{key}-{i}"], timeout=30)[1]
            meet_others()
            for n in range(1, MANY):
                few.rpush(f"{key}-{n}", "go")
            return b"go"

        def meet_others():
            while few.client_list() and few.info("clients")["blocked_clients"] < MANY - 1:
                pass
        assert together(meet_there) == [b"go"] * MANY

        def work(i):
            for n in range(20):
                assert few.set(f"{key}-{i}", n)
                assert few.get(f"{key}-{i}") == str(n).encode()
            with few.pipeline() as pipe:
                for n in range(100):
                    pipe.incr(key)
                pipe.execute()
            with few.lock(f"{key}-lock", timeout=30, blocking_timeout=30, sleep=0.01):
                pass
            few.delete(f"{key}-{i}")
        together(work)
        assert int(few.getdel(key)) == 100 * MANY

        def subscribe(i):
            with server.pubsub() as channel:
                channel.subscribe(key)
                channel.get_message(timeout=30)
                if meet() == 0:
                    few.publish(key, "news")
                return channel.get_message(timeout=30)["data"]
        assert together(subscribe) == [b"news"] * MANY

        host, port = silent
        timing_out(
            lambda i: redis.Redis(host, port, socket_timeout=0.2, retry=None).ping(),
            redis.TimeoutError,
        )
        """,
        url=server_of("REDIS_URL", "redis://127.0.0.1:6379/0")["url"],
        silent=silent,
    )
