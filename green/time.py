"""``time`` whose ``sleep`` suspends the greenlet. All else is the standard module's.

Deviation: none in a greenlet or without a loop; directly in a running loop ``sleep`` raises
``WouldBlockError``.
"""

import time as _std
from operator import index
from typing import Any

from greenletio import _core
from greenletio.green._std import adopt, public

__all__ = public(_std)


def sleep(seconds: float, /) -> None:
    """Wait ``seconds`` (at least; 0 only lets the others run). Can be cancelled; any thread.

    Raises ``ValueError`` for a negative length, ``TypeError`` for what is no number.
    """
    length = seconds if isinstance(seconds, float) else float(index(seconds))
    if length != length:
        raise ValueError("Invalid value NaN (not a number)")
    if length < 0:
        raise ValueError("sleep length must be non-negative")
    _core.sleep(length)


adopt(globals(), _std)

for _name in ("tzname", "timezone", "altzone", "daylight"):
    del globals()[_name]  # tzset() changes them: they are looked up each time


def __getattr__(name: str) -> Any:
    return getattr(_std, name)
