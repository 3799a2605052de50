"""The errors of greenletio: one family."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenletio.debug import Report

__all__ = ("BlockingError", "GreenletioError", "WouldBlockError")


class GreenletioError(Exception):
    """The base of the errors that greenletio itself raises."""


class WouldBlockError(GreenletioError, RuntimeError):
    """A wait was made directly in a running event loop, which it would have held.

    The message names the wait and the function that should be called through
    ``async_``. Nothing was started or registered: the same call made in a greenlet works.
    """


class BlockingError(GreenletioError):
    """Raised by ``debug.detect_blocking(mode="raise")`` in the code that holds the loop."""

    #: What was seen as it was raised; its duration is the time until then.
    report: Report | None = None

    def __str__(self) -> str:
        return super().__str__() if self.report is None else str(self.report)
