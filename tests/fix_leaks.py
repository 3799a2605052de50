"""The leak check: `pytest --leaks` (`make leaks`) repeats every test marked `leaks`.

After some rounds to warm caches up, each further round is measured: the objects the garbage
collector knows (by type), the blocks of Python's allocator, the bytes taken from malloc (what C
code leaks shows only there), open file descriptors, threads, and the sum of reference counts where
the interpreter is a debug build. What grows in every single measured round is a leak, and the test
fails with what grew. The fixtures of the test are made once: a marked test must bear being called
again and again.
"""

import ctypes
import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Generator

import pytest

WARM_UP = 3
MEASURED = 5
CALLS = 4  # of the test in one round


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


def measure() -> Counter[str]:
    while gc.collect():
        pass
    now: Counter[str] = Counter()
    for obj in gc.get_objects():
        now[f"objects of type {type(obj).__module__}.{type(obj).__qualname__}"] += 1
    now["blocks of Python's allocator"] = sys.getallocatedblocks()
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
    config.addinivalue_line("markers", "leaks: repeated by `make leaks`, where nothing may grow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--leaks"):
        others = [item for item in items if item.get_closest_marker("leaks") is None]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.get_closest_marker("leaks") is not None]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    result = yield
    if not pyfuncitem.config.getoption("--leaks"):
        return result
    test = pyfuncitem.obj
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    grown: Counter[str] = Counter()
    before = measure()
    for turn in range(WARM_UP + MEASURED):
        for _ in range(CALLS):
            test(**arguments)
        now = measure()
        growth = now - before  # positive counts only
        if turn == WARM_UP:
            grown = growth
        elif turn > WARM_UP:
            grown = Counter({name: grown[name] + n for name, n in growth.items() if name in grown})
        before = now
    del before, now, growth
    if grown:
        calls = MEASURED * CALLS
        lines = [f"{n:8d} {name}" for name, n in grown.most_common(20)]
        pytest.fail(f"in {calls} calls of the test grew:\n" + "\n".join(lines), pytrace=False)
    return result
