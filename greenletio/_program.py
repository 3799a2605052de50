"""Runs a program green: its main code in a greenlet of an event loop, its threads beside it.

In that greenlet the program finds itself where it would be under Python: in the main thread,
which signals interrupt and whose end the other threads are waited for.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib
import io
import linecache
import os
import pkgutil
import runpy
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from importlib.machinery import (
    BuiltinImporter,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import CodeType, ModuleType, TracebackType
from typing import Any

from greenletio import _core

__all__ = ("Program", "load_loop", "nested", "run_green")

NewLoop = Callable[[], asyncio.AbstractEventLoop]

#: Seconds that daemon threads may clean up for when the program ends.
_CLEAN_UP_S = 5.0


def run_green(work: Callable[[], object], new_loop: NewLoop) -> None:
    """Call ``work()`` in the greenlet that counts as the main thread; then wait for the threads.

    What it raises is raised here. What a signal handler raises while it waits is raised there.
    """
    from greenletio.green import _std, signal, threading

    def main() -> None:
        try:
            work()
        except asyncio.CancelledError as error:
            raise _std.interruption(error) from None
        finally:
            threading._join_greens()

    call: Any = _core.async_(main)()
    loop = new_loop()
    try:
        asyncio.set_event_loop(loop)
        task: asyncio.Task[Any] = loop.create_task(call)
        _std.become_main(task, call)
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        _run(loop, task)
    finally:
        try:
            _cancel_rest(loop)
        finally:
            _std.become_main(None)
            asyncio.set_event_loop(None)
            loop.close()


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """Run ``loop`` until ``task`` has ended, handing it what interrupts the loop meanwhile."""
    from greenletio.green._std import interrupt

    while True:
        try:
            loop.run_until_complete(task)
            return
        except BaseException as error:
            if task.done():
                if not task.cancelled():
                    task.exception()  # it is reported here, not by the loop
                raise
            interrupt(error)


def _cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    """What has not ended by now, daemon threads above all, may clean up."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_CLEAN_UP_S))
    loop.run_until_complete(loop.shutdown_asyncgens())


def load_loop(name: str) -> NewLoop:
    """What makes the loop that the command line names: ``asyncio``, ``uvloop``, ``mod:factory``."""
    if name == "greenletio":
        from greenletio import new_event_loop

        return new_event_loop
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    if name == "uvloop":
        name = "uvloop:new_event_loop"
    module, _, attribute = name.partition(":")
    factory = getattr(importlib.import_module(module), attribute or "new_event_loop")
    if not callable(factory):
        raise TypeError(f"{name} makes no event loop")
    return factory  # type: ignore[no-any-return]


def _compile(source: str, name: str) -> CodeType:
    code: CodeType = compile(source, name, "exec", dont_inherit=True)  # not our __future__
    return code


#: Python leaves the folder of what it runs out of sys.path (-P, -I, PYTHONSAFEPATH): so do we.
_SAFE_PATH = bool(getattr(sys.flags, "safe_path", sys.flags.isolated))


def _look_first_in(folder: str) -> None:
    """Where the folder of the command greenletio stands in ``sys.path``, put the program's."""
    if not _SAFE_PATH:
        sys.path[0] = folder


class Program:
    """The code of a program, and what Python sets before it runs that."""

    def __init__(
        self,
        name: str,
        load: Callable[[], CodeType],
        path: str | None,
        spec: ModuleSpec | None = None,
        **names: Any,
    ) -> None:
        self._name = name
        self._load = load
        self._path = path
        self._spec = spec
        self._names = names

    @classmethod
    def of_code(cls, source: str) -> Program:
        if sys.version_info >= (3, 13):  # tracebacks show its lines
            lines = source.splitlines(keepends=True)
            linecache.cache["<string>"] = (len(source), None, lines, "<string>")
        return cls("-c", partial(_compile, source, "<string>"), "")

    @classmethod
    def of_stdin(cls) -> Program:
        return cls("-", lambda: _compile(sys.stdin.read(), "<stdin>"), "", __file__="<stdin>")

    @classmethod
    def of_module(cls, name: str) -> Program:
        """``python -m name``. ``ImportError`` says why it cannot be run."""
        _look_first_in(os.getcwd())
        find: Any = runpy._get_module_details  # type: ignore[attr-defined]
        try:
            _, spec, code = find(name)
        except runpy._Error as error:  # type: ignore[attr-defined]
            raise ImportError(str(error)) from None
        return cls(
            spec.origin,
            lambda: code,
            None,
            spec,
            __file__=spec.origin,
            __cached__=spec.cached,
            __loader__=spec.loader,
            __package__=spec.parent,
        )

    @classmethod
    def of_path(cls, path: str) -> Program:
        """``python path``: a file, or a folder or archive with a ``__main__``.

        ``OSError``: it cannot be read; ``ImportError``: there is no ``__main__``.
        """
        full = os.path.join(os.getcwd(), path)  # as Python has it, "./" and all
        if os.path.isdir(full) or pkgutil.get_importer(full) is not None:
            if _SAFE_PATH:
                sys.path.insert(0, full)  # as Python does in any case
            _look_first_in(full)
            find: Any = runpy._get_main_module_details  # type: ignore[attr-defined]
            _, spec, code = find()
            return cls(
                path,
                lambda: code,
                None,
                spec,
                __file__=spec.origin,
                __cached__=spec.cached,
                __loader__=spec.loader,
                __package__="",
            )
        with io.open_code(full) as file:
            source = file.read()
        loader: Any = SourceFileLoader("__main__", full)
        load = partial(loader.source_to_code, source, full)
        if path.endswith(".pyc"):
            loader = SourcelessFileLoader("__main__", full)
            load = partial(loader.get_code, "__main__")
        return cls(
            path,
            load,
            os.path.dirname(os.path.realpath(full)),
            __file__=full,
            __cached__=None,
            __loader__=loader,
        )

    def run(self, args: list[str], *, patch_all: bool, new_loop: NewLoop) -> None:
        """Run it green. What ends it is raised, as Python would raise it."""
        from greenletio import _patch
        from greenletio._patch_all import patch_all as patch

        main = ModuleType("__main__")
        names = vars(main)
        names.update(__loader__=BuiltinImporter, __spec__=self._spec, __builtins__=builtins)
        names.update(self._names)
        if sys.version_info < (3, 14):
            names["__annotations__"] = {}
        sys.modules["__main__"] = main
        sys.argv[:] = [self._name, *args]
        if self._path is not None:
            _look_first_in(self._path)
        if patch_all:
            patch()
            self._run(names, new_loop)
            return
        with _patch.patch_blocking():
            names["__builtins__"] = _patch.green_builtins()
            self._run(names, new_loop)

    def _run(self, names: dict[str, Any], new_loop: NewLoop) -> None:
        asyncio.run = nested(asyncio.run)
        try:
            run_green(lambda: exec(self._load(), names), new_loop)
        except SystemExit:
            raise
        except BaseException as error:
            _show_alone(error, names)
            raise


def nested(run: Callable[..., Any]) -> Callable[..., Any]:
    """``asyncio.run`` for a program that runs in a loop already: the coroutine runs in that."""

    def run_nested(main: Coroutine[Any, Any, Any], **options: Any) -> Any:
        if _core.current_call() is None or not asyncio.iscoroutine(main):
            return run(main, **options)
        return _core.await_(asyncio.get_running_loop().create_task(main))

    run_nested.__name__ = run_nested.__qualname__ = "run"
    run_nested.__doc__ = run.__doc__
    return run_nested


def _show_alone(error: BaseException, names: Mapping[str, Any]) -> None:
    """Have the traceback of what ends the program begin with its own code."""
    own: TracebackType | None = error.__traceback__
    while own is not None and own.tb_frame.f_globals is not names:
        own = own.tb_next
    hook = sys.excepthook

    def show(kind: Any, value: BaseException, traceback: Any) -> None:
        if value is error:
            value, traceback = error.with_traceback(own), own
        hook(kind, value, traceback)

    sys.excepthook = show
