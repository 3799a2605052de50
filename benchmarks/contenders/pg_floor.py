"""The C floor: pg_floor.c, which measures itself."""

from __future__ import annotations

import os
import subprocess

from benchmarks.contenders._queries import COPY_SETUP, MANY_SETUP, QUERIES, check_rows
from benchmarks.meter import Meter, check


class Contender:
    packages = ()

    def _run(
        self,
        meter: Meter,
        mode: str,
        n: int,
        sql: str,
        args: tuple[object, ...] = (),
        setup: tuple[str, ...] = (),
        tasks: int = 1,
    ) -> int:
        params = [str(arg) for arg in args]
        command = [os.environ["BENCH_PG_FLOOR"], mode, os.environ["DATABASE_URL"], str(tasks)]
        done = subprocess.run(
            [*command, str(n), sql, *params, "--", *setup], capture_output=True, text=True
        )
        check(done.returncode == 0, done.stderr.strip())
        cpu, wall, rows = map(int, done.stdout.split())
        meter.cpu_ns, meter.wall_ns = cpu, wall
        return rows

    def fetch(self, meter: Meter, n: int, query: str, tasks: int) -> None:
        sql, args, _, setup = QUERIES[query]
        check_rows(query, self._run(meter, "fetch", n, sql, args, setup, tasks))

    def executemany(self, meter: Meter, n: int) -> None:
        sql = "INSERT INTO bench_many VALUES ($1, $2)"
        self._run(meter, "many", n, sql, setup=MANY_SETUP)

    def copy_in(self, meter: Meter, n: int) -> None:
        sql = "COPY bench_copy FROM STDIN (FORMAT binary)"
        self._run(meter, "copy-in", n, sql, setup=COPY_SETUP[:1])

    def copy_out(self, meter: Meter, n: int) -> None:
        size = self._run(meter, "copy-out", n, "COPY bench_copy TO STDOUT", setup=COPY_SETUP)
        check(size > 100_000, "all of the table has come")
