"""The errors of greenletio: one family."""

__all__ = ("GreenletioError", "WouldBlockError")


class GreenletioError(Exception):
    """The base of the errors that greenletio itself raises."""


class WouldBlockError(GreenletioError, RuntimeError):
    """A wait was made directly in a running loop, which it would have held."""
