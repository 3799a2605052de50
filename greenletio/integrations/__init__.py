"""greenletio inside other libraries: one module each, imported by whoever uses that library."""

from __future__ import annotations

__all__ = ()
