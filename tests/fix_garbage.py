"""A garbage collection in the midst of things: before Python 3.12 any allocation may begin one."""

import contextlib
import gc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def collecting(allocations: int, act: Callable[[], object]) -> Iterator[None]:
    """`act` is called by a collection that begins after about so many allocations in the block.

    If none begins, it is called at the block's end.
    """

    def begin(*_: object) -> None:
        if pending:
            pending.pop()()

    pending = [act]
    before = gc.get_threshold()
    gc.collect()  # what was freed is not used again: that would be no allocation
    gc.callbacks.append(begin)
    counted: list[set[int]] = [set() for _ in range(10)]
    gc.set_threshold(len(counted) + allocations)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(begin)
        begin()
