"""``patch_all``: the green modules in place of the standard ones, for the whole process.

The green modules take the names of the standard ones in ``sys.modules``, so that whatever is
imported from then on, by any means, is green. In the modules that are loaded already the
global names that stand for a standard module, or something taken from one, are set to the green
one. The event loops, which must go on blocking, keep the standard modules: asyncio and its like are
loaded before, or into a scope of their own.

What cannot be changed any more is an object that exists: a lock, a subclass, a bound method. It
is told in a warning.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from greenletio import _twins
from greenletio._patch import _PackageLoader, load_twins
from greenletio._twins import GREEN, MODULES, REPLACED, top

__all__ = ("is_patched", "left_behind", "patch_all", "take_over", "too_late")

# They wait for events themselves: their imports are never green.
LOOPS = frozenset(
    ("anyio", "asyncio", "curio", "greenlet", "greenletio", "rloop", "sniffio", "trio", "uvloop")
)

# Of the standard library: they were loaded before, and what they hold is right for them.
_LEFT = frozenset(
    (
        "_weakrefset",
        "concurrent",
        "contextlib",
        "functools",
        "importlib",
        "weakref",
        "zipimport",
    )
)

_standard: dict[str, ModuleType] = {}  # the modules whose names the green ones have
_left: list[str] = []  # what patch_all() was too late for


def is_patched() -> bool:
    """Whether patch_all() has been called."""
    return bool(_standard)


def left_behind() -> list[str]:
    """What was made before patch_all() and still blocks, by name."""
    return list(_left)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


class _StandardScope:
    """What imports mean for the code of event loops."""

    def __init__(self) -> None:
        self.builtins = {**vars(builtins), "__import__": self.import_}

    def import_(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level == 0 and name in _standard:
            return _standard[name if fromlist else top(name)]
        return builtins.__import__(name, globals, locals, fromlist, level)


_scope = _StandardScope()


class _GreenFinder(MetaPathFinder):
    """First on ``sys.meta_path``: the green modules, imported anew; the loops, left alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in MODULES or top(fullname) in REPLACED:
            return ModuleSpec(fullname, _GreenLoader(), origin=f"{GREEN}.{fullname}")
        if top(fullname) not in LOOPS:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None and spec.origin and spec.origin.endswith(".py"):
                        spec.loader = _PackageLoader(spec.loader, _scope)
                    return spec
        return None


class _GreenLoader(Loader):
    """Hands out a module that is there, as it is."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{GREEN}.{spec.name}")
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _settle() -> None:
    """Load what must have the standard modules before their names are taken."""
    for name in (
        "asyncio",
        "asyncio.base_subprocess",
        "greenletio._blocking",
        "greenletio._event_loop",
        "greenletio._loops",
        "greenletio._portal",
        "greenletio._tls",
        "greenletio.debug",
    ):
        importlib.import_module(name)
    import concurrent.futures

    concurrent.futures.ThreadPoolExecutor  # noqa: B018  (the module imports it when it is asked for)


def _replacements(pairs: list[tuple[ModuleType, ModuleType]]) -> dict[int, tuple[Any, Any]]:
    """id(what a standard module has): (it, the green one)."""
    found: dict[int, tuple[Any, Any]] = {}
    for standard, green in pairs:
        found[id(standard)] = (standard, green)
        for name, value in vars(standard).items():
            if name.startswith("__") or isinstance(value, (ModuleType, int, str, tuple, frozenset)):
                continue
            ours = vars(green).get(name, value)
            if ours is not value and callable(value) and callable(ours):
                found.setdefault(id(value), (value, ours))
    return found


def _rebind(module: ModuleType, found: dict[int, tuple[Any, Any]]) -> None:
    names = vars(module)
    for name, value in list(names.items()):
        if id(value) in found and found[id(value)][0] is value:
            names[name] = found[id(value)][1]


def _remade(module: ModuleType, kinds: set[type]) -> list[str]:
    """What ``module`` has made of the standard modules already, by name."""
    names = []
    for name, value in list(vars(module).items()):
        kind = value if isinstance(value, type) else type(value)
        if kind is value and value.__module__ != module.__name__:
            continue  # it is another module's
        lineage = type.__dict__["__mro__"].__get__(kind) or ()
        if not kinds.isdisjoint(lineage) and not kind.__module__.startswith(GREEN):
            names.append(f"{module.__name__}.{name}")
    return names


def _kinds(pairs: list[tuple[ModuleType, ModuleType]]) -> set[type]:
    """The standard types that have a green one, and those of the locks."""
    kinds: set[type] = set()
    for standard, green in pairs:
        for name, value in vars(standard).items():
            ours = vars(green).get(name, value)
            if isinstance(value, type) and ours is not value and isinstance(ours, type):
                if not issubclass(value, BaseException) and value.__module__ == standard.__name__:
                    kinds.add(value)
    thread = _standard["_thread"]
    for made in (thread.allocate_lock(), thread.RLock()):
        kinds.add(type(made))
    return kinds


def _patch_logging() -> None:
    """The locks that logging holds while a handler writes."""
    import logging

    green = sys.modules["threading"]
    with logging._lock:  # type: ignore[attr-defined]
        logging._lock = green.RLock()  # type: ignore[attr-defined]
        for reference in list(logging._handlerList):  # type: ignore[attr-defined]
            handler = reference()
            if handler is not None and handler.lock is not None:
                handler.createLock()


def patch_all() -> None:
    """Make the whole process green: call it first thing in a program, before other imports.

    Every module gets the modules of ``greenletio.green`` where it names the standard ones, those
    that are loaded already included. What exists already cannot be changed: threads that run,
    classes derived from the standard ones, locks and sockets that modules hold. A
    ``RuntimeWarning`` names them. asyncio and other event loops stay as they are.

    There is no way back. A second call does nothing.
    """
    if names := take_over():
        warnings.warn(too_late(names), RuntimeWarning, stacklevel=2)


def too_late(names: list[str]) -> str:
    """The warning about what ``take_over`` was too late for."""
    return "these were made before patch_all() and still block: " + ", ".join(names)


def take_over() -> list[str]:
    """``patch_all`` that returns what it was too late for instead of warning of it."""
    if _standard:
        return []
    standard_threads = sys.modules["threading"].enumerate()
    _settle()
    load_twins()
    pairs = []
    names = [*MODULES, *(n for n in _twins.TWINS if top(n) in REPLACED and n in sys.modules)]
    for name in sorted(set(names)):
        green = importlib.import_module(f"{GREEN}.{name}")
        standard = importlib.import_module(name)
        for parent in _parents(name):
            _standard[parent] = sys.modules[parent]
        _standard[name] = standard
        pairs.append((standard, green))
    _twins.hidden = _standard
    _take_names(pairs)
    sys.meta_path.insert(0, _GreenFinder())
    found, kinds, too_early = _replacements(pairs), _kinds(pairs), []
    kept = set(map(id, [*_standard.values(), *(green for _, green in pairs)]))
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or id(module) in kept:
            continue
        if top(name) in LOOPS or top(name) in _LEFT:
            continue
        _rebind(module, found)
        if top(name) not in sys.stdlib_module_names:
            too_early += _remade(module, kinds)
    _patch_logging()
    _left[:] = too_early + [f"the thread {t.name}" for t in standard_threads[1:]]
    return left_behind()


def _take_names(pairs: list[tuple[ModuleType, ModuleType]]) -> None:
    for standard, green in pairs:
        name = standard.__name__
        sys.modules[name] = green
        for parent in _parents(name):  # the loops keep the package, too
            sys.modules[parent] = sys.modules[f"{GREEN}.{parent}"]
