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


def test_local_is_per_greenlet(green: Any) -> None:
    local = threading.local()
    local.name = "main thread"

    def work(name: str) -> None:
        assert not hasattr(local, "name") and vars(local) == {}
        local.name = name
        time.sleep(0)
        assert local.name == name and vars(local) == {"name": name}

    def main() -> None:
        assert not hasattr(local, "name")
        local.name = "main greenlet"
        workers = [spawn(work, str(n)) for n in range(10)]
        thread = std.Thread(target=work, args=("real",))
        thread.start()
        thread.join()
        for worker in workers:
            worker.get()
        assert local.name == "main greenlet"

    green(main)
    assert local.name == "main thread"


def test_a_recycled_greenlet_inherits_nothing(green: Any) -> None:
    local = threading.local()

    def work() -> None:
        assert not hasattr(local, "left")
        local.left = 1

    def main() -> None:
        for _ in range(100):
            spawn(work).get()

    green(main)


def test_local_lets_go_of_what_it_holds(green: Any) -> None:
    class Value:
        pass

    values: list[Any] = []
    kept: list[Any] = []
    local = threading.local()

    def work() -> None:
        local.value = Value()
        values.append(weakref.ref(local.value))

    def main() -> None:
        for _ in range(3):
            kept.append(spawn(work))
            kept[-1].get()
            kept.append(threading.Thread(target=work))
            kept[-1].start()
            kept[-1].join()

    green(main)
    gc.collect()
    assert [ref() for ref in values] == [None] * 6

    short_lived = threading.local()
    short_lived.value = Value()
    ref = weakref.ref(short_lived.value)
    del short_lived
    gc.collect()
    assert ref() is None


def test_local_subclasses(green: Any) -> None:
    class Local(threading.local):
        kind = "class attribute"
        calls = 0

        def __init__(self, start: int, *, step: int = 1) -> None:
            type(self).calls += 1
            self.n, self.step = start, step

        @property
        def next(self) -> int:
            self.n += self.step
            return self.n

        @next.setter
        def next(self, value: int) -> None:
            self.n = value

        def __getattr__(self, name: str) -> str:
            if name.startswith("any_"):
                return name
            raise AttributeError(name)

    local = Local(10, step=2)

    def work() -> None:
        assert (local.n, local.step) == (10, 2)
        assert local.next == 12
        local.next = 3
        assert local.n == 3 and "next" not in vars(local)
        assert local.kind == "class attribute" and local.any_thing == "any_thing"
        local.kind = "own"
        assert local.kind == "own"
        del local.kind
        assert local.kind == "class attribute"
        with pytest.raises(AttributeError):
            del local.kind
        with pytest.raises(AttributeError):
            local.nothing  # noqa: B018
        with pytest.raises(AttributeError):
            local.__dict__ = {}

    work()
    green(work)
    assert Local.calls == 2  # here, and in the greenlet
    with pytest.raises(TypeError, match="Initialization arguments"):
        threading.local(1)


def test_a_local_in_a_cycle_is_garbage(green: Any) -> None:
    class Node:
        local: Any

    def main() -> None:
        node = Node()
        node.local = threading.local()
        node.local.node = node
        gone = weakref.ref(node)
        del node
        gc.collect()
        assert gone() is None

    green(main)
    main()


class Visitor:
    """A value that uses the local, in every way there is, as it goes."""

    def __init__(self, local: Any, seen: list[Any]) -> None:
        self.local, self.seen = local, seen

    def __del__(self) -> None:
        self.seen.append(sorted(vars(self.local)))
        self.local.left = getattr(self.local, "left", 0) + 1
        self.local.again = Value()
        del self.local.again


def test_a_value_that_uses_the_local_as_it_is_replaced_or_deleted(green: Any) -> None:
    local = threading.local()
    seen: list[Any] = []

    def work() -> None:
        local.value = Visitor(local, seen)
        local.value = Visitor(local, seen)  # while the name is bound
        assert local.left == 1
        del local.value
        assert local.left == 2
        local.value = Visitor(local, seen)
        vars(local).pop("value")
        local.value = Visitor(local, seen)
        vars(local).clear()  # finds the dict empty, and fills it again
        assert vars(local) == {"left": 1}

    green(work)
    work()
    assert seen == [["left", "value"], ["left"], ["left"], []] * 2 or seen[0] == ["value"]
    vars(local).clear()


def test_a_value_that_looks_for_the_local_as_the_local_goes(green: Any) -> None:
    heard: list[Any] = []

    class Late:
        def __init__(self, local: Any) -> None:
            self.ref = weakref.ref(local)

        def __del__(self) -> None:
            heard.append(self.ref())

    def fill(local: Any) -> None:
        local.value = Late(local)

    def main() -> None:
        local = threading.local()
        for _ in range(3):
            spawn(fill, local).get()
        fill(local)
        assert [type(each) for each in heard] == [threading.local] * 3  # as each call ended
        heard.clear()
        del local
        assert heard == [None]
        heard.clear()

    green(main)
    main()


def test_a_value_that_uses_the_local_as_both_are_collected(green: Any) -> None:
    heard: list[Any] = []

    class Cyclic:
        def __init__(self, local: Any) -> None:
            self.local = local

        def __del__(self) -> None:
            vars(self.local)["late"] = Value()  # before anything was taken apart
            heard.append(weakref.ref(self.local))

    def main() -> None:
        local = threading.local()
        local.value = Cyclic(local)
        del local
        gc.collect()
        assert [ref() for ref in heard] == [None]
        heard.clear()

    green(main)
    main()


def test_a_local_that_has_been_taken_apart_says_so(green: Any) -> None:
    heard: list[str] = []

    class Last:
        def __init__(self, local: Any) -> None:
            self.ref = weakref.ref(local)

        def __del__(self) -> None:
            local = self.ref()
            if local is not None:  # newer Pythons find it no more
                for use in (vars, lambda local: setattr(local, "value", 1)):
                    with pytest.raises(ReferenceError, match="being collected"):
                        use(local)
            heard.append("last")

    class First:
        def __init__(self, local: Any) -> None:
            self.local = local

        def __del__(self) -> None:  # the collector does not know what is made now
            self.local.last = Last(self.local)
            heard.append("first")

    def main() -> None:
        local = threading.local()
        local.first = First(local)
        del local
        gc.collect()
        assert heard == ["first", "last"]
        heard.clear()

    green(main)
    main()


def test_a_finalizer_of_one_local_drops_another_in_the_same_list(green: Any) -> None:
    """Both lists change while a call's values are let go of, under the one who goes through."""
    locals_: list[Any] = []

    class Dropper:
        def __del__(self) -> None:
            if locals_:
                locals_.pop()  # with its values, which the call that ends has, too
            if locals_:
                locals_[-1].fresh = Value()  # and new ones, for the call that ends

    def work() -> None:
        for local in locals_:
            local.value = Dropper()

    def main() -> None:
        locals_.extend(threading.local() for _ in range(20))
        spawn(work).get()
        assert locals_ == []

    green(main)
    main()


def test_init_that_switches_runs_once_for_each_call(green: Any) -> None:
    began: list[int] = []

    class Local(threading.local):
        def __init__(self) -> None:
            began.append(threading.get_ident())
            self.steps = 0
            for _ in range(5):
                self.steps += 1  # used by itself, while it is being made
                time.sleep(0)
            self.whole = True

    def main() -> None:
        local = Local()
        began.clear()

        def work() -> tuple[int, bool]:
            return local.steps, local.whole

        def half() -> None:
            local.steps  # noqa: B018

        cancelled = spawn(half)
        workers = [spawn(work) for _ in range(10)]
        time.sleep(0)
        cancelled.kill()  # in the middle of __init__
        assert [worker.get() for worker in workers] == [(5, True)] * 10
        assert len(began) == len(set(began)) == 11

    green(main)


def test_the_local_goes_while_its_init_waits(green: Any) -> None:
    gone: list[Any] = []

    class Local(threading.local):
        def __init__(self) -> None:
            self.value = Value()
            gone.append(weakref.ref(self.value))
            time.sleep(0)

    def main() -> None:
        local = Local()
        using = [spawn(getattr, local, "value") for _ in range(3)]
        time.sleep(0)
        del local  # those that wait in its __init__ have it still
        for each in using:
            assert isinstance(each.get(), Value)

    green(main)
    gc.collect()
    assert len(gone) == 4 and [ref() for ref in gone] == [None] * 4


@pytest.mark.parametrize("first", ["local", "thread", "call"])
def test_a_local_of_many_threads_and_calls_ends_in_one_of_them(green: Any, first: str) -> None:
    """Its last reference goes in a thread that never used it, or those that used it go first."""
    refs: list[Any] = []
    filled = std.Barrier(3)
    go = std.Event()

    def fill(local: Any) -> None:
        local.value = Value()
        refs.append(weakref.ref(local.value))

    def hold(box: list[Any]) -> None:
        fill(box[0])
        filled.wait(30)
        assert go.wait(30)

    def drop(box: list[Any]) -> None:
        box.clear()

    def main() -> None:
        box = [threading.local()]
        threads = [std.Thread(target=hold, args=(box,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        filled.wait(30)

        def call() -> None:
            fill(box[0])
            if first == "call":
                return
            dropper = std.Thread(target=drop, args=(box,))
            if first == "thread":
                go.set()
                for thread in threads:
                    thread.join()
                assert [ref() for ref in refs] == [None, None, refs[2]()]
            dropper.start()
            dropper.join()
            assert [ref() for ref in refs] == [None] * 3
            time.sleep(0)

        spawn(call).get()
        go.set()
        for thread in threads:
            thread.join()
        box.clear()
        assert [ref() for ref in refs] == [None] * 3

    green(main)


def test_the_dict_is_cleared_while_it_is_gone_through(green: Any) -> None:
    local = threading.local()

    class Key(str):
        """Whose comparison clears the dict it is looked up in."""

        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            vars(local).clear()
            return str.__eq__(self, other)

    def work() -> None:
        for n in range(20):
            setattr(local, f"name{n}", Value())
        with pytest.raises(RuntimeError, match="changed size"):
            for _ in vars(local):
                vars(local).clear()
        local.name = Value()
        vars(local)[Key("other")] = Value()
        assert getattr(local, Key("name"), None) is None or vars(local) == {}
        setattr(local, Key("name"), 1)
        local.name = 2
        local.name = 3
        vars(local).clear()
        local.value = local
        assert local.value.value is local  # a cycle, which goes with the call

    for _ in range(3):
        green(work)
    work()
    vars(local).clear()
