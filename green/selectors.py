"""``selectors`` whose selectors suspend the greenlet in ``select``.

Deviation: ``KqueueSelector`` and ``DevpollSelector`` are not offered.
"""

import selectors as _std
from typing import Any

from greenletio.green import select as _select
from greenletio.green._std import adopt, public

_UNSUPPORTED = ("KqueueSelector", "DevpollSelector")


class SelectSelector(_std.SelectSelector):
    """A selector on the green ``select.select``."""

    def _select(self, r: Any, w: Any, _: Any, timeout: float | None = None) -> Any:
        return _select.select(r, w, (), timeout)


DefaultSelector: type[_std.BaseSelector] = SelectSelector

if hasattr(_std, "PollSelector"):

    class PollSelector(_std.PollSelector):
        """A selector on the green ``select.poll``."""

        _selector_cls = staticmethod(_select.poll)

    DefaultSelector = PollSelector

if hasattr(_std, "EpollSelector"):

    class EpollSelector(_std.EpollSelector):
        """A selector on the green ``select.epoll``."""

        _selector_cls = _select.epoll

    DefaultSelector = EpollSelector

adopt(globals(), _std)
for _name in _UNSUPPORTED:
    globals().pop(_name, None)

__all__ = tuple(name for name in public(_std) if name not in _UNSUPPORTED)
