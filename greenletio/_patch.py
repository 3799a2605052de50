"""``patch_blocking``: imports that get the green modules.

How it works. While a block is entered, ``builtins.__import__`` asks a context variable whether
this task or thread is in one; if so the import goes to the block's scope:

- a module that ``greenletio.green`` has becomes that one;
- a module of the standard library that waits by those (``http.client``, ...) becomes a
  twin (``_twins.py``), ``greenletio.green.http.client``. ``sys.modules`` keeps the standard
  one, so the outside never meets the twin;
- any other module of the standard library is shared, and imported as if there were no block;
- a package from elsewhere that nobody has imported yet is loaded with ``__builtins__`` of its
  own, whose ``__import__`` is the scope's. It stays in ``sys.modules``, the only copy; what it
  or its submodules import later, wherever they are called from, goes to the scope too.

Only ``import`` statements and ``__import__`` are seen: ``importlib.import_module`` finds new
packages green, but not the standard library, and compiled modules import past it:
``patch_all`` is for those.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import Any

from greenletio import _twins
from greenletio._twins import GREEN, MODULES

__all__ = ("green_packages", "patch_blocking")

_real_import = builtins.__import__


class _Extent:
    """While it is entered, imports here (in this task or thread) belong to ``scope``."""

    _current: ContextVar[_Extent | None] = ContextVar("greenletio_patch_blocking", default=None)

    def __init__(self, scope: _Scope | None) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._outer = self._current.get()
        self._current.set(self)

    def __exit__(self, *exc_info: object) -> None:
        self._scope = None  # for the tasks and threads that copied the context meanwhile
        self._current.set(self._outer)

    @classmethod
    def scope(cls) -> _Scope | None:
        """The scope of the imports made here and now."""
        extent = cls._current.get()
        return None if extent is None else extent._scope


class _Scope:
    """What imports mean for the code of a ``patch_blocking`` block and all that it loads."""

    def __init__(self, modules: frozenset[str]) -> None:
        self._modules = modules
        self._checked: set[str] = set()
        self.builtins = {**vars(builtins), "__import__": self.import_}

    def _is_green(self, name: str) -> bool:
        """Whether the standard module ``name`` is greenletio.green.``name`` here."""
        if name in MODULES:
            return name in self._modules
        if name == "os.path":
            return "os" in self._modules
        return _twins.is_green_here(name) and "socket" in self._modules

    def import_(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """``__import__`` as the modules of this scope have it."""
        if level == 0:
            if self._is_green(name) and not _twins.is_shared(name, fromlist or ()):
                with _Extent(None):
                    if name == "os.path":  # os alone is green
                        return os.path if fromlist else importlib.import_module(f"{GREEN}.os")
                    found = importlib.import_module(f"{GREEN}.{name}")
                    if fromlist:
                        return _real_import(f"{GREEN}.{name}", None, None, fromlist, 0)
                    return sys.modules[f"{GREEN}.{_twins.top(name)}"] if "." in name else found
            if not _may_be_green(name):
                with _Extent(None):
                    return _real_import(name, globals, locals, fromlist, 0)
            self._check(_twins.top(name))
        with _Extent(self):
            return _real_import(name, globals, locals, fromlist, level)

    def _check(self, package: str) -> None:
        """Warn, once, of a package that took the blocking modules before."""
        if package in self._checked:
            return
        self._checked.add(package)
        if package not in sys.modules or _scope_of(sys.modules[package]) is not None:
            return
        names = self._modules & {"select", "selectors", "socket", "ssl"}
        blocking = {id(sys.modules[name]): name for name in names if name in sys.modules}
        for name, module in list(sys.modules.items()):
            if _twins.top(name) == package:
                for value in list(getattr(module, "__dict__", {}).values()):
                    if id(value) in blocking:
                        warnings.warn(
                            f"{package} stays blocking: it was imported before patch_blocking() "
                            f"and {name} holds the standard {blocking[id(value)]} module. "
                            "Import it first under patch_blocking().",
                            RuntimeWarning,
                            stacklevel=4,
                        )
                        return


def _may_be_green(name: str) -> bool:
    """Whether ``name`` is neither of the standard library nor our own."""
    return _twins.top(name) not in sys.stdlib_module_names and _twins.top(name) != "greenletio"


def _scope_of(module: ModuleType | None) -> _Scope | None:
    """The scope that ``module`` was loaded in."""
    namespace = getattr(module, "__builtins__", None)
    if not isinstance(namespace, dict):
        return None
    scope = getattr(namespace.get("__import__"), "__self__", None)
    return scope if isinstance(scope, _Scope) else None


def green_packages() -> list[str]:
    """The packages of others that were imported inside ``patch_blocking``, sorted."""
    modules = list(sys.modules.items())
    found = {_twins.top(name) for name, module in modules if _scope_of(module) is not None}
    return sorted(found - {"greenletio"})


class _PackageFinder(MetaPathFinder):
    """First on ``sys.meta_path``: the packages that a scope imports are loaded into it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _may_be_green(fullname):
            return None
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if parent is None or getattr(parent, "__file__", None) is None:
            scope = _Extent.scope()  # a top-level name, or below a namespace package
        else:
            scope = _scope_of(parent)
        if scope is None and _Extent.scope() is None:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    loader = spec.loader
                    if hasattr(loader, "exec_module") and not isinstance(
                        loader, ExtensionFileLoader
                    ):
                        spec.loader = _PackageLoader(loader, scope)
                    return spec
        return None


class _PackageLoader(Loader):
    """Executes a module in a scope, or out of any; the rest does the loader it stands before."""

    def __init__(self, loader: Any, scope: Any) -> None:
        self._loader = loader
        self._scope = scope

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        if self._scope is not None:
            vars(module)["__builtins__"] = self._scope.builtins
        with _Extent(self._scope if isinstance(self._scope, _Scope) else None):
            self._loader.exec_module(module)


def green_builtins() -> dict[str, Any]:
    """The builtins of code all of whose imports are green."""
    return _everything.builtins


_everything = _Scope(MODULES)
_package_finder = _PackageFinder()
_install_lock = threading.Lock()
_entered = 0


def _dispatch(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """``builtins.__import__`` while a block is entered anywhere in the process."""
    scope = _Extent.scope()
    if scope is None or not _may_be_green((globals or {}).get("__name__") or ""):
        return _real_import(name, globals, locals, fromlist, level)
    return scope.import_(name, globals, locals, fromlist, level)


@contextmanager
def patch_blocking(modules: Iterable[str] | None = None) -> Iterator[None]:
    """Inside the block, imports of blocking code get the green modules.

    ``modules`` names the standard modules to replace, such as ``socket``, ``threading`` and
    ``time``; by default all that there is a green form of. What other tasks and threads
    import meanwhile is not affected. Blocks nest; what a block raises passes through.

    A package that was imported before the block stays as it is; if it holds one of the modules
    that block on the network a ``RuntimeWarning`` names it. Raises ``ValueError`` for a module
    that has no green form.
    """
    names = MODULES if modules is None else frozenset(modules)
    if unknown := names - MODULES:
        raise ValueError(
            f"no green form of {', '.join(sorted(unknown))}: choose from "
            + ", ".join(sorted(MODULES))
        )
    _install(1)
    try:
        with _Extent(_Scope(names)):
            yield
    finally:
        _install(-1)


def load_twins() -> None:
    """Make greenletio.green.X importable for the modules that are executed again."""
    _twins.install(_everything.builtins)


def _install(change: int) -> None:
    global _entered
    with _install_lock:
        _entered += change
        load_twins()
        if _package_finder not in sys.meta_path:  # it stays: for what is imported later
            sys.meta_path.insert(0, _package_finder)
        if _entered and builtins.__import__ is _real_import:
            builtins.__import__ = _dispatch
        elif not _entered and builtins.__import__ is _dispatch:
            builtins.__import__ = _real_import
