"""docs/migrating.md answers for whatever eventlet and gevent offer at the top."""

import re

import pytest

EVENTLET = """
    BoundedSemaphore CappedSemaphore Event EventletDeprecationWarning GreenPile GreenPool
    Queue Semaphore StopServe Timeout TimeoutError call_after_global connect exc_after
    getcurrent import_patched is_timeout kill listen monkey_patch serve sleep spawn
    spawn_after spawn_n with_timeout wrap_is_timeout wrap_ssl asyncio backdoor corolocal
    coros dagpool db_pool debug event green greenio greenpool greenthread hubs lock patcher
    pools queue semaphore support timeout tpool websocket wsgi zipkin
"""
GEVENT = """
    Greenlet GreenletExit Timeout config fork get_hub getcurrent getswitchinterval idle
    iwait joinall kill killall reinit setswitchinterval signal_handler sleep spawn
    spawn_later spawn_raw wait with_timeout ares backdoor baseserver builtins contextvars
    core event events exceptions fileobject hub libev libuv local lock monkey os pool pywsgi
    queue resolver resolver_ares resolver_thread select selectors server socket ssl
    subprocess threading threadpool time util win32util
"""


@pytest.mark.parametrize("library, names", [("eventlet", EVENTLET), ("gevent", GEVENT)])
def test_every_name_has_a_row(request: pytest.FixtureRequest, library: str, names: str) -> None:
    page = (request.config.rootpath / "docs" / "migrating.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    column = {"eventlet": 1, "gevent": 2}[library]
    code = " ".join(code for row in rows for code in re.findall(r"`([^`]*)`", row[column]))
    assert set(names.split()) - set(re.findall(r"\w+", code)) == set()
    assert all(row[3].strip() for row in rows)
