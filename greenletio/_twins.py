"""Twins: modules of the standard library executed a second time, on the green ones.

``greenletio.green.http.client`` is the source of ``http.client``, run with imports that give
the green modules where there are such. What waits by none of those is shared: the package
``greenletio.green.http`` has what ``http`` has, and ``greenletio.green.json`` is ``json``.
Exceptions are shared, too: whoever catches the standard one catches what a twin raises. All other
classes of a twin, but those that ask ``super()``, are derived from the standard ones.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from enum import Enum
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

__all__ = (
    "GREEN",
    "MODULES",
    "TWINS",
    "execute",
    "install",
    "is_green_here",
    "is_shared",
    "is_twin",
    "top",
)

GREEN = "greenletio.green"

#: The modules whose names are taken by green ones.
MODULES = frozenset(
    (
        "_multiprocessing",
        "_thread",
        "concurrent.futures",
        "fcntl",
        "os",
        "queue",
        "select",
        "selectors",
        "signal",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "threading",
        "time",
    )
)


def top(name: str) -> str:
    return name.partition(".")[0]


#: Those that wait by MODULES alone, and so are executed again; asyncore from PyPI is none of them.
TWINS = frozenset(
    name
    for name in (
        "asynchat",
        "asyncore",
        "compileall",
        "concurrent.futures",
        "concurrent.futures._base",
        "concurrent.futures.process",
        "concurrent.futures.thread",
        "ftplib",
        "http.client",
        "http.server",
        "imaplib",
        "logging.handlers",
        "mailcap",
        "multiprocessing.connection",
        "nntplib",
        "pipes",
        "poplib",
        "sched",
        "smtpd",
        "smtplib",
        "socketserver",
        "telnetlib",
        "urllib.request",
        "urllib.robotparser",
        "wsgiref.simple_server",
        "xmlrpc.client",
        "xmlrpc.server",
    )
    if top(name) in sys.stdlib_module_names
)

# Packages whose state there must be one of: they are green only to reach a twin in them.
_SHARED = frozenset(("logging",))

# Importing one of them makes a module one that waits, if that is asked for by name.
_WAITING = MODULES - {"_thread", "os", "signal", "threading", "time"}

# They import what waits and do not wait: values that green and blocking code hand each other, and
# servers there is one of, which child processes ask for under their own names.
_STANDARD = frozenset(
    ("email", "http.cookiejar", "multiprocessing.forkserver", "multiprocessing.resource_tracker")
)
_VALUE_CLASSES = {
    "http.client": ("HTTPMessage", "HTTPResponse"),
    "urllib.request": ("Request",),
    "xmlrpc.client": ("Binary", "DateTime"),
}


class _Every:
    """All classes are derived."""

    def __contains__(self, name: object) -> bool:
        return True


# Of these a twin has the named classes only: all else is the state of the process, and shared.
_OWN = {"multiprocessing.util": ("ForkAwareLocal", "ForkAwareThreadLock")}

# What a twin has of the standard module's state: multiprocessing.process asks for it, too.
_STATE = {"multiprocessing.context": ("_tls",)}


_PACKAGES = frozenset(top(name) for name in TWINS if "." in name)

#: Packages that patch_all() replaces whole.
REPLACED = frozenset(top(name) for name in MODULES if "." in name)
_asked: dict[str, bool] = {}


def is_green_here(name: str) -> bool:
    """Whether an import of ``name`` in green code is one of a twin, or of a package of twins."""
    return name in TWINS or top(name) in _PACKAGES


def is_shared(name: str, fromlist: Collection[str]) -> bool:
    """Whether an import of ``name``, a package of twins, in green code gets the standard one."""
    return name in _SHARED and not any(f"{name}.{member}" in TWINS for member in fromlist)


def is_twin(name: str) -> bool:
    """Whether greenletio.green.``name`` is executed again: it waits by a green module."""
    if name in TWINS:
        return True
    if name not in _asked:
        _asked[name] = False  # while we look: modules import each other
        _asked[name] = top(name) in sys.stdlib_module_names and _waits(name)
    return _asked[name]


def _waits(name: str) -> bool:
    spec = _find_spec(name)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        return False
    if name in ("asyncio", "logging") or name.startswith("asyncio."):
        return False
    if name != "email.utils" and not _STANDARD.isdisjoint((name, top(name))):
        return False
    source = spec.loader.get_source(spec.name)
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    return any(
        imported in _WAITING or imported in TWINS or is_twin(imported)
        for imported in _imports(ast.parse(source or ""), package)
    )


def _imports(tree: ast.Module, package: str) -> set[str]:
    """The modules that are imported at the top level of a module."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in found if name in MODULES or _find_spec(name) is not None}


def _find_spec(name: str) -> ModuleSpec | None:
    """The spec of a standard module, found without an ``import`` that might give a green one."""
    module = (hidden or {}).get(name, sys.modules.get(name))
    if module is not None:
        return module.__spec__
    path = None
    parent = name.rpartition(".")[0]
    if parent:
        try:
            package = _standard_module(parent) or importlib.import_module(parent)
        except ImportError:
            return None
        path = getattr(package, "__path__", None)
        if path is None:
            return None
    for finder in sys.meta_path:
        if type(finder).__module__.startswith("greenletio.") or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def execute(
    namespace: dict[str, Any],
    spec: ModuleSpec | None,
    module: ModuleType | None,
    green: Mapping[str, Any],
    *,
    derived: Container[str] = (),
    given: Mapping[str, Any] | None = None,
) -> None:
    """Execute the source of a standard module, which ``spec`` finds, in ``namespace``.

    ``green`` holds the builtins, whose ``__import__`` finds the green modules, but for those in
    ``given``. If the standard ``module`` itself is loaded, its exceptions and values are those of
    this one, and each class in ``derived`` becomes a subclass of its, with all methods defined
    anew, unless its ``super()`` would mean another class then.
    """
    loader: Any = None if spec is None else spec.loader
    name = "" if spec is None else spec.name
    code = loader.get_code(name) if hasattr(loader, "get_code") else None
    if spec is None or code is None:
        raise ImportError(f"the source of {name} is not there", name=name)
    kept = {name: namespace.get(name) for name in ("__doc__", "__all__")}
    imported: Callable[..., Any] = green["__import__"]
    values = _VALUE_CLASSES.get(name, ())

    def build(function: Any, name: str, /, *bases: Any, **kwargs: Any) -> Any:
        standard = getattr(module, name, None) if module and function.__qualname__ == name else None
        if isinstance(standard, type) and standard.__module__ == spec.name:
            if issubclass(standard, (BaseException, Enum)) or name in values:
                return standard
            lineage = [kind for base in bases for kind in base.__mro__ if _is_twins(kind)]
            alone = [(standard, bases), *((kind, kind.__bases__) for kind in lineage)]
            if name in derived and not any(_asks_super(*each) for each in alone):
                bases = (*(b for b in bases if not issubclass(standard, b)), standard)
        return builtins.__build_class__(function, name, *bases, **kwargs)

    def import_(name: str, *args: Any, **kwargs: Any) -> Any:
        if given is not None and name in given:
            return given[name]
        return imported(name, *args, **kwargs)

    namespace["__builtins__"] = {**green, "__build_class__": build, "__import__": import_}
    exec(code, namespace)
    namespace["__builtins__"] = green
    namespace.update((name, value) for name, value in kept.items() if value is not None)


def _is_twins(kind: type) -> bool:
    return kind.__module__.startswith(f"{GREEN}.")


def _asks_super(kind: type, bases: tuple[type, ...]) -> bool:
    """Whether ``super()`` in the methods of ``kind`` would find those of the standard class, if the
    one with ``bases`` that is made of it, or one derived from that, were derived from it."""
    codes = (getattr(value, "__code__", None) for value in vars(kind).values())
    return any(code is not None and "super" in code.co_names for code in codes) and not (
        bases and all(map(_is_twins, bases))
    )


class _TwinFinder(MetaPathFinder):
    """Last on ``sys.meta_path``: finds greenletio.green.X for the X of the standard library."""

    def __init__(self, green: Mapping[str, Any]) -> None:
        self._green = green

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.removeprefix(f"{GREEN}.")
        if name == fullname or top(name) not in sys.stdlib_module_names:
            return None
        standard = _find_spec(name)
        if standard is None:
            return None
        return ModuleSpec(
            fullname,
            _TwinLoader(standard, self._green),
            origin=standard.origin,
            is_package=standard.submodule_search_locations is not None,
        )


class _TwinLoader(Loader):
    """Makes greenletio.green.X: a twin, the package of twins, or the standard module itself."""

    def __init__(self, standard: ModuleSpec, green: Mapping[str, Any]) -> None:
        self._standard = standard
        self._green = green

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = self._standard.name
        standard, twin = _standard_module(name), is_twin(name)
        if standard is None and top(name) not in REPLACED:
            # patch_all() has made it green under its own name
            standard, twin = importlib.import_module(name), False
        if twin or standard is None:
            self._execute(vars(module), name, standard)
        elif name in _PACKAGES or self._standard.submodule_search_locations is not None:
            # A package of its own, or what is in it would be found in the standard one's folder.
            for key, value in vars(standard).items():
                if f"{name}.{key}" not in sys.modules:
                    vars(module).setdefault(key, value)
            vars(module)["__getattr__"] = partial(_member, standard)
        else:
            sys.modules[module.__name__] = standard

    def _execute(self, names: dict[str, Any], name: str, standard: ModuleType | None) -> None:
        names["__file__"] = self._standard.origin
        derived = () if name in _OWN else _Every()
        execute(names, self._standard, standard, self._green, derived=derived)
        if name == "logging.handlers":
            _suspend_handlers(names)
        if name == "logging.config":
            _configure_handlers(names)
        for key in _STATE.get(name, ()):
            names[key] = getattr(standard, key)
        if name in _OWN and standard is not None:
            for key, value in vars(standard).items():
                if key not in _OWN[name] and key[:2] != "__" and not isinstance(value, ModuleType):
                    names[key] = value


def _member(package: ModuleType, key: str) -> Any:
    """What the standard ``package`` has by that name; of the modules in it, the green one."""
    value = getattr(package, key)
    if isinstance(value, ModuleType) and value.__name__ == f"{package.__name__}.{key}":
        return importlib.import_module(f"{GREEN}.{value.__name__}")
    return value


def _suspend_handlers(names: dict[str, Any]) -> None:
    """The lock that logging holds while a handler sends is a green one."""
    import logging

    from greenletio.green import threading

    def createLock(self: Any) -> None:
        self.lock = threading.RLock()
        logging._register_at_fork_reinit_lock(self)  # type: ignore[attr-defined]

    for value in list(names.values()):
        if isinstance(value, type) and value.__module__ == names["__name__"]:
            if issubclass(value, logging.Handler):
                value.createLock = createLock  # type: ignore[method-assign]


def _configure_handlers(names: dict[str, Any]) -> None:
    """What a configuration calls ``logging.handlers.SMTPHandler`` is the green one."""
    importlib.import_module(f"{GREEN}.logging.handlers")
    imported = names["__builtins__"]["__import__"]

    def import_(name: str, *args: Any, **kwargs: Any) -> Any:
        found = imported(name, *args, **kwargs)
        return sys.modules[f"{GREEN}.logging"] if top(name) == "logging" else found

    names["__import__"] = import_  # before the builtin one, for what is resolved
    names["BaseConfigurator"].importer = staticmethod(import_)


#: Set by patch_all(): the standard modules whose names are taken now.
hidden: dict[str, ModuleType] | None = None


def _standard_module(name: str) -> ModuleType | None:
    """The standard module, imported; None if that is green itself, since patch_all()."""
    if hidden is None:
        return importlib.import_module(name)
    return hidden.get(name)


_finder: _TwinFinder | None = None


def install(green: Mapping[str, Any]) -> None:
    """Make the twins importable, with the builtins ``green``. They stay so."""
    global _finder
    if _finder is None:
        _finder = _TwinFinder(green)
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
