"""greenletio.pg: a PostgreSQL driver for sync and async code. It is not written yet."""

if __name__ != "greenletio.pg":
    raise ImportError(
        f"pg/ is the source of greenletio.pg and was imported as {__name__!r}: import greenletio.pg"
    )

__all__ = ()
