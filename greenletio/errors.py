"""The errors of greenletio: one family."""

from __future__ import annotations

__all__ = ("GreenletioError", "WouldBlockError")


class GreenletioError(Exception):
    """The base of the errors that greenletio itself raises."""


class WouldBlockError(GreenletioError, RuntimeError):
    """A wait was made directly in a running event loop, which it would have held.

    The message names the wait and the function that should be called through
    ``async_``. Nothing was started or registered: the same call made in a greenlet works.
    """
