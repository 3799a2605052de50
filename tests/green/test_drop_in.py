"""Each green module has what its standard namesake has, with the same signatures."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

import pytest

from greenletio import _twins

MODULES = sorted(_twins.MODULES - {"_multiprocessing", "concurrent.futures"})

# What a green module deliberately does not have, or takes otherwise.
ABSENT = {
    "select.kqueue",
    "select.kevent",
    "select.devpoll",
    "selectors.KqueueSelector",
    "selectors.DevpollSelector",
}
DIFFERENT = {
    # **context takes context=, which came in 3.14.
    "threading.Thread.__init__",
    # A hook, which anyone (pytest, for one) may have replaced.
    "threading.excepthook",
    # A factory there, which takes anything and then refuses it.
    "threading.RLock",
    # Its {} is a default that nobody should change.
    "_thread.start_new",
    "_thread.start_new_thread",
    # Other Pythons take other keywords there, which pass through.
    "sqlite3.Connection.__init__",
    "sqlite3.Connection.backup",
    "sqlite3.Connection.iterdump",
    # The default is the cursor's arraysize, which is 1.
    "sqlite3.Cursor.fetchmany",
    # The base class's *args pass through.
    "ssl.SSLSocket.sendmsg",
    "ssl.SSLSocket.recvmsg",
}


@pytest.fixture(params=MODULES)
def pair(request: pytest.FixtureRequest) -> tuple[ModuleType, ModuleType]:
    name = request.param
    return importlib.import_module(name), importlib.import_module(f"greenletio.green.{name}")


def parameters(function: Any) -> list[inspect.Parameter] | None:
    """The parameters but for self; None where the signature is not known."""
    try:
        found = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError, AttributeError):  # the last: C defaults it cannot evaluate
        return None
    return [p for p in found if p.name != "self"]


def alike(standard: inspect.Parameter, green: inspect.Parameter) -> bool:
    """Same default, kind and name; what C takes by position alone may also have a name."""
    same_kind = standard.kind == green.kind and standard.name == green.name
    return repr(standard.default) == repr(green.default) and (
        same_kind or standard.kind is inspect.Parameter.POSITIONAL_ONLY
    )


def difference(path: str, standard: Any, green: Any) -> str | None:
    theirs, ours = parameters(standard), parameters(green)
    if path in DIFFERENT or theirs is None:
        return None
    if ours is not None and len(ours) == len(theirs) and all(map(alike, theirs, ours)):
        return None
    return f"{path}{inspect.signature(standard)} became {ours}"


def public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    return [n for n in names if not isinstance(getattr(module, n), ModuleType)]


def test_no_name_is_missing(pair: tuple[ModuleType, ModuleType]) -> None:
    standard, green = pair
    missing = [
        name
        for name in public(standard)
        if not hasattr(green, name) and f"{standard.__name__}.{name}" not in ABSENT
    ]
    assert missing == []


def test_all_is_a_tuple_of_what_exists_and_of_all_that_does(
    pair: tuple[ModuleType, ModuleType],
) -> None:
    standard, green = pair
    assert type(green.__all__) is tuple
    assert [name for name in green.__all__ if not hasattr(green, name)] == []
    expected = {n for n in public(standard) if f"{standard.__name__}.{n}" not in ABSENT}
    assert set(green.__all__) == expected


def test_the_package_names_its_modules() -> None:
    names = {name for name in MODULES if not name.startswith("_")}
    assert set(importlib.import_module("greenletio.green").__all__) == names


def test_constants_are_the_same_objects(pair: tuple[ModuleType, ModuleType]) -> None:
    standard, green = pair
    for name in public(standard):
        value = getattr(standard, name)
        if not callable(value) and f"{standard.__name__}.{name}" not in ABSENT:
            assert getattr(green, name) is value, name


def test_exceptions_are_the_same_classes(pair: tuple[ModuleType, ModuleType]) -> None:
    standard, green = pair
    for name in public(standard):
        value = getattr(standard, name)
        if isinstance(value, type) and issubclass(value, BaseException):
            assert getattr(green, name) is value, name


def test_signatures_are_the_same(pair: tuple[ModuleType, ModuleType]) -> None:
    standard, green = pair
    found = []
    for name in public(standard):
        path = f"{standard.__name__}.{name}"
        if path in ABSENT:
            continue
        theirs, ours = getattr(standard, name), getattr(green, name)
        if theirs is ours or not callable(theirs):
            continue
        if not isinstance(theirs, type):
            found.append(difference(path, theirs, ours))
            continue
        for member in vars(theirs):
            if member == "__init__" or not member.startswith("_"):
                assert hasattr(ours, member), f"{path}.{member} is missing"
                if callable(getattr(theirs, member)):
                    found.append(
                        difference(
                            f"{path}.{member}", getattr(theirs, member), getattr(ours, member)
                        )
                    )
    assert [line for line in found if line] == []


def test_types_are_subtypes_where_the_standard_ones_are_python_classes() -> None:
    import queue
    import selectors
    import socket
    import ssl
    import threading

    from greenletio.green import queue as green_queue
    from greenletio.green import selectors as green_selectors
    from greenletio.green import socket as green_socket
    from greenletio.green import ssl as green_ssl
    from greenletio.green import threading as green_threading

    assert issubclass(green_socket.socket, socket.socket)
    assert issubclass(green_ssl.SSLSocket, ssl.SSLSocket)
    assert issubclass(green_ssl.SSLSocket, green_socket.socket)
    assert issubclass(green_ssl.SSLContext, ssl.SSLContext)
    for name in ("Queue", "LifoQueue", "PriorityQueue"):
        assert issubclass(getattr(green_queue, name), getattr(queue, name))
    for name in ("Thread", "Timer", "Event", "Condition", "Semaphore", "Barrier"):
        if name != "Timer":
            assert issubclass(getattr(green_threading, name), getattr(threading, name))
    assert issubclass(green_selectors.DefaultSelector, selectors.BaseSelector)


def test_the_checkout_is_not_importable_twice(python: Any, request: pytest.FixtureRequest) -> None:
    root = str(request.config.rootpath)
    out = python(
        f"""
        import sys
        sys.path.insert(0, {root!r})
        try:
            import green
        except ImportError as error:
            print(error)
        """
    )
    assert "import greenletio.green" in out


def test_every_module_of_the_standard_library_has_its_green_one(python: Any) -> None:
    out = python(
        """
        import importlib, pkgutil, sys, threading, warnings
        warnings.simplefilter("ignore")

        # What these do when they are imported, or need for it, is theirs.
        left_out = {"__main__", "antigravity", "idlelib", "lib2to3", "test", "this", "tkinter",
                    "turtle", "turtledemo"}

        def modules():
            for name in sorted(sys.stdlib_module_names - left_out):
                try:
                    module = importlib.import_module(name)
                except ImportError:  # of another system
                    continue
                yield name
                for each in pkgutil.iter_modules(getattr(module, "__path__", ())):
                    if each.name not in ("__main__", "test", "tests"):
                        yield f"{name}.{each.name}"

        count = 0
        for name in modules():
            try:
                importlib.import_module(name)
            except Exception:
                continue
            importlib.import_module(f"greenletio.green.{name}")
            count += 1
        assert count > 300, count
        blocking = {"queue", "select", "selectors", "socket", "ssl", "subprocess"}
        for name in ("ftplib", "http.client", "imaplib", "poplib", "smtplib", "socketserver",
                     "urllib.request", "webbrowser", "xmlrpc.client"):
            names = vars(sys.modules[f"greenletio.green.{name}"])
            found = [m.__name__ for m in names.values() if type(m) is type(sys)]
            assert not blocking & set(found), (name, found)
        print(threading.active_count())
        """
    )
    assert out == "1\n"


def test_importing_starts_nothing(python: Any) -> None:
    out = python(
        """
        import asyncio, sys, threading
        loops = []
        new = asyncio.new_event_loop
        asyncio.new_event_loop = lambda: loops.append(1) or new()
        from greenletio.green import queue, select, selectors, socket, ssl, threading as green, time
        lock = green.Lock()
        with lock, green.RLock(), green.Condition(), green.Semaphore():
            pass
        local = green.local()
        local.x = 1
        queue.Queue().put(1)
        print(loops, threading.active_count())
        async def main():
            return 42
        print(asyncio.run(main()))
        """
    )
    assert out.split("\n")[:2] == ["[] 1", "42"]


if sys.version_info < (3, 13):
    # Python functions there, types from 3.13 on.
    def test_locks_are_made_by_calling() -> None:
        from greenletio.green import threading

        assert not threading.Lock().locked()
