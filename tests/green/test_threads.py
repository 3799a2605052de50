"""greenletio.green.threading.Thread, what it is where, and _thread below it."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading as std
from typing import Any

import pytest
from fix_progress import let_others_run

import greenletio
from greenletio import async_, spawn
from greenletio.green import threading, time

pytestmark = pytest.mark.leaks


def test_a_thread_is_a_greenlet_where_a_loop_runs(green: Any) -> None:
    seen: dict[str, Any] = {}

    def work(a: int, b: int = 0) -> None:
        seen["args"] = (a, b)
        seen["thread"] = threading.current_thread()
        seen["ident"] = threading.get_ident()
        seen["os thread"] = std.get_ident()
        seen["listed"] = seen["thread"] in threading.enumerate()
        event.wait()

    event = threading.Event()

    def main() -> None:
        thread = threading.Thread(target=work, args=(1,), kwargs={"b": 2}, name="worker")
        assert thread.ident is None and not thread.is_alive()
        assert "initial" in repr(thread)
        with pytest.raises(RuntimeError, match="before it is started"):
            thread.join()
        thread.start()
        assert thread.is_alive() and thread.ident is not None
        with pytest.raises(RuntimeError, match="only be started once"):
            thread.start()
        let_others_run()
        assert seen["args"] == (1, 2) and seen["thread"] is thread
        assert seen["ident"] == thread.ident != threading.get_ident()
        assert seen["os thread"] == std.get_ident()
        assert seen["listed"] and threading.active_count() == len(threading.enumerate())
        assert "started" in repr(thread)
        thread.join(0.01)
        assert thread.is_alive()
        thread.join(0)
        event.set()
        thread.join()
        assert not thread.is_alive() and "stopped" in repr(thread)
        assert thread not in threading.enumerate()
        thread.join()

    green(main)


def test_a_thread_may_be_started_directly_in_the_loop(run: Any) -> None:
    async def main() -> None:
        ran: list[int] = []
        thread = threading.Thread(target=ran.append, args=(1,))
        thread.start()
        await async_(thread.join)()
        assert ran == [1]

    run(main())


def test_a_thread_is_real_where_no_loop_runs() -> None:
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(threading.current_thread()))
    thread.start()
    thread.join()
    assert seen == [thread] and not thread.is_alive()
    assert thread.ident != std.get_ident()


def test_a_green_place_joins_a_real_thread_without_blocking(green: Any) -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()  # no loop runs here

    def main() -> None:
        joining = spawn(thread.join)
        before = green.ticker.steps
        while green.ticker.steps < before + 50:
            time.sleep(0)
        assert not joining.ready
        release.set()
        joining.get()
        assert not thread.is_alive()

    green(main)


def test_a_real_thread_joins_a_green_one(green: Any) -> None:
    def main() -> None:
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        joined: list[bool] = []
        real = std.Thread(target=lambda: (thread.join(30), joined.append(thread.is_alive())))
        real.start()
        let_others_run()
        release.set()
        while real.is_alive():
            time.sleep(0.001)
        assert joined == [False]

    green(main)


def test_a_thread_cancelled_before_it_started_can_be_joined(green: Any) -> None:
    def main() -> None:
        ran: list[int] = []
        thread = threading.Thread(target=ran.append, args=(1,))
        thread.start()
        (task,) = (t for t in asyncio.all_tasks() if "_run_green" in t.get_name())
        task.cancel()
        thread.join()
        assert not thread.is_alive() and ran == []

    green(main)


def test_subclasses_and_timers(green: Any) -> None:
    class Worker(threading.Thread):
        def __init__(self) -> None:
            super().__init__(daemon=True)
            self.ran = False

        def run(self) -> None:
            time.sleep(0)
            self.ran = True

    def main() -> None:
        worker = Worker()
        worker.start()
        worker.join()
        assert worker.ran and worker.daemon
        fired: list[Any] = []
        timer = threading.Timer(0.001, lambda *args, **kw: fired.append((args, kw)), (1,), {"a": 2})
        timer.start()
        timer.join()
        assert fired == [((1,), {"a": 2})]
        cancelled = threading.Timer(3600, fired.append)
        cancelled.start()
        cancelled.cancel()
        cancelled.join()
        assert len(fired) == 1

    green(main)


@pytest.mark.parametrize("place", ["green", "plain"])
def test_excepthook(green: Any, place: str, capfd: pytest.CaptureFixture[str]) -> None:
    reports: list[Any] = []

    def fail() -> None:
        raise ValueError("in a thread")

    def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "excepthook", reports.append)
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
            patch.setattr(threading, "excepthook", threading.__excepthook__)
            patch.setattr(std, "excepthook", std.__excepthook__)
            leaving = threading.Thread(target=sys.exit)
            leaving.start()
            leaving.join()
        (report,) = reports
        assert report.exc_type is ValueError and report.thread is thread

    green(main) if place == "green" else main()
    assert capfd.readouterr().err == ""  # SystemExit is not reported


def test_the_default_excepthook_is_the_standard_one(green: Any) -> None:
    def main() -> None:
        reports: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(std, "excepthook", reports.append)
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()
        assert reports[0].exc_type is ZeroDivisionError

    green(main)


def test_identity_under_async_(green: Any) -> None:
    def main() -> None:
        me = threading.current_thread()
        assert me is threading.current_thread()
        assert me.ident == threading.get_ident() != std.get_ident()
        assert me is not threading.main_thread()
        idents = {spawn(lambda: (time.sleep(0), threading.get_ident())[1]) for _ in range(10)}
        assert len({g.get() for g in idents} | {me.ident}) == 11

    assert threading.current_thread() is std.current_thread() is threading.main_thread()
    assert threading.get_ident() == std.get_ident()
    green(main)


def test_start_new_thread(green: Any) -> None:
    from greenletio.green import _thread

    def main() -> None:
        seen: dict[str, Any] = {}
        done = threading.Event()

        def work(a: int, *, b: int) -> None:
            seen.update(a=a, b=b, ident=_thread.get_ident(), count=_thread._count())
            done.set()

        before = _thread._count()
        ident = _thread.start_new_thread(work, (1,), {"b": 2})
        done.wait()
        assert seen == {"a": 1, "b": 2, "ident": ident, "count": before + 1}
        unraisable: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "unraisablehook", unraisable.append)
            _thread.start_new_thread(divmod, (1, 0))
            _thread.start_new_thread(_thread.exit, ())
            while not unraisable or _thread._count() != before:
                time.sleep(0)
        (args,) = unraisable
        assert args.exc_type is ZeroDivisionError and args.object in (divmod, None)
        for wrong in ((None, ()), (work, []), (work, (), 5)):
            with pytest.raises(TypeError):
                _thread.start_new_thread(*wrong)

    green(main)


def test_a_cancelled_join_does_not_make_a_thread_look_ended(green: Any) -> None:
    def main() -> None:
        go = threading.Event()
        thread = threading.Thread(target=go.wait)
        thread.start()
        joining = spawn(thread.join)
        let_others_run()
        joining.kill()
        assert thread.is_alive()
        go.set()
        thread.join()
        assert not thread.is_alive()

    green(main)


def test_threads_inherit_being_daemons_from_the_green_thread_that_makes_them(green: Any) -> None:
    def main() -> None:
        seen: list[bool] = []
        outer = threading.Thread(target=lambda: seen.append(threading.Thread().daemon), daemon=True)
        outer.start()
        outer.join()
        assert seen == [True]

    green(main)


def tasks_alive() -> int:
    return sum(isinstance(each, asyncio.Task) for each in gc.get_objects())


@pytest.mark.skipif(
    not (3, 11) <= sys.version_info < (3, 14), reason="there a spawned greenlet has a task"
)
def test_a_thread_has_no_task_on_our_loop() -> None:
    async def main() -> None:
        before = tasks_alive()
        go = threading.Event()
        local = threading.local()

        def work() -> None:
            local.me = threading.current_thread()
            go.wait()

        def start_and_join() -> None:
            threads = [threading.Thread(target=work) for _ in range(10)]
            for thread in threads:
                thread.start()
            let_others_run()
            alive.append(tasks_alive())
            go.set()
            for thread in threads:
                thread.join()
            alive.append(tasks_alive())

        alive: list[int] = []
        await async_(start_and_join)()
        assert alive == [before, before]

    greenletio.run(main())


def test_a_thread_that_never_began_has_ended(run: Any) -> None:
    from greenletio.green import _thread

    before = _thread._count()
    ran: list[int] = []
    threads = [threading.Thread(target=ran.append, args=(1,)) for _ in range(3)]

    async def main() -> None:
        for thread in threads:
            thread.start()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    run(main())
    gc.collect()
    assert ran == [] and _thread._count() == before
    for thread in threads:
        assert not thread.is_alive() and thread not in threading.enumerate()
        thread.join()
