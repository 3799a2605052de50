"""Drop-in replacements of the blocking standard library modules.

``from greenletio.green import socket`` gives the module that ``import socket`` would give,
with one difference: where the standard one blocks the thread, this one suspends the greenlet
and the loop goes on. Where no loop runs (a script, a thread of the system) the same calls
block plainly, and directly in a running loop they raise ``WouldBlockError``.
"""

if __name__ == "green":
    raise ImportError(
        "green/ is the source of the package greenletio.green and is not importable from a "
        "checkout: build it with `make build` and import greenletio.green"
    )

from greenletio._patch import load_twins

load_twins()

__all__ = (
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
