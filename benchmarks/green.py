"""The blocking standard library, green, against its peers: ``python -m benchmarks.green``.

Both ends of what is measured are in one process, except for HTTP, whose server is in another. What
is compared is the CPU time; wall time stands beside it.
"""

from __future__ import annotations

import os

from benchmarks import envs, run
from benchmarks.contenders._sync import SLEEPERS, SLEEPS
from benchmarks.plan import Bench, Contender, Goal, Plan

OURS = os.environ.get("GREENLETIO_TEST_LOOP", "greenletio")

CONTENDERS = {
    "ours": Contender("greenletio", module="green_ours", loop=OURS),
    "ours_asyncio": Contender("greenletio on asyncio's loop", module="green_ours"),
    "gevent": Contender("gevent", "peers", envs.PEERS, module="green_gevent"),
    "eventlet": Contender("eventlet", "eventlet", ("eventlet>=0.36",), module="green_eventlet"),
    "greenletio_0_11": Contender(
        "greenletio 0.11", "greenletio-0.11", envs.OLD_GREENLETIO, module="green_0_11"
    ),
    "streams": Contender("asyncio streams", module="green_streams"),
    "threads": Contender("threads", module="green_threads"),
}

ROWS = [
    Bench("echo", "socket echo of 1 KiB, 10 connections", "echo", "us"),
    Bench("http", "GET by http.client, 10 connections kept alive", "http", "us"),
    Bench("lock", "two hand a Lock over, there and back", "lock"),
    Bench("queue", "Queue ping-pong, there and back", "queue"),
    Bench("spawn", "spawn and join", "spawn"),
    Bench("sleepers", f"{SLEEPERS:,} that sleep {SLEEPS} times each", "sleepers", n=SLEEPERS,
          per_n=SLEEPS, rounds=5),
    Bench("tls", "TLS echo of 1 KiB, 10 connections", "tls", "us"),
]  # fmt: skip
PARTS = [
    Bench("thread", "threading.Thread, start and join", "thread"),
    Bench("lock-free", "with Lock(), nobody waits", "lock_free"),
    Bench("rlock-free", "with RLock(), nobody waits", "rlock_free"),
    Bench("event", "Event ping-pong, there and back", "event"),
    Bench("semaphore", "Semaphore ping-pong, there and back", "semaphore"),
    Bench("condition", "Condition ping-pong, there and back", "condition"),
    Bench("simple-queue", "SimpleQueue ping-pong, there and back", "simple_queue"),
    Bench("queue-free", "Queue, put and get, nobody waits", "queue_free"),
    Bench("local", "threading.local, set and get", "local"),
]

GOALS = [Goal(bench.name, "gevent", "ours", ">=", 1.0) for bench in [*ROWS, *PARTS]]


def environment() -> dict[str, str]:
    return {"BENCH_CERT": str(envs.certificate())}


PLAN = Plan(
    "python -m benchmarks.green",
    __doc__,
    CONTENDERS,
    [*ROWS, *PARTS],
    GOALS,
    sample_ms=50,
    wall=True,
    environment=environment,
    means={"gevent": 1.3, "greenletio_0_11": 4.0},
    mean_of=tuple(bench.name for bench in ROWS),
)

if __name__ == "__main__":
    raise SystemExit(run.main(PLAN))
