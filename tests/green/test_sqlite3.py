"""greenletio.green.sqlite3: statements run in the pool, one at a time for a connection."""

from __future__ import annotations

import sqlite3 as std
import threading as std_threading
import time as std_time
from pathlib import Path
from typing import Any

import pytest

from greenletio import spawn, timeout
from greenletio.green import sqlite3, time

ENDLESS = "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r"


def test_the_usual(green: Any, tmp_path: Path) -> None:
    def main() -> None:
        with sqlite3.connect(tmp_path / "db") as db:
            assert isinstance(db, std.Connection)
            db.execute("create table t (n)")
            cursor = db.executemany("insert into t values (?)", ((n,) for n in range(100)))
            assert cursor.rowcount == 100 and isinstance(cursor, std.Cursor)
        rows = db.execute("select n from t order by n")
        assert next(rows) == (0,) and rows.fetchone() == (1,)
        assert rows.fetchmany(3) == [(2,), (3,), (4,)]
        assert [n for (n,) in rows] == list(range(5, 100)) and rows.fetchone() is None
        assert db.execute("select 1").fetchall() == [(1,)]
        db.row_factory = sqlite3.Row
        assert db.execute("select 5 as five").fetchone()["five"] == 5
        with pytest.raises(std.OperationalError):
            db.execute("no sql")
        with pytest.raises(ZeroDivisionError), db:
            db.execute("delete from t")
            1 / 0  # noqa: B018
        assert db.execute("select count(*) from t").fetchone()[0] == 100
        assert any("CREATE TABLE" in line for line in db.iterdump())
        other = sqlite3.connect(":memory:")
        db.backup(other)
        assert other.execute("select count(*) from t").fetchone() == (100,)
        db.close()
        with pytest.raises(std.ProgrammingError):
            db.execute("select 1")

    green(main)
    main_again = sqlite3.connect(tmp_path / "db")  # in plain code
    assert main_again.execute("select count(*) from t").fetchone() == (100,)
    main_again.close()


def test_others_run_and_a_statement_can_be_ended(green: Any) -> None:
    def main() -> None:
        db = sqlite3.connect(":memory:")
        running = spawn(lambda: db.execute(ENDLESS).fetchone())
        before = green.ticker.steps
        while green.ticker.steps < before + 20:
            time.sleep(0)
        assert not running.ready
        running.kill()
        with pytest.raises(TimeoutError), timeout(0.02):
            db.execute(ENDLESS).fetchone()
        assert db.execute("select 1").fetchone() == (1,)
        db.close()

    green(main)


def test_those_that_share_a_connection_take_turns(green: Any) -> None:
    def main() -> None:
        db = sqlite3.connect(":memory:")
        db.execute("create table t (n)")
        jobs = [spawn(db.execute, "insert into t values (?)", (n,)) for n in range(20)]
        for job in jobs:
            job.get()
        assert db.execute("select sum(n) from t").fetchone() == (190,)
        db.close()

    green(main)


def test_functions_may_use_the_connection(green: Any) -> None:
    def main() -> None:
        db = sqlite3.connect(":memory:")
        db.create_function("nested", 0, lambda: db.execute("select 7").fetchone()[0])
        assert db.execute("select nested()").fetchone() == (7,)
        db.close()

    green(main)


def test_a_thread_of_the_system_is_refused(green: Any) -> None:
    refused: list[BaseException] = []

    def main() -> None:
        db = sqlite3.connect(":memory:")

        def elsewhere() -> None:
            try:
                db.execute("select 1")
            except std.ProgrammingError as error:
                refused.append(error)

        thread = std_threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        db.close()

    green(main)
    assert "same thread" in str(refused[0])


def test_an_interruption_that_comes_too_early_is_made_again(green: Any) -> None:
    """SQLite forgets one that finds no statement running, as before the thread has begun."""

    def main() -> None:
        db = sqlite3.connect(":memory:")

        def slow_to_start() -> Any:
            std_time.sleep(0.2)
            return std.Connection.execute(db, ENDLESS).fetchone()

        with pytest.raises(TimeoutError), timeout(0.02):
            db._call(slow_to_start)
        assert db.execute("select 1").fetchone() == (1,)
        db.close()

    green(main)
