"""green.threading.local: whose values go when, and odd moments."""

from __future__ import annotations

import asyncio
import gc
import threading as std
import weakref
from typing import Any

import pytest

from greenletio import async_, spawn
from greenletio.green import threading, time

pytestmark = pytest.mark.leaks


class Value:
    pass


def test_many_locals_of_many_calls_that_end_out_of_order(green: Any) -> None:
    locals_ = [threading.local() for _ in range(20)]
    left: list[weakref.ref[Value]] = []

    def work(me: int) -> None:
        for n, local in enumerate(locals_):
            local.value = value = Value()
            local.me = me, n
            left.append(weakref.ref(value))
        for _ in range(me % 7):
            time.sleep(0)
        assert [local.me for local in locals_ if local is not None] == [
            (me, n) for n, local in enumerate(locals_) if local is not None
        ]

    def main() -> None:
        workers = [spawn(work, n) for n in range(30)]
        time.sleep(0)
        locals_[3] = locals_[11] = None  # type: ignore[call-overload]  # go while all are used
        for worker in workers:
            worker.get()
        kept.extend(workers)

    kept: list[Any] = []
    green(main)
    assert [ref() for ref in left] == [None] * len(left)


def test_a_finalizer_that_uses_the_local_as_the_call_ends(green: Any) -> None:
    local = threading.local()
    seen: list[Any] = []

    class Last:
        def __del__(self) -> None:
            seen.append(getattr(local, "again", None))
            local.again = "set by a finalizer"

    def work() -> None:
        local.last = Last()

    def main() -> None:
        for _ in range(3):
            spawn(work).get()
        thread = std.Thread(target=work)
        thread.start()
        thread.join()

    green(main)
    assert len(seen) == 4


def test_init_that_fails_waits_or_uses_itself(green: Any) -> None:
    class Local(threading.local):
        def __init__(self, fail: list[bool]) -> None:
            self.before = getattr(self, "before", 0) + 1
            time.sleep(0)
            if fail[0]:
                raise ZeroDivisionError
            self.done = True

    fail = [False]

    def main() -> None:
        local = Local(fail)
        fail[0] = True

        def work() -> tuple[int, bool]:
            with pytest.raises(ZeroDivisionError):
                local.before  # noqa: B018
            fail[0] = False
            return local.before, local.done

        assert spawn(work).get() == (1, True)
        fail[0] = False
        assert [spawn(lambda: local.before).get() for _ in range(3)] == [1, 1, 1]

    green(main)


def test_odd_names_and_values() -> None:
    local = threading.local()
    local.__class__  # noqa: B018
    assert vars(local) is vars(local) == {}
    vars(local)["given"] = 1
    assert local.given == 1 and "given" in dir(local)
    for wrong in (lambda: getattr(local, "none"), lambda: delattr(local, "none")):  # noqa: B009
        with pytest.raises(AttributeError, match="none"):
            wrong()
    with pytest.raises(AttributeError, match="read-only"):
        del local.__dict__
    with pytest.raises(TypeError):
        getattr(local, 1)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        setattr(local, 1, 1)  # type: ignore[call-overload]

    class Slots(threading.local):
        __slots__ = ("shared",)

        @property
        def fixed(self) -> int:
            return 1

    slots = Slots()
    slots.shared, slots.own = 1, 2  # type: ignore[attr-defined]
    seen: list[Any] = []
    thread = std.Thread(target=lambda: seen.append((slots.shared, vars(slots), slots.fixed)))
    thread.start()
    thread.join()
    assert seen == [(1, {}, 1)]
    with pytest.raises(AttributeError):
        slots.fixed = 2  # type: ignore[misc]


def test_a_local_that_goes_first_leaves_the_call_nothing(run: Any) -> None:
    gone: list[Any] = []

    def work() -> None:
        local = threading.local()
        local.value = Value()
        gone.append(weakref.ref(local.value))
        del local
        assert gone[-1]() is None
        time.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(async_(work)() for _ in range(5)))

    run(main())
    work()


def test_a_call_that_is_dropped_or_unwound_lets_go_of_its_values(run: Any) -> None:
    local = threading.local()
    refs: list[Any] = []

    def work() -> None:
        local.value = Value()
        refs.append(weakref.ref(local.value))
        time.sleep(1000)

    async def main() -> None:
        call = async_(work)()
        call.send(None)
        del call
        tasks = [asyncio.ensure_future(async_(work)()) for _ in range(2)]
        green = spawn(work)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        green.kill(block=False)

    run(main())
    gc.collect()
    assert len(refs) == 4 and [ref() for ref in refs] == [None] * 4
