"""psycopg2 as it is: one query after the other, on the connections in turn."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.contenders import _psycopg2
from benchmarks.meter import Meter, check


class Contender:
    packages: ClassVar[tuple[str, ...]] = ("psycopg2", "psycopg2-binary")

    def _psycopg2(self, meter: Meter, n: int, tasks: int, rows: int) -> None:
        conns = [_psycopg2.connect() for _ in range(tasks)]
        cursors = [conn.cursor() for conn in conns]
        statement = _psycopg2.sql(rows)
        got = 0
        for count in meter.phases(n):
            got = 0
            for _ in range(count // tasks):
                for cursor in cursors:
                    got += _psycopg2.query(cursor, statement)
        check(got == n // tasks * tasks * _psycopg2.total(rows), "query results")
        for conn in conns:
            conn.close()

    def pg1(self, meter: Meter, n: int) -> None:
        self._psycopg2(meter, n, 1, 1)

    def pg20(self, meter: Meter, n: int) -> None:
        self._psycopg2(meter, n, 20, 1)

    def pg_rows(self, meter: Meter, n: int) -> None:
        self._psycopg2(meter, n, 1, 1000)
