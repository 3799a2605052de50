"""What the green modules share: taking names over from the standard module, and deadlines."""

from time import monotonic
from types import FunctionType, ModuleType
from typing import Any

__all__ = ("Deadline", "adopt", "public", "rebind")


def public(module: ModuleType) -> tuple[str, ...]:
    """The names that ``from module import *`` gives, without the modules it imports itself."""
    names = getattr(module, "__all__", None) or (n for n in vars(module) if n[0] != "_")
    return tuple(n for n in names if not isinstance(getattr(module, n), ModuleType))


def rebind(function: Any, namespace: dict[str, Any]) -> Any:
    """The same Python function, looking its global names up in ``namespace``."""
    twin = FunctionType(
        function.__code__,
        namespace,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__doc__ = function.__doc__
    twin.__annotations__ = function.__annotations__
    twin.__qualname__ = function.__qualname__
    return twin


def adopt(namespace: dict[str, Any], module: ModuleType, *, rebound: tuple[str, ...] = ()) -> None:
    """Copy each name of ``module`` that ``namespace`` does not define.

    The functions named in ``rebound`` then call what ``namespace`` holds: the standard
    library's own code, made green. Those that this Python does not have are passed over.
    """
    for name, value in vars(module).items():
        if name in namespace:
            continue
        if name in rebound and isinstance(value, FunctionType):
            value = rebind(value, namespace)
        namespace[name] = value


class Deadline:
    """The end of a timeout in seconds; None has no end."""

    __slots__ = ("_end",)

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic() + timeout

    def left(self) -> float | None:
        """The seconds left, never below 0."""
        return None if self._end is None else max(0.0, self._end - monotonic())
