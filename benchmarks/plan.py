"""The terms of a plan: what is measured, by whom, and what greenletio is to reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Contender:
    title: str
    env: str | None = None  # None: the environment that runs the benchmark
    packages: tuple[str, ...] = ()
    module: str | None = None  # of benchmarks.contenders; None: it has the contender's name
    loop: str | None = None  # it always runs on; None: the bench's
    newer_libpq: bool = False  # greenletio as its wheels are, whatever libpq the system has


Unit = Literal["ns", "us", "bytes"]


@dataclass(frozen=True)
class Bench:
    name: str
    title: str
    method: str
    unit: Unit = "ns"
    loop: str = "asyncio"
    shim: bool = False
    n: int | None = None  # operations in a sample; None: calibrated for each contender
    per_n: int = 1  # operations that one of n stands for
    multiple: int = 1  # n is a multiple of this
    memory: bool = False  # a fresh process for each sample
    postgres: bool = False
    rounds: int | None = None  # at most; None: no limit of its own
    args: Mapping[str, Any] = field(default_factory=dict)  # of the method
    without: tuple[str, ...] = ()  # contenders that have the method, but not this bench


@dataclass(frozen=True)
class Goal:
    """What the medians' ratio `over` / `under` (or `over` alone) is to be."""

    bench: str
    over: str
    under: str | None
    sign: Literal[">=", "<="]
    limit: float
    wall: bool = False  # of the wall times, not of what the bench measures


@dataclass(frozen=True)
class Plan:
    prog: str
    doc: str
    contenders: Mapping[str, Contender]
    benches: list[Bench]
    goals: list[Goal]
    sample_ms: int = 20  # CPU time of a sample
    wall: bool = False  # wall time is reported, too
    environment: Callable[[], dict[str, str]] = dict  # what the workers find in theirs
    # Whose ratios to ours are summed up in a geometric mean, and what that is to reach, if anything
    means: Mapping[str, float | None] = field(default_factory=dict)
    mean_of: tuple[str, ...] = ()  # benches; none: all

    def text(self, goal: Goal) -> str:
        over = ("wall time: " if goal.wall else "") + self.contenders[goal.over].title
        if goal.under is None:
            return f"{over} {goal.sign} {goal.limit:,.0f}"
        return f"{over} / {self.contenders[goal.under].title} {goal.sign} {goal.limit:g}"
