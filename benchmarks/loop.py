"""Event loops side by side, as servers and by themselves: ``python -m benchmarks.loop``.

The servers' clients are a C program (load.c) on the other end of real connections, which costs
the same whoever serves; what is compared is the server's CPU time per request. Wall time stands
beside it.
"""

from __future__ import annotations

import os

from benchmarks import envs, run
from benchmarks.contenders._load import IDLE
from benchmarks.plan import Bench, Contender, Goal, Plan

OURS = os.environ.get("GREENLETIO_TEST_LOOP", "greenletio")

CONTENDERS = {
    "ours": Contender("greenletio", module="loops_ours", loop=OURS),
    "asyncio": Contender("asyncio", module="loops", loop="asyncio"),
    "uvloop": Contender("uvloop", module="loops", loop="uvloop"),
    "rloop": Contender("rloop", "rloop", ("rloop>=0.5",), module="loops", loop="rloop"),
    "gevent": Contender("gevent", "peers", envs.PEERS, module="loops_gevent"),
}

FAMILIES = {"tcp": "TCP", "unix": "Unix", "tls": "TLS"}


def _echo(server: str, family: str, kib: int, title: str = "") -> Bench:
    without = []
    if server != "sockets":  # gevent has no transports
        without.append("gevent")
        if family != "tcp":  # rloop 0.5 has them for TCP alone
            without.append("rloop")
    return Bench(
        f"{server}-{family}-{kib}",
        f"{title or server} echo, {FAMILIES[family]}, {kib} KiB",
        "echo",
        "us",
        args={"server": server, "family": family, "size": kib * 1024},
        without=tuple(without),
    )


def _green(family: str, kib: int) -> Bench:
    title = f"green recv/send echo, {FAMILIES[family]}, {kib} KiB"
    args = {"family": family, "size": kib * 1024}
    return Bench(f"green-{family}-{kib}", title, "green_echo", "us", args=args)


def _idle(family: str, rss_n: int) -> list[Bench]:
    # A used connection, not a fresh one: what it keeps for the next message counts.
    args = {"server": "protocol", "family": family}
    without = ("rloop",) if family == "tls" else ()
    kind = FAMILIES[family]
    return [
        Bench(f"idle-rss-{family}", f"memory of an idle connection, {kind}, protocol", "idle_rss",
              "bytes", n=rss_n, memory=True, rounds=3, args=args, without=without),
        Bench(f"idle-{family}", f"echo of 1 KiB, 100 of {IDLE:,} connections active, {kind}",
              "idle_active", "us", n=10_000, rounds=2, args=args,
              without=without),
    ]  # fmt: skip


SIZES = (1, 10, 100)
SOCKETS = [_echo("sockets", family, kib) for family in ("tcp", "unix") for kib in SIZES]
OTHERS = [
    _echo(server, family, kib)
    for server in ("streams", "protocol", "buffered")
    for family in FAMILIES
    for kib in SIZES
]
PIECES = [
    _echo(f"{server}-pieces", "tls", kib, f"{server}, ten small writes for an answer,")
    for server in ("protocol", "streams")
    for kib in (1, 10)
]
ITSELF = [
    Bench("call-soon", "call_soon, 1000 at a time", "call_soon"),
    Bench("turn", "call_soon, one in each turn of the loop", "turn"),
    Bench("timers", "100,000 timers within 50 ms", "timers", n=100_000),
    Bench("cancel", "call_later and cancel", "cancel"),
    Bench("create-task", "await create_task()", "create_task"),
    Bench("sleep0", "sleep(0), two tasks", "sleep0"),
    Bench("future", "a future wakes its task", "future"),
    Bench("gather", "gather 10 coroutines", "gather"),
    Bench("queue", "Queue, put and get", "queue"),
]
GREEN = [_green(family, kib) for family in ("tcp", "tls") for kib in SIZES]
SPAWN = Bench(
    "spawn",
    "spawn 100 greenlets that sleep(0), and join them, each",
    "spawn",
    without=("asyncio", "uvloop", "rloop"),
)
IDLES = [*_idle("tcp", IDLE), *_idle("tls", IDLE // 4)]  # a handshake takes its time
BENCHES = [*SOCKETS, *OTHERS, *PIECES, *ITSELF, *GREEN, SPAWN, *IDLES]


def _at_least(limit: float, peer: str, benches: list[Bench]) -> list[Goal]:
    return [Goal(bench.name, peer, "ours", ">=", limit) for bench in benches]


def _named(*names: str) -> list[Bench]:
    return [bench for bench in BENCHES if bench.name in names]


TLS_WHOLE = [bench for bench in OTHERS if bench.args["family"] == "tls"]
HIGHER = [*SOCKETS, *TLS_WHOLE, *PIECES, *_named("call-soon", "timers")]
GOALS = [
    *_at_least(1.0, "uvloop", [b for b in (*OTHERS, *ITSELF, *IDLES) if b not in HIGHER]),
    *_at_least(1.5, "uvloop", SOCKETS),
    *_at_least(1.1, "uvloop", TLS_WHOLE),
    *_at_least(3.0, "uvloop", PIECES),
    *_at_least(2.0, "uvloop", _named("call-soon", "timers")),
    *_at_least(1.3, "gevent", GREEN),
    *_at_least(2.0, "gevent", [SPAWN]),
]


def environment() -> dict[str, str]:
    return {"BENCH_LOAD": str(envs.load()), "BENCH_CERT": str(envs.certificate())}


PLAN = Plan(
    "python -m benchmarks.loop",
    __doc__,
    CONTENDERS,
    BENCHES,
    GOALS,
    sample_ms=50,
    wall=True,
    environment=environment,
    means={"uvloop": None},
)

if __name__ == "__main__":
    raise SystemExit(run.main(PLAN))
