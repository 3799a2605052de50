"""``subprocess`` for greenlets: pipes to processes and waits for their end suspend.

The standard module's own source, executed again on the green modules; its exceptions and
``CompletedProcess`` are the standard ones. All waits can be cancelled, which leaves the process
running.
"""

import io as _io
import subprocess as _std
import types as _types
import typing as _typing

from greenletio.green import _files
from greenletio.green import _std as _tools

__all__ = _tools.public(_std)

_green_io = _types.ModuleType("io")
vars(_green_io).update(vars(_io), open=_files.open)
_names: dict[str, _typing.Any] = globals()
_tools.execute(_names, _std, derived=("Popen",), given={"io": _green_io})
CompletedProcess = _std.CompletedProcess
_tools.adopt(_names, _std)


def __getattr__(name: str) -> _typing.Any:
    return getattr(_std, name)
