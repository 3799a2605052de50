"""Group: greenlets that start together and end together."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from greenletio import _core
from greenletio._green import Green, spawn

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ("Group",)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Group:
    """A block that ends only when every greenlet spawned in it has ended.

    ::

        with Group() as group:
            users = group.spawn(load_users)
            orders = group.spawn(load_orders)
        print(users.get(), orders.get())

    The first failure cancels the other greenlets and interrupts the block at its wait; when all
    have ended, the failures are raised as an ExceptionGroup. A block that raises, or is
    cancelled, cancels them all. For sync code; the async counterpart is asyncio.TaskGroup.
    """

    def __init__(self) -> None:
        self._greens: set[Green[Any]] = set()
        self._errors: list[BaseException] = []
        self._entered = self._ending = self._aborting = False
        self._scope: _core.timeout | None = None
        self._waiter: _core.Waiter[None] | None = None

    def __enter__(self) -> Group:
        if self._entered:
            raise RuntimeError("a Group can be entered once")
        self._scope = _core.timeout(None)  # expires, by hand, when a greenlet fails
        self._scope.__enter__()
        self._entered = True
        return self

    def spawn(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Green[_T]:
        """Start `fn(*args, **kwargs)` in a greenlet of the group."""
        if not self._entered or (self._ending and not self._greens) or self._aborting:
            raise RuntimeError(f"{self!r} is not active: spawn inside its with block")
        green = spawn(fn, *args, **kwargs)
        self._greens.add(green)
        green._on_end(lambda _: self._ended(green))
        return green

    def _abort(self) -> None:
        self._aborting = True
        for green in self._greens:
            green.cancel()

    def _ended(self, green: Green[Any]) -> None:
        self._greens.discard(green)
        error = green.exception
        if error is not None and not isinstance(error, asyncio.CancelledError):
            self._errors.append(error)
            if not self._aborting:
                self._abort()
                if not self._ending and self._scope is not None:
                    self._scope.reschedule(0)
        if not self._greens and self._waiter is not None:
            self._waiter.set()

    def __exit__(
        self,
        typ: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._scope is not None
        self._ending = True
        try:
            self._scope.__exit__(typ, exc, tb)
        except TimeoutError:  # the block was interrupted by a failure, not by its caller
            exc = None
        if exc is not None and not self._aborting:
            self._abort()
        cancelled: asyncio.CancelledError | None = None
        while self._greens:
            self._waiter = _core.Waiter()
            try:
                self._waiter.wait()
            except asyncio.CancelledError as error:
                cancelled = error
                self._abort()
            except BaseException:
                self._abort()
                raise
        if cancelled is not None and not self._errors:
            raise cancelled
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            return
        if exc is not None and not isinstance(exc, asyncio.CancelledError):
            self._errors.append(exc)
        if self._errors:
            errors, self._errors = self._errors, []
            raise BaseExceptionGroup("failures in a Group", errors) from None
