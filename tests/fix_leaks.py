"""The leak check: `pytest --leaks` (`make leaks`) repeats every test marked `leaks`.

After some rounds to warm caches up, each further round is measured: the objects the garbage
collector knows (by type), the blocks of Python's allocator, the bytes taken from malloc (what C
code leaks shows only there), open file descriptors, threads, and the sum of reference counts where
the interpreter is a debug build. What grows in every single measured round is a leak, and the test
fails with what grew. The fixtures of the test are made once: a marked test must bear being called
again and again. If its mark says `leaks(fresh=True)`, those that are of the test alone are made new
for each call. One that does not, in a module that is marked as a whole, says `leaks(False)`.
"""

import ctypes
import gc
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator

import pytest
from _pytest.logging import LogCaptureHandler

WARM_UP = 3
MEASURED = 5
CALLS = 4  # of the test in one round
SLOW = 0.2  # seconds that a call takes of which a round has one

#: To be called before each measurement: caches of a bounded size, which the tests fill with what is
#: ever new, are emptied.
forget: list[Callable[[], object]] = []


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        )
    ]


def _malloc_bytes() -> int:
    """Bytes in use of the C heap; 0 where the C library (not glibc >= 2.33) does not tell.

    glibc counts what its caches of freed chunks hold as in use, so they have to be off.
    """
    if "tcache_count=0" not in os.environ.get("GLIBC_TUNABLES", ""):
        return 0
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


def drop_log() -> None:
    """pytest keeps what is logged, for its report."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogCaptureHandler):
            handler.reset()


def measure() -> Counter[str]:
    drop_log()
    for function in forget:
        function()
    while gc.collect():
        pass
    # It holds the names that were asked for: asyncio's repr() of results looks up ever new ones.
    (getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache)()
    now: Counter[str] = Counter()
    now["blocks of Python's allocator"] = sys.getallocatedblocks()
    for kind, count in Counter(map(type, gc.get_objects())).items():
        now[f"objects of type {kind.__module__}.{kind.__qualname__}"] += count
    now["bytes of malloc"] = _malloc_bytes()
    now["open file descriptors"] = len(os.listdir("/dev/fd"))
    now["threads"] = threading.active_count()
    if hasattr(sys, "gettotalrefcount"):
        now["references"] = sys.gettotalrefcount()
    return now


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--leaks", action="store_true", help="repeat the tests marked `leaks`, watching for growth"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "leaks: repeated by `make leaks`: nothing may grow; leaks(False): not so; "
        "leaks(fresh=True): with new fixtures each time",
    )


def is_marked(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("leaks")
    return mark is not None and mark.args != (False,)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--leaks"):
        config.hook.pytest_deselected(items=[item for item in items if not is_marked(item)])
        items[:] = [item for item in items if is_marked(item)]


def renew(item: pytest.Function) -> None:
    """The fixtures that were made for the test are made anew, as if it was run again."""
    state = item.session._setupstate
    named = item._fixtureinfo.name2fixturedefs.values()
    # Those that stay would keep a function for each of those that go.
    stay = [
        (one, len(one._finalizers)) for all_ in named for one in all_ if one.scope != "function"
    ]
    stash = dict(item.stash._storage)
    state.teardown_exact(item.parent)  # type: ignore[arg-type]
    item.stash._storage.update(stash)  # what tmp_path takes away has come with the test's report
    item._initrequest()
    state.setup(item)
    for one, n in stay:
        del one._finalizers[n:]


def growth(call: Callable[[], object], calls: int) -> Counter[str]:
    """What grows in every measured round of calls, and by how much in all of them."""
    grown: Counter[str] = Counter()
    before = measure()
    for turn in range(WARM_UP + MEASURED):
        for _ in range(calls):
            call()
        now = measure()
        more = now - before  # positive counts only
        if turn == WARM_UP:
            grown = more
        elif turn > WARM_UP:
            grown = Counter({name: grown[name] + n for name, n in more.items() if name in grown})
        before = now
    return grown


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    began = time.monotonic()
    result = yield
    if not pyfuncitem.config.getoption("--leaks"):
        return result
    calls = 1 if time.monotonic() - began > SLOW else CALLS
    mark = pyfuncitem.get_closest_marker("leaks")
    fresh = mark is not None and mark.kwargs.get("fresh", False)
    names = pyfuncitem._fixtureinfo.argnames

    def call() -> None:
        drop_log()
        if fresh:
            renew(pyfuncitem)
        pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})

    gc.collect()
    gc.freeze()  # what was there before is no growth: to go through it would take most of the time
    try:
        grown = growth(call, calls)
    finally:
        gc.unfreeze()
    if grown:
        lines = [f"{n:8d} {name}" for name, n in grown.most_common(20)]
        calls *= MEASURED
        pytest.fail(f"in {calls} calls of the test grew:\n" + "\n".join(lines), pytrace=False)
    return result
