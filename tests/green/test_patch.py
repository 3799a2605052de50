"""patch_blocking: what imports get inside, and that the outside never notices."""

from __future__ import annotations

import builtins
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import greenletio
from greenletio import patch_blocking

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """write("package/module.py", source) makes it importable, for this test alone."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def call(path: str, source: str = "") -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))

    yield call
    for name, module in list(sys.modules.items()):
        if name not in before and (getattr(module, "__file__", None) or "").startswith(
            str(tmp_path)
        ):
            del sys.modules[name]


def is_green(module: Any) -> bool:
    return module.__name__.startswith("greenletio.green.")


def test_the_block_itself_gets_the_green_modules() -> None:
    import socket as outside

    with patch_blocking():
        import queue
        import select
        import selectors
        import socket
        import ssl
        import threading as inside_threading
        import time
        from socket import create_connection

    from greenletio.green import socket as green_socket

    for module in (queue, select, selectors, socket, ssl, inside_threading, time):
        assert is_green(module)
    assert socket is green_socket and create_connection is green_socket.create_connection
    assert outside is sys.modules["socket"] and not is_green(outside)
    import socket as afterwards

    assert afterwards is outside


def test_twins_of_the_standard_library() -> None:
    import http
    import http.client as outside
    import json as outside_json
    import urllib.parse

    with patch_blocking():
        import http as inside_http
        import http.client
        import http.cookies
        import json
        import urllib.request as inside_request
        from http import client
        from http.client import HTTPConnection
        from urllib.parse import urlsplit

        inside = http.client

    assert is_green(inside) and is_green(inside.socket) and client is inside
    assert inside.HTTPConnection is HTTPConnection is not outside.HTTPConnection
    assert is_green(inside_request.socket) and inside_request.http.client is inside
    # Shared: what does not block, and what both must mean the same by.
    assert json is outside_json
    assert urlsplit is urllib.parse.urlsplit
    assert inside_http.HTTPStatus is sys.modules["http"].HTTPStatus
    assert inside_http.cookies is sys.modules["http.cookies"]
    # The outside is untouched.
    assert sys.modules["http.client"] is outside and not is_green(outside.socket)
    assert sys.modules["http"].client is outside
    with patch_blocking():
        import http.client as again
    assert again is inside


def test_a_package_is_green_and_stays_the_one_copy(write: Write) -> None:
    write("pack/__init__.py", "import socket\nfrom . import eager\nfrom .eager import lazily")
    write(
        "pack/eager.py",
        """
        import threading
        import http.client

        def lazily():
            import ssl
            from urllib.request import socket
            from . import late
            return ssl, socket, late
        """,
    )
    write("pack/late.py", "import selectors, dep")
    write("dep.py", "import time")
    with patch_blocking():
        import pack  # type: ignore[import-not-found]

    import pack as afterwards

    assert afterwards is pack is sys.modules["pack"]
    assert is_green(pack.socket) and is_green(pack.eager.threading)
    assert is_green(pack.eager.http.client)
    # Long after the block, also from elsewhere:
    ssl, socket, late = pack.lazily()
    assert is_green(ssl) and socket is pack.socket
    assert is_green(late.selectors) and is_green(late.dep.time)
    assert sys.modules["pack.late"] is late
    write("pack/found_by_others.py", "import socket")
    import pack.found_by_others  # type: ignore[import-not-found]

    assert is_green(pack.found_by_others.socket)


def test_modules_keep_their_loader_and_spec(write: Write) -> None:
    write("plain_pack.py", "import socket")
    write("green_pack.py", "import socket")
    with patch_blocking():
        import green_pack  # type: ignore[import-not-found]
    import plain_pack  # type: ignore[import-not-found]

    for module in (green_pack, plain_pack):
        assert type(module.__loader__).__name__ == "SourceFileLoader"
        assert module.__spec__.loader is module.__loader__
        assert module.__file__.endswith(".py")
    assert is_green(green_pack.socket) and not is_green(plain_pack.socket)


def test_other_packages_are_not_touched(write: Write) -> None:
    write("before.py", "def lazily():\n    import socket, http.client\n    return socket, http")
    write("between.py", "import socket")
    import before  # type: ignore[import-not-found]

    with patch_blocking():
        pass
    import between  # type: ignore[import-not-found]

    assert not is_green(between.socket)
    socket, http = before.lazily()
    assert not is_green(socket) and not is_green(http.client)


def test_a_submodule_follows_its_package(write: Write) -> None:
    write("mixed/__init__.py", "")
    write("mixed/sub.py", "import socket")
    import mixed  # type: ignore[import-not-found]

    with patch_blocking():
        import mixed.sub  # type: ignore[import-not-found]
    assert not is_green(mixed.sub.socket)


def test_namespace_packages(write: Write) -> None:
    write("space/pack/__init__.py", "import socket\nfrom . import sub")
    write("space/pack/sub.py", "import socket")
    with patch_blocking():
        import space.pack  # type: ignore[import-not-found]
    assert is_green(space.pack.socket) and is_green(space.pack.sub.socket)


def test_a_package_imported_too_early_is_named(write: Write) -> None:
    write("early/__init__.py", "from . import sub")
    write("early/sub.py", "import socket")
    write("harmless.py", "import time")
    import early  # type: ignore[import-not-found]

    with patch_blocking():
        pass
    with patch_blocking(), pytest.warns(RuntimeWarning, match="early.sub holds .* socket"):
        import early
    assert not is_green(early.sub.socket)


def test_builtins_that_a_program_adds_are_seen(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "_translate", str.upper, raising=False)
    write("wordy.py", "text = _translate('green')\nimport builtins\nsame = builtins.len is len")
    with patch_blocking():
        import wordy  # type: ignore[import-not-found]
    assert wordy.text == "GREEN" and wordy.same


def test_only_the_named_modules() -> None:
    with patch_blocking(["time", "socket"]):
        import http.client
        import socket
        import threading as inside
        import time

        twin = http.client
    assert is_green(time) and is_green(socket) and is_green(twin)
    assert inside is threading
    with patch_blocking(modules=["time"]):
        import http.client as untouched
    assert not is_green(untouched)
    with pytest.raises(ValueError, match="no green form of json"):
        patch_blocking(["json"]).__enter__()
    assert builtins.__import__.__name__ == "__import__"


def test_nothing_stays_patched_whatever_is_raised(write: Write) -> None:
    original = builtins.__import__
    write("failing.py", "import socket\nraise KeyError('in the package')")
    with pytest.raises(ZeroDivisionError), patch_blocking():
        1 / 0  # noqa: B018
    with pytest.raises(KeyError, match="in the package"), patch_blocking():
        import failing  # type: ignore[import-not-found]  # noqa: F401
    assert "failing" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="does_not_exist"), patch_blocking():
        import does_not_exist  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ImportError, match="no_such_name"), patch_blocking():
        from http.client import no_such_name  # type: ignore[attr-defined]  # noqa: F401
    assert builtins.__import__ is original
    import socket

    assert not is_green(socket)


def test_blocks_nest() -> None:
    with patch_blocking(["time"]):
        with patch_blocking(["socket"]):
            import socket
            import time as inner
        import socket as outer_socket
        import time
    assert is_green(socket) and not is_green(inner)
    assert is_green(time) and not is_green(outer_socket)


def test_other_threads_are_not_affected(write: Write) -> None:
    write("mine.py", "import socket")
    write("theirs.py", "import socket")
    entered, imported = threading.Event(), threading.Event()
    seen: list[Any] = []

    def other() -> None:
        entered.wait(30)
        import socket

        import theirs  # type: ignore[import-not-found]

        seen.extend((socket, theirs.socket))
        imported.set()

    thread = threading.Thread(target=other)
    thread.start()
    with patch_blocking():
        entered.set()
        assert imported.wait(30)
        import mine  # type: ignore[import-not-found]
    thread.join()
    assert [is_green(m) for m in seen] == [False, False]
    assert is_green(mine.socket)


def test_other_tasks_are_not_affected(run: Any) -> None:
    import asyncio

    async def other() -> Any:
        import socket

        return socket

    async def inherits(left: asyncio.Event) -> Any:
        await left.wait()
        import socket

        return socket

    async def main() -> None:
        left = asyncio.Event()
        task = asyncio.ensure_future(other())
        with patch_blocking():
            await asyncio.sleep(0)
            child = asyncio.ensure_future(inherits(left))
            import socket
        left.set()
        assert is_green(socket) and not is_green(await task)
        with patch_blocking():  # the hook is there again, but the child's own block has ended
            assert not is_green(await child)

    run(main())


def test_threads_importing_at_once(write: Write) -> None:
    for n in range(20):
        write(f"racing/m{n}.py", "import socket, http.client, threading")
    write("racing/__init__.py", "".join(f"from . import m{n}\n" for n in range(20)))
    start = threading.Barrier(4)
    seen: list[Any] = []

    def work() -> None:
        start.wait()
        with patch_blocking():
            import racing  # type: ignore[import-not-found]
        seen.append(racing)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(seen) == 4 and len(set(map(id, seen))) == 1
    assert all(is_green(getattr(seen[0], f"m{n}").socket) for n in range(20))
    assert builtins.__import__.__name__ == "__import__"


def test_asyncio_and_our_own_modules_stay_what_they_are(write: Write) -> None:
    write("modern.py", "import asyncio, greenletio, greenletio.green.socket, logging, socket")
    with patch_blocking():
        import modern  # type: ignore[import-not-found]
    assert modern.asyncio is sys.modules["asyncio"]
    assert modern.greenletio is greenletio
    assert modern.logging is sys.modules["logging"]


def test_standard_modules_first_imported_inside_are_plain(python: Any) -> None:
    out = python(
        """
        import sys
        from greenletio import patch_blocking
        assert "ftplib" not in sys.modules and "asyncore" not in sys.modules
        with patch_blocking():
            import ftplib, email.utils, mimetypes
        print(ftplib.__name__, ftplib.socket.__name__, email.utils.__name__)
        import email.utils, ftplib
        print(ftplib.__name__, ftplib.socket.__name__)
        import inspect, random, urllib.request, http.client
        for name, module in list(sys.modules.items()):
            if not name.startswith("greenletio"):
                for value in list(vars(module).values()):
                    if inspect.ismodule(value) and value.__name__.startswith("greenletio.green."):
                        print(name, "holds", value)
        """
    )
    assert out.splitlines() == [
        "greenletio.green.ftplib greenletio.green.socket email.utils",
        "ftplib socket",
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(greenletio._twins.TWINS))
def test_every_twin_can_be_imported(name: str) -> None:
    import importlib

    try:
        standard = importlib.import_module(name)
    except ModuleNotFoundError:
        pytest.skip(f"this Python has no {name}")
    with patch_blocking():
        twin = __import__(name, fromlist=["x"])
    assert is_green(twin) and twin is not standard
    held = {
        key: value
        for key, value in vars(twin).items()
        if getattr(value, "__name__", None) in greenletio._twins.MODULES and key[0] != "_"
    }
    assert held == {}  # none of the blocking ones


def test_lazy_members_of_a_twin(python: Any) -> None:
    out = python(
        """
        from greenletio import patch_blocking
        with patch_blocking():
            from concurrent.futures import ThreadPoolExecutor, ProcessPoolExecutor
        import concurrent.futures
        print(ThreadPoolExecutor.__module__, ProcessPoolExecutor.__module__)
        print(issubclass(ThreadPoolExecutor, concurrent.futures.ThreadPoolExecutor))
        """
    )
    assert out.split() == [
        "greenletio.green.concurrent.futures.thread",
        "greenletio.green.concurrent.futures.process",
        "True",
    ]


def test_twins_can_be_pickled(python: Any) -> None:
    out = python(
        """
        import pickle
        from greenletio import patch_blocking
        with patch_blocking():
            from xmlrpc.client import DateTime
        print(pickle.loads(pickle.dumps(DateTime(0))).__class__ is DateTime)
        """
    )
    assert out == "True\n"


def test_what_blocking_code_made_is_told_by_isinstance_and_taken(write: Write) -> None:
    import http.client
    import http.cookiejar
    import logging.handlers
    import smtplib
    import socketserver
    import urllib.request
    import xmlrpc.client

    write(
        "kinds_pack.py",
        """
        import http.client, http.cookiejar, http.server, logging.handlers, smtplib, socketserver
        import urllib.request, xmlrpc.client
        """,
    )
    with patch_blocking():
        import kinds_pack as green  # type: ignore[import-not-found]

    for kind, standard in (
        (green.http.client.HTTPSConnection, http.client.HTTPConnection),
        (green.http.server.ThreadingHTTPServer, socketserver.TCPServer),
        (green.logging.handlers.WatchedFileHandler, logging.FileHandler),
        (green.smtplib.SMTP_SSL, smtplib.SMTP),
        (green.urllib.request.HTTPSHandler, urllib.request.AbstractHTTPHandler),
        (green.xmlrpc.client.ServerProxy, xmlrpc.client.ServerProxy),
    ):
        assert issubclass(kind, standard) and kind is not standard
    assert is_green(green.http.server.socketserver.threading)
    # Values go both ways.
    assert green.http.cookiejar.CookieJar is http.cookiejar.CookieJar
    assert green.urllib.request.Request is urllib.request.Request
    assert green.http.client.HTTPMessage is http.client.HTTPMessage
    assert green.http.client.HTTPResponse is http.client.HTTPResponse
    when = xmlrpc.client.DateTime(0)
    assert green.xmlrpc.client.dumps((when,)) == xmlrpc.client.dumps((when,))


@pytest.mark.parametrize("way", ["dict", "file"])
def test_handlers_that_logging_is_configured_with_are_green(
    write: Write, tmp_path: Path, way: str
) -> None:
    import logging.handlers

    write("logs_pack.py", "import logging.config")
    with patch_blocking():
        import logs_pack  # type: ignore[import-not-found]
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        if way == "dict":
            handler = {"class": "logging.handlers.SocketHandler", "host": "localhost", "port": 1}
            logs_pack.logging.config.dictConfig(
                {
                    "version": 1,
                    "handlers": {"sock": handler, "plain": {"class": "logging.StreamHandler"}},
                    "root": {"handlers": ["sock", "plain"]},
                    "disable_existing_loggers": False,
                }
            )
        else:
            ini = tmp_path / "log.ini"
            ini.write_text(
                "[loggers]\nkeys=root\n[handlers]\nkeys=sock,plain\n[formatters]\nkeys=\n"
                "[logger_root]\nhandlers=sock,plain\n"
                "[handler_sock]\nclass=logging.handlers.SocketHandler\nargs=('localhost', 1)\n"
                "[handler_plain]\nclass=logging.StreamHandler\nargs=()\n"
            )
            logs_pack.logging.config.fileConfig(ini, disable_existing_loggers=False)
        sock, plain = root.handlers
        assert type(sock).__module__ == "greenletio.green.logging.handlers"
        assert isinstance(sock, logging.handlers.SocketHandler)
        assert type(plain) is logging.StreamHandler
    finally:
        root.handlers[:] = before


def test_os_path_may_be_what_is_imported_first(python: Any) -> None:
    out = python(
        """
        from greenletio import patch_blocking
        with patch_blocking():
            import os.path
            from os.path import join
        print(os.__name__, os.path.join is join)
        """
    )
    assert out == "greenletio.green.os True\n"


@pytest.mark.parametrize("package, name", [("concurrent", "futures"), ("urllib", "request")])
def test_the_first_import_may_be_from_the_package(python: Any, package: str, name: str) -> None:
    # The standard one is loaded, and has been found in the package.
    out = python(
        f"""
        import {package}.{name}
        from greenletio import patch_blocking
        with patch_blocking():
            from {package} import {name}
        print({name}.__name__)
        """
    )
    assert out == f"greenletio.green.{package}.{name}\n"
