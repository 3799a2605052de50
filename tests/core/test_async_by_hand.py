"""The awaitable of async_ driven by hand: send, throw, close, at any moment, by any thread."""

import threading
import types
import warnings

import greenlet
import pytest

from greenletio import async_, await_

pytestmark = pytest.mark.leaks


@types.coroutine
def trap(value):
    """Yield value to whoever drives us and return what is sent back."""
    return (yield value)


def test_send_by_hand():
    def fn():
        first = await_(trap("one"))
        second = await_(trap("two"))
        return (first, second)

    call = async_(fn)()
    assert call.send(None) == "one"
    assert call.cr_suspended and not call.cr_running
    assert call.send(1) == "two"
    with pytest.raises(StopIteration) as info:
        call.send(2)
    assert info.value.value == (1, 2)
    with pytest.raises(RuntimeError, match="already awaited|reuse"):
        call.send(None)


def test_await_iterator_by_hand():
    def fn():
        return await_(trap("one"))

    it = async_(fn)().__await__()
    assert iter(it) is it
    assert next(it) == "one"
    with pytest.raises(StopIteration) as info:
        it.send("x")
    assert info.value.value == "x"


@pytest.mark.parametrize("value", [None, (1, 2), StopIteration(3), ValueError("v"), [1]])
def test_any_result_by_hand(value):
    """A tuple or an exception as a result must not be unpacked into StopIteration's arguments."""
    call = async_(lambda: value)()
    with pytest.raises(StopIteration) as info:
        call.send(None)
    assert info.value.value is value


def test_first_send_must_be_none():
    call = async_(lambda: 1)()
    with pytest.raises(TypeError):
        call.send(1)
    with pytest.raises(StopIteration):
        call.send(None)


def test_throw_by_hand():
    def fn():
        try:
            await_(trap("one"))
        except ValueError as e:
            return ("caught", str(e), await_(trap("two")))

    call = async_(fn)()
    call.send(None)
    assert call.throw(ValueError("x")) == "two"
    with pytest.raises(StopIteration) as info:
        call.send(3)
    assert info.value.value == ("caught", "x", 3)


def test_throw_forms():
    def fn():
        await_(trap(1))

    for args in [(KeyError,), (KeyError, "k"), (KeyError, KeyError("k")), (KeyError("k"),)]:
        call = async_(fn)()
        call.send(None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with pytest.raises(KeyError):
                call.throw(*args)
    call = async_(fn)()
    call.send(None)
    with pytest.raises(TypeError):
        call.throw("not an exception")
    call.close()


def test_throw_before_the_start_does_not_run_the_function():
    ran = []
    call = async_(ran.append)(1)
    with pytest.raises(KeyError):
        call.throw(KeyError("x"))
    with pytest.raises(RuntimeError):
        call.send(None)
    assert ran == []


def test_throw_after_the_end():
    call = async_(lambda: 1)()
    with pytest.raises(StopIteration):
        call.send(None)
    with pytest.raises((RuntimeError, KeyError)):
        call.throw(KeyError("x"))


def test_close_runs_finally():
    log = []

    def fn():
        try:
            await_(trap(1))
        except BaseException as e:
            assert not isinstance(e, Exception)
            log.append("unwound")
            raise
        finally:
            log.append("finally")

    call = async_(fn)()
    call.send(None)
    call.close()
    assert log == ["unwound", "finally"]
    call.close()
    assert not call.cr_suspended and not call.cr_running


def test_close_swallowed_is_a_return():
    def fn():
        try:
            await_(trap(1))
        except BaseException:
            return 5

    call = async_(fn)()
    call.send(None)
    call.close()


@pytest.mark.leaks(False)  # what was given up stays
def test_close_ignored_is_a_runtime_error():
    def fn():
        while True:
            try:
                await_(trap(1))
            except greenlet.GreenletExit:
                pass

    call = async_(fn)()
    call.send(None)
    with pytest.raises(RuntimeError, match="ignored GreenletExit"):
        call.close()
    call.close()  # it was given up


def test_close_that_fails_raises():
    def fn():
        try:
            await_(trap(1))
        finally:
            raise LookupError("in finally")

    call = async_(fn)()
    call.send(None)
    with pytest.raises(LookupError):
        call.close()


def test_reentrant_send_throw_and_close():
    errors = []

    def fn():
        for act in (
            lambda: call.send(None),
            lambda: call.throw(KeyError()),
            lambda: call.close(),
        ):
            try:
                act()
            except (ValueError, RuntimeError) as e:
                errors.append(type(e))
        return call.cr_running

    call = async_(fn)()
    with pytest.raises(StopIteration) as info:
        call.send(None)
    assert info.value.value is True
    assert len(errors) == 3


def test_cr_attributes():
    seen = []

    def fn():
        seen.append((call.cr_running, call.cr_suspended))
        await_(trap(1))

    call = async_(fn)()
    assert (call.cr_running, call.cr_suspended) == (False, False)
    call.send(None)
    assert seen == [(True, False)]
    assert (call.cr_running, call.cr_suspended) == (False, True)
    assert call.cr_frame is not None and call.greenlet is not None
    names = []
    frame = call.cr_frame
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    assert "fn" in names
    with pytest.raises(StopIteration):
        call.send(None)
    assert (call.cr_running, call.cr_suspended) == (False, False)
    assert call.cr_frame is None and call.cr_await is None and call.greenlet is None


def test_sending_from_another_thread_is_refused_and_harmless():
    def fn():
        return await_(trap(1)), threading.get_ident()

    call = async_(fn)()
    call.send(None)
    got = []

    def other():
        for act in (lambda: call.send(2), lambda: call.throw(KeyError("x")), call.close):
            try:
                got.append(act())
            except BaseException as e:
                got.append(e)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert [isinstance(x, RuntimeError) for x in got] == [True] * 3, got
    with pytest.raises(StopIteration) as info:
        call.send(3)
    assert info.value.value == (3, threading.get_ident())


def test_started_in_another_thread_than_made():
    def fn():
        return await_(trap(1)), threading.get_ident()

    call = async_(fn)()
    got = []

    def other():
        call.send(None)
        try:
            call.send(5)
        except StopIteration as e:
            got.append(e.value)
        got.append(threading.get_ident())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert got[0] == (5, got[1])


def test_two_threads_race_to_drive_one_call():
    """One of them gets it; the other gets an error; nothing crashes."""
    for _ in range(50):
        call = async_(lambda: await_(trap(1)))()
        barrier = threading.Barrier(2)
        got = []

        def drive(call=call, barrier=barrier, got=got):
            barrier.wait()
            try:
                got.append(call.send(None))
            except (RuntimeError, ValueError) as e:
                got.append(type(e))
            barrier.wait()
            try:
                call.send(None)
            except StopIteration:
                got.append("stop")
            except (RuntimeError, ValueError):
                pass

        threads = [threading.Thread(target=drive) for _ in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        # whoever comes second is refused, or (having come after) resumes in the wrong thread
        assert got.count(1) == 1, got
