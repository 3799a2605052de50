"""patch_all: the whole process is green, and says what it was too late for."""

from __future__ import annotations

from collections.abc import Callable

Python = Callable[[str], str]


def test_everything_that_names_a_standard_module_gets_the_green_one(python: Python) -> None:
    out = python(
        """
        import http.client, logging, os, socket, threading, time
        from socket import create_connection
        from time import sleep
        import greenletio
        greenletio.patch_all()
        greenletio.patch_all()
        import importlib, subprocess, sys, urllib.request
        print(socket.__name__, os.__name__, sleep.__module__, create_connection.__module__)
        print(importlib.import_module("threading").__name__, subprocess.__name__)
        print(http.client.socket is urllib.request.socket is socket is sys.modules["socket"])
        import greenletio.green.http.client as twin
        print(twin is http.client)
        print(type(logging.getLogger().manager.disable), type(logging._lock).__module__)
        from concurrent.futures import ThreadPoolExecutor
        print(ThreadPoolExecutor.__module__)
        """
    )
    assert out.splitlines() == [
        "greenletio.green.socket greenletio.green.os greenletio.green.time greenletio.green.socket",
        "greenletio.green.threading greenletio.green.subprocess",
        "True",
        "True",
        "<class 'int'> greenletio.green._thread",
        "greenletio.green.concurrent.futures.thread",
    ]


def test_event_loops_keep_the_standard_modules(python: Python) -> None:
    out = python(
        """
        import greenletio
        greenletio.patch_all()
        import asyncio, trio, anyio
        from greenletio import async_
        print({m.__name__ for m in (asyncio.selector_events.selectors, asyncio.base_events.socket)})
        print(trio.socket._stdlib_socket.__name__)

        async def main():
            import time
            loop = asyncio.get_running_loop()
            print(await loop.run_in_executor(None, max, 1, 2))
            process = await asyncio.create_subprocess_exec("true")
            print(await process.wait())
            await async_(time.sleep)(0)

        asyncio.run(main())
        greenletio.run(main())

        async def in_trio():
            await trio.sleep(0)
            print(await trio.to_thread.run_sync(max, 1, 2))
        trio.run(in_trio)
        """
    )
    assert out.splitlines() == ["{'socket', 'selectors'}", "socket", "2", "0", "2", "0", "2"] or (
        out.splitlines() == ["{'selectors', 'socket'}", "socket", "2", "0", "2", "0", "2"]
    )


def test_threads_and_pools_and_processes_leave_the_loop_free(python: Python) -> None:
    out = python(
        """
        import greenletio
        greenletio.patch_all()
        import asyncio, os, subprocess, threading, time
        from concurrent.futures import ThreadPoolExecutor

        def work():
            with ThreadPoolExecutor(4) as pool:
                print(list(pool.map(lambda n: (time.sleep(0.001), n)[1], range(8))))
            print(subprocess.run(["cat"], input=b"x" * 200000, stdout=-1).stdout == b"x" * 200000)
            with subprocess.Popen(["echo", "hello"], stdout=-1, text=True) as process:
                print(process.stdout.readline(), end="")
            r, w = os.pipe()
            threading.Thread(target=os.write, args=(w, b"x" * 300000)).start()
            total = 0
            while total < 300000:
                total += len(os.read(r, 65536))
            print(total)
            print(os.waitstatus_to_exitcode(os.system("exit 3")))

        async def main():
            steps = 0
            async def tick():
                nonlocal steps
                while True:
                    await asyncio.sleep(0)
                    steps += 1
            ticking = asyncio.create_task(tick())
            await greenletio.async_(work)()
            print(steps > 10)

        asyncio.run(main())
        """
    )
    assert out.splitlines() == ["[0, 1, 2, 3, 4, 5, 6, 7]", "True", "hello", "300000", "3", "True"]


def test_what_was_made_too_early_is_named(python: Python) -> None:
    out = python(
        """
        import socket, threading, warnings, sys, types
        early = types.ModuleType("early")
        class Mine(threading.Thread):
            __module__ = "early"
        early.Mine, early.lock, early.sock = Mine, threading.Lock(), socket.socket()
        early.unrelated = 5
        sys.modules["early"] = early
        go = threading.Event()
        threading.Thread(target=go.wait, name="worker").start()
        import greenletio
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            greenletio.patch_all()
        go.set()
        (warning,) = caught
        print(warning.category.__name__, warning.filename == "<string>")
        print(*sorted(str(warning.message).split(": ")[1].split(", ")))
        """
    )
    first, second = out.splitlines()
    assert first == "RuntimeWarning True"
    assert "early.Mine early.lock early.sock" in second and "the thread worker" in second
    assert "unrelated" not in second


def test_a_package_under_both_names_has_the_same_modules(python: Python) -> None:
    out = python(
        """
        import greenletio
        greenletio.patch_all()
        import http.client, multiprocessing.queues, multiprocessing.util, sys
        import greenletio.green.http.client as client
        import greenletio.green.multiprocessing.queues as queues
        import greenletio.green.multiprocessing.util as util
        from greenletio.green import multiprocessing as package
        print(client is http.client, queues is multiprocessing.queues)
        print(util is multiprocessing.util is package.util is sys.modules["multiprocessing.util"])
        """
    )
    assert out.split() == ["True"] * 3


def test_a_forked_child_sends_its_last_words(python: Python) -> None:
    # What it does at its end is registered in multiprocessing.util, of which there must be one.
    out = python(
        """
        import greenletio
        greenletio.patch_all()
        import asyncio, multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        def say(queue, n):
            queue.put(n)  # a thread of the child sends it

        def main():
            context = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                print(pool.submit(abs, -1).result())
            for n in range(5):
                queue = context.Queue()
                process = context.Process(target=say, args=(queue, n))
                process.start()
                print(queue.get(timeout=30))
                process.join(30)
                print(process.exitcode)

        asyncio.run(greenletio.async_(main)())
        """
    )
    assert out.split() == ["1", *(str(n) for i in range(5) for n in (i, 0))]


def test_what_a_process_does_at_its_end_is_registered_once(python: Python) -> None:
    out = python(
        """
        from greenletio import patch_blocking
        with patch_blocking():
            from multiprocessing import util as green
        from multiprocessing import util
        print(green is util, green.Finalize is util.Finalize)
        print(green._exit_function is util._exit_function)
        print(green.ForkAwareLocal.__mro__[1].__module__)
        """
    )
    assert out.split() == ["False", "True", "True", "greenletio.green._thread"]
