"""``threading.local`` for greenlets: attributes of each call of ``async_`` or ``spawn``.

Keyed by the call, for the greenlet that runs it will run others later; held weakly, so the
values go when the call does. A thread of the system, where no call runs, counts as one.
"""

from __future__ import annotations

import asyncio
import threading as _std
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from greenletio import _core
from greenletio.green._std import current_call

__all__ = ("local",)


class _Key:
    """Stands for a ``local``, whatever its ``__eq__`` and ``__hash__`` are, and has its values.

    They are here, by the store of the call or thread that they belong to, so that a cycle through
    them is garbage like any other.
    """

    __slots__ = ("__weakref__", "args", "kwargs", "values")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self.values: dict[int, dict[str, Any]] = {}


class _Store:
    """Stands for a call or thread: when it goes, its values go."""

    __slots__ = ("__weakref__", "keys")

    def __init__(self) -> None:
        self.keys: WeakSet[_Key] = WeakSet()

    def __del__(self) -> None:
        for key in list(self.keys):
            key.values.pop(id(self), None)


_stores: WeakKeyDictionary[_core._Call, _Store] = WeakKeyDictionary()


class _ThreadStore(_std.local):
    def __init__(self) -> None:
        self.store = _Store()


_thread = _ThreadStore()


def _store() -> _Store:
    """What stands for the call, or the thread, that runs here."""
    call: Any = current_call()
    if call is None:
        return _thread.store
    try:
        return _stores[call]
    except KeyError:
        store = _stores[call] = _Store()
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return store
    coro: Any = None if task is None else task.get_coro()
    if task is not None and coro is call:
        # The values go at the end of the job, also if somebody keeps the finished task.
        task.add_done_callback(lambda _: _stores.pop(call, None))
    return store


def _new_values(key: _Key) -> dict[str, Any]:
    store = _store()
    values = key.values[id(store)] = {}
    store.keys.add(key)
    return values


def _values(self: local) -> dict[str, Any]:
    """The attributes that ``self`` has here, made and initialised at the first use."""
    store = _store()
    key: _Key = object.__getattribute__(self, "_local__key")
    try:
        return key.values[id(store)]
    except KeyError:
        values = _new_values(key)
    cls = type(self)
    if cls.__init__ is not object.__init__:
        try:
            cls.__init__(self, *key.args, **key.kwargs)
        except BaseException:
            del key.values[id(store)]
            raise
    return values


def _descriptor(self: local, name: str, special: str) -> Any:
    """The class attribute ``name`` if it defines ``special``."""
    for cls in type(self).__mro__:
        if name in vars(cls):
            found = vars(cls)[name]
            return found if hasattr(type(found), special) else None
    return None


class local:
    """``threading.local``: what is set in one green call or thread is not seen in another."""

    __slots__ = ("_local__key", "__weakref__")

    def __new__(cls, /, *args: Any, **kwargs: Any) -> local:
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError("Initialization arguments are not supported")
        self = object.__new__(cls)
        key = _Key(args, kwargs)
        object.__setattr__(self, "_local__key", key)
        _new_values(key)  # __init__ runs here right after: no second time for us
        return self

    def __getattribute__(self, name: str) -> Any:
        values = _values(self)
        if name == "__dict__":
            return values
        if name in values and _descriptor(self, name, "__set__") is None:
            return values[name]
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        values = _values(self)
        if name == "__dict__":
            raise AttributeError(
                f"{type(self).__name__!r} object attribute '__dict__' is read-only"
            )
        if _descriptor(self, name, "__set__") is not None:
            object.__setattr__(self, name, value)
        else:
            values[name] = value

    def __delattr__(self, name: str) -> None:
        values = _values(self)
        if name == "__dict__":
            raise AttributeError(
                f"{type(self).__name__!r} object attribute '__dict__' is read-only"
            )
        if _descriptor(self, name, "__delete__") is not None:
            object.__delattr__(self, name)
            return
        try:
            del values[name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
            ) from None
