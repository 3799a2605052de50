"""Everything a sync connection of psycopg 3 does suspends its greenlet and not the loop."""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fix_loops import Run
from fix_missing import missing
from fix_postgres import Query
from fix_progress import Ticker
from psycopg import pq

from greenletio import async_, patch_psycopg, sleep, spawn, unpatch_psycopg

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def test_queries_of_many_greenlets_overlap(run: Run, connect: Connect) -> None:
    inside = most = 0

    @async_
    def query(n: int) -> int:
        nonlocal inside, most
        connection = connect()
        inside += 1
        most = max(most, inside)
        while True:  # until all have been inside at once
            row = connection.execute("SELECT pg_sleep(0.05), %s::int", (n,)).fetchone()
            assert row is not None
            if most == 8:
                inside -= 1
                return int(row[1])

    async def main() -> list[int]:
        async with Ticker():
            return await asyncio.gather(*(query(n) for n in range(8)))

    assert run(main()) == list(range(8))
    assert inside == 0


def server_side_cursor(connection: Connection) -> object:
    with connection.cursor("c") as cursor:
        cursor.itersize = 2
        cursor.execute("SELECT n, pg_sleep(0.02) FROM generate_series(1, 8) n")
        return [row[0] for row in cursor]


def copy_in(connection: Connection) -> object:
    connection.execute("CREATE TEMP TABLE t (n int, s text)")
    connection.execute(
        "CREATE FUNCTION pg_temp.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END'"
    )
    connection.execute("CREATE TRIGGER slow BEFORE INSERT ON t EXECUTE FUNCTION pg_temp.slow()")
    connection.execute("CREATE TRIGGER slower AFTER INSERT ON t EXECUTE FUNCTION pg_temp.slow()")
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for n in range(100):
            copy.write_row((n, "x" * 100_000))
    return connection.execute("SELECT count(*), sum(length(s)) FROM t").fetchone()


def copy_out(connection: Connection) -> object:
    query = "COPY (SELECT n, pg_sleep(0.01) FROM generate_series(1, 20) n) TO STDOUT"
    with connection.cursor().copy(query) as copy:
        return [row[0] for row in copy.rows()]


def pipeline(connection: Connection) -> object:
    with connection.pipeline():
        cursors = [connection.execute("SELECT %s::int, pg_sleep(0.02)", (n,)) for n in range(8)]
    return [cursor.fetchone()[0] for cursor in cursors]  # type: ignore[index]


def executemany(connection: Connection) -> object:
    cursor = connection.cursor()
    query = "SELECT %s::int, pg_sleep(0.02)"
    cursor.executemany(query, [(n,) for n in range(8)], returning=True)
    return [result.fetchone()[0] for result in cursor.results()]  # type: ignore[index]


def stream(connection: Connection) -> object:
    query = "SELECT n, pg_sleep(0.02) FROM generate_series(1, 8) n"
    return [row[0] for row in connection.cursor().stream(query)]


def transaction(connection: Connection) -> object:
    with connection.transaction():
        with connection.transaction(force_rollback=True):
            connection.execute("SELECT pg_sleep(0.1)")
        connection.execute("SELECT pg_sleep(0.1)")
    return connection.info.transaction_status == pq.TransactionStatus.IDLE


def settings(connection: Connection) -> object:
    connection.execute("SELECT pg_sleep(0.2)")
    connection.rollback()
    connection.autocommit = True
    return connection.execute("SELECT 1").fetchone()


@pytest.mark.parametrize(
    "work, result",
    [
        (server_side_cursor, list(range(1, 9))),
        (copy_in, (100, 10_000_000)),
        (copy_out, [str(n) for n in range(1, 21)]),
        (pipeline, list(range(8))),
        (executemany, list(range(8))),
        (stream, list(range(1, 9))),
        (transaction, True),
        (settings, (1,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_loop_goes_on_during(
    run: Run, connect: Connect, work: Callable[[Connection], object], result: object
) -> None:
    async def main() -> object:
        async with Ticker():
            return await async_(lambda: work(connect()))()

    assert run(main()) == result


def test_notifications_arrive_while_the_loop_goes_on(
    run: Run, connect: Connect, pg_query: Query
) -> None:
    @async_
    def listen() -> list[str]:
        connection = connect(autocommit=True)
        connection.execute("LISTEN news")
        listening.set()
        return [news.payload for news in connection.notifies(stop_after=2)]

    async def main() -> list[str]:
        async with Ticker() as ticker:
            task = asyncio.create_task(listen())
            await listening.wait()
            while ticker.steps < ticker.enough:
                await asyncio.sleep(0.001)
            pg_query("SELECT pg_notify('news', n::text) FROM generate_series(1, 2) n")
            return await task

    listening = asyncio.Event()
    assert run(main()) == ["1", "2"]


def test_notifies_ends_at_its_timeout(run: Run, connect: Connect) -> None:
    @async_
    def listen() -> list[object]:
        connection = connect(autocommit=True)
        connection.execute("LISTEN news")
        return [*connection.notifies(timeout=0.2), *connection.notifies(timeout=0)]

    async def main() -> list[object]:
        async with Ticker():
            return await listen()

    assert run(main()) == []


def test_plain_code_blocks_as_before(connect: Connect) -> None:
    connection = connect()
    assert connection.execute("SELECT 1").fetchone() == (1,)
    connection.commit()
    assert copy_out(connection) == [str(n) for n in range(1, 21)]


def test_what_plain_code_has_spawned_goes_on(connect: Connect) -> None:
    def count() -> None:
        nonlocal steps
        while not done:
            sleep(0.001)
            steps += 1

    steps, done = 0, False
    counter = spawn(count)
    connection = connect()
    connection.execute("SELECT pg_sleep(0.2)")
    done = True
    counter.join()
    assert steps >= Ticker.enough


def test_threads_block_for_themselves_beside_a_loop(run: Run, connect: Connect) -> None:
    async def main() -> object:
        async with Ticker():
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, lambda: transaction(connect()))

    assert run(main()) is True


def test_connections_of_before_the_patch_take_part(run: Run, pg_dsn: str) -> None:
    connection = psycopg.connect(pg_dsn)
    lock = connection.lock
    patch_psycopg()
    try:

        async def main() -> None:
            async with Ticker():
                query = async_(connection.execute)
                await asyncio.gather(*(query("SELECT pg_sleep(0.1)") for _ in range(2)))

        run(main())
    finally:
        unpatch_psycopg()
    assert connection.lock is lock
    assert connection.execute("SELECT 1").fetchone() == (1,)
    connection.close()


def test_greenlets_on_one_connection_take_turns_in_order(run: Run, connect: Connect) -> None:
    order: list[int] = []

    @async_
    def query(n: int) -> None:
        connection.execute("SELECT pg_sleep(0.02)")
        order.append(n)

    async def main() -> None:
        async with Ticker():
            await asyncio.gather(*(query(n) for n in range(8)))

    connection = connect()
    run(main())
    assert order == list(range(8))


def test_closing_ends_the_wait_of_another_greenlet(run: Run, connect: Connect) -> None:
    async def main() -> None:
        connection = await async_(connect)()
        task = asyncio.create_task(async_(connection.execute)("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.05)
        await async_(connection.close)()
        with pytest.raises(psycopg.OperationalError):
            await task

    run(main())


def test_names_are_resolved_off_the_loop(
    run: Run, patched: None, pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    resolve = socket.getaddrinfo

    def watched(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return resolve(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", watched)

    @async_
    def main() -> tuple[Any, ...] | None:
        with psycopg.connect(pg_dsn, host="localhost") as connection:
            return connection.execute("SELECT 1").fetchone()

    async def outer() -> tuple[Any, ...] | None:
        return await main()

    assert run(outer()) == (1,)
    assert threads and threading.get_ident() not in threads


def test_connect_goes_on_to_the_next_host(run: Run, patched: None, pg_dsn: str) -> None:
    """The first host refuses, the second never answers, each within its own time."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        info = psycopg.conninfo.conninfo_to_dict(pg_dsn)
        ports = f"{closed.getsockname()[1]},{silent.getsockname()[1]},{info.get('port', 5432)}"
        hosts = f"127.0.0.1,127.0.0.1,{info['host']}"

        @async_
        def main() -> tuple[Any, ...] | None:
            with psycopg.connect(
                pg_dsn, host=hosts, port=ports, connect_timeout=2, sslmode="disable"
            ) as connection:
                return connection.execute("SELECT 1").fetchone()

        async def outer() -> tuple[Any, ...] | None:
            async with Ticker():
                return await main()

        assert run(outer()) == (1,)


def test_connect_timeout_is_kept(run: Run, patched: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        async def main() -> None:
            async with Ticker():
                with pytest.raises(psycopg.errors.ConnectionTimeout):
                    await async_(psycopg.connect)(
                        f"host=127.0.0.1 port={port} connect_timeout=2 sslmode=disable"
                    )

        run(main())


def test_unpatching_restores_everything() -> None:
    from psycopg import _conninfo_attempts, waiting
    from psycopg_pool import null_pool, pool

    owners = (psycopg.Connection, waiting, _conninfo_attempts, pool, null_pool)
    before = [dict(vars(owner)) for owner in owners]
    patch_psycopg()
    patch_psycopg(cancel_timeout=1)
    assert [dict(vars(owner)) for owner in owners] != before
    unpatch_psycopg()
    unpatch_psycopg()
    assert [dict(vars(owner)) for owner in owners] == before


def test_waits_leave_nothing_behind(run: Run, connect: Connect) -> None:
    @async_
    def query(n: int) -> None:
        for _ in range(n):
            connection.execute("SELECT 1").fetchone()

    async def main() -> None:
        await query(1000)
        gc.collect()
        objects, fds = len(gc.get_objects()), len(os.listdir("/dev/fd"))
        await query(10_000)
        gc.collect()
        assert len(os.listdir("/dev/fd")) <= fds
        assert len(gc.get_objects()) < objects + 100

    connection = connect(autocommit=True)
    run(main())
    connection.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_holds_for_the_python_implementation() -> None:
    """psycopg chooses its implementation when it is imported: hence another process."""
    if pq.__impl__ == "python":
        pytest.skip("it is what this run uses")
    environ = {**os.environ, "PSYCOPG_IMPL": "python"}
    tried = subprocess.run([sys.executable, "-c", "import psycopg"], env=environ, check=False)
    if tried.returncode:
        missing("psycopg's Python implementation does not load: install libpq5 or libpq-dev")
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider"),
            *("-k", "not uvloop and not greenletio", here),
        ],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
